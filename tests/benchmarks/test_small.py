"""The benchmark of a whole training run: what it counts, and what it fails on."""

import json

from benchmarks import records, small


def found(below, held_out=1.7):
    return {"curve": [(0.5, 5.8), (30.0, held_out)], "seconds": 31.0, "held_out": held_out,
            "seconds_below": below, "tokens_per_second": 1e4}  # fmt: skip


def test_what_is_promised_and_not_kept_is_said():
    assert small.shortfalls({"pytorch": found(30.0)}) == []
    (late,) = small.shortfalls({"reference": found(61.0)})
    assert late.startswith("reference is at 1.70 nats a byte after 31 s, where 1.9 in 60 s")
    (never,) = small.shortfalls({"pytorch": found(None, 2.0)})
    assert never.startswith("pytorch is at 2.00")
    assert "never" in small.table({"pytorch": found(None, 2.0)})


def test_a_short_run_in_a_process_of_its_own(tmp_path, monkeypatch):
    """Two steps are no training: the run says so, in a record that holds how it was made."""
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    monkeypatch.setattr(small, "ENGINES", ("pytorch",))
    assert small.main(["--steps", "2", "--threads", "1", "--record"]) == 1
    record = json.loads((tmp_path / "small.json").read_text())
    got = record["engines"]["pytorch"]
    assert got["settings"]["steps"] == 2 and got["threads"] == 1
    assert len(got["curve"]) == 2 and got["curve"][-1][1] == got["held_out"] < got["curve"][0][1]
    assert got["seconds_below"] is None and got["tokens_per_second"] > 100
    assert record["machine"]["cores"] >= 1
