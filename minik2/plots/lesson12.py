"""Figures of lesson 12: who sends what to whom, matrices in pieces, one run on many processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

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
    picture,
    styled,
    ticks,
)  # fmt: skip

Array = np.ndarray[Any, np.dtype[Any]]

# How a line of a layout is drawn, one after the other.
LOOKS = ((SECOND, "s"), (TODAY, "o"), (SOFT, "^"))
# What a rank sends in a step, and how it is named.
KINDS = {"gather": "weights and momentum\ngathered", "scatter": "gradients\nscattered",
         "exchange": "rows\nexchanged"}  # fmt: skip
# Differences of 0 are drawn here, on an axis of powers of ten.
LEAST = 1e-17


@styled
def traffic(sent: Array) -> Picture:
    """Rows from each rank (row) to each rank (column), and what each gets: sent (R, R)."""
    ranks, arrived = len(sent), sent.sum(0)
    share = arrived.max() / arrived.mean()
    away = 1 - np.trace(sent) / sent.sum()
    fullest = int(arrived.argmax())
    who = (f"rank {fullest} gets {share:.2f} times its share" if share > 1.005
           else "every rank gets its share")  # fmt: skip
    figure, (left, right) = picture(
        f"{away:.0%} of the rows leave their rank, and {who}", 9, 3.4, columns=2,
        width_ratios=(1, 1.3))  # fmt: skip
    heat(left, sent, low=0.75 * sent.min(), high=1.3 * sent.max(), numbers=".0f")
    names = [str(r) for r in range(ranks)]
    ticks(left, names, names)
    for r in range(ranks):
        left.add_patch(Rectangle((r - 0.5, r - 0.5), 1, 1, fill=False, edgecolor=TODAY,
                                 linewidth=2, clip_on=False))  # fmt: skip
    left.set(xlabel="to rank", ylabel="from rank", title="rows; framed: what stays")
    bottom = np.zeros(ranks)
    shades = _shades(ranks)
    for r in range(ranks):
        right.barh(range(ranks), sent[r], left=bottom, color=shades[r], edgecolor=SOFT,
                   linewidth=0.5, height=0.65, label=f"from {r}")  # fmt: skip
        bottom += sent[r]
    right.axvline(arrived.mean(), color=TODAY, linewidth=1.5)
    right.text(arrived.mean(), -0.45, "an even share  ", color=TODAY, fontsize=8.5, ha="right",
               va="bottom")  # fmt: skip
    right.set(ylim=(ranks - 0.4, -0.9), xlabel="rows that arrive", ylabel="rank")
    ticks(right, y=names)
    right.legend(fontsize=8.5, ncols=1, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _shades(count: int) -> Array:
    return np.asarray(AMOUNT(np.linspace(0.08, 0.8, count)))


@styled
def buffers(sent: Array) -> Picture:
    """The buffers of each rank, before an all-to-all and after it: sent (R, R) rows."""
    sizes = sent.sum(0)
    title = (f"Before, all buffers hold {sent.sum(1)[0]:.0f} rows; after, from {sizes.min():.0f} "
             f"to {sizes.max():.0f}" if len(set(sent.sum(1).tolist())) == 1 else
             "One all-to-all: what was sorted by destination is now sorted by sender")  # fmt: skip
    figure, panels = picture(title, 9.4, 2.9, columns=2, sharex=True, sharey=True)
    for axes, rows, name in ((panels[0], sent, "before; number: to which rank"),
                             (panels[1], sent.T, "after; number: from which rank")):  # fmt: skip
        _pieces_of(axes, rows)
        axes.set(title=name, xlabel="row of the buffer")
    ticks(panels[0], y=[str(r) for r in range(len(sent))])
    panels[0].set(ylabel="rank")
    panels[0].invert_yaxis()
    return figure


def _pieces_of(axes: Axes, rows: Array) -> None:
    """A bar a rank, cut where the other rank changes; rows (rank, other rank)."""
    shades = _shades(len(rows))
    for rank, counts in enumerate(rows):
        starts = np.cumsum(counts) - counts
        for other, (start, count) in enumerate(zip(starts, counts, strict=True)):
            axes.barh(rank, count, left=start, color=shades[other], edgecolor=SOFT, height=0.7,
                      linewidth=0.6)  # fmt: skip
            if count:
                dark = shades[other][:3].mean() < 0.6
                axes.text(start + count / 2, rank, str(other), ha="center", va="center",
                          fontsize=9, color="white" if dark else INK)  # fmt: skip


@styled
def imbalance(loads: Array) -> Picture:
    """The fullest rank's rows over the mean, for every number of ranks that divides the experts.

    loads: (layers, E) rows of each expert, E a power of two.
    """
    experts = loads.shape[1]
    counts = [2**n for n in range(experts.bit_length()) if experts % 2**n == 0]
    over = np.array([[own.reshape(count, -1).sum(1).max() * count / own.sum() for count in counts]
                     for own in loads])  # fmt: skip
    worst = over.max(0)
    title = (f"The fullest of {counts[1]} ranks gets {worst[1]:.2f} times its share, of "
             f"{counts[-1]} ranks {worst[-1]:.2f} times" if worst[-1] > 1.005
             else "However many ranks, each gets its share")  # fmt: skip
    figure, (left, right) = picture(title, 9, 3.3, columns=2, width_ratios=(1.3, 1))
    bottom = np.zeros(experts)
    for n, own in enumerate(loads):
        left.bar(range(experts), own, bottom=bottom, color=PLAIN[n % len(PLAIN)], width=0.8,
                 label=f"layer {n + 1}")  # fmt: skip
        bottom += own
        right.plot(counts, over[n], marker="osv^D"[n % 5], color=PLAIN[n % len(PLAIN)],
                   label=f"layer {n + 1}")  # fmt: skip
    left.set(xlabel="expert", ylabel="rows", title="rows of each expert")
    right.set_xscale("log", base=2)
    right.set_xticks(counts, [str(c) for c in counts])
    right.axhline(1, color=SOFT, linewidth=0.8)
    right.set(xlabel="ranks that share the experts", ylabel="fullest rank, of the mean",
              title="the others wait for it", ylim=(0.9, None))  # fmt: skip
    right.legend(fontsize=8.5)
    return figure


@styled
def pieces(gathered: Array, alone: Array, ranks: int) -> Picture:
    """One orthogonal update (r, c), and the same rows made orthogonal rank by rank."""
    updates = {"gathered first": gathered, "each rank by itself": alone}
    values = {name: np.linalg.svd(X, compute_uv=False) for name, X in updates.items()}
    tops = [v.max() for v in values.values()]
    title = (f"Rank by rank, singular values reach {tops[1]:.2f} in place of {tops[0]:.2f}"
             if tops[1] > 1.05 * tops[0] else
             "Rank by rank, the singular values are no larger here")  # fmt: skip
    figure, panels = picture(title, 9.6, 3.5, columns=3, width_ratios=(1, 1, 1.1))
    for axes, (name, X) in zip(panels, updates.items(), strict=False):
        image = heat(axes, np.abs(X @ X.T), low=0, high=1)
        for n in range(1, ranks):
            for line in (axes.axhline, axes.axvline):
                line(n * len(X) / ranks - 0.5, color=TODAY, linewidth=0.8)
        axes.set(title=name, xlabel="row", ylabel="row")
    figure.colorbar(image, ax=panels[1], shrink=0.7, label="|product of two rows|")
    for (name, found), (colour, line) in zip(values.items(), ((TODAY, "-"), (SECOND, "--")),
                                             strict=True):  # fmt: skip
        panels[2].plot(1 + np.arange(len(found)), found, line, color=colour, label=name)
    panels[2].axhline(1, color=SOFT, linewidth=0.8)
    panels[2].set(xlabel="number, from the largest", title="singular values", ylim=(0, None))
    panels[2].legend(fontsize=8.5)
    return figure


@styled
def same_run(losses: Mapping[str, Array], alone: Array) -> Picture:
    """The losses of one run on several layouts of processes, and on one process: (steps,) each."""
    off = {name: np.abs(loss / alone - 1) for name, loss in losses.items()}
    worst = max(float(o.max()) for o in off.values())
    title = (f"Every layout has the loss of one process, to {worst:.0e}" if worst < 1e-9 else
             f"The losses differ from one process's, by up to {worst:.1%}")  # fmt: skip
    figure, (left, right) = picture(title, 9, 3.2, columns=2)
    step = 1 + np.arange(len(alone))
    left.plot(step, alone, color=FAINT, linewidth=7, label="one process", zorder=0)
    for (name, loss), (colour, marker) in zip(losses.items(), LOOKS, strict=False):
        left.plot(step, loss, marker, color=colour, label=name, markersize=5, fillstyle="none")
        right.plot(step, np.maximum(off[name], LEAST), marker, color=colour, label=name,
                   fillstyle="none")  # fmt: skip
    right.axhline(np.finfo(np.float64).eps, color=SOFT, linewidth=0.8)
    right.text(step[0], 2 * np.finfo(np.float64).eps, "spacing of float64 at 1", fontsize=8.5,
               va="bottom", color=SOFT)  # fmt: skip
    right.set_yscale("log")
    right.set(xlabel="step", ylabel="difference / loss", ylim=(LEAST / 3, max(1e-12, 10 * worst)),
              title="at the bottom: no difference")  # fmt: skip
    left.set(xlabel="step", ylabel="loss (nats a byte)", title="training loss")
    left.legend(fontsize=8.5)
    return figure


@styled
def wire(
    predicted: Mapping[str, Mapping[str, float]], counted: Mapping[str, Mapping[str, float]]
) -> Picture:
    """Bytes that a rank sends in a step: layout -> kind (of KINDS) -> bytes, by both ways."""
    off = {kind: max(abs(counted[name][kind] / own[kind] - 1) if own[kind] else counted[name][kind]
                     for name, own in predicted.items()) for kind in KINDS}  # fmt: skip
    exact = [kind for kind in KINDS if off[kind] == 0]
    worst = max(off.values())
    title = ("Predicted and counted bytes are the same" if worst == 0 else
             f"Predicted to the byte: {', '.join(exact) or 'nothing'}; the rest to {worst:.0%}")
    figure, panels = picture(title, 9, 3.2, columns=len(predicted), sharey=True, squeeze=False)
    for axes, (name, own) in zip(panels[0], predicted.items(), strict=True):
        for n, kind in enumerate(KINDS):
            found = counted[name][kind]
            axes.bar(n - 0.2, own[kind] / 1e3, 0.38, color="white", edgecolor=INK, hatch="///",
                     label="predicted" if n == 0 else None)  # fmt: skip
            axes.bar(n + 0.2, found / 1e3, 0.38, color=TODAY,
                     label="counted" if n == 0 else None)  # fmt: skip
            axes.text(n, max(own[kind], found) / 1e3, f"{found / 1e3:.0f}", ha="center",
                      va="bottom", fontsize=8.5)  # fmt: skip
        ticks(axes, list(KINDS.values()))
        axes.tick_params(axis="x", labelsize=8)
        axes.set(title=name)
    panels[0][0].set(ylabel="kB a rank sends in a step")
    panels[0][0].legend(fontsize=8.5)
    return figure
