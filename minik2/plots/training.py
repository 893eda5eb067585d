"""The picture of a training run, and of several beside each other, from the lines they wrote.

Unusual here: time is an axis as well as tokens, because an optimizer that wins by token may lose by
the clock. Each picture has one key, in a cell of its own, so that nothing lies over a curve. Blue
and orange mean the latent and the rotary part in this course, so no run is drawn in either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    EngFormatter,
    FixedLocator,
    Locator,
    LogLocator,
    MaxNLocator,
    NullLocator,
)

from minik2.plots.common import AMOUNT, PLAIN, SECOND, TODAY, Picture, picture, styled

Array = np.ndarray[Any, np.dtype[Any]]
Entries = Sequence[Mapping[str, Any]]
Look = tuple[str, Any]  # colour and dash

# Training losses are means over this share of all steps: single batches hide the curve.
SMOOTHED = 1 / 40
# The key has room for so many layers; of more, evenly chosen ones are named.
NAMED = 8
# It has room for so many lines; of more, which are then smaller and in two columns, for so many.
ROWS, KEYED = 12, 30
# Longer names lose their beginning, where directories are alike, so that titles fit.
LETTERS = 22
# Neither five colours nor three dashes come again together before fifteen runs; a grey print has
# the dashes.
LOOKS: list[Look] = [(PLAIN[n % 5], ("-", "--", ":")[n % 3]) for n in range(15)]
LOSSES = (0.3, 0.5, 0.7, 1, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
ROUND = (1, 2, 5, 10)
# From this on a largest logit's axis is logarithmic above 1, so that what came before stays seen.
STEEP = 300
# A tau more than so many times the largest logit is told, not drawn: it would press curves flat.
FAR = 4
# Points: the rate's line of the first of many runs, and the stroke that stands for a line where a
# run has one step.
THICKEST, STROKE = 5, 12


class _Run:
    """The columns of a run's lines, a number a step or an evaluation; logits (steps, layers).

    Tokens and seconds of an evaluation are those of the step before it.
    """

    def __init__(self, name: str, entries: Entries, number: str = "") -> None:
        steps = {entry["step"]: entry for entry in entries if entry["kind"] == "step"}
        if not steps:
            raise ValueError(f"{name} has made no step yet, so there is nothing to draw.")
        room = LETTERS - len(number)
        shown = number + (name if len(name) <= room else f"…{name[1 - room :]}")
        self.name = shown.replace("$", r"\$")  # between two of them Matplotlib reads a formula
        self.step = np.array(list(steps))
        looks = [entry for entry in entries if entry["kind"] == "evaluation"]
        try:
            self._read(steps, looks)
        except KeyError as missing:
            raise ValueError(f"A line of {name} has no {missing}, so it is not one that `minik2 "
                             "train` writes; draw the run with what wrote it.") from None

    def _read(self, steps: Mapping[int, Mapping[str, Any]], looks: Entries) -> None:
        self.loss, self.rate, tokens, seconds = (
            np.array([entry[key] for entry in steps.values()])
            for key in ("loss", "rate", "tokens", "trained")
        )
        self.at = {"tokens": tokens, "seconds": seconds}
        self.logits = np.array([entry["max_logit"] for entry in steps.values()])
        self.violation = np.array([max(e["violation"], default=np.nan) for e in steps.values()])
        self.clipped = [(n, *head[:2]) for n, e in steps.items() for head in e["clipped"]]
        self.held_out = np.array([entry["held_out"] for entry in looks])
        # Held-out text that was looked at before the first step alone says nothing of training.
        self.judged = bool(looks and looks[-1]["step"])
        self.ended = looks[-1]["step"] if self.judged else self.step[-1]  # where `last` is from
        places = np.searchsorted(self.step, [entry["step"] for entry in looks], "right")
        self.held_out_at = {by: np.array([0, *x])[places] for by, x in self.at.items()}

    @property
    def width(self) -> int:
        """How many steps' losses are averaged."""
        return max(1, round(len(self.loss) * SMOOTHED))

    def smooth(self) -> Array:
        """Each step's training loss, averaged with those just before it."""
        sums = np.cumsum([0.0, *self.loss])
        end = np.arange(1, len(sums))
        start = np.maximum(end - self.width, 0)
        smoothed: Array = (sums[end] - sums[start]) / (end - start)
        return smoothed

    def last(self) -> float:
        """The last held-out loss, or where no step was judged yet, the last training loss."""
        return float(self.held_out[-1] if self.judged else self.smooth()[-1])


def names(runs: Sequence[Path]) -> list[str]:
    """Directories, each another, named by their last parts: as many as tell them apart."""
    parts = [run.resolve().parts for run in runs]
    kept = 1
    while len({path[-kept:] for path in parts}) < len(parts):
        kept += 1
    return [str(Path(*path[-kept:])) for path in parts]


@styled
def one_run(name: str, entries: Entries, tau: float | None = None) -> Picture:
    """One run from its lines, as `metrics.read` gives them; tau: MuonClip's, None for none.

    Losses in nats a byte by tokens and by seconds, the largest logit of every layer and when a
    head was clipped, the violation of the worst layer, the learning rate. Raises ValueError for a
    run without a step.
    """
    run = _Run(name, entries)
    last = f"{run.last():.2f} after {_steps(run.ended)}"
    if run.judged:
        title = f"{run.held_out[0]:.2f} nats a byte at first, {last}"
    elif len(run.held_out):
        title = (f"{run.held_out[0]:.2f} nats a byte at step 0, not evaluated since; "
                 f"training loss {last}")  # fmt: skip
    else:
        title = f"training loss {run.loss[0]:.2f} nats a byte at first, {last}"
    figure, logits, key = _panels(f"{run.name}: {title}", [run], [(TODAY, "-")])
    tops, layers = run.logits.max(axis=0), run.logits.shape[1]
    shades = AMOUNT(np.linspace(0.35, 1, layers))
    for layer in range(layers):
        _line(logits, run.step, run.logits[:, layer], 1.2, color=shades[layer])
    named = np.unique(np.linspace(0, layers - 1, min(layers, NAMED)).round().astype(int))
    lines = [Line2D([], [], color=shades[n], label=f"largest logit, layer {n}") for n in named]
    said = f"largest logit: {tops.max():.3g}, in layer {tops.argmax()}"
    if tau is not None:
        steps = [step for step, _, _ in run.clipped]
        heights = [run.logits[run.step == step, layer][0] for step, layer, _ in run.clipped]
        logits.plot(steps, heights, "v", color=SECOND, markersize=5, zorder=5)
        far = tau > FAR * tops.max()
        if not far:
            logits.axhline(tau, color=SECOND, linewidth=1, linestyle="--")
        lines.append(Line2D([], [], color=SECOND, linewidth=1, linestyle="" if far else "--",
                            label=f"tau: {tau:g}{', far above' if far else ''}"))  # fmt: skip
        if steps:
            lines.append(Line2D([], [], color=SECOND, linestyle="", marker="v", markersize=5,
                                label="a head is clipped"))  # fmt: skip
        heads = len({(layer, head) for _, layer, head in run.clipped})
        said += f"; {heads} head{'' if heads == 1 else 's'} clipped"
    _steep(logits, tops.max(), said)
    _key(key, [run], [(TODAY, "-")], lines)
    return figure


@styled
def several_runs(runs: Mapping[str, Entries]) -> Picture:
    """Runs beside each other, {name: lines}: the panels of `one_run` with a line a run.

    A run's logit is its largest over the layers. Raises ValueError for a run without a step.
    """
    found = [_Run(name, entries) for name, entries in runs.items()]
    if len({run.name for run in found}) < len(found):  # names alike but for what was cut off
        found = [_Run(name, lines, f"{n}: ") for n, (name, lines) in enumerate(runs.items(), 1)]
    looks = [LOOKS[n % len(LOOKS)] for n in range(len(found))]
    best, second, *_ = sorted(found, key=_Run.last)
    sources = [" held out" if run.judged else " in training" for run in (best, second)]
    if best.judged and second.judged:
        sources = [" nats a byte", ""]
    figure, logits, key = _panels(
        f"{best.name} is lowest: {best.last():.2f}{sources[0]} after {_steps(best.ended)}; "
        f"{second.name}: {second.last():.2f}{sources[1]} after {second.ended:,}", found, looks)
    for run, (colour, dash) in zip(found, looks, strict=True):
        _line(logits, run.step, run.logits.max(axis=1), 1.5, color=colour, linestyle=dash)
    wildest = max(found, key=lambda run: run.logits.max())
    top = wildest.logits.max()
    _steep(logits, top, f"largest logit: {top:.3g}, of {wildest.name}")
    _key(key, found, looks, [])
    return figure


def _panels(
    title: str, runs: Sequence[_Run], looks: Sequence[Look]
) -> tuple[Picture, Axes, Axes]:
    """The picture with all but the logits and the key, whose axes are given back."""
    figure, ((by_tokens, by_seconds, rate), (logits, balance, key)) = picture(title, 12, 6.4, 2, 3)
    for axes, by in ((by_tokens, "tokens"), (by_seconds, "seconds")):
        for run, (colour, dash) in zip(runs, looks, strict=True):
            _line(axes, run.at[by], run.smooth(), 0.8, color=colour, alpha=0.7)
            axes.plot(run.held_out_at[by], run.held_out, "o", linestyle=dash, color=colour,
                      markersize=4)  # fmt: skip
        axes.set(yscale="log", xlabel=f"{by} of training", ylabel="loss, nats a byte")
        axes.yaxis.set_major_locator(_loss_ticks(*axes.get_ylim()))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
    by_tokens.xaxis.set_major_formatter(EngFormatter(sep=""))
    by_seconds.xaxis.set_major_formatter("{x:.10g}")
    for n, (run, (colour, dash)) in enumerate(zip(runs, looks, strict=True)):
        # Rates are often the same: earlier ones are seen around later ones.
        width = 0.5 + min(len(runs), THICKEST) * (1 - n / len(runs))
        _line(rate, run.step, run.rate, width, color=colour, linestyle=dash)
        _line(balance, run.step, run.violation, 1, color=colour, linestyle=dash)
    ends = [run.at["tokens"][-1] for run in runs]
    times = [run.at["seconds"][-1] for run in runs]
    speeds = [tokens / seconds for tokens, seconds in zip(ends, times, strict=True)]
    worst = max((v for run in runs for v in run.violation if v >= 0), default=None)
    by_tokens.set_title(f"loss by tokens: {_span(ends, ',.0f')}")
    by_seconds.set_title(f"by time: {_span(speeds, ',.0f')} tokens a second")
    rate.set_title(f"learning rate: {_span([r.rate.max() for r in runs], '.2g')} at most")
    rate.set(xlabel="step", ylim=(0, None))
    balance.set_title("no layer has experts" if worst is None else
                      f"busiest expert: at most {1 + worst:.2f} times its share")
    balance.set(xlabel="step", ylabel="violation: load / mean − 1",
                ylim=(0, 1.05 * max(worst or 0, 0.1)))  # fmt: skip
    for axes in (rate, logits, balance):
        whole = MaxNLocator("auto", steps=ROUND, integer=True, min_n_ticks=1)
        axes.xaxis.set_major_locator(whole)
    return figure, logits, key


def _loss_ticks(low: float, high: float) -> Locator:
    """LOSSES, unless the axis has too few of them or, as where losses explode, too wide a range."""
    if high > 20 * low:
        return LogLocator(subs=ROUND[:3])
    if sum(low <= loss <= high for loss in LOSSES) > 1:
        return FixedLocator(LOSSES)
    return MaxNLocator(4, steps=ROUND)


def _line(axes: Axes, x: Array, y: Array, width: float, **look: Any) -> None:
    """A line by steps; of a single one, through which none goes, a stroke."""
    axes.plot(x, y, linewidth=width, marker="_" if len(x) == 1 else "", markersize=STROKE,
              markeredgewidth=width, **look)


def _steep(axes: Axes, top: float, title: str) -> None:
    axes.set_title(title)
    axes.set(xlabel="step", ylabel="after scaling, before the softmax")
    if top > STEEP:
        axes.set_yscale("symlog", linthresh=1)


def _steps(count: int) -> str:
    return f"{count:,} step{'' if count == 1 else 's'}"


def _span(values: Sequence[float], form: str) -> str:
    """One number, or the least and the most of several."""
    shown = dict.fromkeys(format(value, form) for value in (min(values), max(values)))
    return " to ".join(shown)


def _key(
    axes: Axes, runs: Sequence[_Run], looks: Sequence[Look], more: Sequence[Line2D]
) -> None:
    """What each line means, in a cell of its own."""
    single = len(runs) == 1
    widths = _span([run.width for run in runs], "d")
    mean = "" if widths == "1" else f", mean of {widths} steps"
    lines = [
        Line2D([], [], color=colour, linestyle=dash, marker="o", markersize=4,
               label="held-out text" if single else run.name)
        for run, (colour, dash) in zip(runs[:KEYED], looks, strict=False)
    ]  # fmt: skip
    if len(runs) > KEYED:
        lines.append(Line2D([], [], linestyle="", label=f"and {len(runs) - KEYED} more"))
    thin = Line2D([], [], color=TODAY if single else PLAIN[0], linewidth=0.8, alpha=0.7,
                  label=f"training{mean}")  # fmt: skip
    axes.axis("off")
    handles = [*lines, thin, *more]
    small = {"fontsize": 6.5, "ncols": 2, "labelspacing": 0.4, "handlelength": 2.5,
             "columnspacing": 1}  # fmt: skip
    legend = axes.legend(handles=handles, loc="upper left",
                         **small if len(handles) > ROWS else {"fontsize": 9})  # fmt: skip
    legend.set_in_layout(False)  # it may reach below its cell, and shrink no panel
