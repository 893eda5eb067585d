"""The command `minik2 train`: a run, what it says on its way, what came of it, and its picture.

Unusual here: every field of Settings and Habits is an option with the same name and default. The
defaults stand here a second time, so that `--help` loads no NumPy; a test keeps both in step. To
go on with a run is the same command again, so that command is what an interrupted run prints.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections import deque
from dataclasses import asdict, fields
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.text import Text

from minik2.terminal import INTERRUPTED, command, plain

if TYPE_CHECKING:
    from minik2.config import ModelConfig
    from minik2.training import Settings

RECENT, PACE = 20, 50  # steps that the shown loss and speed, and the time left, are means of

MODEL, RECIPE, HABITS, PICTURE = (
    "The model and its place", "The recipe: a run goes on only with the one that it began with",
    "Habits: these may change when a run goes on", "The picture of runs")


def _option(panel: str, help: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


def train(
    ctx: typer.Context,
    runs: Annotated[list[Path] | None, typer.Argument(
        help="With --plot only: the directories of the runs to draw.", show_default=False)] = None,
    preset: Annotated[str | None, _option(
        MODEL, "A configuration that ships with minik2; `small` if none is named.")] = None,
    config: Annotated[Path | None, _option(
        MODEL, "A config.json of your own, or the directory that holds one.")] = None,
    data: Annotated[Path | None, _option(
        MODEL, "A text in UTF-8 or a directory of them; Python's standard library if none is "
               "named.")] = None,
    out: Annotated[Path | None, _option(
        MODEL, "The run's directory; runs/MODEL-OPTIMIZER if none is named.")] = None,
    engine: Annotated[str, _option(
        RECIPE, "What computes: reference (NumPy, by hand) or pytorch.")] = "pytorch",
    optimizer: Annotated[str, _option(
        RECIPE, "muonclip (K2's), muon (the same without QK-Clip), or adamw (V3's).")] = "muonclip",
    steps: Annotated[int, _option(
        RECIPE, "Updates of the weights, in all. K2: 15.5 T tokens' worth.")] = 400,
    batch: Annotated[int, _option(
        RECIPE, "Windows in a batch. K2: 67 M tokens a step; V3: 3,072 to 15,360 windows.")] = 8,
    window: Annotated[int, _option(
        RECIPE, "Tokens in a window; a token is a byte here. K2, V3: 4,096.")] = 128,
    accumulate: Annotated[int, _option(
        RECIPE, "Batches to a step, their gradients averaged, where memory holds no larger "
                "one.")] = 1,
    rate: Annotated[float, _option(
        RECIPE, "The highest learning rate. K2: 0.0002; V3: 0.00022.")] = 1e-2,
    adamw_rate: Annotated[float | None, _option(
        RECIPE, "The highest rate of AdamW beside Muon (embedding, head, norms); --rate if none "
                "is named. K2: not published.")] = None,
    weight_decay: Annotated[float, _option(
        RECIPE, "Times the rate: the share of a weight that a step takes away. "
                "K2, V3: 0.1.")] = 0.1,
    warmup: Annotated[int, _option(
        RECIPE, "Steps in which the rate rises. K2: 500; V3: 2,000.")] = 20,
    decay: Annotated[float, _option(
        RECIPE, "The share of all steps in which the rate falls, along a cosine. "
                "K2: 0.35, 5.5 of 15.5 T tokens.")] = 0.4,
    final: Annotated[float, _option(
        RECIPE, "The last rate, as a share of the highest. K2: 0.1.")] = 0.1,
    clip_norm: Annotated[float | None, _option(
        RECIPE, "Shorten gradients longer than this; never if none is named. V3: 1; "
                "K2: not published.")] = None,
    tau: Annotated[float, _option(
        RECIPE, "The attention logit above which muonclip shrinks a head. K2: 100.")] = 100.0,
    bias_speed: Annotated[float, _option(
        RECIPE, "How far a step moves an expert's correction bias, to even out the load; 0 for "
                "never. V3: 0.001, for far more steps.")] = 0.01,
    bias_until: Annotated[float, _option(
        RECIPE, "The share of all steps after which the biases rest. V3: 0.97, 14.3 of 14.8 T "
                "tokens.")] = 0.97,
    bias_mean_free: Annotated[bool, _option(
        RECIPE, "Moonlight's rule for the biases, whose mean stays where it is.",
        "--bias-mean-free")] = False,
    balance_alpha: Annotated[float, _option(
        RECIPE, "Weight of the loss that spreads each sequence over the experts. "
                "V3: 0.0001.")] = 0.0001,
    seed: Annotated[int, _option(
        RECIPE, "What the first weights and the order of the text are drawn from.")] = 0,
    device: Annotated[str, _option(
        HABITS, "auto (a GPU where the engine finds one), cpu, cuda, or cuda:1 and up.")] = "auto",
    threads: Annotated[int | None, _option(
        HABITS, "CPU threads; what the engine's library takes by itself if none is "
                "named.")] = None,
    evaluate_every: Annotated[int, _option(
        HABITS, "Steps from one look at the held-out text to the next.")] = 50,
    save_every: Annotated[int, _option(
        HABITS, "Steps from one checkpoint to the next; the newest two are kept.")] = 100,
    prompt: Annotated[str | None, _option(
        HABITS, "Print at every evaluation how the model goes on with this text.",
        "--sample")] = None,
    expert_ranks: Annotated[int, _option(
        HABITS, "Of the processes that torchrun started, how many share the experts of a layer; "
                "the others hold copies. K2: 16.")] = 1,
    recompute: Annotated[bool, _option(
        HABITS, "Keep each layer's input alone for the backward pass and compute the rest again: "
                "less memory, a second forward pass. K2: some tensors.", "--recompute")] = False,
    mixed: Annotated[bool, _option(
        HABITS, "Compute in bfloat16 and keep weights, their gradients and routers in float32: for "
                "GPUs. K2 does so.", "--mixed")] = False,
    plot: Annotated[bool, _option(
        PICTURE, "Train nothing: draw the runs named, finished or not.", "--plot")] = False,
    output: Annotated[Path | None, _option(
        PICTURE, "The picture's file; run.png in the run, or runs.png for several.",
        "--output", "-o")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Train a model, or go on with a run that was interrupted: the same command does both.

    The text is the source of Python's standard library, or yours (--data). Ctrl-C saves and
    prints how to go on; a run that was killed goes on from its last checkpoint. On several
    processes: torchrun --nproc-per-node N -m minik2.training, with the same options. Exit status 0
    when all steps are made, 130 after Ctrl-C.
    """
    if plot:
        _plot(runs or [], output, as_json)
        return
    if runs or output:
        what = str(runs[0]) if runs else "--output"
        raise ValueError(f"{what} is for pictures of runs only: give --plot as well, or leave it "
                         "out; where to train is said by --out.")
    try:
        _train(ctx.params, as_json)
    except (ValueError, OSError) as error:
        from minik2.training.ranks import speaks

        if speaks(error):
            raise
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        print(f"Stopped before training. The same command again:\n  {command()}",
              file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


def _train(given: dict[str, Any], as_json: bool) -> None:
    from minik2 import heap, training
    from minik2.training import ranks, summary

    heap.keep()
    settings = training.Settings(**{f.name: given[f.name] for f in fields(training.Settings)})
    name, cfg = _model(given["preset"], given["config"])
    device = _device(settings.engine, given["device"])
    chosen = {f.name: given[f.name] for f in fields(training.Habits)}
    habits = training.Habits(**chosen | {"device": device})
    out = given["out"] or Path("runs", f"{name}-{settings.optimizer}")
    with _Progress(settings) as shown:
        data = given["data"]
        corpus = training.Corpus.from_path(data) if data else training.Corpus.standard_library()
        if not ranks.follows():
            shown.say(f"Text: {corpus}.")
        try:
            outcome = training.train(cfg, settings, corpus, out, habits, shown.tell)
        except KeyboardInterrupt:
            shown.say(f"Stopped at once. {shown.saved or 'Nothing was saved yet'}; "
                      f"the same command goes on from there:\n  {command()}")
            raise typer.Exit(INTERRUPTED) from None
    if ranks.follows():
        raise typer.Exit(INTERRUPTED if outcome.interrupted else 0)
    found = summary.figures(out)
    lines = [*summary.lines(found), f"checkpoint  {outcome.checkpoint or 'none yet'}"]
    print(json.dumps(asdict(outcome) | found, indent=2, default=str) if as_json
          else "\n".join(lines))
    if outcome.interrupted:
        where = f"and saved at step {outcome.step}" if outcome.step else "before the first step"
        print(f"Interrupted, {where} of {settings.steps}. To go on from there:\n  {command()}",
              file=sys.stderr)
        raise typer.Exit(INTERRUPTED)


class _Progress:
    """What a run says on its way, to standard error: a bar that leaves nothing behind, or, where
    no terminal shows it, a line at every evaluation."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        err = Console(stderr=True, highlight=False)
        self.bar = Progress(
            SpinnerColumn(), MofNCompleteColumn(), BarColumn(16),
            TextColumn("{task.description}", markup=False), console=err, transient=True,
            disable=not err.is_terminal, refresh_per_second=4)  # fmt: skip
        self.task = self.bar.add_task("getting ready", total=settings.steps)
        self.step = 0
        self.held_out: float | None = None
        self.seconds: deque[float] = deque(maxlen=RECENT)
        self.losses: deque[float] = deque(maxlen=RECENT)
        self.clock: deque[float] = deque(maxlen=PACE + 1)
        self.saved = ""

    def __enter__(self) -> _Progress:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def say(self, text: str, style: str = "") -> None:
        """A line above the bar; text is never markup, nor does it steer the terminal."""
        self.bar.console.print(Text(plain(text), style), soft_wrap=True)

    def tell(self, kind: str, facts: dict[str, Any]) -> None:
        self.step = facts["step"]
        if kind == "warning":
            self.say(f"Warning: {facts['text']}", "yellow")
        elif kind == "begin":
            self.clock.append(time.monotonic())
            if self.step == self.settings.steps:
                self.say(f"This run is finished: all {self.step} steps are made.")
            elif self.step:
                self.saved = f"Step {self.step}, from which it went on, is still saved"
                self.say(f"Going on from step {self.step} of {self.settings.steps}.")
        elif kind == "step":
            self.seconds.append(facts["seconds"])
            self.losses.append(facts["loss"])
            self.clock.append(time.monotonic())
        elif kind == "evaluation":
            self.held_out = facts["held_out"]
            if not self.losses:
                self.clock = deque([time.monotonic()], PACE + 1)
            if self.bar.disable:
                self.say(f"step {self.step} of {self.settings.steps}: {self._where()}")
            if "sample" in facts:
                self.say(f"{facts['sample']}\n", "dim")
        elif kind == "saved":
            self.saved = f"Step {self.step} is saved in {facts['path']}"
        self.bar.update(self.task, completed=self.step, description=self._where())

    def _where(self) -> str:
        """Losses in nats a byte, speed, and time left, as far as they are known."""
        parts = []
        if self.losses:
            parts.append(f"loss {sum(self.losses) / len(self.losses):.3f}")
        if self.held_out is not None:
            parts.append(f"held out {self.held_out:.3f}")
        if self.losses:
            speed = self.settings.tokens_a_step * len(self.seconds) / sum(self.seconds)
            pace = (self.clock[-1] - self.clock[0]) / (len(self.clock) - 1)
            left = timedelta(seconds=round(pace * (self.settings.steps - self.step)))
            parts += [f"{speed:,.0f} tokens/s", f"{left} left"]
        return ", ".join(parts) or "getting ready"


def _model(preset: str | None, config: Path | None) -> tuple[str, ModelConfig]:
    """The model's short name, for the run's directory, and its configuration."""
    from minik2.config import ModelConfig

    if preset and config:
        raise ValueError("--preset and --config both name a model; give one of them.")
    if config is None:
        name = preset or "small"
        return name, ModelConfig.preset(name)
    cfg = ModelConfig.from_json(config)
    if config.name == "config.json":
        config = config.parent
    return (config.resolve().name if config.is_dir() else config.stem), cfg


def _device(engine: str, asked: str) -> str:
    """Where the engine computes; what is asked for by name, it accepts or refuses itself."""
    if engine == "reference":
        return "cpu" if asked == "auto" else asked
    torch = _needed("torch", "The engine pytorch needs PyTorch", "; or use --engine reference")
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return asked


def _needed(module: str, who: str, otherwise: str = "") -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ValueError(f"{who}, which is not installed: it is in the extra `course`, "
                         f"python -m pip install -e \".[course]\"{otherwise}.") from None


def _plot(runs: list[Path], output: Path | None, as_json: bool) -> None:
    if not runs:
        raise ValueError("--plot needs the directory of at least one run, such as "
                         "`minik2 train --plot runs/small-muonclip`.")
    from minik2.training import identity, metrics

    runs = list({run.resolve(): run for run in runs}.values())  # none beside itself
    entries = [metrics.read(run) for run in runs]
    settings = [identity.read(run)["settings"] for run in runs]
    _needed("matplotlib", "A picture needs matplotlib")
    from minik2.plots import training as pictures

    names = pictures.names(runs)
    if len(runs) == 1:
        tau = settings[0].get("tau") if settings[0].get("optimizer") == "muonclip" else None
        picture = pictures.one_run(names[0], entries[0], tau)
    else:
        picture = pictures.several_runs(dict(zip(names, entries, strict=True)))
    path = output or (runs[0] / "run.png" if len(runs) == 1 else Path("runs.png"))
    picture.write(path)
    print(json.dumps({"picture": str(path)}) if as_json else f"The picture is {path}.")
