"""How far a learner is: every answer of notebooks/ and exercises/ is checked, the best copy counts.

Unusual here: nothing is believed. Outcomes are kept in .minik2/progress.json, but under a hash of
all that they follow from (the cells that run, the Python files beside them, the checks and the
versions), so that a change of any of it has the answers checked again.
"""

import hashlib
import json
import platform
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from minik2 import __version__
from minik2.checks.exercise import Exercise, exercises, lesson_title
from minik2.checks.marking import OUTCOMES, Mark, mark
from minik2.checks.notebooks import Notebook, NotebookError, read
from minik2.files import write_whole

FOLDERS = ("notebooks", "exercises")
LESSONS = "[0-9][0-9]_*.ipynb"
CACHE = Path(".minik2") / "progress.json"
STATES = {"passed": "passed", "failed": "not yet", "stopped": "not yet", "not graded": "not yet"}


@dataclass(frozen=True)
class Step:
    """One exercise and the best outcome among the copies; notebook: where, None where nowhere."""

    exercise: Exercise
    mark: Mark
    notebook: Path | None

    @property
    def state(self) -> str:
        """One of "passed", "not yet" and "not attempted"."""
        return STATES.get(self.mark.outcome, "not attempted")


@dataclass(frozen=True)
class Progress:
    """The path of lessons. folder: the course's; troubles: sentences about unreadable notebooks."""

    folder: Path
    steps: list[Step]
    troubles: list[str] = field(default_factory=list)

    @property
    def passed(self) -> int:
        return sum(step.state == "passed" for step in self.steps)

    @property
    def next(self) -> Step | None:
        """The first step that is not passed yet."""
        return next((step for step in self.steps if step.state != "passed"), None)

    def lessons(self) -> list[tuple[str, str, list[Step]]]:
        """(number, title, steps) of each lesson."""
        return [(number, lesson_title(number), list(steps))
                for number, steps in groupby(self.steps, lambda step: step.exercise.lesson)]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return {
            "passed": self.passed, "of": len(self.steps), "troubles": self.troubles,
            "lessons": [{"lesson": number, "title": title, "exercises": [
                {"state": step.state, "notebook": step.notebook and str(step.notebook),
                 **step.mark.to_dict()} for step in steps]}
                for number, title, steps in self.lessons()],
        }


def course_folder(start: Path) -> Path:
    """The nearest folder at or above `start` that holds notebooks/ or exercises/ of lessons."""
    start = start.resolve()
    for folder in (start, *start.parents):
        if _notebooks(folder):
            return folder
    raise FileNotFoundError(f"There are no lessons in {start} or above it: go to the course's "
                            "folder, the one that holds notebooks/ and exercises/, or name it.")


def _notebooks(folder: Path) -> list[Path]:
    return [path for name in FOLDERS for path in sorted(folder.glob(f"{name}/{LESSONS}"))]


def progress(folder: Path, tell: Callable[[str], None] = lambda text: None) -> Progress:
    """Check what changed since the last time. folder: the course's, or one inside it.

    tell: called with a few words before each step. Raises OSError where there is no course, and
    on Windows where an answer has to be run.
    """
    folder = course_folder(folder)
    cache, used, troubles = folder / CACHE, {}, []
    kept = _load(cache)
    best: dict[str, tuple[Mark, Path | None]] = {
        e.id: (Mark(e.id, "missing", "No notebook has it."), None) for e in exercises()}
    for path in _notebooks(folder):
        where = path.relative_to(folder)
        try:
            notebook = read(path)
            key = fingerprint(notebook)
            marks = kept.get(key) or mark(notebook, tell=partial(_tell, tell, where))
        except NotebookError as error:
            troubles.append(f"{where.parent}: {error}")
            continue
        # A process that was stopped may have met a busy machine: it gets another try next time.
        if not any(made.outcome in ("stopped", "not graded") for made in marks):
            used[key] = marks
            if key not in kept:
                _save(cache, kept | used)
        for made in marks:
            if made.exercise in best and _before(made, best[made.exercise]):
                best[made.exercise] = (made, where)
    if used != kept:
        _save(cache, used)
    return Progress(folder, [Step(e, *best[e.id]) for e in exercises()], troubles)


def _tell(tell: Callable[[str], None], where: Path, step: str) -> None:
    tell(f"{where}: {step}")


def _before(made: Mark, best: tuple[Mark, Path | None]) -> bool:
    """Whether it is the better outcome; of two that are as good, the lesson's own comes first."""
    rank, other = OUTCOMES.index(made.outcome), OUTCOMES.index(best[0].outcome)
    return rank < other or best[1] is None


def fingerprint(notebook: Notebook) -> str:
    """A hash of all that the notebook's outcomes follow from.

    Every code cell that is not left aside, with its marks; the Python files beside the notebook,
    which its cells may import; the files of the checks; the versions.
    """
    cells = [[c.role, c.exercise, c.stub, c.source] for c in notebook.cells if c.role != "lesson"]
    digest = hashlib.sha256(json.dumps(
        [cells, notebook.lesson, __version__, platform.python_version(), np.__version__]).encode())
    for folder in (notebook.path.parent, Path(__file__).parent):
        for path in sorted(folder.glob("*.py")):
            digest.update(f"\0{path.name}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _load(path: Path) -> dict[str, list[Mark]]:
    """The kept outcomes; none where the file is missing or is not what `_save` writes."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        kept = {key: [Mark(**made) for made in marks] for key, marks in raw.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
    whole = all(m.outcome in OUTCOMES for marks in kept.values() for m in marks)
    return kept if whole else {}


def _save(path: Path, used: dict[str, list[Mark]]) -> None:
    text = json.dumps({key: [made.to_dict() for made in marks] for key, marks in used.items()})
    with suppress(OSError):  # a folder that cannot be written to costs time, not the answer
        path.parent.mkdir(exist_ok=True)
        write_whole(path, text + "\n")
