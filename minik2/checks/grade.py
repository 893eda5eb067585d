"""Grading a folder of submissions: one row for each exercise of each, whatever the file holds.

Unusual here: all files are read before the first one runs, so that none can change another. As many
run at a time as there are cores, each held to a core of its own, so that none can starve another.
The rows come submission by submission, as each is done, and the table is cheap to write anew after
each, so that whatever ends the grading leaves what was done.
"""

import csv
import io
import os
import queue
import re
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from threadpoolctl import threadpool_limits

from minik2.checks.exercise import exercises, find
from minik2.checks.marking import Mark, mark
from minik2.checks.notebooks import Notebook, NotebookError, read
from minik2.checks.sandbox import clean
from minik2.doctor.machine import cores
from minik2.files import write_whole

COLUMNS = ("learner", "submission", "lesson", "exercise", "outcome", "rung", "looks_like", "seed",
           "seconds", "note", "message")


@dataclass(frozen=True)
class Row:
    """One exercise of one submission; exercise is "" where the file has none that can be read."""

    submission: str
    mark: Mark

    @property
    def learner(self) -> str:
        """Whose it is."""
        return learner_of(self.submission)

    @property
    def lesson(self) -> str:
        """The lesson's two digits, or ""."""
        return find(self.mark.exercise).lesson if self.mark.exercise else ""

    def to_dict(self) -> dict[str, Any]:
        made = {"learner": self.learner, "submission": self.submission, "lesson": self.lesson}
        made |= self.mark.to_dict()
        made["message"] = made["message"].replace("\n", " ")
        return {key: made[key] for key in COLUMNS}


def learner_of(submission: str) -> str:
    """Whose submission it is: its first folder's name, or the file's without its ending.

    >>> learner_of("anna/03/answers.ipynb"), learner_of("bert.ipynb")
    ('anna', 'bert')
    """
    parts = PurePath(submission).parts
    return parts[0] if len(parts) > 1 else PurePath(submission).stem


def shown(path: Path, folder: Path) -> str:
    """A submission's name in table and sheets: its path in the folder, without what steers."""
    return clean(str(path.relative_to(folder)))


def submissions(folder: Path) -> list[Path]:
    """Every .ipynb file in the folder or below it, in order, hidden folders left aside."""
    found = [p for p in folder.rglob("*")
             if p.suffix.lower() == ".ipynb" and not p.is_dir()
             and not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    return sorted(found)


def lessons_of(text: str) -> frozenset[str]:
    """The lessons' numbers that a text such as "00-03,05" names. Raises ValueError.

    >>> sorted(lessons_of("00-02,5"))
    ['00', '01', '02', '05']
    """
    known = {exercise.lesson for exercise in exercises()}
    named: set[str] = set()
    for part in text.split(","):
        if not (match := re.fullmatch(r"\s*(\d{1,2})(?:\s*-\s*(\d{1,2}))?\s*", part)):
            raise ValueError(f"{text!r} names no lessons; write numbers and ranges such as "
                             "00-03,05.")
        first, last = int(match[1]), int(match[2] or match[1])
        if first > last:
            raise ValueError(f"The range {part.strip()} runs backwards; write "
                             f"{last:02}-{first:02}.")
        named |= {f"{number:02}" for number in range(first, last + 1)}
    if unknown := sorted(named - known):
        raise ValueError(f"Lesson {unknown[0]} has no exercises; those that have some are "
                         f"{', '.join(sorted(known))}.")
    return frozenset(named)


def grade(
    folder: Path, *, time_limit: float = 60.0, memory_mb: int = 4096,
    lessons: frozenset[str] | None = None, workers: int | None = None,
    tell: Callable[[str, str], None] = lambda submission, step: None,
) -> Generator[list[Row], None, None]:
    """The rows of one submission after the other, each as it is done.

    time_limit: seconds a submission; memory_mb: resident memory of all its processes; lessons: the
    numbers of those to grade, None for all; workers: how many submissions run at a time, None for
    one a core; tell: called with a submission's name and a few words before each step, from any
    thread. Closing the iterator stops what still runs. Raises OSError on Windows.
    """
    paths = submissions(folder)
    read_first = [(shown(path, folder), _read(path)) for path in paths]
    stop = threading.Event()
    limits: dict[str, Any] = {
        "time_limit": time_limit, "memory_mb": memory_mb, "lessons": lessons, "stop": stop}
    workers = workers or cores()
    free: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    for core in _cores(workers):
        free.put(core)
    # The right answers are small products: BLAS threads would only stand in each other's way.
    with threadpool_limits(1), ThreadPoolExecutor(workers) as pool:
        todo = [pool.submit(_rows, name, notebook, free, tell=partial(tell, name), **limits)
                for name, notebook in read_first]
        try:
            for done in as_completed(todo):
                yield done.result()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _read(path: Path) -> Notebook | str:
    """The notebook, or the sentence that says why there is none."""
    try:
        return read(path)
    except NotebookError as error:
        return str(error)


def _cores(workers: int) -> list[int | None]:
    """The core of each worker; None, all of them, for one alone and where there are too few."""
    mine = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return [*mine[:workers]] if 1 < workers <= len(mine) else [None] * workers


def _rows(
    name: str, notebook: Notebook | str, free: "queue.SimpleQueue[int | None]", **limits: Any
) -> list[Row]:
    if isinstance(notebook, str):
        return [Row(name, Mark("", "unreadable", clean(notebook)))]
    core = free.get()
    try:
        marks = mark(notebook, core=core, **limits)
    except NotebookError as error:
        return [Row(name, Mark("", "unreadable", str(error)))]
    finally:
        free.put(core)
    return [Row(name, made) for made in marks]


def write_table(path: Path, rows: list[Row]) -> None:
    """Replace `path` by a CSV table of the rows, one line each."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _harmless(value) for key, value in row.to_dict().items()})
    write_whole(path, text.getvalue())


def _harmless(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula gets an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(
        ("=", "+", "-", "@")) else value
