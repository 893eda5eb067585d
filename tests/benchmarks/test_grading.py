"""The benchmark of grading: its class is what it says, and an outcome that is not due stops it."""

import dataclasses
import json
import os

import pytest

from benchmarks import grading, records
from minik2.checks import exercises

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the sandbox needs Linux or macOS")


def test_thirty_learners_hand_in_every_lesson():
    lessons = sorted({e.lesson for e in exercises()})
    learners = grading.classroom(lessons)
    # Two hand in a file in which nothing can be read, and are asked for the other lessons.
    assert len(learners) == 30 and len({learner.name for learner in learners}) == len(learners)
    assert all({name[:2] for name in learner.files} == set(lessons) for learner in learners)
    whole = [learner for learner in learners if learner.kind not in grading.BROKEN]
    assert all(set(learner.expected) == {e.id for e in exercises()} for learner in whole)
    assert {learner.kind for learner in learners} == {
        *grading.COUNTS, *grading.HOSTILE, *grading.BROKEN}


def test_one_of_each_quick_kind():
    learners = grading.classroom(["00"], {"right": 3, "wrong": 1, "half done": 1})
    quick = [x for x in learners if x.kind in (*grading.COUNTS, "exit", "not JSON")]
    found = grading.measure(quick, 20.0)
    assert (found["submissions"], found["exercises"]) == (7, 3)
    assert {kind: times["submissions"] for kind, times in found["kinds"].items()} == {
        "right": 3, "wrong": 1, "half done": 1, "exit": 1, "not JSON": 1}
    for kind, times in found["kinds"].items():
        assert 0 < times["median"] <= times["most"]
        assert times["processor"] > 0 or kind == "not JSON"  # which starts no process
    # Six of them start a process, and Python alone takes some milliseconds to start.
    assert found["class_seconds"] > 0.01 and found["class_processor"] > 0.06


def test_an_outcome_that_is_not_due_is_an_error():
    right = grading.classroom(["00"], {"right": 3, "wrong": 0, "half done": 0})[0]
    spoilt = dataclasses.replace(right, files=grading.worksheets(["00"], {}))
    with pytest.raises(RuntimeError, match=r"config\.read: Row"):
        grading.hold(spoilt, grading.timed([spoilt], 20.0)[2])
    with pytest.raises(RuntimeError, match=r"config\.read: no row"):
        grading.hold(right, [])


def test_what_is_stored_is_within_five_seconds_a_submission():
    """By itself and once warm; one that hangs takes what the limits give it, which is no answer."""
    stored = json.loads((records.RESULTS / "grading.json").read_text(encoding="utf-8"))
    kinds = stored["kinds"]
    assert stored["submissions"] == 30 and set(kinds) == {
        *grading.COUNTS, *grading.HOSTILE, *grading.BROKEN}
    hang = {"endless loop", "endless call"}
    assert all(kinds[kind]["most"] <= 5 for kind in set(kinds) - hang)
    assert stored["class_seconds"] / stored["submissions"] <= 5
