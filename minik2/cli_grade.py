"""The command `minik2 grade`: a folder of submissions becomes a table and a sheet a learner.

Unusual here: table and sheets are written anew after every submission, each replaced whole, so that
whatever ends the grading leaves what was done.
"""

import json
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn
from rich.table import Table
from rich.text import Text

from minik2.cli_looks import Memory, TimeLimit, bar, sign
from minik2.files import write_whole
from minik2.terminal import INTERRUPTED

if TYPE_CHECKING:
    from minik2.checks.grade import Row


def grade(
    folder: Annotated[Path, typer.Argument(help="Where the submissions are, .ipynb files; those in "
                                                "a folder of it are one learner's.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The table to write.")] = Path(
        "grades.csv"),
    sheets: Annotated[Path | None, typer.Option(
        help="The folder for an HTML sheet a learner; beside the table if not given.")] = None,
    lessons: Annotated[str | None, typer.Option(
        help="Grade these alone, such as 00-03,05.")] = None,
    workers: Annotated[int | None, typer.Option(
        min=1, help="Submissions at a time; one a core if not given.")] = None,
    time_limit: TimeLimit = 60.0,
    memory: Memory = 4096,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Grade every submission in a folder: a row for each exercise of each, a sheet for a learner.

    Each runs in a process of its own, under limits, and is then checked from outside with fresh
    numbers; nothing that it prints or replaces counts. The limits are no jail: grade strangers in
    a container, or as a user without rights. Exit status 0 when all are graded, whatever the
    outcomes; Ctrl-C leaves table and sheets of those that were done.
    """
    from minik2.checks import grade as grading
    from minik2.checks import sheet

    begin = time.monotonic()
    files = grading.submissions(_folder(folder))
    _writable(output)
    if not files:
        raise FileNotFoundError(f"There are no notebooks (.ipynb) in {folder}.")
    wanted = grading.lessons_of(lessons) if lessons is not None else None
    sheets = sheets or output.with_name(f"{output.stem}-sheets")
    if sheets.exists() and not sheets.is_dir():
        raise ValueError(f"{sheets} is no name for a folder of sheets; give one such as "
                         f"{output.stem}-sheets.")
    rows: list[Row] = []
    grading.write_table(output, rows)  # where it cannot be written, say so before the work
    sheets.mkdir(exist_ok=True)
    pages = sheet.names(grading.learner_of(grading.shown(path, folder)) for path in files)
    done = 0
    interrupted = False

    def save(learners: set[str]) -> None:
        for learner in learners:
            mine = [row for row in rows if row.learner == learner]
            write_whole(sheets / pages[learner], sheet.sheet(learner, mine, wanted or ()))
        grading.write_table(output, rows)

    with bar(BarColumn(20), MofNCompleteColumn()) as line:
        task = line.add_task("Reading", total=len(files))

        def tell(name: str, step: str) -> None:
            line.update(task, description=f"{name}: {step}")

        try:
            with closing(grading.grade(folder, time_limit=time_limit, memory_mb=memory,
                                       lessons=wanted, workers=workers, tell=tell)) as graded:
                for made in graded:
                    rows = sorted([*rows, *made], key=lambda row: Path(row.submission))
                    done += 1
                    save({row.learner for row in made})
                    line.advance(task)
        except KeyboardInterrupt:
            interrupted = True
            save({row.learner for row in rows})
    if as_json:
        print(json.dumps([row.to_dict() for row in rows], indent=2))
    else:
        _table(rows)
    took = time.monotonic() - begin
    each = f", {took / done:.1f} s each" if done else ""
    print(f"{done} of {len(files)} graded in {took:.1f} s{each}; the rows are in {output}, the "
          f"sheets in {sheets}.", file=sys.stderr)
    if interrupted:
        raise typer.Exit(INTERRUPTED)


def _folder(path: Path) -> Path:
    if path.is_file():
        raise NotADirectoryError(f"{path} is a file, and `minik2 grade` takes a folder of "
                                 "submissions; for one notebook use `minik2 check`.")
    if not path.is_dir():
        raise FileNotFoundError(f"There is no folder {path}.")
    return path


def _writable(path: Path) -> None:
    if path.is_dir() or path.suffix == ".ipynb":
        raise ValueError(f"{path} is no name for a table; give one such as grades.csv.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {path.parent} to write {path.name} into.")


def _table(rows: "list[Row]") -> None:
    """One line a submission: how much passed, what did not, and what to look at."""
    table = Table("submission", "passed", "the rest", box=None, header_style="bold")
    for name in dict.fromkeys(row.submission for row in rows):
        marks = [row.mark for row in rows if row.submission == name]
        passed = sum(made.outcome == "passed" for made in marks)
        rest = [Text(f"{made.exercise} {made.outcome}".strip() + (
            f" ({made.looks_like})" if made.looks_like else ""), sign(made.outcome)[1])
            for made in marks if made.outcome != "passed"]
        notes = dict.fromkeys(note for made in marks for note in made.note.split("; ") if note)
        rest += [Text(note, "dim") for note in notes]
        table.add_row(Text(name), f"{passed} of {len(marks)}" if marks[0].exercise else "",
                      Text("; ").join(rest))
    Console(highlight=False).print(table)
