"""The corpus: whole files on one side, the same windows for a seed, targets one token on."""

import os
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from minik2.training import corpus as corpus_module
from minik2.training.corpus import Corpus, decode, encode, split_of


@pytest.fixture(scope="module")
def library() -> Corpus:
    return Corpus.standard_library()


def folder(tmp_path: Path, count: int = 40) -> Path:
    for n in range(count):
        (tmp_path / f"file{n}.py").write_text(f"x{n} = {n}\n" * 20)
    return tmp_path


def test_no_file_is_in_both_splits(library):
    train, validation = (set(library.files[split]) for split in corpus_module.SPLITS)
    assert train and validation and not train & validation
    assert 0.02 < len(validation) / (len(train) + len(validation)) < 0.09


def test_the_library_is_source_of_this_interpreter_and_nothing_else(library):
    root = Path(sysconfig.get_path("stdlib"))
    names = library.files["train"] + library.files["validation"]
    assert "argparse.py" in names
    for name in names:
        parts = Path(name).parts
        assert not {"site-packages", "dist-packages", "test", "tests"} & set(parts)
        assert name.endswith(".py") and (root / name).is_file()
    assert library.size("train") > 4_000_000
    assert library.size("validation") > 100_000


def test_bytes_are_the_files_each_ended_by_a_zero(library):
    name = library.files["train"][0]
    text = (Path(sysconfig.get_path("stdlib")) / name).read_bytes()
    assert bytes(library.bytes["train"][: len(text) + 1]) == text + b"\0"
    for split in corpus_module.SPLITS:
        assert (library.bytes[split] == 0).sum() >= len(library.files[split])


def test_a_split_depends_on_the_name_alone():
    names = [f"package/module{n}.py" for n in range(4000)]
    share = np.mean([split_of(name) == "validation" for name in names])
    assert share == pytest.approx(0.05, abs=0.015)
    few = Corpus((name, b"text") for name in names[:100])
    many = Corpus((name, b"text") for name in reversed(names))
    assert set(few.files["validation"]) <= set(many.files["validation"])
    assert many.files["train"] == sorted(many.files["train"])


@pytest.mark.parametrize("split", corpus_module.SPLITS)
def test_windows_are_int64_and_targets_are_one_token_on(library, split):
    tokens, targets = library.sample(split, 8, 64, np.random.default_rng(0))
    assert tokens.shape == targets.shape == (8, 64)
    assert tokens.dtype == targets.dtype == np.int64
    assert np.array_equal(tokens[:, 1:], targets[:, :-1])
    text = bytes(library.bytes[split])
    for row, last in zip(tokens, targets[:, -1], strict=True):
        assert bytes(row.astype(np.uint8)) + bytes([last]) in text


def test_the_same_seed_gives_the_same_windows(library):
    def draw(seed):
        return library.sample("train", 4, 32, np.random.default_rng(seed))[0]

    assert np.array_equal(draw(1), draw(1))
    assert not np.array_equal(draw(1), draw(2))
    again = Corpus.standard_library()
    assert np.array_equal(again.bytes["train"], library.bytes["train"])


def test_spread_windows_are_always_the_same_and_do_not_overlap(library):
    tokens, targets = library.spread("validation", 16, 128)
    assert np.array_equal(tokens, library.spread("validation", 16, 128)[0])
    assert np.array_equal(tokens[:, 1:], targets[:, :-1])
    assert len({bytes(row.astype(np.uint8)) for row in tokens}) == 16


def test_the_last_place_is_used_and_none_beyond_it():
    text = Corpus([("a", b"0123456789"), ("b", b"0123456789")])
    starts = {text.sample("train", 1, 9, np.random.default_rng(s))[0][0, 0] for s in range(40)}
    assert starts == {ord("0"), ord("1")}


def test_a_directory_of_text(tmp_path):
    (folder(tmp_path) / "picture.png").write_bytes(b"\x89PNG")
    text = Corpus.from_path(tmp_path)
    names = text.files["train"] + text.files["validation"]
    assert len(names) == 40 and "picture.png" not in names


def test_text_is_known_by_its_bytes_and_not_by_its_name(tmp_path):
    long = "é" * 5000  # a letter of two bytes lies across the end of what is looked at
    for name, content in {
        "Main.java": b"class Main {}", "LICENSE": b"MIT", "deep/down.xyz": b"x" + long.encode(),
        "latin.txt": "é".encode("latin-1"), "zeros.py": b"a\0b", "empty.txt": b"",
        ".git/config": b"hidden", ".hidden.txt": b"hidden",
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    text = Corpus.from_path(tmp_path)
    assert sorted(text.checksums) == ["LICENSE", "Main.java", "deep/down.xyz"]
    assert text.left_out == 2
    train, held_out = text.size("train"), text.size("validation")
    assert str(text) == (f"3 files, {train:,} bytes to train on, {held_out:,} held out, "
                         "2 left out, being no text")


def test_two_files_give_two_splits(tmp_path):
    text = Corpus.from_path(folder(tmp_path, 2))
    assert len(text.files["train"]) == len(text.files["validation"]) == 1


def test_one_file_is_cut_at_its_last_twentieth(tmp_path):
    path = tmp_path / "novel.txt"
    path.write_text("word " * 1000)
    text = Corpus.from_path(path)
    assert text.size("train") == 4750 + 1 and text.size("validation") == 250 + 1


def test_text_comes_back_from_its_tokens():
    assert decode(encode("naïve = 'λ'")) == "naïve = 'λ'"
    assert decode([255]) == "\N{REPLACEMENT CHARACTER}"


def test_errors_are_sentences(tmp_path, monkeypatch):
    with pytest.raises(OSError, match="no file or directory"):
        Corpus.from_path(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no text below .*: of 0 files none"):
        Corpus.from_path(tmp_path)
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ValueError, match=r"no text below .*: of 1 files none"):
        Corpus.from_path(tmp_path)
    with pytest.raises(ValueError, match=r"empty\.txt is empty; name a file"):
        Corpus.from_path(tmp_path / "empty.txt")
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match=r"binary is no text in UTF-8"):
        Corpus.from_path(tmp_path / "binary")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match=r"pipe is neither a file nor a directory"):
        Corpus.from_path(tmp_path / "pipe")
    with pytest.raises(ValueError, match="at least one file"):
        Corpus([("empty.py", b"")])
    text = Corpus.from_path(folder(tmp_path))
    with pytest.raises(ValueError, match="too few for windows of 100000"):
        text.sample("train", 1, 100_000, np.random.default_rng(0))
    with pytest.raises(ValueError, match="at least one token"):
        text.sample("train", 1, 0, np.random.default_rng(0))
    with pytest.raises(ValueError, match="'train' or 'validation'"):
        text.sample("test", 1, 4, np.random.default_rng(0))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "bare"))
    with pytest.raises(OSError, match="keeps no source"):
        Corpus.standard_library()
