"""The command `minik2`: doctor, progress, check, size; other commands have own modules.

Unusual here: results go to standard output and all else (bars, complaints) to standard error, so
that `--json` can be piped; and what a command needs is imported inside it, so that `--help`
answers at once.
"""

import difflib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from minik2 import (
    __version__,
    cli_capstone,
    cli_fullsize,
    cli_generate,
    cli_grade,
    cli_inspect,
    cli_train,
)
from minik2.cli_looks import UNKNOWN, Memory, TimeLimit, bar, sign

if TYPE_CHECKING:
    from minik2.checks.marking import Mark

app = typer.Typer(
    name="minik2", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Kimi K2 in miniature: a course, and the engine its claims are checked against.")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


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

    with bar() as line:
        task = line.add_task("Checking answers", total=None)
        seen = path_of_lessons.progress(
            folder, tell=lambda step: line.update(task, description=step))
    if as_json:
        print(json.dumps(seen.to_dict(), indent=2))
        return
    out = Console(highlight=False)
    for number, title, steps in seen.lessons():
        passed = sum(step.state == "passed" for step in steps)
        out.print(Text.assemble(
            (f"{number}  {title}  ", "bold"), *(sign(step.state) for step in steps),
            f"  {passed} of {len(steps)}"))
        for step in steps:
            said = f"looks like {step.mark.looks_like}" if step.mark.looks_like else (
                step.mark.note if step.state == "not yet" else "")
            out.print(Text.assemble(
                "    ", sign(step.state), f" {step.state:<14} {step.exercise.id:<24} ",
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
    with bar() as line:
        task = line.add_task(file.name, total=None)
        marks = marking.mark(
            notebook, time_limit=time_limit, memory_mb=memory, seed=seed,
            tell=lambda step: line.update(task, description=f"{file.name}: {step}"))
    if as_json:
        print(json.dumps([made.to_dict() for made in marks], indent=2))
    else:
        for made in marks:
            _show(made)
    if any(made.outcome != "passed" for made in marks):
        raise typer.Exit(1)


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


app.command()(cli_grade.grade)
app.command()(cli_train.train)
app.command()(cli_generate.generate)
app.command()(cli_fullsize.fullsize)
app.command()(cli_inspect.inspect)
app.command()(cli_capstone.capstone)


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


def _show(made: "Mark") -> None:
    """One outcome with all that the check says; text from a submission is never markup."""
    first, *rest = made.message.split("\n")
    if made.rung is None or not first.startswith(made.exercise):
        first, rest = f"{made.exercise}: {made.outcome}", [first, *rest]
    letter, colour = sign(made.outcome)
    out = Console(highlight=False)
    out.print(Text(f"{letter} {first}", f"bold {colour}"))
    lines = [Text(line) for line in rest]
    if made.picture:
        lines.append(Text(made.picture))
    if made.note:
        lines.append(Text(f"Note: {made.note}.", "dim"))
    for text in lines:
        out.print(Padding(text, (0, 0, 0, 2)))


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
    except (MemoryError, RuntimeError) as error:
        if not _is_of_memory(error):
            raise
        first = str(error).partition("\n")[0]
        sys.exit(f"Memory ran out ({first}); what was saved before is whole. Take a smaller model "
                 "or fewer tokens at a time, or a machine with more.")


def _is_of_memory(error: Exception) -> bool:
    """PyTorch says it in words alone on a CPU."""
    words = str(error).lower()
    return (isinstance(error, MemoryError) or "out of memory" in words
            or "can't allocate memory" in words)


if __name__ == "__main__":
    main()
