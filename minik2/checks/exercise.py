"""What an exercise is, and where the exercises are found.

Unusual here: an exercise is data. A module `lessonNN.py` beside this file holds the Exercise
objects of one lesson, and every one is found by its type: nothing is registered, no list is kept.
The known wrong implementations stand beside the right one and serve twice: they name a learner's
misconception, and they test the check itself.
"""

import difflib
import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Case = tuple[Any, ...]
# An invariant calls the learner's function again, on inputs it has changed, through this.
Call = Callable[..., Any]


@dataclass(frozen=True)
class Wrong:
    """A misconception: functions that have it, what goes wrong, and the question that leads out.

    Several functions where the same thought can be written in ways that give different numbers.
    """

    id: str
    functions: tuple[Callable[..., Any], ...]
    explanation: str
    question: str


def wrong(
    id: str,
    functions: Callable[..., Any] | Iterable[Callable[..., Any]],
    explanation: str,
    question: str,
) -> Wrong:
    """A Wrong from one function or several."""
    several = (functions,) if callable(functions) else tuple(functions)
    return Wrong(id, several, " ".join(explanation.split()), " ".join(question.split()))


@dataclass(frozen=True)
class Invariant:
    """Something that must hold whatever the numbers are.

    meaning: the sentence a learner reads. broken(call, args, out): None where it holds, else what
    was seen instead; `call(*args)` runs the learner's function again.
    """

    meaning: str
    broken: Callable[[Call, Case, Any], str | None]


@dataclass(frozen=True)
class Exercise:
    """One exercise: how it is posed, its right answer, and the wrong ones that learners write.

    id: "topic.name"; lesson: "01"; difficulty: 1 to 5; signature: as in the stub; axes: one letter
    an axis of the output, for messages; keys: of a large dict among the arguments, those that a
    message shows. cases(rng): an iterable of argument tuples over several shapes, float64, drawn
    so that every misconception shows. reference: the right answer.
    function: the name the learner defines, by default what follows the dot in `id`. formula: a
    line of arithmetic (three known wrong answers are enough, for a function four). seconds: the
    limit of one call. approximate: right answers differ by more than rounding, so that how exact
    one is says nothing of its dtype.

    A float64 answer with errors of float32's size passes (torch's default dtype is one slip
    away), so cases must make every misconception cost more than 1e-3.
    """

    id: str
    lesson: str
    title: str
    difficulty: int
    minutes: int
    why: str
    signature: str
    cases: Callable[[np.random.Generator], Iterable[Case]] = field(repr=False)
    reference: Callable[..., Any] = field(repr=False)
    wrong: tuple[Wrong, ...] = field(repr=False)
    invariants: tuple[Invariant, ...] = field(default=(), repr=False)
    axes: str = ""
    keys: tuple[str, ...] = ()
    function: str = ""
    formula: bool = False
    approximate: bool = False
    seconds: float = 5.0

    def __post_init__(self) -> None:
        if not self.function:
            object.__setattr__(self, "function", self.id.rpartition(".")[2])

    @property
    def misconceptions(self) -> list[str]:
        """The ids of the misconceptions that a check can name in `looks_like`."""
        return [wrong.id for wrong in self.wrong]


@functools.cache
def _modules() -> dict[str, Any]:
    """The lessons' modules by number."""
    folder = str(Path(__file__).parent)
    names = sorted(m.name for m in pkgutil.iter_modules([folder]) if m.name.startswith("lesson"))
    return {n.removeprefix("lesson"): importlib.import_module(f"minik2.checks.{n}") for n in names}


def exercises() -> list[Exercise]:
    """Every exercise of the course, lesson by lesson, in the order of the lesson."""
    return [e for m in _modules().values() for e in vars(m).values() if isinstance(e, Exercise)]


def lesson_title(number: str) -> str:
    """The title of lesson "01"."""
    return _modules()[number].TITLE


def find(id: str) -> Exercise:
    """The exercise with this id; ValueError, with the nearest ids, where there is none."""
    by_id = {exercise.id: exercise for exercise in exercises()}
    if isinstance(id, str) and id in by_id:
        return by_id[id]
    names = {name.rpartition(".")[2]: name for name in by_id}
    text = str(id)
    near = difflib.get_close_matches(text, by_id, 3)
    near += [names[n] for n in difflib.get_close_matches(text.rpartition(".")[2], names, 2)]
    listed = list(dict.fromkeys(near)) or list(by_id)
    hint, end = ("did you mean", "?") if near else ("the exercises are", ".")
    raise ValueError(f"There is no exercise {id!r}; {hint} {', '.join(listed)}{end}")
