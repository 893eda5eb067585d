"""Figures of lesson 06: pairs sorted by expert, how long a layer takes, collapse and its cure."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import ConnectionPatch, Rectangle
from matplotlib.ticker import LogLocator, NullLocator

from minik2.plots.common import (
    AMOUNT,
    FAINT,
    INK,
    PLAIN,
    SECOND,
    SOFT,
    TODAY,
    Picture,
    heat,
    minus,
    picture,
    styled,
)  # fmt: skip

Array = np.ndarray[Any, np.dtype[Any]]

# The last part of a run over which its end is averaged.
END = 8
LOOKS = [(INK, "-"), (SECOND, "--"), (TODAY, "-")]


@styled
def sorting(indices: Array, order: Array, offsets: Array) -> Picture:
    """Pairs as the tokens have them, and sorted by expert: indices (T, K), order (T K,),
    offsets (E + 1,)."""
    experts, pairs = indices.reshape(-1), indices.size
    runs = 1 + int((np.diff(experts[order]) != 0).sum())
    busy = len(np.unique(experts))
    whole = np.array_equal(np.sort(order), np.arange(pairs)) and runs == busy
    title = (f"Sorted by expert, {pairs} rows make {busy} products" if whole else
             f"This order leaves {busy} experts in {runs} pieces, or loses a pair")
    figure, axes = picture(title, 9, 3.3)
    axes.set(xlim=(-1.6, pairs + 0.1), ylim=(-1.35, 3.5))
    axes.set_axis_off()
    shades = AMOUNT(np.linspace(0.12, 0.85, len(offsets) - 1))
    for place in range(pairs):
        _square(axes, place, 2.2, experts[place], shades)
        _square(axes, place, 0, experts[order[place]], shades)
        token, choice = divmod(int(order[place]), indices.shape[1])
        axes.text(place + 0.5, -0.14, f"t{token} k{choice}", ha="center", va="top", fontsize=7.5,
                  color=SOFT)
        axes.add_patch(ConnectionPatch((order[place] + 0.5, 2.2), (place + 0.5, 0.7), "data",
                                       "data", color=SOFT, linewidth=0.9))
    for token in range(len(indices)):
        start, end = token * indices.shape[1], (token + 1) * indices.shape[1]
        axes.plot([start + 0.1, end - 0.1], [3.05, 3.05], color=SOFT, linewidth=1)
        axes.text((start + end) / 2, 3.15, f"token {token}", ha="center", fontsize=9)
    for e, (start, end) in enumerate(itertools.pairwise(offsets)):
        if end > start:
            axes.plot([start + 0.1, end - 0.1], [-0.55, -0.55], color=SOFT, linewidth=1)
            axes.text((start + end) / 2, -0.68, f"expert {e}", ha="center", va="top", fontsize=9)
    ends, counts = np.unique(offsets, return_counts=True)
    for end, count in zip(ends, counts, strict=True):
        axes.text(end, -1.3, " ".join([f"{end}"] * count), ha="center", fontsize=9, color=TODAY,
                  fontweight="bold")
    for height, name in ((2.55, "chosen"), (0.35, "sorted")):
        axes.text(-0.3, height, name, ha="right", va="center", fontweight="bold")
    axes.text(-0.3, -1.3, "offsets", ha="right", fontweight="bold", color=TODAY)
    return figure


def _square(axes: Axes, x: float, y: float, number: int, shades: Array) -> None:
    face = shades[number]
    axes.add_patch(Rectangle((x + 0.05, y), 0.9, 0.7, facecolor=face, edgecolor=SOFT,
                             linewidth=0.5))
    axes.text(x + 0.5, y + 0.35, f"{number}", ha="center", va="center", fontsize=11,
              color="white" if face[:3].mean() < 0.6 else INK)


@styled
def staircase(indices: Array, order: Array, experts: int) -> Picture:
    """Which expert works at each place, before the sort and after: indices (T, K)."""
    flat = indices.reshape(-1)
    before, after = (1 + int((np.diff(e) != 0).sum()) for e in (flat, flat[order]))
    busy = len(np.unique(flat))
    end = "one for every busy expert" if after == busy else f"though only {busy} experts are busy"
    figure, panels = picture(
        f"{before:,} pieces before the sort, {after:,} after it: {end}", 9, 3.3, columns=2,
        sharey=True)
    for axes, chosen, name in zip(panels, (flat, flat[order]), ("as the tokens come", "sorted"),
                                  strict=True):
        heat(axes, chosen == np.arange(experts)[:, None], low=0, high=1)
        axes.set_aspect("auto")
        axes.set(title=name, xlabel="place of the row")
    panels[0].set(ylabel="expert", yticks=range(0, experts, max(1, experts // 8)))
    return figure


@styled
def timings(taken: Mapping[str, Mapping[str, Sequence[float]]], against: str) -> Picture:
    """Milliseconds of several ways through a layer, {layer: {way: repeats}}; against: the way
    that the title measures the fastest by."""
    medians = {layer: {way: float(np.median(ms)) for way, ms in ways.items()}
               for layer, ways in taken.items()}
    best = {layer: min(ways, key=ways.__getitem__) for layer, ways in medians.items()}
    gains = [ways[against] / ways[best[layer]] for layer, ways in medians.items()]
    title = (f"Against the {against}: "
             + " and ".join(f"{gain:.0f} times" if gain >= 10 else f"{gain:.1f} times"
                            for gain in gains) + " faster at best" if min(gains) > 1 else
             f"The {against} is not beaten everywhere")
    figure, panels = picture(title, 9.4, 3.1, columns=len(taken))
    for axes, (layer, ways) in zip(panels, taken.items(), strict=True):
        for n, (way, ms) in enumerate(ways.items()):
            middle = medians[layer][way]
            axes.barh(n, middle, color=TODAY if way == best[layer] else PLAIN[4], height=0.65)
            axes.plot([min(ms), max(ms)], [n, n], color=INK, linewidth=1)
            axes.text(max(ms) * 1.15, n, f"{middle:.1f}" if middle < 10 else f"{middle:.0f}",
                      va="center", fontsize=9)
        axes.set_yticks(range(len(ways)), list(ways))
        least, most = (f(min(m) if f is min else max(m) for m in ways.values())
                       for f in (min, max))
        axes.set(xscale="log", xlim=(least / 1.6, most * 2.6), ylim=(len(ways) - 0.5, -0.5),
                 xlabel="milliseconds: median, least to most")
        axes.xaxis.set_major_locator(LogLocator(10, (1, 3)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.tick_params(axis="y", length=0)
        axes.set_title(f"{layer}\nfastest: {best[layer]}")
    return figure


@styled
def loads_over_steps(loads: Mapping[str, Array], switched: int, chosen: int) -> Picture:
    """Loads (steps, E) of several runs as shares of an even load: without the bias, with it
    from step `switched` on, with it always. chosen: K, so that E / K is the most there is."""
    shares = {arm: counts / counts.mean(1, keepdims=True) for arm, counts in loads.items()}
    without, later, always = (float(_end(one).max()) for one in loads.values())
    cured = without > 1.5 * max(later, always)
    title = (f"{'Collapsed and cured' if cured else 'Not cured'}: the busiest expert ends at "
             f"{without:.1f} times its share without the bias, {later:.1f} and {always:.1f} with")
    figure, panels = picture(title, 11, 3.5, columns=3, sharey=True)
    experts = next(iter(loads.values())).shape[1]
    for axes, (arm, share) in zip(panels, shares.items(), strict=True):
        image = heat(axes, share.T, low=0, high=experts / chosen)
        axes.set_aspect("auto")
        few = int((_end(loads[arm]) < 0.1).sum())
        axes.set(title=f"{arm}: {few} below a tenth of their share", xlabel="step")
    panels[1].axvline(switched, color=SECOND, linewidth=2)
    panels[1].set_xlabel("step; the line is the switch")
    panels[0].set(ylabel="expert", yticks=range(0, experts, max(1, experts // 8)))
    figure.colorbar(image, ax=panels[-1], label="load / even load")
    return figure


def _end(counts: Array) -> Array:
    """Each expert's share of an even load over a run's last part."""
    total = counts[-max(1, len(counts) // END):].sum(0)
    share: Array = total / total.mean()
    return share


@styled
def cost(loads: Mapping[str, Array], losses: Mapping[str, Array], switched: int) -> Picture:
    """Violation and training loss of the runs over their steps; the runs as above."""
    arms = list(loads)
    part = max(1, len(losses[arms[0]]) // END)
    violations = {arm: counts.max(1) / counts.mean(1) - 1 for arm, counts in loads.items()}
    high, low = (float(violations[arm][-part:].mean()) for arm in (arms[0], arms[-1]))
    gap = float(np.mean(losses[arms[-1]][-part:]) - np.mean(losses[arms[0]][-part:]))
    change = f"{minus(f'{gap:+.2f}')} nats a byte" if abs(gap) >= 0.005 else (
        "the same to a hundredth of a nat")
    figure, (left, right) = picture(
        f"With the bias: violation {high:.1f} → {low:.1f}, loss {change}", 9.4, 3.3, columns=2)
    for (arm, violation), (colour, dash) in zip(violations.items(), LOOKS, strict=True):
        for axes, values in ((left, violation), (right, losses[arm])):
            steps, smooth = _smooth(values)
            axes.plot(steps, smooth, dash, color=colour, label=arm)
    for axes in (left, right):
        axes.axvline(switched, color=FAINT, linewidth=4, zorder=0)
        axes.set_xlabel("step")
    left.set(ylabel="load / mean − 1", title="violation, mean of 5 steps", ylim=(0, None))
    right.set(ylabel="nats a byte", title="training loss, mean of 5 steps")
    right.legend()
    return figure


def _smooth(values: Array, width: int = 5) -> tuple[Array, Array]:
    """Means of `width` steps that follow each other, and the last step of each."""
    smooth = np.convolve(values, np.full(width, 1 / width), "valid")
    return np.arange(width - 1, len(values)), smooth


@styled
def cure(biases: Array, loads: Array, switched: int) -> Picture:
    """Correction biases (steps, E) from the switch on, and loads (steps, E) before and after."""
    before, after = _end(loads[:switched]), _end(loads)
    busy = before > 1
    up, down = float(biases[-1][~busy].max()), float(biases[-1][busy].min())
    title = (f"The bias lifts an idle expert by {up:.2f}, lowers a busy one by {-down:.2f}: "
             f"violation {before.max() - 1:.1f} → {after.max() - 1:.1f}"
             if up > 0 > down and after.max() < before.max() else
             "The biases moved, and the loads did not even out")
    figure, (left, right) = picture(title, 9.4, 3.3, columns=2)
    steps = np.arange(switched, switched + len(biases))
    for e in range(biases.shape[1]):
        left.plot(steps, biases[:, e], "-" if busy[e] else "--", linewidth=1.3,
                  color=INK if busy[e] else TODAY)
    left.plot([], [], "-", color=INK, label="too busy at the switch")
    left.plot([], [], "--", color=TODAY, label="too idle at the switch")
    left.legend(fontsize=8.5)
    low, high = left.get_ylim()
    left.set(xlabel="step", ylabel="correction bias", title="one line an expert",
             ylim=(low, high + 0.3 * (high - low)))
    places = np.arange(len(before))
    right.bar(places - 0.2, before, 0.4, color=PLAIN[4], label="before the switch")
    right.bar(places + 0.2, after, 0.4, color=TODAY, label="at the end")
    right.axhline(1, color=INK, linewidth=0.8)
    right.set(xlabel="expert", ylabel="load / even load", title="loads",
              xticks=places[:: max(1, len(places) // 8)])
    right.legend(fontsize=8.5)
    return figure
