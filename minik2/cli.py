"""The command `minik2`: doctor, progress, check, grade, size; other commands have own modules.

Unusual here: results go to standard output and all else (bars, complaints) to standard error, so
that `--json` can be piped; and what a command needs is imported inside it, so that `--help`
answers at once.
"""

import difflib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from minik2 import __version__, cli_fullsize, cli_generate, cli_inspect, cli_train
from minik2.terminal import INTERRUPTED

if TYPE_CHECKING:
    from minik2.checks.marking import Mark

app = typer.Typer(
    name="minik2", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Kimi K2 in miniature: a course, and the engine its claims are checked against.")

# An outcome's colour, and the sign that says the same without it.
LOOKS = {"passed": ("green", "✓"), "failed": ("red", "✗"), "not yet": ("red", "✗"),
         "stopped": ("red", "■"), "not attempted": ("dim", "○")}
UNKNOWN = ("yellow", "?")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
TimeLimit = Annotated[float, typer.Option(min=1, help="Seconds for all cells and checks of a "
                                                      "notebook together.")]
Memory = Annotated[int, typer.Option(min=64, help="Resident memory of a notebook's processes "
                                                  "together, in MB.")]


def _version(asked: bool) -> None:
    if asked:
        print(f"minik2 {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option(
        "--version", callback=_version, is_eager=True, help="Print the version and stop.")] = False,
) -> None:
    pass


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Look at this machine: versions, threads, GPU, measured speed, expected time of lessons.

    Exit status 0 if nothing is in the way of the course.
    """
    from minik2 import doctor as examiner

    report = examiner.examine()
    print(json.dumps(report.to_dict(), indent=2) if as_json else report)
    if report.problems:
        raise typer.Exit(1)


@app.command()
def progress(
    folder: Annotated[Path, typer.Argument(help="The course's folder, or one inside it.")] = Path(),
    as_json: AsJson = False,
) -> None:
    """Show how far you are, lesson by lesson.

    Every answer in notebooks/ and exercises/ is run and checked again where it has changed; the
    better copy counts.
    """
    from minik2.checks import progress as path_of_lessons

    with _bar() as bar:
        task = bar.add_task("Checking answers", total=None)
        seen = path_of_lessons.progress(
            folder, tell=lambda step: bar.update(task, description=step))
    if as_json:
        print(json.dumps(seen.to_dict(), indent=2))
        return
    out = Console(highlight=False)
    for number, title, steps in seen.lessons():
        passed = sum(step.state == "passed" for step in steps)
        out.print(Text.assemble(
            (f"{number}  {title}  ", "bold"), *(_sign(step.state) for step in steps),
            f"  {passed} of {len(steps)}"))
        for step in steps:
            said = f"looks like {step.mark.looks_like}" if step.mark.looks_like else (
                step.mark.note if step.state == "not yet" else "")
            out.print(Text.assemble(
                "    ", _sign(step.state), f" {step.state:<14} {step.exercise.id:<24} ",
                step.exercise.title, (f"  ({said})" if said else "", "dim")))
    for trouble in seen.troubles:
        out.print(Text(f"? {trouble}", UNKNOWN[0]))
    there = seen.next
    where = f", in {there.notebook}" if there and there.notebook else ""
    out.print(f"\n{seen.passed} of {len(seen.steps)} passed. "
              + (f"Next: {there.exercise.id}{where}" if there else "The course is done."),
              markup=False)


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="A lesson's notebook, an .ipynb file.")],
    time_limit: TimeLimit = 60.0,
    memory: Memory = 4096,
    seed: Annotated[int | None, typer.Option(
        min=0, help="Draw the same numbers as an earlier check; fresh ones without it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check every exercise of one notebook; exit status 0 if all of them pass.

    The notebook's set-up cells, answers and cells that you added are run in a process of their
    own. The file is not changed.
    """
    from minik2.checks import marking, notebooks

    notebook = notebooks.read(_notebook(file))
    with _bar() as bar:
        task = bar.add_task(file.name, total=None)
        marks = marking.mark(
            notebook, time_limit=time_limit, memory_mb=memory, seed=seed,
            tell=lambda step: bar.update(task, description=f"{file.name}: {step}"))
    if as_json:
        print(json.dumps([made.to_dict() for made in marks], indent=2))
    else:
        for made in marks:
            _show(made)
    if any(made.outcome != "passed" for made in marks):
        raise typer.Exit(1)


@app.command()
def grade(
    folder: Annotated[Path, typer.Argument(help="Where the submissions are, .ipynb files.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The table to write.")] = Path(
        "grades.csv"),
    time_limit: TimeLimit = 60.0,
    memory: Memory = 4096,
    as_json: AsJson = False,
) -> None:
    """Grade every submission in a folder, one row for each exercise of each.

    Each runs in a process of its own, under limits, and is then checked from outside with fresh
    numbers; nothing that it prints or replaces counts. The limits are no jail: grade strangers in
    a container, or as a user without rights. Exit status 0 when all are graded, whatever the
    outcomes; Ctrl-C leaves a table of those that were done.
    """
    from minik2.checks import grade as grading

    files = grading.submissions(_folder(folder))
    _writable(output)
    if not files:
        raise FileNotFoundError(f"There are no notebooks (.ipynb) in {folder}.")
    rows: list[grading.Row] = []
    with _bar(BarColumn(20), MofNCompleteColumn()) as bar:
        task = bar.add_task("Reading", total=len(files))

        def tell(name: str, step: str) -> None:
            bar.update(task, description=f"{name}: {step}")

        interrupted = False
        grading.write_table(output, rows)  # where it cannot be written, say so before the work
        try:
            for made in grading.grade(folder, time_limit=time_limit, memory_mb=memory, tell=tell):
                rows += made
                grading.write_table(output, rows)
                bar.advance(task)
        except KeyboardInterrupt:
            interrupted = True
            grading.write_table(output, rows)
    if as_json:
        print(json.dumps([row.to_dict() for row in rows], indent=2))
    else:
        _table(rows)
    done = len({row.submission for row in rows})
    print(f"{done} of {len(files)} graded; the rows are in {output}.", file=sys.stderr)
    if interrupted:
        raise typer.Exit(INTERRUPTED)


@app.command()
def size(
    model: Annotated[str, typer.Argument(help="A preset, a config.json, or a folder with one.")],
    context: Annotated[int | None, typer.Option(
        help="Tokens of context; the longest the model is made for if not given.")] = None,
    batch: Annotated[int, typer.Option(help="Sequences at a time.")] = 1,
    machine: Annotated[str, typer.Option(help="Where it decodes, such as 8xh200.")] = "16xh200",
    weights: Annotated[str, typer.Option(help="The format of the weights there.")] = "bfloat16",
    cache: Annotated[str, typer.Option(help="The format of the cache there.")] = "bfloat16",
    cluster: Annotated[str | None, typer.Option(
        help="How training lies on GPUs, such as pp=16,ep=16,tp=1,dp=8,virtual=1.")] = None,
    as_json: AsJson = False,
) -> None:
    """Work out a model's size: weights, cache, operations, memory, bounds, published figures."""
    from minik2.sizing.sheet import sheet_of

    made = sheet_of(model, context, batch, machine, weights, cache, cluster)
    print(json.dumps(made.to_dict(), indent=2) if as_json else made)


app.command()(cli_train.train)
app.command()(cli_generate.generate)
app.command()(cli_fullsize.fullsize)
app.command()(cli_inspect.inspect)


def _notebook(path: Path) -> Path:
    """The path, if it may be a notebook; else a sentence about what was meant perhaps."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, and `minik2 check` takes one notebook; "
                                "`minik2 progress` looks at all of yours.")
    if not path.exists():
        there = {p.stem: p for way in ("*/*.ipynb", "*.ipynb") for p in path.parent.glob(way)}
        near = difflib.get_close_matches(path.stem, there)
        hint = f"did you mean {there[near[0]]}?" if near else "give the path of an .ipynb file."
        raise FileNotFoundError(f"There is no file {path}; {hint}")
    if path.suffix == ".py":
        raise ValueError(f"{path} is a Python file; give the notebook, "
                         f"such as notebooks/{path.stem}.ipynb.")
    return path


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


def _bar(*counted: ProgressColumn) -> Progress:
    """A progress line that leaves nothing behind; none where no terminal shows it."""
    err = Console(stderr=True)
    return Progress(SpinnerColumn(), TextColumn("{task.description}", markup=False), *counted,
                    TimeElapsedColumn(), console=err, transient=True, disable=not err.is_terminal)


def _sign(outcome: str) -> tuple[str, str]:
    colour, sign = LOOKS.get(outcome, UNKNOWN)
    return sign, colour


def _show(made: "Mark") -> None:
    """One outcome with all that the check says; text from a submission is never markup."""
    first, *rest = made.message.split("\n")
    if made.rung is None or not first.startswith(made.exercise):
        first, rest = f"{made.exercise}: {made.outcome}", [first, *rest]
    sign, colour = _sign(made.outcome)
    out = Console(highlight=False)
    out.print(Text(f"{sign} {first}", f"bold {colour}"))
    lines = [Text(line) for line in rest]
    if made.picture:
        lines.append(Text(made.picture))
    if made.note:
        lines.append(Text(f"Note: {made.note}.", "dim"))
    for text in lines:
        out.print(Padding(text, (0, 0, 0, 2)))


def _table(rows: list[Any]) -> None:
    """One line a submission: how much passed, what did not, and what to look at."""
    table = Table("submission", "passed", "the rest", box=None, header_style="bold")
    for name in dict.fromkeys(row.submission for row in rows):
        marks = [row.mark for row in rows if row.submission == name]
        passed = sum(made.outcome == "passed" for made in marks)
        rest = [Text(f"{made.exercise} {made.outcome}".strip() + (
            f" ({made.looks_like})" if made.looks_like else ""), _sign(made.outcome)[1])
            for made in marks if made.outcome != "passed"]
        notes = dict.fromkeys(note for made in marks for note in made.note.split("; ") if note)
        rest += [Text(note, "dim") for note in notes]
        table.add_row(Text(name), f"{passed} of {len(marks)}" if marks[0].exercise else "",
                      Text("; ").join(rest))
    Console(highlight=False).print(table)


def main() -> None:
    """The entry point: what a user can cause ends in one sentence, not in a stack trace."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal may lack ✓
    try:
        app(prog_name="minik2")
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        sys.exit(f"{error.strerror}{where}" if error.strerror else str(error))
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
