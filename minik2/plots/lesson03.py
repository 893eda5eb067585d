"""Figures of lesson 03: what a cache holds, that absorption is exact, and where it pays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import NullLocator, ScalarFormatter

from minik2.config import ModelConfig
from minik2.plots.common import (
    FAINT,
    INK,
    LATENT,
    ROTARY,
    SECOND,
    SOFT,
    TODAY,
    Picture,
    heat,
    letters,
    picture,
    styled,
    ticks,
)  # fmt: skip

Array = np.ndarray[Any, np.dtype[Any]]

# What a cache can consist of. Neither keys without position nor values are latents.
PARTS = {"keys": TODAY, "rotary keys": ROTARY, "values": SECOND, "latents": LATENT}
# The two forms, in every figure of the lesson: the latent's blue where latents are looked at.
ABSORBED, EXPANDED = LATENT, SECOND
# Beyond the rounding of float64, with room: differences of another kind are far larger.
ROUNDING = 1e-10


@styled
def stacked_cache(
    numbers: Mapping[str, Mapping[str, int]], cfg: ModelConfig, tokens: int
) -> Picture:
    """Kinds of cache in two bytes a number, each as its parts end to end.

    numbers: a token a layer, {kind: {part of PARTS: count}}. The last kind is the latent cache; the
    title holds it against the first.
    """
    caches = {kind: {part: 2 * count * cfg.num_hidden_layers * tokens
                     for part, count in parts.items()} for kind, parts in numbers.items()}
    names = list(caches)
    total = {name: sum(parts.values()) for name, parts in caches.items()}
    ratio = total[names[0]] / total[names[-1]]
    much = (f"{ratio:.1f} times smaller than that of {names[0]}" if ratio > 1.05 else
            f"not smaller than that of {names[0]}: {1 / ratio:.1f} times its size")
    figure, axes = picture(f"The latent cache is {much}", 9, 3.1)
    longest = max(total.values())
    for row, name in enumerate(names):
        left = 0.0
        for part, size in caches[name].items():
            axes.barh(row, size / 1e9, left=left / 1e9, color=PARTS[part], height=0.62,
                      edgecolor="white", linewidth=0.6)  # fmt: skip
            if size > 0.08 * longest:
                axes.text((left + size / 2) / 1e9, row, part, ha="center", va="center",
                          color=INK if part == "rotary keys" else "white", fontsize=9)
            left += size
        small = ", ".join(part for part, size in caches[name].items() if size <= 0.08 * longest)
        axes.text(left / 1e9 + 0.01 * longest / 1e9, row,
                  f"{left / 1e9:,.1f} GB" + (f"  ({small})" if small else ""),
                  va="center", fontsize=9)  # fmt: skip
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set(xlabel=f"GB for one conversation of {tokens:,} tokens", xlim=(0, 1.13 * longest / 1e9))
    return figure


@styled
def same_weights(text: str, expanded: Array, absorbed: Array) -> Picture:
    """A head's attention weights (T, T) computed in the two forms, and their difference."""
    apart = np.abs(expanded - absorbed)
    worst = float(apart.max())
    title = (f"Two ways to the same weights: they differ by {worst:.0e} at the most"
             if worst < ROUNDING else f"These are not the same weights: they differ by {worst:.2g}")
    figure, axes = picture(title, 10, 3.5, columns=3)
    seen = np.tri(len(text), dtype=bool)
    names = ("keys formed: q·(W c)", "query moved: (Wᵀq)·c")
    for panel, weights, name in zip(axes[:2], (expanded, absorbed), names, strict=True):
        image = heat(panel, np.where(seen, weights, np.nan), low=0, high=1)
        panel.set_title(name)
    figure.colorbar(image, ax=axes[:2], shrink=0.75, label="attention weight")
    # In the last digit of a float64 near 1, where there is no more to see than that.
    unit = 1e-16 if worst < ROUNDING else 1.0
    image = heat(axes[2], np.where(seen, apart / unit, np.nan), low=0)
    figure.colorbar(image, ax=axes[2], shrink=0.75,
                    label="units of 1e−16" if unit < 1 else "attention weight")
    axes[2].set_title("their difference")
    for panel in axes:
        ticks(panel, letters(text), letters(text))
        panel.tick_params(labelsize=7)
        panel.set_xlabel("looks at")
    axes[0].set_ylabel("token")
    return figure


@styled
def token_by_token(text: str, errors: Mapping[str, Array], largest: float) -> Picture:
    """Of each token, how far step by step is from all at once: {who: (T,)}; log scale.

    largest: the largest of the numbers that are compared.
    """
    worst = max(float(np.max(e)) for e in errors.values()) / largest
    title = (f"{len(text)} tokens one by one are {len(text)} tokens at once, to {worst:.0e}"
             if worst < ROUNDING else
             f"One by one is something else than all at once: off by {worst:.1g}")  # fmt: skip
    figure, axes = picture(title, 9, 3.0)
    marks = zip(errors.items(), ("o", "s", "^"), (LATENT, TODAY, SECOND), strict=False)
    for (name, error), mark, colour in marks:
        relative = np.maximum(error / largest, 1e-17)
        axes.plot(relative, mark, color=colour, label=name, markersize=4.5, alpha=0.85)
    axes.axhline(ROUNDING, color=SOFT, linewidth=1, linestyle="--")
    axes.text(len(text) - 0.5, ROUNDING * 1.6, "what this lesson promises", color=SOFT,
              fontsize=8.5, ha="right")  # fmt: skip
    axes.set(yscale="log", ylim=(5e-18, 1e-8 if worst < ROUNDING else 10), xlim=(-0.5, len(text)),
             xlabel="token", ylabel="difference\n(largest number = 1)")  # fmt: skip
    axes.set_xticks(range(len(text)), letters(text), fontsize=7.5)
    axes.legend(loc="lower right", ncols=len(errors))
    return figure


@styled
def three_ways(costs: Mapping[str, tuple[float, float, float]], tokens: int) -> Picture:
    """What the attention of one new token costs: {way: (operations, bytes moved, bytes kept)}.

    The title is about the last way, the absorbed one.
    """
    names = list(costs)
    operations, moved = ([costs[way][n] for way in names] for n in (0, 1))
    title = ("Absorbing moves the fewest bytes" if moved[-1] == min(moved) else
             "Absorbing does not move the fewest bytes")  # fmt: skip
    ratio = operations[-1] / min(operations)
    title += (", with the fewest operations" if ratio == 1 else
              f", with {ratio:.1f} times the fewest operations")  # fmt: skip
    figure, axes = picture(title, 10, 2.9, columns=3, sharey=True)
    panels = (("operations", 1e12, "TFLOP"), ("moved from and to memory", 1e9, "GB"),
              ("kept between tokens", 1e9, "GB"))  # fmt: skip
    for number, (panel, (name, unit, label)) in enumerate(zip(axes, panels, strict=True)):
        values = [costs[way][number] / unit for way in names]
        panel.barh(names, values, height=0.6,
                   color=[EXPANDED] * (len(names) - 1) + [ABSORBED])
        for row, value in enumerate(values):
            panel.text(value * 1.15, row, f"{value:,.3g}", va="center", fontsize=9)
        panel.set(title=name, xlabel=label, xscale="log",
                  xlim=(min(values) / 4, max(values) * 12))  # fmt: skip
        panel.tick_params(axis="y", length=0)
    axes[0].invert_yaxis()
    figure.supxlabel(f"one token of Kimi K2 after {tokens:,} others, all layers", fontsize=9,
                     color=SOFT)  # fmt: skip
    return figure


def border(new: Sequence[int], absorbed: Sequence[float], expanded: Sequence[float]) -> float:
    """New tokens at which the absorbed form stops being the cheaper one, between the points.

    0 where it never is, infinity where it always is; read off a straight line in the logarithms.
    """
    apart = np.log(np.asarray(absorbed, float) / np.asarray(expanded, float))
    if apart[0] > 0:
        return 0.0
    later = np.flatnonzero(apart > 0)
    if not later.size:
        return float("inf")
    right = int(later[0])
    share = -apart[right - 1] / (apart[right] - apart[right - 1])
    places = np.log(np.asarray(new, float)[right - 1 : right + 1])
    return float(np.exp(places[0] + share * (places[1] - places[0])))


@styled
def crossover(
    new: Sequence[int], costs: Mapping[str, tuple[Sequence[float], Sequence[float]]], cached: int
) -> Picture:
    """{measure: (absorbed, expanded)} over new tokens; the last measure is the measured time.

    A line marks where the two change places. The title is about the measured one: the two ends of
    the grid, where noise does not reach.
    """
    name = list(costs)[-1]
    absorbed, expanded = (np.asarray(side, float) for side in costs[name])
    first, last = expanded[0] / absorbed[0], absorbed[-1] / expanded[-1]
    figure, axes = picture(_said(new, first, last), 10.5, 3.5, columns=len(costs),
                           squeeze=False)
    for panel, (measure, sides) in zip(axes[0], costs.items(), strict=True):
        for side, label, colour, mark in zip(sides, ("absorbed", "expanded"), (ABSORBED, EXPANDED),
                                             ("o", "s"), strict=True):  # fmt: skip
            panel.plot(new, side, mark + "-", color=colour, label=label, markersize=5)
        place = border(new, *sides)
        if 0 < place < np.inf:
            panel.axvline(place, color=SOFT, linewidth=1, linestyle="--", zorder=0)
            panel.set_title(f"{measure}: even at {place:,.0f}")
        else:
            panel.set_title(f"{measure}: absorbed {'wins' if place else 'loses'} throughout")
        panel.set(xscale="log", yscale="log", xlabel=f"new tokens, after {cached:,}")
        panel.set_xticks(new)
        panel.xaxis.set_major_formatter(ScalarFormatter())
        panel.xaxis.set_minor_locator(NullLocator())
        panel.grid(color=FAINT)
    axes[0, 0].legend(loc="upper left")
    return figure


def _said(new: Sequence[int], first: float, last: float) -> str:
    """first: how many times faster absorbed is for the fewest tokens; last: expanded, for most."""

    def end(tokens: int, ratio: float, one: str, other: str) -> str:
        name, ratio = (one, ratio) if ratio >= 1 else (other, 1 / ratio)
        verb = "is" if tokens == 1 else "are"
        how = f"{ratio:.1f} times faster {name}" if ratio >= 1.1 else "as fast either way"
        return f"{tokens:,} new {verb} {how}"

    return "Measured here: " + ", ".join((
        end(new[0], first, "absorbed", "expanded"), end(new[-1], last, "expanded", "absorbed")))
