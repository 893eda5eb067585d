"""Figures of lesson 04: angles never seen, YaRN's ramp and temperature, a model past its window.

Unusual here: schemes come as dicts from a name to its numbers, so one figure serves for two ways of
stretching and for four. Lines differ in dash as well as in colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.patches import Circle, Wedge

from minik2.plots.common import (
    FAINT,
    INK,
    LATENT,
    ROTARY,
    SECOND,
    SOFT,
    TODAY,
    Picture,
    picture,
    styled,
)  # fmt: skip

Array = np.ndarray[Any, np.dtype[Any]]

# Colour, dash and marker of the first, second, … scheme.
LINES: Any = (
    {"color": SOFT, "linestyle": "--", "marker": "o"},
    {"color": SECOND, "linestyle": ":", "marker": "s"},
    {"color": INK, "linestyle": "-.", "marker": "^"},
    {"color": ROTARY, "linestyle": "-", "marker": "D"},
)


def _line(style: Any) -> Any:
    """The style without its marker."""
    return {key: value for key, value in style.items() if key != "marker"}


def unseen(plain: Array, now: Array, trained: int, served: int) -> Array:
    """Which pairs come to angles that training never showed: (R/2,) of bool.

    plain, now: radians a token, in training and when served; trained, served: tokens.
    """
    seen = plain * trained
    return (seen < 2 * np.pi) & (now * served > seen * (1 + 1e-9))


@styled
def angles(
    schemes: Mapping[str, Array], plain: Array, trained: int, served: int, pairs: Sequence[int]
) -> Picture:
    """Some pairs as clock faces: the angles seen in training, and those beyond; one row a scheme.

    schemes: name to (R/2,) radians a token when served; plain: the same in training.
    """
    counts = [f"{name} {unseen(plain, now, trained, served).sum()}"
              for name, now in schemes.items()]
    counts[0] += f" of {len(plain)}"
    title = f"Pairs at angles that {trained:,} tokens never showed: {', '.join(counts)}"
    figure, faces = picture(title, 9.4, 0.95 + 1.2 * len(schemes), rows=len(schemes),
                            columns=len(pairs), squeeze=False)  # fmt: skip
    for number, (name, now) in enumerate(schemes.items()):
        row = faces[number]
        for axes, pair in zip(row, pairs, strict=True):
            axes.set(xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), aspect="equal", xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            axes.add_patch(Circle((0, 0), 1, facecolor=FAINT, edgecolor="none"))
            seen = min(np.degrees(plain[pair] * trained), 360)
            reached = min(np.degrees(now[pair] * served), 360)
            axes.add_patch(Wedge((0, 0), 1, 0, min(seen, reached), facecolor=ROTARY))
            if reached > seen * (1 + 1e-9):
                axes.add_patch(Wedge((0, 0), 1, seen, reached, facecolor="white", edgecolor=INK,
                                     hatch="////", linewidth=0.8))
            if number == 0:
                axes.set_title(f"pair {pair}", loc="center")
        row[0].set_ylabel(name.replace(" ", "\n", 1), rotation=0, ha="right", va="center")
    key = (f"orange: angles up to {served:,} tokens that training showed; hatched: angles that it"
           " did not; grey: not reached")  # fmt: skip
    figure.supxlabel(key, fontsize=9, x=0.01, ha="left")
    return figure


@styled
def prices(
    near: Mapping[str, Array], distances: Array, outside: Mapping[str, Array], trained: int
) -> Picture:
    """What a way of stretching costs near by and far away.

    near: name to scores (d,) of a head that looks one token back, at 0, 1, 2, … tokens back, 1
    where it fits; outside: name to the share of random scores that have left the range they had in
    training, at each of `distances`. A scheme pays near by where two tokens back scores within 1%
    of one token back, far away where over 1% leave their range.
    """
    far = {n: bool(o.max() > 0.01) for n, o in outside.items()}
    dull = {n: bool(1 - s[2] / s[1] < 0.01) for n, s in near.items()}
    free = [n for n in near if not far[n] and not dull[n]]
    title = (f"It keeps neighbours apart, and stays within what was seen: {' and '.join(free)}"
             if free else "Each way has its price: new scores far away, or neighbours look alike")
    figure, (left, right) = picture(title, 9, 3.3, columns=2)
    # Lines that lie on each other are told apart by their width.
    wide = LINES[0] | {"color": "#C6C9CE", "linestyle": "-"}
    for style, name, width in zip((wide, *LINES[1:]), near, (5, 2.5, 1.3), strict=False):
        left.plot(np.arange(len(near[name])), near[name], label=name, **style, linewidth=width,
                  markerfacecolor="white", markersize=4 + width)  # fmt: skip
        right.plot(distances, 100 * outside[name], **_line(style), linewidth=width)
    left.set(xlabel="tokens back", ylabel="score of a head that looks 1 back",
             title="near: a peak, or none")  # fmt: skip
    right.axvline(trained, color=TODAY, linewidth=1.2)
    right.text(trained * 0.85, 50, f"trained on {trained:,}", color=TODAY, fontsize=9, rotation=90,
               va="center", ha="right")  # fmt: skip
    right.set(xscale="log", xlabel="tokens back", ylabel="% of random scores",
              title="far: scores of slow pairs outside their range", ylim=(-4, 104))  # fmt: skip
    left.legend(loc="lower left", fontsize=8.5)
    return figure


@styled
def ramps(schemes: Mapping[str, tuple[Array, Array]], trained: int) -> Picture:
    """Share of its speed that each pair keeps, and its turns in the old context.

    schemes: name to (plain, now), radians a token, (R/2,) each.
    """
    told = []
    for name, (plain, now) in schemes.items():
        kept = int((now > 0.9999 * plain).sum())
        least = (now / plain).min()
        divided = int((now < 1.0001 * least * plain).sum()) if least < 0.9999 else 0
        between = len(plain) - kept - divided
        how = f"ramps: {kept} kept, {between} blended" if between else f"steps: {kept} kept"
        told.append(f"{name} {how}, {divided} divided")
    figure, (left, right) = picture("; ".join(told), 9, 3.3, columns=2)
    for n, (name, (plain, now)) in enumerate(schemes.items()):
        style = LINES[3 - n]
        pair = np.arange(len(plain))
        left.plot(pair, now / plain, label=name, **style, linewidth=1.4, markersize=4,
                  markerfacecolor="none")  # fmt: skip
        right.plot(pair, plain * trained / (2 * np.pi), label=name, **style, linewidth=1.4,
                   markersize=4, markerfacecolor="none")  # fmt: skip
    left.set(xlabel="pair", ylabel="speed, as a share of before", ylim=(-0.04, 1.04),
             title="what YaRN does to each pair")  # fmt: skip
    left.legend(fontsize=9)
    for turns, name in ((32, "32 turns"), (1, "1 turn")):
        right.axhline(turns, color=TODAY, linewidth=1)
        right.text(len(plain) - 0.5, turns * 1.15, name, color=TODAY, fontsize=9, ha="right")
    right.set(yscale="log", xlabel="pair", title="why: turns that it made in training",
              ylabel=f"turns within {trained:,} tokens")  # fmt: skip
    return figure


@styled
def temperature(
    curve: tuple[Array, Array], models: Mapping[str, tuple[float, float]], keys: Array,
    cold: Array, hot: Array,
) -> Picture:
    """By how much scores grow with the factor, and what becomes of the weight of one key.

    curve: factors and m²; models: name to (factor, m²), the first one for the title; keys: numbers
    of keys; cold, hot: the weight of the one that fits, at the old scale and at the new one.
    """
    _, grown = next(iter(models.values()))
    more = f"{keys[-1] / keys[0]:.0f} times the keys: the one that fits goes from {cold[0]:.1%}"
    title = f"{more} to {cold[-1]:.1%}; scores × {grown:.2f} make it {hot[-1]:.1%}"
    figure, (left, right) = picture(title, 9, 3.3, columns=2)
    left.plot(*curve, color=ROTARY, linewidth=1.8)
    for shape, (model, (factor, value)) in zip("D^so*", models.items(), strict=False):
        left.plot(factor, value, shape, color=INK, markerfacecolor="white", markersize=7,
                  label=f"{model}: {factor:g} times, × {value:.2f}")  # fmt: skip
    left.set(xscale="log", xlabel="factor", ylabel="score × ", title="(0.1 ln factor + 1)²")
    ticks = [1, 2, 4, 8, 16, 32, 64, 128]
    left.set_xticks(ticks, [str(n) for n in ticks], minor=False)
    left.minorticks_off()
    left.legend(fontsize=8.5, loc="upper left")
    right.plot(keys, 100 * cold, color=SOFT, linestyle="--", linewidth=1.8, label="old scale")
    right.plot(keys, 100 * hot, color=ROTARY, linewidth=1.8, label="scale × m²")
    right.set(xscale="log", xlabel="keys to choose from", ylabel="% of the weight", ylim=(0, None),
              title="weight of the one key that fits")  # fmt: skip
    right.legend(fontsize=9)
    return figure


@styled
def loss_by_position(losses: Mapping[str, Array], trained: int, block: int = 64) -> Picture:
    """Mean loss (T,) in nats by position, for several rotations of the same weights."""
    beyond = {name: float(nats[trained:].mean()) for name, nats in losses.items()}
    worst, best = max(beyond, key=beyond.__getitem__), min(beyond, key=beyond.__getitem__)
    apart = beyond[worst] - beyond[best] > 0.15
    title = (f"Past {trained} tokens: {worst} {beyond[worst]:.2f} nats, {best} {beyond[best]:.2f}"
             if apart else f"Past {trained} tokens all are much the same: {beyond[best]:.2f} to "
             f"{beyond[worst]:.2f} nats")  # fmt: skip
    figure, axes = picture(title, 9, 3.6)
    for style, (name, nats) in zip(LINES, losses.items(), strict=False):
        blocks = nats[: len(nats) // block * block].reshape(-1, block).mean(1)
        place = block * (np.arange(len(blocks)) + 0.5)
        axes.plot(place, blocks, label=f"{name}: {beyond[name]:.2f}", **style, linewidth=1.8,
                  markersize=4.5, markerfacecolor="none")  # fmt: skip
    axes.axvline(trained, color=TODAY, linewidth=1.2)
    low, high = axes.get_ylim()
    axes.set(xlabel=f"position, in blocks of {block} tokens", ylabel="loss (nats a byte)",
             xlim=(0, None), ylim=(low, high + 0.08 * (high - low)))  # fmt: skip
    axes.text(trained * 1.06, high, f"trained on {trained} tokens", color=TODAY, fontsize=9,
              va="center")  # fmt: skip
    axes.legend(title=f"mean past {trained}", fontsize=9, title_fontsize=9,
                loc="center left", bbox_to_anchor=(1, 0.5))  # fmt: skip
    return figure


@styled
def where_it_looks(
    weights: Mapping[str, Array], trained: int, layer: int, head: int
) -> Picture:
    """How far back a head looks: the share of its weight within so many tokens.

    weights: name to (D,), mean weight on the token 0, 1, 2, … back. The first is the model where it
    was trained, the second unchanged, the others stretched; the title tells of the last.
    """
    shares = {name: float(w[trained:].sum() / w.sum()) for name, w in weights.items()}
    _, plain, *_, last = weights
    title = (f"Head {head} of layer {layer}: {shares[plain]:.0%} of its weight lies beyond "
             f"{trained} tokens; with {last} {shares[last]:.0%}")  # fmt: skip
    figure, axes = picture(title, 9.2, 3.5)
    inside = {"color": LATENT, "linestyle": "-"}
    for style, (name, w) in zip((inside, LINES[0], *LINES[2:]), weights.items(), strict=False):
        reach = int(np.flatnonzero(w).max()) + 1
        axes.plot(np.arange(1, reach + 1), 100 * np.cumsum(w)[:reach] / w.sum(), **_line(style),
                  linewidth=1.9, label=name)  # fmt: skip
    axes.axvline(trained, color=TODAY, linewidth=1.2)
    axes.text(trained * 0.94, 4, f"trained on {trained}", color=TODAY, fontsize=9, ha="right")
    axes.set(xscale="log", xlabel="tokens back, at most", ylabel="% of its weight", ylim=(0, 103))
    axes.legend(fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


@styled
def sharpness(
    multipliers: Array, losses: Array, formula: float, trained: int
) -> Picture:
    """Loss past the trained window when every score is multiplied by a number.

    multipliers: 1 among them, and `formula`, YaRN's for this factor.
    """
    best = int(np.argmin(losses))
    one, at = (losses[int(np.argmin(np.abs(multipliers - x)))] for x in (1, formula))
    gain = one - at
    changes = f"{abs(gain):.2f} nats {'better' if gain > 0 else 'worse'} than × 1"
    title = f"YaRN's formula, × {formula:.2f}: {changes}. Best of these: × {multipliers[best]:.2f}"
    figure, axes = picture(title, 8.4, 3.2)
    axes.plot(multipliers, losses, "o-", color=INK, markerfacecolor="white", linewidth=1.4)
    axes.plot(formula, at, "D", color=ROTARY, markersize=9, label="YaRN's formula", zorder=3)
    axes.set(xlabel="every score × ", ylabel=f"loss past {trained} tokens")
    axes.legend(fontsize=9)
    return figure
