"""What the commands about answers share: the signs of outcomes, their progress line, two options.

Unusual here: the progress line shows itself on a terminal alone, so that a log or a pipe holds
results and sentences.
"""

from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, ProgressColumn, SpinnerColumn, TextColumn, TimeElapsedColumn

# An outcome's colour, and the sign that says the same without it.
LOOKS = {"passed": ("green", "✓"), "failed": ("red", "✗"), "not yet": ("red", "✗"),
         "stopped": ("red", "■"), "not attempted": ("dim", "○")}
UNKNOWN = ("yellow", "?")

TimeLimit = Annotated[float, typer.Option(min=1, help="Seconds for all cells and checks of a "
                                                      "notebook together.")]
Memory = Annotated[int, typer.Option(min=64, help="Resident memory of a notebook's processes "
                                                  "together, in MB.")]


def sign(outcome: str) -> tuple[str, str]:
    """An outcome's sign and colour."""
    colour, letter = LOOKS.get(outcome, UNKNOWN)
    return letter, colour


def bar(*counted: ProgressColumn) -> Progress:
    """A progress line that leaves nothing behind; none where no terminal shows it."""
    err = Console(stderr=True)
    return Progress(SpinnerColumn(), TextColumn("{task.description}", markup=False), *counted,
                    TimeElapsedColumn(), console=err, transient=True, disable=not err.is_terminal)
