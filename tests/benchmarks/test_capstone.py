"""The benchmark of the capstone's entries: what it runs, what it leaves, what it fails on."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import capstone
from minik2.capstone import entry, results
from minik2.capstone.board import boards, table
from tests.capstone.test_results import trial

ENTRIES = [capstone.ENTRIES / f"{name}.py" for name in capstone.WORKED]
NATS = {"baseline": 1.6, "longer": 1.5, "longer_muonclip": 1.4, "lengthened": 1.3,
        "wider": 1.7, "muonclip": 1.65, "annealed": 1.62}  # fmt: skip
# A trial without training: what the judge would print, and no more.
QUICK = """
import json, sys, os
from pathlib import Path
path, minutes, seed = sys.argv[1:]
made, nats, digests = (json.loads(os.environ[name]) for name in ("A_TRIAL", "NATS", "DIGESTS"))
assert os.environ["OMP_NUM_THREADS"] == "1"
name = Path(path).stem
if name == os.environ.get("FAILS"):
    sys.exit("it cannot be trained")
print(json.dumps(made | {"entry": name, "source": digests[name], "seed": int(seed),
                         "minutes": float(minutes), "nats": nats[name]}))
"""


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """Trials that take no time; results and README in a folder of the test's."""
    monkeypatch.setattr(capstone, "ONE", QUICK)
    monkeypatch.setattr(capstone, "STORED", tmp_path / "results.json")
    monkeypatch.setattr(capstone, "README", tmp_path / "README.md")
    monkeypatch.setattr(capstone, "PAUSE", 0.01)
    monkeypatch.setattr(capstone, "expected", lambda minutes: trial(minutes=minutes))
    monkeypatch.setenv("A_TRIAL", json.dumps(trial()))
    monkeypatch.setenv("NATS", json.dumps(NATS))
    digests = {path.stem: entry.digest_of(path.read_text("utf-8")) for path in ENTRIES}
    monkeypatch.setenv("DIGESTS", json.dumps(digests))
    (tmp_path / "README.md").write_text("<!-- board:begin -->\nopen\n<!-- board:end -->\n")
    return tmp_path


def test_it_runs_what_is_missing_and_fills_the_readme(quick, capsys, monkeypatch):
    assert capstone.main(["--record", "--at-once", "3", "--seeds", "0"]) == 1
    assert "baseline has 1 seeds, of 3." in capsys.readouterr().err
    assert capstone.main(["--record", "--at-once", "3"]) == 0
    trials = results.read(quick / "results.json")
    assert len(trials) == 21 and {t["seed"] for t in trials[:7]} == {0}
    readme = (quick / "README.md").read_text()
    ((said, rows),) = boards(trials).items()
    assert said in readme and table(rows) in readme and "open" not in readme
    assert capstone.told(rows) in readme
    # Nothing is left to be run.
    monkeypatch.setattr(capstone, "ONE", "raise SystemExit('not again')")
    assert capstone.main(["--record"]) == 0
    assert "are not in" not in capsys.readouterr().out


def test_without_record_nothing_is_run(quick, capsys):
    assert capstone.main([]) == 1
    said = capsys.readouterr()
    assert "21 trials are not in results.json" in said.out
    assert "There are no results yet" in said.err and not (quick / "results.json").exists()


def test_a_trial_that_fails_is_a_sentence_and_the_others_stay(quick, capsys, monkeypatch):
    monkeypatch.setenv("FAILS", "longer")
    assert capstone.main(["--record", "--at-once", "1"]) == 1
    assert "longer, seed 0 failed: it cannot be trained" in capsys.readouterr().err
    assert [t["entry"] for t in results.read(quick / "results.json")] == ["baseline"]


def test_results_from_elsewhere_are_drawn_without_a_trial(quick, monkeypatch):
    made = [trial(path.stem, NATS[path.stem], seed, source=entry.digest_of(path.read_text()),
                  machine={"processor": "Another"}) for path in ENTRIES for seed in (0, 1, 2)]
    results.add(quick / "results.json", made)
    monkeypatch.setattr(capstone, "ONE", "raise SystemExit('none')")
    assert capstone.main(["--redraw"]) == 0
    assert "Another" in (quick / "README.md").read_text()


def test_what_happened_is_told_beside_what_an_entry_starts_from():
    made = [trial(name, nats + seed / 10 * (name == "annealed"), seed, steps=steps)
            for name, nats, steps in (("baseline", 1.6, 2000), ("muonclip", 1.5, 1100),
                                      ("annealed", 1.45, 1000)) for seed in (0, 1)]  # fmt: skip
    ((_, rows),) = boards(made).items()
    assert capstone.told(rows).splitlines() == [
        "- `muonclip` beside `baseline`: lower in 2 of 2 seeds, -0.100 nats (-0.100 to -0.100); "
        "1,100 steps instead of 2,000, 1.02 M bytes instead of 1.02 M.",
        "- `annealed` beside `muonclip`: lower in 1 of 2 seeds, +0.000 nats (-0.050 to +0.050); "
        "1,000 steps instead of 1,100, 1.02 M bytes instead of 1.02 M."]


def test_another_file_leaves_the_readme_alone(quick):
    before = (quick / "README.md").read_text()
    assert capstone.main(["--record", "--at-once", "8", "--results", str(quick / "o.json")]) == 0
    assert (quick / "README.md").read_text() == before and not (quick / "results.json").exists()


def test_another_source_is_another_trial():
    made = [trial(path.stem, source=entry.digest_of(path.read_text())) for path in ENTRIES]
    assert capstone.missing(made, trial(), ENTRIES, [0]) == []
    made[1]["source"] = "0" * 16
    assert capstone.missing(made, trial(), ENTRIES, [0]) == [(ENTRIES[1], 0)]
    assert len(capstone.missing(made, trial(threads=2), ENTRIES, [0])) == 7


def test_what_the_entries_claim_is_checked():
    made = [trial(name, nats, seed) for name, nats in NATS.items() for seed in (0, 1, 2)]
    assert capstone.shortfalls(made) == []
    worse = [t | ({"nats": 1.6} if t["entry"] == "longer" and t["seed"] == 2 else {})
             for t in made]  # fmt: skip
    assert capstone.shortfalls(worse) == ["longer is not below the baseline in every seed."]
    better = [t | ({"nats": 1.5} if t["entry"] == "wider" and t["seed"] == 1 else {}) for t in made]
    assert capstone.shortfalls(better) == ["wider is below the baseline in some seed."]
    busy = [t | ({"cpu_seconds": 100.0} if t["entry"] == "wider" else {}) for t in made]
    assert capstone.shortfalls(busy) == ["wider had less than 95% of a core; was the machine "
                                         "quiet?"]  # fmt: skip
    assert capstone.shortfalls(made[3:]) == ["baseline has no trial on the newest board."]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pinning is Linux's")
def test_cores_are_named_once_each():
    import os

    ours, one_each = os.sched_getaffinity(0), capstone.cores()
    assert set(one_each) <= ours and len(set(one_each)) == len(one_each) > 0
    seen = [one for cpu in one_each for one in capstone._siblings(cpu, sorted(ours))]
    assert sorted(seen) == sorted(ours)
    assert capstone._siblings(10**6, [10**6]) == [10**6]


def test_the_stored_board_is_that_of_the_entries():
    """Results in the repository belong to the entries beside them, and bear out what they claim."""
    stored, readme = results.read(capstone.STORED), capstone.README.read_text(encoding="utf-8")
    board = readme.partition("<!-- board:begin -->")[2].partition("<!-- board:end -->")[0].strip()
    trials = capstone.current(stored, ENTRIES)
    assert len(trials) == 3 * len(ENTRIES) and capstone.shortfalls(trials) == []
    said, rows = list(boards(trials).items())[-1]
    assert said in board and table(rows) in board and capstone.told(rows) in board


def test_the_script_to_edit_is_the_baseline():
    """All but the words on top."""
    def code(path: Path) -> str:
        return path.read_text(encoding="utf-8").partition('"""\n\nimport')[2]

    assert code(capstone.FOLDER / "my_entry.py") == code(ENTRIES[0]) != ""
