"""Tokenizers: bytes, tokenizer.json, tiktoken.model, and text that comes in pieces of letters."""

import base64
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minik2 import tokenizer

SAMPLES = ["", "Hello, world!", "naïve café 北京大学 🙂👍🏽", "I'LL don't 12345678",
           "a\r\n\n  b\t ", "HTMLParser 中文English混排", "\u0301 e\u0301", "x" * 50]  # fmt: skip


def told(stream, tokens):
    """The pieces of a stream, `end` included, and that none of them is half a letter."""
    return [*(stream.add(token) for token in tokens), stream.end()]


def ranks(path):
    """A tiktoken.model made from nothing: 256 bytes, then merges, two of them within letters."""
    merges = [b"th", b" th", b"the", b" the", b"ll", b"He", b"Hell", b"\xe5\x8c", b"\x8c\x97",
              b"\xf0\x9f", b"12", b"123", b"Parser", b"Pa", b"rs", b"er", b"Pars", b"\r\n",
              b"\xe4\xba\xac"]  # fmt: skip
    tokens = [bytes([b]) for b in range(256)] + merges
    path.write_bytes(b"".join(b"%s %d\n" % (base64.b64encode(t), r) for r, t in enumerate(tokens)))
    return {token: rank for rank, token in enumerate(tokens)}


def library_file(path):
    """A tokenizer.json with byte-level BPE, trained on a line, and a special token."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<end>"], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    made.train_from_iterator(["Hello hello world wide 北京北京"] * 3, trainer)
    made.save(str(path))
    return made


# Bytes.


@given(st.text())
def test_bytes_there_and_back(text):
    reader = tokenizer.Bytes()
    ids = reader.encode(text) if not any("\ud800" <= c <= "\udfff" for c in text) else []
    assert bytes(ids).decode() == "".join(told(reader.stream([]), ids))


@given(st.lists(st.integers(0, 255)))
def test_pieces_make_up_what_the_bytes_say(ids):
    """Broken letters too: each as bytes.decode has it, no later than it must be known."""
    pieces = told(tokenizer.Bytes().stream([]), ids)
    assert "".join(pieces) == bytes(ids).decode(errors="replace")
    for n in range(len(ids)):
        known = bytes(ids[: n + 1]).decode(errors="ignore")
        assert len("".join(pieces[: n + 1])) >= len(known)


def test_a_letter_is_held_until_it_is_whole():
    ids = list("é北🙂".encode())
    assert told(tokenizer.Bytes().stream([]), ids) == ["", "é", "", "", "北", "", "", "", "🙂", ""]
    assert told(tokenizer.Bytes().stream([]), ids[:1]) == ["", "\ufffd"]


def test_ids_that_are_no_bytes():
    assert told(tokenizer.Bytes().stream([]), [65, 900, 66]) == ["A", "\ufffd", "B", ""]


# tokenizer.json.


@pytest.mark.parametrize("text", SAMPLES)
def test_a_tokenizer_json_is_read_as_the_library_reads_it(tmp_path, text):
    made = library_file(tmp_path / "tokenizer.json")
    reader = tokenizer.load(tmp_path, 300)
    ids = reader.encode(text)
    assert reader.name == "tokenizer.json" and ids == made.encode(text).ids
    pieces = told(reader.stream([]), ids)
    assert "".join(pieces) == made.decode(ids, skip_special_tokens=False) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_special_token_is_shown_by_its_name(tmp_path):
    library_file(tmp_path / "tokenizer.json")
    reader = tokenizer.load(tmp_path, 300)
    assert reader.encode("<end>") == [0] and told(reader.stream([]), [0])[0] == "<end>"


def test_a_word_after_the_prompt_keeps_its_space(tmp_path):
    """SentencePiece's decoder drops the space before the first word, and only there."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"▁so": 0, "▁far": 1, "ther": 2}))
    made.decoder = tokenizers.decoders.Metaspace()
    made.save(str(tmp_path / "tokenizer.json"))
    reader = tokenizer.load(tmp_path, 3)
    assert told(reader.stream([0]), [1, 2, 1]) == [" far", "ther", " far", ""]
    assert told(reader.stream([]), [1, 1]) == ["far", " far", ""]


# tiktoken.model.


@pytest.mark.parametrize("text", SAMPLES)
def test_a_tiktoken_model_is_read_as_tiktoken_reads_it(tmp_path, text):
    tiktoken = pytest.importorskip("tiktoken")
    from tiktoken.load import load_tiktoken_bpe

    held = ranks(tmp_path / "tiktoken.model")
    assert load_tiktoken_bpe(str(tmp_path / "tiktoken.model")) == held
    want = tiktoken.Encoding("x", pat_str=tokenizer.KIMI, mergeable_ranks=held, special_tokens={})
    reader = tokenizer.load(tmp_path, 1000)
    ids = reader.encode(text)
    assert reader.name == "tiktoken.model" and ids == want.encode(text)
    pieces = told(reader.stream([]), ids)
    assert "".join(pieces) == text and not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize(("text", "cuts"), [
    ("北京English大学", ["北京", "English", "大学"]),
    ("HTMLParser reads", ["HTMLParser", " reads"]),
    ("camelCase", ["camel", "Case"]),
    ("I'll DON'T", ["I'll", " DON'T"]),
    ("1234567", ["123", "456", "7"]),
    ("a  b", ["a", " ", " b"]),
    ("x!!\n\ny", ["x", "!!\n\n", "y"]),
    ("  \n z", ["  \n", " z"]),
])  # fmt: skip
def test_how_kimi_cuts_text(text, cuts):
    """By hand from the pattern's meaning; with a rank for every cut, a cut is a token."""
    tiktoken = pytest.importorskip("tiktoken")
    tokens = dict.fromkeys([*(bytes([b]) for b in range(256)), *(c.encode() for c in cuts)])
    made = tiktoken.Encoding("x", pat_str=tokenizer.KIMI, special_tokens={},
                             mergeable_ranks={t: i for i, t in enumerate(tokens)})  # fmt: skip
    assert [made.decode([token]) for token in made.encode(text)] == cuts


def test_special_tokens_are_named_by_the_file_beside_it(tmp_path):
    pytest.importorskip("tiktoken")
    first = len(ranks(tmp_path / "tiktoken.model"))
    added = {str(first + 3): {"content": "<|im_end|>"}, "7": {"content": "not special"}}
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"added_tokens_decoder": added}))
    reader = tokenizer.load(tmp_path, 1000)
    assert reader.encode("a<|im_end|>") == [97, first + 3]
    assert reader.encode(f"<|reserved_token_{first + 255}|>") == [first + 255]
    assert told(reader.stream([]), [first + 3, 5000]) == ["<|im_end|>", "\ufffd", ""]
    config.write_text("[]")
    with pytest.raises(ValueError, match="added_tokens_decoder"):
        tokenizer.load(tmp_path, 1000)


# Which it is, and what is refused.


def test_bytes_are_taken_where_no_file_is(tmp_path):
    assert tokenizer.load(tmp_path, 256).name == "bytes"
    with pytest.raises(ValueError, match=r"vocabulary of 255 is too small for bytes"):
        tokenizer.load(tmp_path, 255)


@pytest.mark.parametrize(("content", "words"), [
    (b"YQ== 0\nYQ==\n", "Line 2 of"),
    (b"YQ== zero\n", "Line 1 of"),
    (b"!! 0\n", "Line 1 of"),
    (b"YQ== 0\n", "lacks a byte or a rank"),
    (b"", "lacks a byte or a rank"),
])  # fmt: skip
def test_damaged_ranks_are_refused(tmp_path, content, words):
    pytest.importorskip("tiktoken")
    (tmp_path / "tiktoken.model").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        tokenizer.load(tmp_path, 1000)


def test_a_gap_between_ranks_is_refused(tmp_path):
    pytest.importorskip("tiktoken")
    path = tmp_path / "tiktoken.model"
    ranks(path)
    path.write_bytes(path.read_bytes().replace(b" 270\n", b" 999\n"))
    with pytest.raises(ValueError, match="lacks a byte or a rank"):
        tokenizer.load(tmp_path, 1000)


def test_a_damaged_tokenizer_json_is_refused(tmp_path):
    pytest.importorskip("tokenizers")
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(ValueError, match=r"tokenizer.json is no tokenizer .* fetch the file again"):
        tokenizer.load(tmp_path, 300)


@pytest.mark.parametrize(("module", "name"), [("tokenizers", "tokenizer.json"),
                                              ("tiktoken", "tiktoken.model")])  # fmt: skip
def test_a_library_that_is_missing_is_named(tmp_path, monkeypatch, module, name):
    (tmp_path / name).write_text("")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf"library {module}, which is not installed") as caught:
        tokenizer.load(tmp_path, 300)
    assert '".[text]"' in str(caught.value)
