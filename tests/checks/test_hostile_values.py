"""Whatever a process answers: the sandbox and the ladder take it in, and none of it passes.

A submission may speak for its process (see minik2/checks/sandbox.py), so any value that the
channel can carry may arrive in any place.
"""

import os
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from minik2.checks import notebooks, values
from minik2.checks.exercise import exercises
from minik2.checks.ladder import climb
from minik2.checks.sandbox import Sandbox, Stopped
from minik2.checks.subject import Outcome
from tests.checks.test_wire import VALUES

KEYS = st.sampled_from(["ticket", "trouble", "value", "mutated", "found", "functions", "replaced"])
REPLIES = st.dictionaries(KEYS, VALUES)
posix = pytest.mark.skipif(os.name != "posix", reason="the sandbox needs Linux or macOS")


class Liar:
    """A function that gives whatever `make(right, n)` says for its n-th call."""

    def __init__(self, exercise, make):
        self.exercise, self.make, self.calls = exercise, make, 0

    def is_stub(self) -> bool:
        return False

    def call(self, args, seconds) -> Outcome:
        self.calls += 1
        right = values.plain(self.exercise.reference(*args))
        return Outcome(self.make(right, self.calls))


@pytest.mark.parametrize("exercise", exercises(), ids=lambda e: e.id)
@settings(max_examples=20 if os.environ.get("MINIK2_SHORT") else 60, deadline=None)
@given(value=VALUES, from_call=st.integers(1, 3))
def test_any_value_is_taken_in_and_does_not_pass(exercise, value, from_call):
    """From the n-th call on; before it the right one, so that the later rungs are reached."""
    liar = Liar(exercise, lambda right, n: right if n < from_call else value)
    result = climb(exercise, liar, seed=1)
    assert not result.passed
    assert result.headline in result.message


def spoil(value, how: str):
    """A right value, with one thing wrong about it."""
    if isinstance(value, dict):
        return {key: spoil(item, how) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(spoil(item, how) for item in value)
    array = np.asarray(value)
    return {
        "nan": lambda: np.full(array.shape, np.nan),
        "infinite": lambda: np.full(array.shape, np.inf),
        "complex": lambda: array.astype(np.complex128),
        "half": lambda: np.asarray(np.clip(array, -6e4, 6e4), np.float16),
        "text": lambda: array.astype(str).tolist(),
        "one axis more": lambda: array[None],
        "empty": lambda: array[..., :0] if array.ndim else np.zeros(0),
        "huge": lambda: [10**400] * max(1, array.size),
        "off by a thousandth": lambda: array * 1.001,
        "as a string": lambda: str(value),
        "a boolean": lambda: array.astype(int if array.dtype == bool else bool),
    }[how]()


HOWS = ["nan", "infinite", "complex", "half", "text", "one axis more", "empty", "huge",
        "off by a thousandth", "as a string", "a boolean"]


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("exercise", exercises(), ids=lambda e: e.id)
def test_a_right_value_spoilt_does_not_pass(exercise, how):
    result = climb(exercise, Liar(exercise, lambda right, n: spoil(right, how)), seed=2)
    assert not result.passed and result.seen


@pytest.mark.parametrize("exercise", exercises(), ids=lambda e: e.id)
def test_the_right_value_passes(exercise):
    """So that the two tests above can fail."""
    assert climb(exercise, Liar(exercise, lambda right, n: right), seed=2).passed


@posix
@given(reply=REPLIES)
def test_any_reply_becomes_an_outcome_or_ends_the_process(reply):
    with Sandbox([], Path()) as sandbox:
        sandbox._ask = lambda limit, **request: reply
        outcome = sandbox.call("read", (), 1.0)
        assert outcome.trouble is None or isinstance(outcome.trouble.text, str)
        try:
            sandbox._read(reply)
        except Stopped as stopped:
            assert "protocol" in str(stopped)
        else:
            assert all(isinstance(kind, str) for kind in sandbox.found.values())
            assert isinstance(sandbox.replaced, bool)
        try:
            sandbox._cell(notebooks.Cell(1, "x"))
        except Stopped as stopped:
            assert "protocol" in str(stopped)
        assert all(isinstance(said, str) for said in sandbox.troubles.values())
