"""The command that runs the experiments: `python -m minik2.experiments`, or `make experiments`.

    python -m minik2.experiments                   all of them, at a laptop's size
    python -m minik2.experiments balance sparsity   these
    python -m minik2.experiments --scale gpu        larger, on a GPU
    python -m minik2.experiments --redraw           the figures again, from the stored results
    python -m minik2.experiments --list             which there are, and how long they take

Runs lie in runs/experiments. Ctrl-C saves what is at work; the same command goes on from there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from minik2.experiments import balance, logit_explosion, muon_vs_adamw, results, sparsity
from minik2.experiments.runs import Tell
from minik2.experiments.scales import ROOT, Scale, scales
from minik2.terminal import INTERRUPTED

EXPERIMENTS: dict[str, ModuleType] = {
    module.NAME: module for module in (muon_vs_adamw, logit_explosion, balance, sparsity)
}
SEEDS = (0, 1, 2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m minik2.experiments", description="K2's published claims, tried small.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="experiments; none: all of them")
    parser.add_argument("--scale", choices=scales(), default="cpu", help="how large")
    parser.add_argument("--list", action="store_true", help="say which there are, and stop")
    parser.add_argument("--redraw", action="store_true", help="draw from stored results, no runs")
    given = parser.parse_args(arguments)
    try:
        strange = [name for name in given.names if name not in EXPERIMENTS]
        if strange:
            raise ValueError(
                f"There is no experiment {strange[0]!r}; there are {', '.join(EXPERIMENTS)}.")
        names, scale = given.names or list(EXPERIMENTS), scales()[given.scale]
        if given.list:
            for name in names:
                print(described(name, scale))
            return 0
        if not given.redraw:
            _ready(scale)
        for name in names:
            if not given.redraw:
                _run(name, scale)
            print(_draw(name, scale))
    except (ValueError, OSError) as error:
        print(f"minik2.experiments: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped; what was trained is saved, and the same command goes on from there.",
              file=sys.stderr)
        return INTERRUPTED
    return 0


def described(name: str, scale: Scale) -> str:
    """The experiment's title, and its time where it has been run."""
    title = (EXPERIMENTS[name].__doc__ or "").splitlines()[0]
    try:
        held = results.read(results.path_of(name, scale.name))
    except FileNotFoundError:
        return f"{name:16} {title} Open: nobody has run it at this scale."
    minutes = held["training_seconds"] / held["at_once"] / 60
    return f"{name:16} {title} {minutes:.0f} minutes of training, {held['at_once']} at a time."


def _ready(scale: Scale) -> None:
    """Raises OSError or ValueError where the runs could not be made or kept."""
    if not (ROOT / "pyproject.toml").is_file():
        raise FileNotFoundError(
            "The experiments write results and figures into a clone of minik2's repository, and "
            "this minik2 is installed outside of one; clone it and run there."
        )
    if scale.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ValueError("--scale gpu needs a GPU, and PyTorch finds none here; `minik2 "
                             "doctor` says more. --scale cpu goes without.")


def _run(name: str, scale: Scale) -> None:
    with _bar() as tell:
        record = EXPERIMENTS[name].run(scale, SEEDS, tell)
    results.write(record, results.path_of(name, scale.name))


def _draw(name: str, scale: Scale) -> str:
    """The figure, from the results file; returns a sentence."""
    from minik2.plots import experiments as pictures

    path = results.path_of(name, scale.name)
    picture = getattr(pictures, name)(results.read(path))
    results.FIGURES.mkdir(parents=True, exist_ok=True)
    figure = results.FIGURES / f"{path.stem}.png"
    picture.write(figure)
    return f"{name}: {picture.get_suptitle()} ({figure.relative_to(ROOT)})"


@contextmanager
def _bar() -> Iterator[Tell]:
    """A bar over all steps of a batch of runs with the time left; a line a batch elsewhere."""
    console = Console(stderr=True, highlight=False)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(24),
               TextColumn("{task.completed:,.0f} of {task.total:,.0f} steps,"),
               TimeRemainingColumn(), TextColumn("left"))  # fmt: skip
    with Progress(*columns, console=console, transient=True, speed_estimate_period=120,
                  disable=not console.is_terminal) as bar:  # fmt: skip
        task, shown = bar.add_task("getting ready", total=1), ""

        def tell(made: int, total: int, what: str) -> None:
            nonlocal shown
            if what != shown:
                shown = what
                bar.reset(task, total=max(total, 1), description=what)
                if bar.disable:
                    console.print(f"{what}: {total:,} steps to make")
            bar.update(task, completed=made)

        yield tell


if __name__ == "__main__":
    sys.exit(main())
