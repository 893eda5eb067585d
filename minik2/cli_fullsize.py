"""The command `minik2 fullsize`: tokens through a model of real size, predicted and measured.

Unusual here: Ctrl-C ends the pass after the layer in hand, and what was measured so far is printed
all the same; a second Ctrl-C ends it at once.
"""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from minik2.terminal import INTERRUPTED


def fullsize(
    preset: Annotated[str, typer.Option(
        help="A preset, a config.json, or a folder with one.")] = "kimi-k2",
    tokens: Annotated[int, typer.Option(
        help="Tokens of one sequence, at once: experts that several chose are made once.")] = 1,
    layers: Annotated[int | None, typer.Option(
        help="Only the first of the model's layers, and the head; all if not given.")] = None,
    seed: Annotated[int, typer.Option(help="What weights and tokens are drawn from.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Push tokens through every layer of a model of real size, without having its weights.

    Each weight is made when it is multiplied with, from seed, tensor name, row and column (uniform,
    standard deviation initializer_range), and stored nowhere. Routing, cache and absorption are
    the model's own. Then: what this was to take, and what it took. Exit status 130 after Ctrl-C.
    """
    from minik2 import fullsize as engine
    from minik2.sizing.sheet import read
    from minik2.training.interrupt import stop_when_asked

    name, cfg = read(preset)
    err = Console(stderr=True)
    bar = Progress(
        SpinnerColumn(), MofNCompleteColumn(), BarColumn(24),
        TextColumn("{task.description}", markup=False), TimeElapsedColumn(), console=err,
        transient=True, disable=not err.is_terminal)  # fmt: skip
    with bar, stop_when_asked() as asked:
        task = bar.add_task("", total=layers or cfg.num_hidden_layers)
        made = engine.run(
            cfg, tokens, layers, seed,
            lambda step, done: bar.update(task, completed=done, description=step), asked)
    if as_json:
        print(json.dumps({"model": name, **made.to_dict()}, indent=2))
    else:
        some = "1 token" if tokens == 1 else f"{tokens:,} tokens"
        print(f"{name}: {some}, {made.done} of {cfg.num_hidden_layers} layers, seed {seed}\n"
              f"\n{made}")
    if not made.finished:
        raise typer.Exit(INTERRUPTED)
