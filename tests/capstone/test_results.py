"""The results file: whole after every accident, one list for several processes; and the board."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minik2.capstone import entry, results
from minik2.capstone.board import boards, conditions, table

MACHINE = {"processor": "A processor", "cores": 2, "gpus": [], "python": "3.12.1", "numpy": "2.4.6",
           "torch": "2.13.0"}  # fmt: skip


def trial(name="mine", nats=2.0, seed=0, **changed):
    return {
        "entry": name, "title": "", "source": f"{name:0<16}"[:16], "seed": seed, "minutes": 5.0,
        "threads": 1, "device": "cpu", "nats": nats, "steps": 1000, "tokens": 1_024_000,
        "seconds": 300.1, "cpu_seconds": 299.0, "parameters": 1_689_200, "active": 804_464,
        "text": {"train": "aa", "validation": "bb"}, "date": "2026-01-01", "machine": MACHINE,
    } | changed  # fmt: skip


def test_what_is_added_is_read(tmp_path):
    path = tmp_path / "new" / "results.json"
    assert results.read(path) == []
    results.add(path, [trial(seed=0)])
    results.add(path, [trial(seed=1), trial(seed=2)])
    assert results.read(path) == [trial(seed=seed) for seed in (0, 1, 2)]
    assert len(path.read_text().splitlines()) == 5  # a line a trial


def test_the_source_is_kept_beside(tmp_path):
    source = tmp_path / "mine.py"
    source.write_text("def train(run):\n    return 'é'\n", encoding="utf-8")
    made = entry.load(source)
    kept = results.keep_source(tmp_path / "results.json", made)
    assert kept == tmp_path / "sources" / f"mine-{made.digest}.py"
    assert kept.read_bytes() == source.read_bytes()


SPOILED = {
    "no JSON": ("{", "it holds no list of trials"),
    "another list": ("[1, 2]", "it holds no list of trials"),
    "no list": ('{"trials": 3}', "it holds no list of trials"),
    "no trial": ('{"trials": [3]}', "trial 1 has None as its entry"),
    "a field gone": (json.dumps({"trials": [trial(), {"entry": "mine"}]}),
                     "trial 2 has None as its title"),
    "a wrong kind": (json.dumps({"trials": [trial(seed="0")]}), "trial 1 has '0' as its seed"),
    "no number": (json.dumps({"trials": [trial(nats=float("nan"))]}),
                  "trial 1 has nan as its nats"),
    "true": (json.dumps({"trials": [trial(steps=True)]}), "trial 1 has True as its steps"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_file_is_named_and_left_alone(tmp_path, name):
    text, sentence = SPOILED[name]
    path = tmp_path / "results.json"
    path.write_text(text)
    for call in (lambda: results.read(path), lambda: results.add(path, [trial()])):
        with pytest.raises(ValueError, match="not a file of results") as said:
            call()
        assert sentence in str(said.value)
    assert path.read_text() == text


def test_a_file_that_is_no_text_and_a_folder_are_sentences(tmp_path):
    path = tmp_path / "results.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="it is no text"):
        results.read(path)
    with pytest.raises(OSError, match="cannot be read"):
        results.read(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be written"):
        results.add(tmp_path / "file" / "results.json", [trial()])


# Adds one trial after the other, seeds counted up from the first to before the last.
ADDS = """
import json, sys
from pathlib import Path
from minik2.capstone import results
path, trial, first, last = sys.argv[1:]
for seed in range(int(first), int(last)):
    results.add(Path(path), [json.loads(trial) | {"seed": seed}])
"""


def adding(path, made, first, last):
    words = [sys.executable, "-c", ADDS, path, json.dumps(made), str(first), str(last)]
    return subprocess.Popen(words, cwd=Path(__file__).parents[2])


def test_processes_that_add_at_once_lose_nothing(tmp_path):
    path = tmp_path / "results.json"
    processes = [adding(path, trial(), first, first + 20) for first in (0, 20)]
    assert [process.wait() for process in processes] == [0, 0]
    assert sorted(t["seed"] for t in results.read(path)) == list(range(40))


@pytest.mark.skipif(os.name != "posix", reason="there no process can be killed by a signal")
def test_a_killed_process_leaves_whole_trials(tmp_path):
    path, long = tmp_path / "results.json", trial(title="x" * 10**5)
    for more in (3, 8):
        before = len(results.read(path))
        process = adding(path, long, 0, 10**6)
        while len(results.read(path)) < before + more:
            assert process.poll() is None
            time.sleep(0.003)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(results.read(path)) >= before + more
    results.add(path, [trial("after")])
    assert results.read(path)[-1]["entry"] == "after"


def test_the_board_is_sorted_and_says_how_far_seeds_lie_apart():
    found = [trial(*made) for made in (
        ("baseline", 1.8, 0), ("baseline", 1.9, 1), ("worse", 2.0, 0), ("better", 1.7, 0),
        ("better", 1.85, 1), ("better", 1.5, 7))]  # fmt: skip
    ((said, rows),) = boards(found).items()
    assert said == conditions(found[0])
    assert [(row.entry, row.seeds) for row in rows] == [
        ("better", (0, 1, 7)), ("baseline", (0, 1)), ("worse", (0,))]
    better = rows[0]
    assert (better.least, better.most) == (1.5, 1.85)
    assert better.nats == pytest.approx((1.7 + 1.85 + 1.5) / 3)
    # Seed 7 has no baseline to be compared with.
    assert better.against == pytest.approx((-0.1, -0.05))
    lines = table(rows).splitlines()
    assert re.split(r"\s{2,}", lines[1]) == [
        "better", "better0", "1.6833", "1.5000 to 1.8500", "3", "-0.0750", "2 of 2", "1,000",
        "1.02 M", "1.69 M"]  # fmt: skip
    assert re.split(r"\s{2,}", lines[2])[5:7] == ["-", "-"]
    assert "0 of 1" in lines[3] and "+0.2000" in lines[3]
    assert lines[4].startswith("One seed is one draw")


def test_one_seed_tried_twice_counts_once():
    ((_, rows),) = boards([trial(nats=1.0), trial(nats=2.0), trial(nats=3.0, seed=1)]).items()
    assert rows[0].seeds == (0, 1) and rows[0].nats == pytest.approx(2.25)


def test_versions_of_a_script_stand_apart():
    ((_, rows),) = boards([trial(source="a" * 16), trial(nats=1.9, source="b" * 16)]).items()
    assert [row.source[0] for row in rows] == ["b", "a"]


@pytest.mark.parametrize("changed", [
    {"minutes": 1.0}, {"threads": 2}, {"device": "cuda:0"}, {"text": {"train": "aa"}},
    {"machine": MACHINE | {"processor": "Another"}}, {"machine": MACHINE | {"torch": "2.11.0"}},
])  # fmt: skip
def test_other_conditions_have_a_board_of_their_own(changed):
    found = boards([trial(**changed), trial(), trial(seed=1, **changed)])
    assert [len(rows) for rows in found.values()] == [1, 1]
    # That of the newest trial comes last.
    assert list(found) == [conditions(trial()), conditions(trial(**changed))]


def test_a_busy_machine_is_marked():
    ((_, rows),) = boards([trial(cpu_seconds=200.0), trial("quiet")]).items()
    assert {row.entry: row.shared for row in rows} == {"mine": True, "quiet": False}
    said = table(rows)
    assert "mine*" in said and "* Other programs had the processor" in said
    ((_, rows),) = boards([trial(device="cuda:0", cpu_seconds=200.0)]).items()
    assert not rows[0].shared
