"""Figures of lesson 08: singular values by steps, the slope at zero, sizes, experts and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minik2.plots.common import FAINT, INK, SECOND, SOFT, TODAY, Picture, picture, styled

Array = np.ndarray[Any, np.dtype[Any]]

# Where the singular values of the iteration settle: its lowest and highest points after the rise.
BAND = (0.65, 1.25)


@styled
def steps(values: Array) -> Picture:
    """Singular values of one matrix, (steps + 1, n), those before the first step in row 0."""
    inside = ((values > BAND[0]) & (values < BAND[1])).sum(1)
    count, last = values.shape[1], len(values) - 1
    title = f"Within {BAND[0]} to {BAND[1]}: {inside[0]} of {count} singular values before, "
    title += f"{inside[-1]} after {last} steps"
    figure, axes = picture(title, 10, 2.9, columns=len(values), sharey=True)
    for n, (panel, own) in enumerate(zip(axes, values, strict=True)):
        own = np.sort(own)[::-1]
        panel.axhspan(*BAND, color=FAINT)
        panel.semilogy(np.arange(1, count + 1), np.maximum(own, 1e-6), ".", color=TODAY,
                       markersize=4)  # fmt: skip
        panel.set(title="M / |M|" if n == 0 else f"step {n}", xlabel="largest first",
                  ylim=(max(min(values.min(), 0.1) / 2, 1e-6), 2))  # fmt: skip
    axes[0].set_ylabel("singular value")
    return figure


@styled
def slopes(start: Array, curves: Mapping[str, Array], real: Array) -> Picture:
    """What polynomials make of a singular value in all their steps.

    start: (n,) rising; curves: {name: (n,)}, the first one Muon's; real: singular values of a
    matrix, drawn as ticks.
    """
    # From where on a curve stays above a half.
    reach = {name: float(start[np.flatnonzero(curve < 0.5)[-1:]].max(initial=start[0]))
             for name, curve in curves.items()}
    first, *others = reach
    lowest = min(reach[name] for name in others)
    share = {name: (real > low).mean() for name, low in reach.items()}
    if reach[first] < lowest:
        title = f"Brought past a half: above {reach[first]:.3f} by {first}, "
        title += ", ".join(f"{reach[name]:.3f} by {name}" for name in others)
    else:
        title = f"{first} does not reach smaller singular values than the others"
    figure, axes = picture(title, 9, 3.9)
    styles = ((TODAY, "-"), (SECOND, "--"), (INK, ":"))
    for (name, curve), (colour, line) in zip(curves.items(), styles, strict=False):
        axes.loglog(start, curve, color=colour, linestyle=line, linewidth=2,
                    label=f"{name}: {share[name]:.0%} of the real ones past 0.5")  # fmt: skip
    axes.loglog(start, start, color=SOFT, linewidth=0.9, label="no step at all")
    axes.axhspan(*BAND, color=FAINT, zorder=0)
    axes.plot(real, np.full(len(real), 0.045), "|", color=INK, markersize=9, transform=
              axes.get_xaxis_transform(), label="those of a real momentum")  # fmt: skip
    axes.set(xlabel="singular value of M / |M|", ylabel="after all steps", xlim=(start[0], 1),
             ylim=(start[0], 3))  # fmt: skip
    axes.legend(fontsize=8.5, loc="lower right", bbox_to_anchor=(1, 0.08))
    return figure


@styled
def sizes(shapes: Sequence[str], rms: Mapping[str, Array]) -> Picture:
    """Root mean squares of updates by shape, {how they are scaled: (n,)}, the course's way last."""
    spread = {name: own.max() / own.min() for name, own in rms.items()}
    *others, last = rms
    least = min(spread[name] for name in others)
    title = (f"Scaled by {last}, the largest rms is {spread[last]:.2f} times the smallest; "
             f"otherwise {least:.1f} times or more" if spread[last] < least else
             f"Here {last} does not even out the sizes of the updates")
    figure, axes = picture(title, 9, 3.5)
    styles = ((SOFT, "s"), (SECOND, "^"), (TODAY, "o"))
    for (name, own), (colour, sign) in zip(rms.items(), styles, strict=False):
        axes.plot(range(len(own)), own, sign, color=colour, markersize=7, label=name)
    axes.axhline(0.2, color=SOFT, linewidth=0.9, linestyle=":")
    axes.set(ylabel="rms of the update", ylim=(0, None))
    axes.set_xticks(range(len(shapes)), shapes, fontsize=8.5)
    axes.grid(axis="x", color=FAINT)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


@styled
def experts(norms: Array, values: Mapping[str, Array], rms: Mapping[str, Array]) -> Picture:
    """Updates of a stack of experts, made orthogonal one by one and flattened.

    norms: (E,) of their momenta; values: {"each by itself" and "flattened": (E, n) singular values
    of each expert's part}; rms: {the same: (E,)}.
    """
    one, flat = values
    low = {name: (v < 0.5).mean() for name, v in values.items()}
    title = (f"Of the experts' singular values {low[flat]:.0%} stay below a half when flattened, "
             f"{low[one]:.0%} {one}" if low[flat] > low[one] else
             "Here flattening the stack does the experts' singular values no harm")
    figure, (left, right) = picture(title, 9.6, 3.6, columns=2)
    order = np.argsort(norms)
    for name, colour, sign in ((one, TODAY, "o"), (flat, SECOND, "s")):
        ranked = np.sort(values[name], axis=1)[:, ::-1]
        place = np.arange(1, ranked.shape[1] + 1)
        left.fill_between(place, ranked.min(0), ranked.max(0), color=colour, alpha=0.3, linewidth=0)
        left.plot(place, np.median(ranked, axis=0), color=colour, linewidth=2, linestyle=
                  "-" if sign == "o" else "--", label=name)  # fmt: skip
        right.plot(norms[order] / norms.max(), rms[name][order], sign, color=colour, label=name,
                   markersize=5)  # fmt: skip
    left.set(xlabel="singular value of an expert's update, largest first", ylim=(0, 1.3),
             title="median expert, and all of them")  # fmt: skip
    right.set(xlabel="norm of the expert's momentum / the largest", ylabel="rms of its update",
              ylim=(0, None), title="who is moved how far")  # fmt: skip
    left.legend()
    return figure


@styled
def cost(ratios: Array, saved: Array, errors: Mapping[str, float]) -> Picture:
    """What steps on the Gram matrix save and what they cost.

    ratios: (n,) longer over shorter side, rising; saved: (n,) share of the plain work; errors:
    {lengths of the runs, such as "3 + 2": relative error in float32}.
    """
    names = list(errors)
    worst = max(errors, key=lambda name: errors[name])
    least = int(np.argmax(saved > 0)) if (saved > 0).any() else None
    title = (f"Gram steps pay from about {ratios[least]:.1f} to 1 on and save up to "
             f"{saved.max():.0%}; the run of {worst} is the least exact" if least is not None
             else "Steps on the Gram matrix save nothing at these shapes")
    figure, (left, right) = picture(title, 9.6, 3.3, columns=2)
    left.axhline(0, color=SOFT, linewidth=0.9)
    left.semilogx(ratios, saved, color=TODAY, linewidth=2)
    ticks = [r for r in (1, 2, 4, 8, 16, 32) if ratios[0] <= r <= ratios[-1]]
    left.set_xticks(ticks, [f"{r}" for r in ticks])
    left.set_xticks([], minor=True)
    left.set(xlabel="longer side / shorter side", ylabel="share of the work saved")
    right.set_yscale("log")
    right.plot(range(len(names)), [errors[n] for n in names], "o", color=SECOND, markersize=7)
    right.set_xticks(range(len(names)), names)
    right.set(xlabel="steps on one Gram matrix", ylabel="error in float32")
    right.grid(axis="y", color=FAINT)
    return figure
