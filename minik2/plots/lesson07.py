"""Figures of lesson 07: step sizes, what a norm and a softmax take away, a tie, and agreement."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.patches import Circle

from minik2.plots.common import (
    FAINT,
    INK,
    SECOND,
    SOFT,
    TODAY,
    Picture,
    heat,
    letters,
    minus,
    picture,
    signed,
    styled,
    ticks,
)  # fmt: skip

Array = np.ndarray[Any, np.dtype[Any]]


@styled
def step_sizes(steps: Array, errors: Mapping[str, Array], size: float) -> Picture:
    """Relative error of central differences against the step, a curve for each dtype.

    steps: (n,) falling; errors: {dtype: (n,)}; size: the function's terms over its slope, so that
    eps size / step is what rounding costs.
    """
    best = {name: int(np.argmin(e)) for name, e in errors.items()}
    turned = all(0 < i < len(steps) - 1 for i in best.values())
    lowest = ", ".join(f"{_power(steps[i])} in {name}" for name, i in best.items())
    title = (f"Large steps bend, small ones round: best is about {lowest}" if turned else
             "Here the error does not turn between the largest step and the smallest")
    figure, axes = picture(title, 9, 3.8)
    colours = ((INK, "o"), (SECOND, "s"))
    for (name, error), (colour, sign) in zip(errors.items(), colours, strict=False):
        axes.loglog(steps, np.maximum(error, 1e-17), sign, color=colour, markersize=4.5,
                    label=name)  # fmt: skip
        rounding = np.finfo(name).eps * size / steps
        axes.loglog(steps, rounding, color=colour, linewidth=0.9, linestyle=":",
                    label=f"rounding, eps({name}) / h")  # fmt: skip
    first = next(iter(errors.values()))
    axes.loglog(steps, first[0] * (steps / steps[0]) ** 2, color=SOFT, linewidth=1.2,
                linestyle="--", label="bending, h²")  # fmt: skip
    axes.set(xlabel="step h", ylabel="relative error of the slope", ylim=(1e-14, 1e3))
    axes.legend(fontsize=8.5, loc="lower left")
    return figure


def _power(step: float) -> str:
    """One digit and a power of ten, as in print."""
    digit, power = f"{step:.0e}".split("e")
    raised = str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return ("" if digit == "1" else f"{digit}·") + f"10{raised}"


@styled
def norm_plane(n: Array, g: Array, left: Array) -> Picture:
    """Rows of two numbers: n (2,) = x / rms(x), g (2,) = weight dy, left (2,) = g less its part
    along n. All such n lie on a circle."""
    along = abs(float(left @ n)) / float(np.linalg.norm(left) * np.linalg.norm(n))
    kept = float(np.linalg.norm(left) / np.linalg.norm(g))
    title = (f"Only what runs along the circle comes back: {kept:.0%} of g here" if along < 1e-9
             else f"What comes back still points along x: the cosine is {along:.2f}")
    figure, axes = picture(title, 6.5, 4.2)
    axes.add_patch(Circle((0, 0), float(np.linalg.norm(n)), fill=False, edgecolor=SOFT))
    axes.plot([-2.4 * n[0], 2.4 * n[0]], [-2.4 * n[1], 2.4 * n[1]], color=FAINT, zorder=0)
    arrows = (((0.0, 0.0), n, SOFT, "n = x / rms(x)"), (n, g, SECOND, "g"),
              (n, left, TODAY, "g − n mean(g n)"), (n + left, g - left, INK, "taken away"))
    for start, vector, colour, name in arrows:
        end = start + vector
        axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": colour,
                                                  "linewidth": 2, "shrinkA": 0, "shrinkB": 0})
        axes.plot([], [], color=colour, linewidth=2, label=name)
    reach = 1.15 * max(np.abs([n, n + g, n + left]).max(), float(np.linalg.norm(n)))
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal",
             xlabel="first number", ylabel="second number")  # fmt: skip
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure


@styled
def attention(text: str, p: Array, dp: Array, ds: Array) -> Picture:
    """One head's weights p, their gradient dp and the scores' gradient ds; (T, T) each."""
    off = float(np.abs(ds.sum(1)).max() / np.abs(ds).max())
    title = ("In every row of dS, what some tokens gain the others lose: it sums to 0" if off < 1e-6
             else f"Rows of dS do not sum to 0: one is off by {off:.0%} of the largest entry")
    figure, axes = picture(title, 10, 3.6, columns=3)
    seen = np.tri(len(p), dtype=bool)
    heat(axes[0], np.where(seen, p, np.nan), low=0, high=1)
    names = ("P: who is looked at", "dP: what looking more would do",
             "dS = P (dP − Σ P dP), the scores'")  # fmt: skip
    for panel, values in zip(axes[1:], (dp, ds), strict=True):
        signed(panel, np.where(seen, values, np.nan))
    for panel, name in zip(axes, names, strict=True):
        ticks(panel, letters(text), letters(text))
        panel.set(title=name, xlabel="looks at")
    axes[0].set_ylabel("token")
    return figure


@styled
def tie(shifts: Array, losses: Array, tangents: Sequence[tuple[float, float, float]],
        bias_shifts: Array, bias_losses: Array) -> Picture:
    """One token's loss as the logit of an expert is moved across a tie, which lies at shift 0, and
    the mean loss of a text as a correction bias is moved.

    shifts, losses: (n,), none of the shifts 0; tangents: (shift, loss, slope) from the backward
    pass; bias_shifts, bias_losses: (m,).
    """
    before, after = losses[shifts < 0], losses[shifts > 0]
    jump = float(after[0] - before[-1])
    title = (f"At the tie the loss jumps by {minus(f'{jump:+.2f}')}, and no slope knows of it"
             if abs(jump) > 0.01 * np.ptp(losses) else "At this tie the loss does not jump")
    figure, (left, right) = picture(title, 9.6, 3.7, columns=2)
    for own, values, name in ((shifts < 0, before, "not chosen"), (shifts > 0, after, "chosen")):
        left.plot(shifts[own], values, color=INK, linewidth=1.8)
        left.annotate(name, (float(shifts[own].mean()), 0.03), color=SOFT, ha="center",
                      xycoords=("data", "axes fraction"))  # fmt: skip
    width = 0.18 * np.ptp(shifts)
    for n, (shift, loss, slope) in enumerate(tangents):
        ends = np.array([-width, width]) / 2
        left.plot(shift + ends, loss + slope * ends, color=SECOND, linewidth=4, alpha=0.55,
                  solid_capstyle="butt", label="" if n else "slope from the backward pass")
        left.plot(shift, loss, "o", color=SECOND, markersize=5)
    left.axvline(0, color=SOFT, linewidth=0.9, linestyle=":")
    low, high = float(losses.min()), float(losses.max())
    room = 0.25 * max(high - low, 1e-9)
    left.set(xlabel="router logit of one expert, from the tie", ylabel="loss of one token, nats",
             ylim=(low - room, high + 1.6 * room))  # fmt: skip
    left.legend(loc="upper left", fontsize=8.5)
    right.step(bias_shifts, bias_losses, where="mid", color=TODAY, linewidth=1.6)
    steps = int((np.diff(bias_losses) != 0).sum())
    right.set(xlabel="that expert's correction bias, from its value",
              ylabel="mean loss of the text, nats",
              title=f"flat but for jumps (in {steps} of {len(bias_shifts) - 1} intervals)")
    return figure


@styled
def agreement(errors: Mapping[str, Mapping[str, float]]) -> Picture:
    """Relative errors of gradients, {compared with: {tensor's name: error}}, the same names each.

    Of tensors that differ in the number of their layer or expert only the worst is drawn.
    """
    worst = max(max(own.values()) for own in errors.values())
    with_whom = " and ".join(errors)
    title = (f"Against {with_whom}: no gradient is off by more than {worst:.0e}" if worst < 1e-9
             else f"Against {with_whom}: a gradient is off by {worst:.0e}")
    by_kind: dict[str, dict[str, float]] = {}
    for name, own in errors.items():
        found = by_kind.setdefault(name, {})
        for tensor, error in own.items():
            kind = re.sub(r"^model\.|layers\.\d+\.|\.weight$|\.\d+", "", tensor)
            found[kind] = max(found.get(kind, 0.0), error)
    kinds = list(next(iter(by_kind.values())))
    figure, axes = picture(title, 9, 0.9 + 0.24 * len(kinds))
    for (name, own), (colour, sign) in zip(by_kind.items(), ((INK, "o"), (SECOND, "s")),
                                           strict=False):  # fmt: skip
        axes.plot([max(own[kind], 3e-17) for kind in kinds], range(len(kinds)), sign, color=colour,
                  markersize=7 if sign == "s" else 5, markerfacecolor="none" if sign == "s" else
                  colour, label=name)  # fmt: skip
    axes.axvline(2.0**-52, color=SOFT, linewidth=1, linestyle=":", label="eps of float64")
    axes.set_xscale("log")
    axes.set(xlabel="largest error / largest number of that gradient", xlim=(2e-17, None))
    axes.set_yticks(range(len(kinds)), kinds)
    axes.invert_yaxis()
    axes.grid(axis="y", color=FAINT)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8.5)
    return figure
