"""The command `minik2 capstone`: an entry trained and judged, and the board of all that were.

Unusual here: Ctrl-C ends a trial at once and leaves no trace of it. There is nothing to go on with,
since an entry has its five minutes in one piece; what stands on the board came to its end.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.text import Text

from minik2.terminal import INTERRUPTED, plain

# Where no terminal shows a bar: how many lines a training tells of itself.
LINES = 10


def capstone(
    file: Annotated[Path | None, typer.Argument(
        help="The entry: a Python file with a function train(run), such as "
             "capstone/my_entry.py.")] = None,
    minutes: Annotated[float, typer.Option(
        help="How long it may train. The board compares equal minutes only.")] = 5.0,
    seed: Annotated[int, typer.Option(
        help="What its first weights and its text are drawn from.")] = 0,
    threads: Annotated[int, typer.Option(
        help="CPU threads. More than one helps on a quiet machine only, and little.")] = 1,
    board: Annotated[bool, typer.Option(
        "--board", help="Train nothing: show the results so far, best first.")] = False,
    results: Annotated[Path | None, typer.Option(
        help="The file of results to add to or to show; runs/capstone/results.json if none is "
             "named.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Train an entry of the capstone for five minutes and tell its loss on held-out files.

    Reading the text, a rehearsal of two steps and the evaluation are not counted. The result is
    added to a file on this machine, and the source that made it is kept beside. An entry runs with
    your rights: read one that is not yours before you run it. Exit status 0 when it has a score,
    130 after Ctrl-C, which writes nothing.
    """
    from minik2.capstone import results as kept

    path = results or kept.DEFAULT
    if board and file is not None:
        raise ValueError(f"--board shows results and trains nothing; leave it out to train {file}.")
    if board:
        _show(path, as_json)
        return
    if file is None:
        raise ValueError("Name the entry to train, such as capstone/my_entry.py; or give --board "
                         "to see the results so far.")  # fmt: skip
    before = kept.read(path)  # a file that cannot be added to is said now, not after five minutes
    try:
        trial, source = _judge(file, path, minutes, seed, threads)
    except KeyboardInterrupt:
        print("Stopped; nothing was written, since an entry counts when its time is over.",
              file=sys.stderr)  # fmt: skip
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        print(json.dumps(trial, indent=2))
        return
    print(
        f"{trial['entry']}, seed {seed}: {trial['nats']:.4f} nats a byte on held-out files, after "
        f"{trial['steps']:,} steps and {trial['tokens']:,} bytes in {trial['seconds']:.0f} s.\n"
        f"The source that ran is kept as {source}.\n"
    )
    from minik2.capstone.board import boards, table

    said, rows = list(boards([*before, trial]).items())[-1]
    print(f"{said}\n\n{table(rows)}")


def _judge(
    file: Path, path: Path, minutes: float, seed: int, threads: int
) -> tuple[dict[str, Any], Path]:
    """The trial, written down, and where its source is kept."""
    from minik2.capstone import results as kept
    from minik2.capstone.judge import judge
    from minik2.training import Corpus

    with _Progress(60 * minutes) as shown:
        trial, entry = judge(file, Corpus.standard_library(), minutes, seed, threads, shown.tell)
    source = kept.keep_source(path, entry)
    kept.add(path, [trial])
    return trial, source


def _show(path: Path, as_json: bool) -> None:
    from minik2.capstone import results as kept
    from minik2.capstone.board import boards, table

    if not path.is_file():
        raise FileNotFoundError(f"There are no results in {path} yet: `minik2 capstone "
                                "capstone/my_entry.py` makes the first one.")  # fmt: skip
    found = boards(kept.read(path))
    if as_json:
        print(json.dumps({said: [asdict(row) for row in rows] for said, rows in found.items()},
                         indent=2))  # fmt: skip
        return
    print("\n\n".join(f"{plain(said)}\n\n{plain(table(rows))}" for said, rows in found.items()))


class _Progress:
    """A bar over the time, or ten lines of it where no terminal shows a bar."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.told = seconds, 0
        err = Console(stderr=True, highlight=False)
        self.bar = Progress(
            SpinnerColumn(), BarColumn(24), TextColumn("{task.description}", markup=False),
            console=err, transient=True, disable=not err.is_terminal)  # fmt: skip
        self.task = self.bar.add_task("getting ready", total=seconds)

    def __enter__(self) -> _Progress:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def tell(self, what: str, facts: dict[str, Any]) -> None:
        if what == "rehearsal":
            self._update(0, self.seconds, "rehearsal: two steps that do not count")
        elif what == "step":
            used = facts["seconds"]
            loss = "" if facts["loss"] is None else f", loss {facts['loss']:.3f}"
            said = f"{used:.0f} of {self.seconds:.0f} s, step {facts['made']:,}{loss}"
            self._update(min(used, self.seconds), self.seconds, said)
            if int(LINES * used / self.seconds) > self.told:
                self.told = int(LINES * used / self.seconds)
                self._line(said)
        else:
            said = f"asking it about held-out files: {facts['done']:,} of {facts['of']:,} windows"
            self._update(facts["done"], facts["of"], said)
            if facts["done"] == facts["of"]:
                self._line(said)

    def _update(self, done: float, of: float, said: str) -> None:
        self.bar.update(self.task, completed=done, total=of, description=said)

    def _line(self, said: str) -> None:
        if self.bar.disable:
            self.bar.console.print(Text(said), soft_wrap=True)
