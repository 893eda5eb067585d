"""From a notebook to the outcomes of its exercises: what `check`, `progress` and `grade` share.

Unusual here: the ladder runs in this process with fresh seeds, and only the calls of the learner's
functions happen in theirs; whatever their cells printed or replaced has no say in the outcome.
"""

import re
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from minik2.checks.exercise import Exercise, exercises
from minik2.checks.ladder import climb
from minik2.checks.notebooks import Cell, Notebook, NotebookError, check_call
from minik2.checks.picture import LEGEND
from minik2.checks.sandbox import Borrowed, Sandbox, Stopped, clean

ENGINE = re.compile(r"\bminik2\.(reference|pytorch|checks)\b|\bfrom\s+minik2(\.\w+)*\s+import\b")

UNKNOWN = re.compile(r"NameError says: name '(\w+)' is not defined")

# The outcomes, best first. "missing": there is no such function; "stopped": the process that ran
# the cells was killed or ended before the answer could be checked; "unreadable": no notebook of
# this course; "not graded": the check itself failed, which is our mistake.
OUTCOMES = ("passed", "failed", "stopped", "not graded", "not attempted", "missing", "unreadable")
LINES = 40  # of a message: no ladder says more, but a submission may


@dataclass(frozen=True)
class Mark:
    """The outcome of one exercise in one notebook; rung and seed are None where no check ran.

    message: what the check says, without control characters; picture: where the numbers are
    wrong, as text; note: what a teacher may want to look at.
    """

    exercise: str
    outcome: str
    message: str
    rung: int | None = None
    looks_like: str | None = None
    seed: int | None = None
    note: str = ""
    picture: str = ""
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def expected(notebook: Notebook) -> list[Exercise]:
    """The exercises that a notebook should hold: all those of the lessons it has answers for.

    Where no answer cell is marked, the lesson that the file's name begins with.
    """
    known = exercises()
    lessons = {e.lesson for e in known if e.id in notebook.answers} or {notebook.lesson or ""}
    return [e for e in known if e.lesson in lessons]


def mark(
    notebook: Notebook, *, time_limit: float = 60.0, memory_mb: int = 4096,
    seed: int | None = None, lessons: frozenset[str] | None = None,
    stop: threading.Event | None = None, core: int | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Mark]:
    """Run the notebook's cells under limits and check every exercise that it should hold.

    time_limit: seconds for the whole notebook; memory_mb: resident memory of all its processes;
    seed: draws the same numbers as an earlier mark, None fresh ones; lessons: the numbers of those
    to check, None for all; stop: once it is set, from any thread, what runs is killed; core: the
    one that it may use, None for all; tell: called with a few words before each step. Raises
    OSError on Windows, and NotebookError where there is no exercise of the course.
    """
    held = expected(notebook)
    if not held:
        raise NotebookError(f"{clean(notebook.path.name)} holds no exercise of this course: none "
                            "of its cells is marked as an answer.")
    wanted = [e for e in held if lessons is None or e.lesson in lessons]
    if notebook.untouched or not wanted:
        return [_unanswered(notebook, e) for e in wanted]
    tell("its cells")
    with Sandbox(
        notebook.cells, notebook.path.parent, time_limit, memory_mb, stop, core
    ) as sandbox:
        marks = []
        for exercise in wanted:
            tell(exercise.id)
            start = time.perf_counter()
            try:
                made = _mark_one(notebook, exercise, sandbox, [e.function for e in wanted], seed)
            except Exception as error:  # of ours; the other exercises are marked all the same
                made = Mark(exercise.id, "not graded", "The check itself failed "
                            f"({type(error).__name__}: {clean(str(error))}); please report it.")
            marks.append(replace(_noted(made, *_notes(notebook, exercise)),
                                 seconds=round(time.perf_counter() - start, 3)))
    if sandbox.replaced:
        return [_noted(m, "minik2.checks was replaced, without effect") for m in marks]
    return marks


def _noted(made: Mark, *notes: str) -> Mark:
    return replace(made, note="; ".join(filter(None, (made.note, *notes))))


def _unanswered(notebook: Notebook, exercise: Exercise) -> Mark:
    if exercise.id in notebook.answers:
        return Mark(exercise.id, "not attempted", "The stub is as it was.")
    return Mark(exercise.id, "missing", "The notebook has no answer cell for it.",
                note="; ".join(_notes(notebook, exercise)))


def _mark_one(
    notebook: Notebook, exercise: Exercise, sandbox: Sandbox, names: list[str], seed: int | None
) -> Mark:
    cell = notebook.answers.get(exercise.id)
    if not sandbox.alive:
        try:
            sandbox.run(names)
        except Stopped as stopped:
            return Mark(exercise.id, "stopped", f"The notebook {stopped}.")
    trouble = sandbox.troubles.get(cell.number, "") if cell else ""
    said = f"Code cell {cell.number} {trouble}." if cell and trouble else ""
    kind = sandbox.found.get(exercise.function, "missing")
    if cell and cell.number in sandbox.skipped:
        return Mark(exercise.id, "stopped", said)
    if kind == "missing":
        if said:
            return Mark(exercise.id, "failed", said, rung=1)
        return Mark(exercise.id, "missing", _where_it_went(exercise, cell, sandbox))
    subject = Borrowed(sandbox, exercise.function)
    result = climb(exercise, subject, seed, callable_given=kind in ("function", "compiled", "stub"))
    outcome = {"passed": "passed", "not yet": "failed"}.get(result.state, "not attempted")
    if not sandbox.alive:
        outcome = "stopped"
    note = said if outcome != "passed" else ""
    if unknown := UNKNOWN.search(result.seen):
        note = _where_to_define(clean(unknown[1]), notebook)
    message = "\n".join(map(clean, result.message.splitlines()[:LINES]))
    seen = result.picture
    picture = f"{seen.text()}\n    {seen.caption} {LEGEND}" if seen else ""
    return Mark(exercise.id, outcome, message, result.rung, result.looks_like, result.seed, note,
                picture)


def _where_to_define(name: str, notebook: Notebook) -> str:
    word = re.compile(rf"\b{re.escape(name)}\b")
    if any(cell.role == "lesson" and word.search(cell.source) for cell in notebook.cells):
        return (f"`{name}` stands in a lesson cell, and those are not run here: copy what defines "
                "it into your answer")
    return ("only set-up cells, answers and cells you added are run: "
            f"define `{name}` in one of them")


def _where_it_went(exercise: Exercise, cell: Cell | None, sandbox: Sandbox) -> str:
    if cell is None:
        return f"The notebook has no answer cell for it, and no function named {exercise.function}."
    known = {e.function for e in exercises()}
    others = [name for name in sandbox.functions if name not in known]
    defined = f"; the notebook defines {', '.join(others[:5])}" if others else ""
    return f"No function is named {exercise.function}{defined}."


def _notes(notebook: Notebook, exercise: Exercise) -> list[str]:
    """What a teacher may want to look at; none of it changes the outcome."""
    notes = []
    cell = notebook.answers.get(exercise.id)
    if cell is None:
        notes.append("the answer cell's mark is missing")
    elif ENGINE.search(cell.source):
        notes.append("the answer uses minik2's own engine")
    checks = [c for c in notebook.cells if c.role == "check" and c.exercise == exercise.id]
    built = check_call(exercise.id, exercise.function)
    if not checks:
        notes.append("the check's cell is gone")
    elif any(c.source.strip() != built for c in checks):
        notes.append("the check's cell was edited, without effect")
    return notes
