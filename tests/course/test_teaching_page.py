"""The worked example in book/teaching.md, put through what every exercise has to stand.

The tests are those of test_exercises.py, called with the example's exercise; the example becomes a
lesson of its own for as long as they run.
"""

import dataclasses
import re
import types
from pathlib import Path

import numpy as np
import pytest

from minik2.checks import Exercise, check, exercises
from minik2.checks import exercise as registry
from minik2.checks.exercise import wrong
from minik2.checks.marking import OUTCOMES
from tests.course import test_exercises as every
from tests.course.other_ways import OTHER_WAYS

PAGE = (Path(__file__).parents[2] / "book" / "teaching.md").read_text(encoding="utf-8")
MODULE, SOURCE, WAYS = re.findall(r"^```python\n(.*?)^```", PAGE, re.S | re.M)
SETUP = '# %% role="setup"\nimport numpy as np\n\nfrom minik2.checks import check\n\n'


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The page's exercise, known to checks and lessons as lesson 99."""
    names = {"Exercise": Exercise, "wrong": wrong, "np": np}
    exec(MODULE, names)
    exec(WAYS, names)
    made = dataclasses.replace(names["FAIR_SHARE"], lesson="99")
    lesson = types.SimpleNamespace(TITLE="An example", FAIR_SHARE=made)
    monkeypatch.setitem(registry._modules(), "99", lesson)
    source = tmp_path / "99_an_example.py"
    source.write_text(SETUP + SOURCE, encoding="utf-8")
    monkeypatch.setitem(every.SOURCES, "99", source)
    for id, ways in names["OTHER_WAYS"].items():
        monkeypatch.setitem(OTHER_WAYS, id, ways)
    return made


def test_it_is_as_short_as_it_claims_and_not_in_the_course():
    assert len((MODULE + SOURCE).splitlines()) < 40
    assert "balance.fair_share" not in {e.id for e in exercises()}


@pytest.mark.parametrize("test", [
    every.test_the_untouched_stub_is_not_attempted,
    every.test_stub_signature_and_reference_name_the_same_arguments,
    every.test_the_right_answer_passes,
    every.test_the_solved_cell_of_the_lesson_passes,
    every.test_enough_misconceptions_are_known,
    every.test_right_answers_written_another_way_pass,
    every.test_a_mistake_that_nobody_knows_fails_without_a_diagnosis,
], ids=lambda test: test.__name__)
def test_it_stands_what_every_exercise_stands(example, test):
    test(example)


def test_each_mistake_is_told_its_own(example):
    assert len(example.wrong) == 3
    for mistake in example.wrong:
        every.test_a_wrong_answer_is_told_its_own_mistake(example, mistake)
        every.test_so_it_is_in_float32_and_in_torch(example, mistake)


def test_the_machinery_finds_it(example):
    assert example in exercises()
    result = check("balance.fair_share", lambda tokens, chosen, experts: tokens / experts)
    assert result.looks_like == "one_choice"


def test_every_outcome_of_grading_is_in_the_table_of_the_page():
    head, *told = re.findall(r"^\| ([a-z ]+) \|", PAGE, re.M)
    assert head == "outcome" and sorted(told) == sorted(OUTCOMES)
