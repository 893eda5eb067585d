"""Figures of lesson 10: a schedule, who updates what, and two optimizers laid side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, NullLocator

from minik2.plots.common import (
    FAINT,
    INK,
    SECOND,
    SOFT,
    TODAY,
    Picture,
    minus,
    picture,
    styled,
)  # fmt: skip

Array = np.ndarray[Any, np.dtype[Any]]
Record = Mapping[str, Any]

NAMES = {"muonclip": "MuonClip", "adamw": "AdamW"}
LOOKS = {"muonclip": (TODAY, "-"), "adamw": (SECOND, "--")}
OWNERS = {"Muon": (TODAY, None), "AdamW": (SECOND, "///"), "neither": (SOFT, "..")}
LOSS = "held-out loss, nats a byte"
# Steps at a run's beginning that are drawn by themselves, and points of a long curve.
BEGINNING, POINTS = 2000, 1000


@styled
def schedule(rate: Array, batch: int, ours: Array) -> Picture:
    """K2's learning rate of every step (steps,) over its tokens, its beginning, and the share of
    the highest rate in a short run of ours; batch: tokens a step."""
    top = np.flatnonzero(rate == rate.max())
    rise, fall = top[0] / len(rate), 1 - (top[-1] + 1) / len(rate)
    figure, (whole, first, own) = picture(
        f"K2: {rise:.1%} of the steps rise, {fall:.0%} fall, and the rest stays at the top",
        10, 3.1, columns=3, width_ratios=(1.5, 1, 1))  # fmt: skip
    shown = np.unique(np.linspace(0, len(rate) - 1, POINTS).astype(int))
    whole.plot((shown + 1) * batch, rate[shown], color=TODAY)
    whole.xaxis.set_major_formatter(EngFormatter(sep=""))
    whole.set(xlabel="tokens", ylabel="learning rate", title="the whole of it", ylim=(0, None))
    some = rate[:BEGINNING]
    first.plot(np.arange(1, len(some) + 1), some, color=TODAY)
    first.set(xlabel="step", title=f"its first {len(some):,} steps", ylim=(0, None))
    for axes in (whole, first):
        axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    own.plot(np.arange(1, len(ours) + 1), ours, color=INK)
    own.set(xlabel="step", ylabel="share of the highest rate", ylim=(0, None),
            title=f"ours, {len(ours)} steps")  # fmt: skip
    return figure


@styled
def owners(kinds: Mapping[str, tuple[int, str]]) -> Picture:
    """Numbers of every kind of tensor and who updates them: kind -> (count, a key of OWNERS)."""
    total = sum(count for count, _ in kinds.values())
    muon = sum(count for count, owner in kinds.values() if owner == "Muon")
    experts = sum(count for kind, (count, _) in kinds.items() if ".experts." in kind)
    figure, axes = picture(
        f"Muon updates {muon / total:.1%} of all numbers; the routed experts are "
        f"{experts / total:.1%} of them", 9, 0.9 + 0.23 * len(kinds))  # fmt: skip
    ranked = sorted(kinds, key=lambda kind: kinds[kind][0])
    for place, kind in enumerate(ranked):
        count, owner = kinds[kind]
        colour, hatch = OWNERS[owner]
        axes.barh(place, count, color=colour, hatch=hatch, edgecolor="white")
        axes.text(count, place, f" {count:,}", va="center", fontsize=8.5)
    axes.set_yticks(range(len(ranked)), ranked, fontsize=9)
    axes.set(xscale="log", xlabel="numbers", ylim=(-0.6, len(ranked) - 0.4))
    axes.set_xlim(min(c for c, _ in kinds.values()) / 3, 60 * kinds[ranked[-1]][0])
    axes.legend(handles=[Patch(facecolor=c, hatch=h, edgecolor="white", label=name)
                         for name, (c, h) in OWNERS.items()], loc="lower right")  # fmt: skip
    return figure


@styled
def tuning(rates: Sequence[float], grid: Mapping[str, Sequence[float]]) -> Picture:
    """Last losses of one seed by rate, and the gap by who chose it: optimizer -> (rates,)."""
    best = {name: int(np.argmin(losses)) for name, losses in grid.items()}
    ways = {
        f"both at {rates[best['muonclip']]:g},\nMuon's best": ("muonclip", "muonclip"),
        "each at\nits own best": ("muonclip", "adamw"),
        f"both at {rates[best['adamw']]:g},\nAdamW's best": ("adamw", "adamw"),
    }
    gaps = {way: grid["adamw"][best[theirs]] - grid["muonclip"][best[ours]]
            for way, (ours, theirs) in ways.items()}  # fmt: skip
    high, low = max(gaps.values()), min(gaps.values())
    title = (f"Muon is {high:.2f} nats better or {-low:.2f} worse: it depends on who chose the rate"
             if low < 0 < high else
             f"Muon's advantage is {minus(f'{low:.2f}')} to {minus(f'{high:.2f}')} nats, whoever "
             "chose the rate")  # fmt: skip
    figure, (left, right) = picture(title, 9.4, 3.5, columns=2)
    for name, losses in grid.items():
        colour, dash = LOOKS[name]
        left.plot(rates, losses, dash, marker="o", markersize=4, color=colour, label=NAMES[name])
        left.plot(rates[best[name]], losses[best[name]], "o", markersize=11, color=colour,
                  fillstyle="none")  # fmt: skip
    left.set(xscale="log", xlabel="highest learning rate, thousandths", ylabel=LOSS,
             title="one seed; the best one ringed")  # fmt: skip
    left.set_xticks(rates, [f"{1000 * rate:g}" for rate in rates])
    left.xaxis.set_minor_locator(NullLocator())
    left.legend()
    bars = right.bar(list(gaps), list(gaps.values()), 0.6,
                     color=[TODAY if gap > 0 else SECOND for gap in gaps.values()])  # fmt: skip
    right.bar_label(bars, [minus(f"{gap:+.2f}") for gap in gaps.values()], padding=2)
    right.axhline(0, color=INK, linewidth=0.9)
    right.margins(y=0.15)
    right.set(ylabel="AdamW's loss − Muon's, nats", title="above 0: Muon is better")
    return figure


@styled
def compared(record: Record, live: Mapping[str, Any]) -> Picture:
    """Bands of the stored seeds, and a live run of each optimizer over them.

    live: "tokens" (k,), "held_out" and "ratio" by optimizer: losses (k,), and a step's time over
    that of AdamW.
    """
    found, settings = record["found"], record["settings"]
    tokens = settings["batch"] * settings["accumulate"] * settings["window"]
    seconds = found["step_seconds_alone"]
    gaps = [a - m for m, a in zip(*(found["final"][n] for n in LOOKS), strict=True)]
    gap = float(live["held_out"]["adamw"][-1] - live["held_out"]["muonclip"][-1])
    words = f"{abs(gap):.2f} nats {'below' if gap > 0 else 'above'} AdamW"
    if live["tokens"][-1] != tokens * settings["steps"]:
        where = "a shorter run than the stored ones"
    else:
        inside = min(gaps) <= gap <= max(gaps)
        where = (f"{'within' if inside else 'outside'} the stored seeds' "
                 f"{minus(f'{min(gaps):.2f}')} to {minus(f'{max(gaps):.2f}')}")  # fmt: skip
    figure, (by_tokens, by_time) = picture(f"The live MuonClip ends {words}, {where}", 9.6, 3.8,
                                           columns=2)  # fmt: skip
    least, most = np.inf, 0.0
    for name, (colour, dash) in LOOKS.items():
        curves = np.array(found["curves"][name], float)
        steps, losses = curves[0, :, 0], curves[:, :, 1]
        ratio = seconds[name] / seconds["adamw"]
        for axes, at in ((by_tokens, steps * tokens), (by_time, steps * ratio)):
            axes.fill_between(at, losses.min(0), losses.max(0), color=colour, alpha=0.25,
                              linewidth=0, label=f"{NAMES[name]}, {len(losses)} stored seeds")
        own = np.asarray(live["held_out"][name])
        made = np.asarray(live["tokens"])
        by_tokens.plot(made, own, dash, color=colour, marker="o", markersize=3,
                       label=f"{NAMES[name]}, live")  # fmt: skip
        by_time.plot(made / tokens * live["ratio"][name], own, dash, color=colour, marker="o",
                     markersize=3)  # fmt: skip
        least = min(least, losses.min(), own.min())
        most = max(most, losses[:, 1:].max())
    ratio, stored = live["ratio"]["muonclip"], seconds["muonclip"] / seconds["adamw"]
    by_tokens.set(xlabel="tokens", ylabel=LOSS, title="by token")
    by_tokens.xaxis.set_major_formatter(EngFormatter(sep=""))
    by_time.set(xlabel="time, in steps of AdamW",
                title=f"by time: a step of Muon takes {ratio:.2f} live, {stored:.2f} stored")
    for axes in (by_tokens, by_time):
        axes.set_ylim(least - 0.05, most + 0.05)
    by_tokens.legend(fontsize=8.5)
    return figure


@styled
def spikes(curves: Mapping[str, tuple[Array, Array]]) -> Picture:
    """Losses and the steps that a rule marks: name -> (losses (steps,), marked (steps,))."""
    told = "; ".join(f"{name}: {int(marked.sum())}" for name, (_, marked) in curves.items())
    figure, panels = picture(f"Steps marked as a spike. {told}", 10, 3.0, columns=len(curves),
                             sharey=True, squeeze=False)  # fmt: skip
    top = max(float(losses[len(losses) // 20 :].max()) for losses, _ in curves.values())
    for axes, (name, (losses, marked)) in zip(panels[0], curves.items(), strict=True):
        step = np.arange(1, len(losses) + 1)
        axes.plot(step, losses, color=SOFT, linewidth=0.9)
        axes.plot(step[marked], losses[marked], "v", color=SECOND, markersize=5)
        axes.set(xlabel="step", title=name, ylim=(None, 1.05 * top))
    panels[0, 0].set_ylabel("loss of the batch, nats a byte")
    return figure


@styled
def sparsity(record: Record, claimed: tuple[float, float]) -> Picture:
    """Losses by the number of experts and with twice the heads, seed by seed.

    claimed: by which shares of the loss the heads are said to change it, least and most.
    """
    found, active = record["found"], record["model"]["num_experts_per_tok"]
    levels = [str(level) for level in record["plan"]["sparsities"]]
    final = np.array([found["final"][level] for level in levels])  # levels, seeds
    change = (final - final[0]).T
    sure = [int(level) * active for level, row in zip(levels, change.T, strict=True)
            if row.max() < 0]  # fmt: skip
    base = np.array(found["final"][str(record["model"]["n_routed_experts"] // active)])
    heads = 100 * (np.array(found["final"]["heads"]) / base - 1)
    which = (f"{' and '.join(map(str, sure))} experts beat {active} in every seed" if sure
             else f"no number of experts beats {active} in every seed")  # fmt: skip
    span = " to ".join(minus(f"{value:+.1f}%") for value in (heads.min(), heads.max()))
    figure, (left, right) = picture(f"{which[0].upper()}{which[1:]}; twice the heads: {span}",
                                    9.4, 3.5, columns=2)  # fmt: skip
    sizes = [int(level) * active for level in levels]
    for n, row in enumerate(change):
        left.plot(sizes, row, "o-", color=TODAY, alpha=0.45, linewidth=1, markersize=4,
                  label="a seed" if n == 0 else None)  # fmt: skip
    left.plot(sizes, change.mean(0), color=INK, linewidth=2, label="their mean")
    left.axhline(0, color=SOFT, linewidth=0.9)
    left.set_xscale("log", base=2)
    left.set_xticks(sizes, [str(size) for size in sizes])
    left.xaxis.set_minor_locator(NullLocator())
    left.set(xlabel=f"experts, {active} of them active", ylabel=f"loss − that with {active}, nats",
             title="same seed, same text")  # fmt: skip
    left.legend()
    _heads(right, heads, claimed)
    count = record["model"]["num_attention_heads"]
    right.set_title(f"{record['plan']['heads'] * count} heads instead of {count}, a dot a seed")
    return figure


def _heads(axes: Axes, heads: Array, claimed: tuple[float, float]) -> None:
    """Changes in percent, one a seed, beside the claimed band."""
    axes.axhspan(*(100 * share for share in claimed), color=FAINT, label="K2's report")
    axes.axhline(0, color=SOFT, linewidth=0.9)
    axes.plot(range(len(heads)), heads, "o", color=SECOND, markersize=7, label="here")
    axes.axhline(heads.mean(), color=SECOND, linewidth=1, linestyle="--", label="mean of the seeds")
    axes.set_xticks(range(len(heads)), [f"seed {n}" for n in range(len(heads))])
    axes.set(ylabel="change of the loss, percent", xlim=(-0.5, len(heads) - 0.5))
    axes.margins(y=0.25)
    axes.legend(fontsize=8.5)
