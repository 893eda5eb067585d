"""Grading a folder of submissions: one row for each exercise of each, whatever the file holds.

Unusual here: all files are read before the first one runs, so that none can change another. The
rows come submission by submission, and the table is cheap to write anew after each, so that
whatever ends the grading leaves what was done.
"""

import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from minik2.checks.exercise import find
from minik2.checks.marking import Mark, mark
from minik2.checks.notebooks import Notebook, NotebookError, read
from minik2.checks.sandbox import clean
from minik2.files import write_whole

COLUMNS = ("submission", "lesson", "exercise", "outcome", "rung", "looks_like", "seed", "seconds",
           "note", "message")


@dataclass(frozen=True)
class Row:
    """One exercise of one submission; exercise is "" where the file has none that can be read."""

    submission: str
    mark: Mark

    def to_dict(self) -> dict[str, Any]:
        made = self.mark.to_dict()
        made["lesson"] = find(self.mark.exercise).lesson if self.mark.exercise else ""
        made["message"] = made["message"].replace("\n", " ")
        return {"submission": self.submission} | {key: made[key] for key in COLUMNS[1:]}


def submissions(folder: Path) -> list[Path]:
    """Every .ipynb file in the folder or below it, in order, hidden folders left aside."""
    found = [p for p in folder.rglob("*")
             if p.suffix.lower() == ".ipynb" and not p.is_dir()
             and not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    return sorted(found)


def grade(
    folder: Path, *, time_limit: float = 60.0, memory_mb: int = 4096,
    tell: Callable[[str, str], None] = lambda submission, step: None,
) -> Iterator[list[Row]]:
    """The rows of one submission after the other.

    time_limit: seconds a submission; memory_mb: resident memory of all its processes; tell: called
    with its name and a few words before each step. Raises OSError on Windows.
    """
    paths = submissions(folder)
    read_first = [(clean(str(path.relative_to(folder))), _read(path)) for path in paths]
    for name, notebook in read_first:
        yield _rows(name, notebook, time_limit, memory_mb, partial(tell, name))


def _read(path: Path) -> Notebook | str:
    """The notebook, or the sentence that says why there is none."""
    try:
        return read(path)
    except NotebookError as error:
        return str(error)


def _rows(
    name: str, notebook: Notebook | str, time_limit: float, memory_mb: int,
    tell: Callable[[str], None],
) -> list[Row]:
    if isinstance(notebook, str):
        return [Row(name, Mark("", "unreadable", clean(notebook)))]
    try:
        marks = mark(notebook, time_limit=time_limit, memory_mb=memory_mb, tell=tell)
    except NotebookError as error:
        return [Row(name, Mark("", "unreadable", str(error)))]
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
