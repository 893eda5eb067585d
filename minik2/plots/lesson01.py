"""Figures of lesson 01: order, the causal mask, rotation, and what scores depend on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.patches import ConnectionPatch, Rectangle

from minik2.plots.common import (
    FAINT,
    INK,
    ROTARY,
    SECOND,
    SOFT,
    TODAY,
    Picture,
    heat,
    letters,
    picture,
    signed,
    styled,
    ticks,
)  # fmt: skip

Array = np.ndarray[Any, np.dtype[Any]]


@styled
def order(words: Sequence[str], plain: Array, shuffled: Array, shuffle: Sequence[int]) -> Picture:
    """Attention weights (T, T) of a sentence, and of the same words shuffled.

    shuffle: place i of the shuffled sentence holds word shuffle[i]. The title says whether the
    weights moved along with the words.
    """
    moved = np.allclose(shuffled, plain[np.ix_(shuffle, shuffle)])
    title = ("Shuffle the words and every weight moves along: nothing knows the order" if moved
             else "Shuffle the words and the weights change: now the order counts")  # fmt: skip
    figure, (left, right) = picture(title, 8, 3.3, columns=2)
    others = [words[i] for i in shuffle]
    for axes, weights, names in ((left, plain, words), (right, shuffled, others)):
        heat(axes, weights, low=0, high=1, numbers=".2f")
        ticks(axes, names, names)
        axes.set(xlabel="looks at", ylabel="word", title=" ".join(names))
    return figure


@styled
def causal_mask(scores: Array, masked: Array, weights: Array) -> Picture:
    """The three steps for one head: scores, scores with the mask, softmax weights; (T, T) each."""
    leak = float(np.triu(weights, 1).sum(1).max())
    title = ("The mask removes the future before the softmax shares out 1" if leak == 0 else
             f"The future is still seen: up to {leak:.0%} of a row's weight lies on it")
    figure, axes = picture(title, 9, 3.2, columns=3)
    finite = np.where(np.isfinite(masked), masked, np.nan)
    signed(axes[0], scores, ".1f")
    signed(axes[1], finite, ".1f", high=float(np.abs(scores).max()))
    for row, column in np.argwhere(np.isnan(finite)):
        axes[1].add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=FAINT))
        axes[1].text(column, row, "−∞", ha="center", va="center", color=SOFT, fontsize=9)
    heat(axes[2], weights, low=0, high=1, numbers=".2f")
    names = ("scores q·k/√d", "the future set to −∞", "softmax of each row")
    for panel, name in zip(axes, names, strict=True):
        panel.set(title=name, xlabel="key", ylabel="query")
        panel.set_xticks(range(len(scores)))
        panel.set_yticks(range(len(scores)))
    return figure


@styled
def clock_hands(turned: Array, frequencies: Array) -> Picture:
    """Pairs of one vector at growing positions: turned (T, R), interleaved; frequencies (R/2,)."""
    pairs = turned.reshape(len(turned), -1, 2)
    which = "each is" if (np.diff(frequencies) < 0).all() else "not every one is"
    figure, panels = picture(f"Every pair is a clock hand, and {which} slower than the one before",
                             9, 2.9, columns=pairs.shape[1])  # fmt: skip
    last = len(turned) - 1
    for i, axes in enumerate(panels):
        axes.set(xlim=(-1.35, 1.35), ylim=(-1.35, 1.35), aspect="equal", xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        circle = np.exp(1j * np.linspace(0, 2 * np.pi, 200))
        axes.plot(circle.real, circle.imag, color=FAINT, linewidth=1, zorder=0)
        for position, (x, y) in enumerate(pairs[:, i] / np.hypot(*pairs[0, i])):
            axes.annotate("", (x, y), (0, 0), arrowprops={
                "arrowstyle": "-|>", "color": ROTARY, "linewidth": 1.8,
                "alpha": (position + 1) / (last + 1), "shrinkA": 0, "shrinkB": 0})  # fmt: skip
        # Hands that lie on each other share one label.
        spread = np.abs(pairs[last, i] - pairs[0, i]).max() / np.hypot(*pairs[0, i])
        named = range(len(turned)) if spread > 0.2 and frequencies[i] > 0.3 else (0, last)
        for position in named if spread > 0.2 else (last,):
            apart = spread > 0.2
            x, y = (1.2 if apart else 1.08) * pairs[position, i] / np.hypot(*pairs[position, i])
            axes.text(x, y, str(position) if apart else f"0 to {last}", va="center", fontsize=8,
                      ha="center" if apart else "left")  # fmt: skip
        turn = 2 * np.pi / frequencies[i]
        axes.set_title(f"pair {i}\none turn in {turn:,.0f} tokens" if turn >= 10
                       else f"pair {i}\none turn in {turn:.1f} tokens", loc="center")  # fmt: skip
    return figure


@styled
def relative(scores: Array) -> Picture:
    """Scores (T, T) of one query and one key, put at every pair of positions."""
    size = len(scores)
    spread = max(float(np.ptp(np.diagonal(scores, d))) for d in range(1 - size, size))
    # Rounding stays far below a hundredth of the range, even in float32.
    only = spread < 1e-2 * np.ptp(scores)
    figure, (left, right) = picture(
        "The score depends on the signed difference of the positions, and on nothing else" if only
        else f"The score depends on more than the difference: at one it varies by {spread:.2g}",
        9, 3.4, columns=2, width_ratios=(1, 1.5))  # fmt: skip
    image = signed(left, scores)
    figure.colorbar(image, ax=left, shrink=0.8, label="score")
    left.set(xlabel="position of the key", ylabel="position of the query",
             title="diagonals are equal differences")  # fmt: skip
    queries = np.linspace(size // 4, size - 1, 4).astype(int)
    for n, query in enumerate(queries):
        differences = query - np.arange(size)
        right.plot(differences, scores[query], "o-", color=ROTARY, zorder=4 - n,
                   markerfacecolor="none", markersize=4 + 3 * n, linewidth=1,
                   label=f"query at {query}")  # fmt: skip
    right.axhline(0, color=FAINT, zorder=0)
    right.set(xlabel="query position − key position", ylabel="score",
              title="four rows of it, laid on each other")  # fmt: skip
    right.legend(loc="upper right", fontsize=8.5)
    return figure


@styled
def layouts(permutation: Array) -> Picture:
    """The two storage orders of a rotary vector: halves = interleaved[permutation]; (R,)."""
    size = len(permutation)
    same = np.array_equal(np.sort(permutation), np.arange(size))
    title = ("The two layouts hold the same numbers, one permutation apart" if same else
             "This is no permutation: some numbers come twice, others are lost")  # fmt: skip
    figure, axes = picture(title, 9, 2.6)
    axes.set(xlim=(-2.6, size), ylim=(-0.3, 3.2))
    axes.set_axis_off()
    shades = np.linspace(1, 0.25, size // 2)
    for place in range(size):
        _square(axes, place, 2.2, place, shades[place // 2])
        source = permutation[place]
        _square(axes, place, 0.0, source, shades[source // 2])
        axes.add_patch(ConnectionPatch((source + 0.5, 2.2), (place + 0.5, 0.7), "data", "data",
                                       color=SOFT, linewidth=0.9))
    rows = ((2.55, "interleaved", "checkpoints"), (0.35, "halves", "rotate_half"))
    for height, name, note in rows:
        axes.text(-0.3, height + 0.13, name, ha="right", va="center", fontweight="bold")
        axes.text(-0.3, height - 0.2, note, ha="right", va="center", fontsize=8.5, color=SOFT)
    return figure


def _square(axes: Any, x: float, y: float, number: int, shade: float) -> None:
    axes.add_patch(Rectangle((x + 0.05, y), 0.9, 0.7, facecolor=ROTARY, alpha=shade, linewidth=0))
    axes.text(x + 0.5, y + 0.35, f"{number}", ha="center", va="center", fontsize=11, color=INK)


@styled
def one_head(text: str, weights: Array) -> Picture:
    """Where a head that was built to look one token back does look: weights (T, T)."""
    back = int(100 * np.diagonal(weights, -1).min())  # cut off, since the title says "at least"
    title = (f"Built from rotation alone: at least {back}% of the weight is one token back"
             if back > 50 else f"In one row only {back}% of the weight is one token back")
    figure, axes = picture(title, 7, 4.6)
    image = heat(axes, np.where(np.tri(len(weights), dtype=bool), weights, np.nan), low=0, high=1)
    figure.colorbar(image, ax=axes, shrink=0.8, label="attention weight")
    ticks(axes, letters(text), letters(text))
    axes.set(xlabel="looks at", ylabel="token")
    return figure


@styled
def wavelengths(frequencies: Array, trained: int, served: int) -> Picture:
    """Tokens that each of K2's pairs takes for one turn, beside two lengths of context.

    frequencies: (R/2,) radians a token; trained, served: tokens.
    """
    turns = 2 * np.pi / frequencies
    inside = turns <= trained
    figure, axes = picture(
        f"{inside.sum()} of K2's {len(turns)} pairs make a full turn within {trained:,} tokens",
        9, 3.3)  # fmt: skip
    pair = np.arange(len(turns))
    axes.plot(pair[inside], turns[inside], "o", color=ROTARY, label="at least one turn")
    axes.plot(pair[~inside], turns[~inside], "o", color=ROTARY, markerfacecolor="white",
              label="less than one turn")
    for length, name, colour in ((trained, "pre-training context", TODAY),
                                 (served, "longest context", SECOND)):  # fmt: skip
        axes.axhline(length, color=colour, linewidth=1.2)
        axes.text(0, length * 1.2, f"{name}: {length:,} tokens", color=colour, fontsize=9)
    axes.set(yscale="log", xlabel="pair", ylabel="tokens for one turn", ylim=(3, 8e5))
    axes.legend(loc="lower right")
    return figure
