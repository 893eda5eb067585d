"""A run's directory: the same run goes on, another is refused with what differs."""

import dataclasses
import json

import pytest

from minik2 import ModelConfig
from minik2.training import Corpus, Settings, identity
from minik2.training.store import RunError

CFG, SETTINGS = ModelConfig.preset("tiny"), Settings(steps=10)
FILES = {f"{name}.py": f"{name} = 1\n".encode() * 50 for name in "abcdefghij"}


def of(cfg=CFG, settings=SETTINGS, files=FILES):
    return identity.of(cfg, settings, Corpus(files.items()))


def test_the_same_run_goes_on(tmp_path):
    run = tmp_path / "deep" / "run"
    identity.claim(run, of())
    before = (run / identity.NAME).read_bytes()
    identity.claim(run, of())
    assert (run / identity.NAME).read_bytes() == before
    assert Settings.from_json(identity.read(run)["settings"]) == SETTINGS
    assert ModelConfig.from_json(identity.read(run)["config"]) == CFG


CHANGES = [
    (of(cfg=CFG.replace(n_routed_experts=16)), "config n_routed_experts: 8 in the run, 16 now"),
    (of(settings=dataclasses.replace(SETTINGS, rate=1e-3)),
     "settings rate: 0.01 in the run, 0.001 now"),
    (of(files=FILES | {"a.py": b"a = 2\n" * 50}), "text, changed: a.py"),
    (of(files={n: t for n, t in FILES.items() if n != "c.py"}), "text, gone: c.py"),
    (of(files=FILES | {"z.py": b"z = 3\n"}), "text, new: z.py"),
]  # fmt: skip


@pytest.mark.parametrize(("other", "line"), CHANGES, ids=[line for _, line in CHANGES])
def test_another_run_is_refused_with_the_difference(tmp_path, other, line):
    identity.claim(tmp_path, of())
    before = (tmp_path / identity.NAME).read_bytes()
    with pytest.raises(RunError) as caught:
        identity.claim(tmp_path, other)
    assert [x.strip() for x in str(caught.value).splitlines()[1:-1]] == [line]
    assert (tmp_path / identity.NAME).read_bytes() == before


def test_many_files_are_counted_not_listed(tmp_path):
    identity.claim(tmp_path, of())
    with pytest.raises(RunError, match=r"gone: a\.py, b\.py, c\.py, d\.py, e\.py and 4 more"):
        identity.claim(tmp_path, of(files={"j.py": FILES["j.py"]}))


def test_a_directory_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match=r"thesis\.txt"):
        identity.claim(tmp_path, of())
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(RunError, match="is a file"):
        identity.claim(tmp_path / "out", of())


def test_a_run_killed_before_it_was_written_down_begins_anew(tmp_path):
    (tmp_path / ".run.json.123").write_text('{"half')
    (tmp_path / ".lock").write_text("")
    identity.claim(tmp_path, of())
    assert identity.read(tmp_path)["settings"]["steps"] == 10


@pytest.mark.parametrize("text", ["", "{", "[]", '{"config": {}}', "\x00" * 20, '{"config": 3}'])
def test_a_damaged_run_json_is_one_sentence(tmp_path, text):
    (tmp_path / identity.NAME).write_text(text)
    with pytest.raises(RunError, match=r"run\.json"):
        identity.claim(tmp_path, of())
    assert (tmp_path / identity.NAME).read_text() == text


def test_what_is_no_run(tmp_path):
    with pytest.raises(RunError, match="is no run"):
        identity.read(tmp_path)


def test_it_is_json_that_a_person_can_read(tmp_path):
    identity.claim(tmp_path, of())
    raw = json.loads((tmp_path / identity.NAME).read_text())
    assert raw["config"]["n_routed_experts"] == 8
    assert set(raw["text"]) == set(FILES)
