"""The check: a ladder of four rungs, and on a miss a diagnosis.

    1 it ran    2 shape and type    3 what must hold    4 the values

Unusual here: a rung is asked of all cases before the next rung is tried, so that the outcome does
not hang on which case came first; and the diagnosis runs whatever the rung, as soon as there is
any output: a misconception that shows as nan or as a wrong shape is named all the same.
"""

import copy
import inspect
import random
import time
from typing import Any, Protocol

import numpy as np

from minik2.checks import values
from minik2.checks.exercise import Case, Exercise, Invariant, Wrong, find
from minik2.checks.picture import Picture
from minik2.checks.result import Result
from minik2.checks.subject import Local, Outcome, said_by


class Subject(Protocol):
    """Whose function is checked: `Local` in this process, or one in a process of its own."""

    def is_stub(self) -> bool: ...

    def call(self, args: tuple[Any, ...], seconds: float) -> Outcome: ...


class _Miss(Exception):
    """The first rung that failed, and what it saw."""

    def __init__(self, rung: int, seen: str, case: Case | None = None,
                 picture: Picture | None = None):
        super().__init__(seen)
        self.rung, self.seen, self.case, self.picture = rung, seen, case, picture


def check(id: str, fn: Any, seed: int | None = None) -> Result:
    """Climb the ladder with `fn` for the exercise `id`; shown in a notebook as a coloured box.

    seed: an earlier result's seed draws the same numbers again; None draws fresh ones. Raises
    ValueError for an unknown id. Nothing that `fn` does raises: it is in the result.
    """
    if seed is not None and (not isinstance(seed, (int, np.integer)) or seed < 0):
        raise ValueError(f"A seed is a whole number of 0 or more, or None, not {seed!r}.")
    return climb(find(id), Local(fn), seed, callable_given=callable(fn))


def climb(
    exercise: Exercise, subject: Subject, seed: int | None = None, callable_given: bool = True
) -> Result:
    """The ladder itself, for any subject. Raises RuntimeError where the exercise has no cases."""
    seed = random.SystemRandom().randrange(10**6) if seed is None else int(seed)
    start = time.perf_counter()
    cases = [tuple(case) for case in exercise.cases(np.random.default_rng(seed))]
    if not cases:
        raise RuntimeError(f"The check of {exercise.id} has no cases: it would pass anything.")
    found: dict[str, Any] = {"id": exercise.id, "seed": seed, "cases": len(cases)}

    def result(**more: Any) -> Result:
        return Result(**found, **more, seconds=time.perf_counter() - start)

    if subject.is_stub():
        return result(state="not attempted", rung=1)
    if not callable_given:
        seen = f"check() wants the function itself: check({exercise.id!r}, {exercise.function})."
        return result(state="not yet", rung=1, seen=seen)
    outcomes: list[Outcome] = []
    for case in cases:
        outcomes.append(subject.call(case, exercise.seconds))
        trouble = outcomes[-1].trouble
        if trouble and trouble.kind == "stub" and len(outcomes) == 1:
            return result(state="not attempted", rung=1)
        if trouble and trouble.kind in ("time", "stopped"):
            break  # the next call would only wait as long again
    expected = [_right(exercise, case) for case in cases]
    try:
        error = _climb(exercise, subject, cases, outcomes, expected)
    except _Miss as miss:
        wrong = diagnose(exercise, cases, outcomes, expected)
        return result(
            state="not yet", rung=miss.rung, seen=miss.seen, picture=miss.picture,
            shapes=describe(exercise, miss.case) if miss.case is not None else "",
            looks_like=wrong.id if wrong else None,
            explanation=wrong.explanation if wrong else "",
            question=wrong.question if wrong else "",
        )
    remark = "" if exercise.approximate else _remark(outcomes, error)
    return result(state="passed", rung=4, largest_error=error, remark=remark)


def _climb(
    exercise: Exercise, subject: Subject, cases: list[Case], outcomes: list[Outcome],
    expected: list[Any],
) -> float:
    """Raises _Miss at the first rung that fails; returns the largest relative error."""
    for case, outcome, right in zip(cases, outcomes, expected, strict=False):
        _ran(exercise, case, outcome, right)
    fitted = []
    for case, outcome, right in zip(cases, outcomes, expected, strict=True):
        try:
            fitted.append(values.fit(right, outcome.value))
        except values.Misfit as misfit:
            raise _Miss(2, str(misfit), case) from None
        if outcome.mutated:
            raise _Miss(2, "It changed one of its arguments in place; work on a copy, because the "
                           "caller still needs them.", case)
    for invariant in exercise.invariants:
        for case, out, right in zip(cases, fitted, expected, strict=True):
            _holds(invariant, exercise, subject, case, out, right)
    largest = 0.0
    for case, out, right in zip(cases, fitted, expected, strict=True):
        difference, error = values.compare(right, out)
        if difference:
            picture = Picture.of(difference, exercise.axes)
            raise _Miss(4, _first_difference(difference, exercise.axes), case, picture)
        largest = max(largest, error)
    return largest


def _right(exercise: Exercise, case: Case) -> Any:
    # A learner's np.seterr(all="raise") is not meant for the right answer.
    with np.errstate(all="ignore"):
        return values.plain(exercise.reference(*copy.deepcopy(case)))


def _ran(exercise: Exercise, case: Case, outcome: Outcome, right: Any) -> None:
    if outcome.trouble:
        called = (f"; the check calls it as {exercise.signature.partition(' -> ')[0]}."
                  if outcome.trouble.kind == "arguments" else "")
        raise _Miss(1, outcome.trouble.text + called, case)
    if outcome.value is None and right is not None:
        raise _Miss(1, "It ran and returned None; is the `return` missing?", case)
    strange = values.not_finite(outcome.value)
    if strange and not values.not_finite(right):
        raise _Miss(1, f"It ran, but {strange}", case)


def _holds(
    invariant: Invariant, exercise: Exercise, subject: Subject, case: Case, out: Any, right: Any
) -> None:
    def call(*args: Any) -> Any:
        outcome = subject.call(args, exercise.seconds)
        should = _right(exercise, args)
        _ran(exercise, args, outcome, should)
        try:
            return values.fit(should, outcome.value)
        except values.Misfit as misfit:
            raise _Miss(2, str(misfit), args) from None

    broken = invariant.broken(call, copy.deepcopy(case), out)
    if broken is not None:
        difference, _ = values.compare(right, out)
        picture = Picture.of(difference, exercise.axes) if difference else None
        raise _Miss(3, f"This must hold: {invariant.meaning} {broken}", case, picture)


def _first_difference(difference: values.Difference, axes: str) -> str:
    if difference.index:
        letters = axes.split() if len(axes.split()) == len(difference.index) else []
        names = [f"{letter}=" for letter in letters] or [""] * len(difference.index)
        index = ", ".join(f"{name}{i}" for name, i in zip(names, difference.index, strict=True))
        at = f"At {difference.path}[{index}]"
        count = f" {int(difference.wrong.sum())} of {difference.wrong.size} numbers differ."
    else:
        at, count = f"At {difference.path}" if difference.path else "The result", ""
        at = at if difference.path else "The result:"
    return (f"{at} it gave {_number(difference.got)}, "
            f"expected {_number(difference.expected)}.{count}")


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else repr(value)


def _remark(outcomes: list[Outcome], error: float) -> str:
    single = any(isinstance(o.value, np.ndarray) and o.value.dtype == np.float32 for o in outcomes)
    if single or error <= values.tolerance(np.dtype(np.float64), 64):
        return ""
    return ("The result is only as exact as float32: something on the way is float32 "
            "(torch's default), which is fine here.")


def describe(exercise: Exercise, case: Case) -> str:
    """The arguments of a case in a line: shapes of arrays, values of numbers."""
    names = list(inspect.signature(exercise.reference).parameters)
    return ", ".join(f"{n} {_told(v, exercise.keys)}" for n, v in zip(names, case, strict=False))


def _told(value: Any, keys: tuple[str, ...]) -> str:
    if isinstance(value, np.ndarray):
        if value.ndim == 1 and value.size <= 8 and value.dtype.kind in "iu":
            return str(value.tolist())
        return str(value.shape)
    if isinstance(value, dict):
        shown = {key: item for key, item in value.items() if key in keys or not keys}
        told = [f"{key} {_told(item, keys)}" for key, item in shown.items()]
        return "{" + ", ".join(told + ["…"] * (len(shown) < len(value))) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_told(item, keys) for item in value) + "]"
    return repr(value)


def diagnose(
    exercise: Exercise, cases: list[Case], outcomes: list[Outcome], expected: list[Any]
) -> Wrong | None:
    """The known wrong implementation whose outputs are these, if there is one.

    It must do the same in every case (an error of the same type is the same), give a value in
    one of them, and not be right in all. Where none does, one that misses the same key of a dict
    in the same cases: the answer looks for it in the same wrong place, whatever else it does.
    """
    known = [(wrong, function) for wrong in exercise.wrong for function in wrong.functions]
    for wrong, function in known:
        if _matches(function, cases, outcomes, expected):
            return wrong
    for wrong, function in known:
        if _misses_the_same_key(function, cases, outcomes):
            return wrong
    return None


def _misses_the_same_key(function: Any, cases: list[Case], outcomes: list[Outcome]) -> bool:
    """True where KeyError, in the same words, is the only trouble, and not in every case."""
    missed = 0
    for case, outcome in zip(cases, outcomes, strict=False):
        said = outcome.trouble.text if outcome.trouble else ""
        try:
            with np.errstate(all="ignore"):
                function(*copy.deepcopy(case))
        except KeyError as error:
            if not said.endswith(f"KeyError says: {said_by(error)}"):
                return False
            missed += 1
        except Exception:
            return False
        else:
            if said:
                return False
    return 0 < missed < len(cases)


def _matches(
    function: Any, cases: list[Case], outcomes: list[Outcome], expected: list[Any]
) -> bool:
    valued = telling = False
    for case, outcome, right in zip(cases, outcomes, expected, strict=False):
        try:
            with np.errstate(all="ignore"):
                value, raised = values.plain(function(*copy.deepcopy(case))), ""
        except Exception as error:
            value, raised = None, type(error).__name__
        if outcome.trouble is not None or raised:
            if outcome.trouble is None or not raised or outcome.trouble.error != raised:
                return False
            telling = True
        elif values.same(value, outcome.value):
            valued, telling = True, telling or not values.same(right, value)
        else:
            return False
    return valued and telling
