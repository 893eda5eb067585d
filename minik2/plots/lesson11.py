"""Figures of lesson 11: what a decoding step reads, and what eight bits make of a matrix.

Unusual here: the other figures of full size (waterfall, serving, training, route) are not a
lesson's own; they stand in `sizing` and `fullsize` beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from minik2.plots.common import (
    AMOUNT,
    INK,
    LATENT,
    SECOND,
    SIGNED,
    SOFT,
    TODAY,
    Picture,
    heat,
    picture,
    styled,
    ticks,
)  # fmt: skip

Array = np.ndarray[Any, np.dtype[Any]]

# What is read: the same blue for the cache as everywhere, hatches for a grey print.
READ = {"always": (SOFT, None), "experts": (TODAY, None), "cache": (LATENT, "///")}
SHARES = (("even and independent, the formula", INK, "-", ""),
          ("drawn at random", SECOND, "none", "o"), ("the trained small model", TODAY, "--", "s"))
# Half a step of three fraction bits, beside a number that begins with 1.
WORST, LEAST_NORMAL = 2.0**-4, 2.0**-6


@styled
def what_is_read(
    batches: Sequence[int], read: Mapping[str, Array], shares: Mapping[str, Array], fits: int
) -> Picture:
    """A decoding step by the number of sequences: bytes for each of its tokens, experts met.

    read: bytes of a step, (len(batches),) each, "always", "experts" and "cache". shares: experts
    met by a batch, in the model counted and in two others, three arrays in the order of SHARES.
    fits: the largest number of sequences that memory holds, 0 if none.
    """
    size = np.array(batches)
    each = np.sum(list(read.values()), axis=0) / size
    over = int((size <= fits).sum())
    last = max(over, 1) - 1
    title = (f"With {size[last]:,} sequences at a time a token costs {each[0] / each[last]:.0f} "
             "times fewer bytes than alone" if over else "Not one sequence fits into memory")
    figure, (left, right) = picture(title, 9.6, 3.6, columns=2, width_ratios=(1.5, 1))
    bottom = np.zeros(len(size))
    for name, (colour, hatch) in READ.items():
        height = read[name] / size / 1e9
        left.bar(range(len(size)), height, 0.72, bottom, color=colour, hatch=hatch, label=name,
                 edgecolor="white", linewidth=0.5)  # fmt: skip
        bottom += height
    for place, height in enumerate(bottom):
        left.text(place, height, f"{height:.3g}", ha="center", va="bottom", fontsize=8.5)
    ticks(left, x=[str(n) for n in batches])
    if over < len(size):
        left.axvline(over - 0.5, color=SECOND, linewidth=1.5)
        left.text(over - 0.42, 0.62 * bottom.max(), "does not fit\ninto memory", color=SECOND,
                  fontsize=8.5)  # fmt: skip
    left.set(title="GB read for each token", xlabel="sequences at a time",
             ylim=(0, 1.1 * bottom.max()))  # fmt: skip
    left.legend(fontsize=9)
    for (label, colour, line, mark), met in zip(SHARES, shares.values(), strict=True):
        right.plot(size[: len(met)], met, linestyle=line, marker=mark, color=colour, label=label,
                   markersize=6, markerfacecolor="none")  # fmt: skip
    right.set(title="share of the small model's experts met", xscale="log", ylim=(0, 1.05),
              xlabel="tokens at a time")  # fmt: skip
    shown = size[: max(map(len, shares.values()))]
    right.set_xticks(shown, [str(n) for n in shown])
    right.minorticks_off()
    right.legend(fontsize=8.5, loc="lower right")
    return figure


@styled
def fp8_blocks(weight: Array, back: Array, scales: Array, block: int) -> Picture:
    """A matrix (rows, columns), what came back from FP8, and the scales that it was kept with."""
    rows, columns = weight.shape
    off = np.sqrt(((back - weight) ** 2).sum() / (weight**2).sum())
    figure, (left, middle, right) = picture(
        f"{weight.size:,} weights, {scales.size} scales: what comes back is {off:.1%} off",
        9.8, 3.1, columns=3, width_ratios=(1.6, 1.1, 1.1))  # fmt: skip
    widest = np.abs(weight).max()
    image = heat(left, weight, SIGNED, -widest, widest)
    figure.colorbar(image, ax=left, shrink=0.75)
    _borders(left, rows, columns, block)
    left.set(title=f"weights, in blocks of {block} × {block}", xlabel="column", ylabel="row")
    tops = 448 * scales
    heat(middle, tops, AMOUNT, 0, 1.3 * tops.max(), ".2f")
    middle.set(title="448 times the scale:\nthe block's largest", xlabel="block", ylabel="block")
    middle.set_xticks(range(scales.shape[1]))
    middle.set_yticks(range(scales.shape[0]))
    spread = scales.repeat(block, 0)[:rows].repeat(block, 1)[:, :columns]
    sizes = (np.abs(weight) / spread).ravel()
    errors = (np.abs(back - weight) / np.abs(weight)).ravel()
    right.plot(sizes, errors, ".", color=SOFT, markersize=2, rasterized=True)
    right.axhline(WORST, color=SECOND, linewidth=1.2)
    right.text(sizes.max(), WORST * 1.15, "1/16", color=SECOND, ha="right", fontsize=9)
    right.axvline(LEAST_NORMAL, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    right.set(xscale="log", yscale="log", xlabel="weight / scale", ylim=(1e-4, 3),
              xlim=(LEAST_NORMAL / 4, 600), title="error / weight")  # fmt: skip
    return figure


def _borders(axes: Axes, rows: int, columns: int, block: int) -> None:
    for row in range(block, rows, block):
        axes.axhline(row - 0.5, color=INK, linewidth=1)
    for column in range(block, columns, block):
        axes.axvline(column - 0.5, color=INK, linewidth=1)
