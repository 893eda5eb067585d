"""The picture of a training run, and of several beside each other, from the lines they wrote.

Unusual here: time is an axis as well as tokens, because an optimizer that wins by token may lose by
the clock. Each picture has one key, in a cell of its own, so that nothing lies over a curve. Blue
and orange mean the latent and the rotary part in this course, so no run is drawn in either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FixedLocator, NullLocator

from minik2.plots.common import AMOUNT, PLAIN, SECOND, TODAY, Picture, picture, styled

Array = np.ndarray[Any, np.dtype[Any]]
Entries = Sequence[Mapping[str, Any]]
Look = tuple[str, Any]  # colour and dash

# Training losses are means over this share of all steps: single batches hide the curve.
SMOOTHED = 1 / 40
# The key has room for so many layers; of more, evenly chosen ones are named.
NAMED = 8
# Longer names lose their beginning, where directories are alike, so that titles fit.
LETTERS = 24
# Neither five colours nor three dashes come again together before fifteen runs; a grey print has
# the dashes.
LOOKS: list[Look] = [(PLAIN[n % 5], ("-", "--", ":")[n % 3]) for n in range(15)]
LOSSES = (0.3, 0.5, 0.7, 1, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
# From this on a largest logit's axis is logarithmic above 1, so that what came before stays seen.
STEEP = 300


class _Run:
    """The columns of a run's lines, a number a step or an evaluation; logits (steps, layers).

    Tokens and seconds of an evaluation are those of the step before it.
    """

    def __init__(self, name: str, entries: Entries) -> None:
        steps = {entry["step"]: entry for entry in entries if entry["kind"] == "step"}
        if not steps:
            raise ValueError(f"{name} has made no step yet, so there is nothing to draw.")
        self.name = name if len(name) <= LETTERS else f"…{name[1 - LETTERS :]}"
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
        self.looked = looks[-1]["step"] if looks else self.step[-1]  # where `last` is from
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
        """The last held-out loss, or where there is none yet, the last training loss."""
        return float(self.held_out[-1] if len(self.held_out) else self.smooth()[-1])


@styled
def one_run(name: str, entries: Entries, tau: float | None = None) -> Picture:
    """One run from its lines, as `metrics.read` gives them; tau: MuonClip's, None for none.

    Losses in nats a byte by tokens and by seconds, the largest logit of every layer and when a
    head was clipped, the violation of the worst layer, the learning rate. Raises ValueError for a
    run without a step.
    """
    run = _Run(name, entries)
    first = run.held_out[0] if len(run.held_out) else run.loss[0]
    figure, logits, key = _panels(
        f"{run.name}: {first:.2f} nats a byte at first, {run.last():.2f} after "
        f"{run.looked:,} steps", [run], [(TODAY, "-")])  # fmt: skip
    tops, layers = run.logits.max(axis=0), run.logits.shape[1]
    shades = AMOUNT(np.linspace(0.35, 1, layers))
    for layer in range(layers):
        logits.plot(run.step, run.logits[:, layer], color=shades[layer], linewidth=1.2)
    named = np.unique(np.linspace(0, layers - 1, min(layers, NAMED)).round().astype(int))
    lines = [Line2D([], [], color=shades[n], label=f"largest logit, layer {n}") for n in named]
    said = f"largest logit: {tops.max():.3g}, in layer {tops.argmax()}"
    if tau is not None:
        steps = [step for step, _, _ in run.clipped]
        heights = [run.logits[run.step == step, layer][0] for step, layer, _ in run.clipped]
        logits.plot(steps, heights, "v", color=SECOND, markersize=5, zorder=5)
        logits.axhline(tau, color=SECOND, linewidth=1, linestyle="--")
        lines.append(Line2D([], [], color=SECOND, linewidth=1, linestyle="--",
                            label=f"tau: {tau:g}"))  # fmt: skip
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
    looks = [LOOKS[n % len(LOOKS)] for n in range(len(found))]
    best, *others = sorted(found, key=_Run.last)
    figure, logits, key = _panels(
        f"{best.name} is lowest: {best.last():.2f} nats a byte after {best.looked:,} steps; "
        f"{others[0].name}: {others[0].last():.2f} after {others[0].looked:,}", found, looks)
    for run, (colour, dash) in zip(found, looks, strict=True):
        logits.plot(run.step, run.logits.max(axis=1), color=colour, linestyle=dash)
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
            axes.plot(run.at[by], run.smooth(), color=colour, linewidth=0.8, alpha=0.7)
            axes.plot(run.held_out_at[by], run.held_out, "o", linestyle=dash, color=colour,
                      markersize=4)  # fmt: skip
        axes.set(yscale="log", xlabel=f"{by} of training", ylabel="loss, nats a byte")
        axes.yaxis.set_major_locator(FixedLocator(LOSSES))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    for n, (run, (colour, dash)) in enumerate(zip(runs, looks, strict=True)):
        # Rates are often the same: earlier ones are seen around later ones.
        rate.plot(run.step, run.rate, color=colour, linestyle=dash, linewidth=len(runs) + 0.5 - n)
        balance.plot(run.step, run.violation, color=colour, linestyle=dash, linewidth=1)
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
    return figure, logits, key


def _steep(axes: Axes, top: float, title: str) -> None:
    axes.set_title(title)
    axes.set(xlabel="step", ylabel="after scaling, before the softmax")
    if top > STEEP:
        axes.set_yscale("symlog", linthresh=1)


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
        for run, (colour, dash) in zip(runs, looks, strict=True)
    ]  # fmt: skip
    thin = Line2D([], [], color=TODAY if single else PLAIN[0], linewidth=0.8, alpha=0.7,
                  label=f"training{mean}")  # fmt: skip
    axes.axis("off")
    axes.legend(handles=[*lines, thin, *more], loc="upper left", fontsize=9)
