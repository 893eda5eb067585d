"""Figures of lesson 09: logits that explode, rows that are scaled, and a run that is held."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from minik2.plots.common import (
    AMOUNT,
    FAINT,
    INK,
    LATENT,
    ROTARY,
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

# Rows of a head: those without position, rotary ones, values.
PARTS = {"nope": LATENT, "rope": ROTARY, "value": SOFT}
LINES = ("-", "--", "-.", ":")
# Losses of single batches are noisy.
MEAN = 10


@styled
def explosion(maxima: Array, tau: float) -> Picture:
    """Each head's largest logit, step by step: maxima (steps, L, H)."""
    layers, heads = maxima.shape[1:]
    passed = int((maxima.max(0) > tau).sum())
    figure, (left, right) = picture(
        f"{passed} of {layers * heads} heads pass {tau:.0f}, and the largest logit reaches "
        f"{maxima.max():.0f}", 9, 3.6, columns=2, width_ratios=(1.6, 1))  # fmt: skip
    _courses(left, maxima, tau)
    image = heat(right, maxima.max(0), low=0, numbers=".0f")
    figure.colorbar(image, ax=right, shrink=0.8, label="largest logit of all steps")
    ticks(right, [str(h) for h in range(heads)], [str(n) for n in range(layers)])
    right.set(xlabel="head", ylabel="layer", title="which heads, which layers")
    return figure


def _courses(axes: Axes, maxima: Array, tau: float) -> None:
    """A line a head; the layers differ in their dashes and in how dark they are."""
    layers = maxima.shape[1]
    for layer in range(layers):
        shade = AMOUNT(0.35 + 0.65 * layer / max(layers - 1, 1))
        lines = axes.plot(1 + np.arange(len(maxima)), maxima[:, layer], color=shade,
                          linestyle=LINES[layer % len(LINES)], linewidth=1.1)  # fmt: skip
        lines[0].set_label(f"layer {layer}")
    axes.axhline(tau, color=TODAY, linewidth=1.5)
    axes.text(1, tau, f"{tau:.0f} ", color=TODAY, va="bottom", fontsize=9)
    axes.legend(fontsize=8.5, loc="upper left", bbox_to_anchor=(0.03, 1))
    axes.set(xlabel="step", ylabel="largest logit of a head", title="one line a head")


@styled
def changed_rows(
    before: Mapping[str, Array], after: Mapping[str, Array], gamma: Array, nope: int
) -> Picture:
    """Two matrices' rows, and what a clip made of them: name -> (rows, columns); gamma (H,).

    The first N rows of a head are its plain ones; the rest of q_b_proj is rotary, of kv_b_proj
    values.
    """
    heads = len(gamma)
    ratios = {n: np.linalg.norm(after[n], axis=1) / np.linalg.norm(before[n], axis=1)
              for n in before}  # fmt: skip
    moved = sum(int((np.abs(r - 1) > 1e-6).sum()) for r in ratios.values())
    values = ratios["kv_b_proj"].reshape(heads, -1)[:, nope:]
    kept = ("no value row among them" if np.abs(values - 1).max() < 1e-6
            else "value rows among them")  # fmt: skip
    rows = sum(len(r) for r in ratios.values())
    figure, panels = picture(f"{moved} of {rows} rows shrink, {kept}", 9, 4.4, rows=2)
    for axes, (name, ratio) in zip(panels, ratios.items(), strict=True):
        other = "rope" if name == "q_b_proj" else "value"
        wide = len(ratio) // heads
        for start in range(0, len(ratio), wide):
            for part, first, last in (("nope", start, start + nope),
                                      (other, start + nope, start + wide)):
                label = {"nope": "without position (N)", "rope": "rotary (R)",
                         "value": "values (V)"}[part] if start == 0 else None
                axes.bar(np.arange(first, last), ratio[first:last], width=1, label=label,
                         color=PARTS[part], hatch="///" if part == "value" else None,
                         edgecolor="white", linewidth=0.2)
            if start:
                axes.axvline(start - 0.5, color=INK, linewidth=1)
            axes.text(start + wide / 2 - 0.5, 1.06, f"head {start // wide}, "
                      f"γ = {gamma[start // wide]:.2f}", ha="center", fontsize=8.5)
        axes.axhline(1, color=SOFT, linewidth=0.8, zorder=0)
        axes.set(xlim=(-0.5, len(ratio) - 0.5), ylim=(0, 1.2), xlabel="row",
                 ylabel="length of the row,\nnew / old", title=name)  # fmt: skip
        axes.legend(loc="lower left", fontsize=8, frameon=True, facecolor="white",
                    framealpha=0.9, ncols=2)
    return figure


@styled
def others_disturbed(before: Array, after: Mapping[str, Array], head: int) -> Picture:
    """How far logits of each head move when one head is clipped: before (H,) largest logits,
    after: way -> (H,) largest change of a logit as a share of the head's largest."""
    others = np.arange(len(before)) != head
    moved = {way: float(shares[others].max()) for way, shares in after.items()}
    harmed = [way for way, share in moved.items() if share > 1e-6]
    title = (f"Clipping head {head} by {' or '.join(harmed)} moves other heads' logits, by up to "
             f"{max(moved.values()):.0%}" if harmed
             else f"Clipping head {head} leaves every other head alone")  # fmt: skip
    figure, axes = picture(title, 9, 3.2)
    width = 0.8 / len(after)
    for n, (way, shares) in enumerate(after.items()):
        places = np.arange(len(before)) + (n - (len(after) - 1) / 2) * width
        axes.bar(places, shares, width * 0.92, label=way, color=(TODAY, ROTARY, SECOND)[n],
                 hatch=(None, "///", "..")[n], edgecolor="white")  # fmt: skip
        for place, share in zip(places, shares, strict=True):
            axes.text(place, share, f"{share:.0%}", ha="center", va="bottom", fontsize=8.5)
    names = [f"head {h}\n(largest logit {top:.1f})" for h, top in enumerate(before)]
    ticks(axes, names)
    top = 1.35 * max(float(shares.max()) for shares in after.values())
    axes.set(ylabel="largest change of a logit,\nof the head's largest", ylim=(0, top))
    axes.legend(loc="upper left", fontsize=8.5, ncols=len(after))
    return figure


@styled
def held(maxima: Mapping[str, Array], losses: Mapping[str, Array], tau: float) -> Picture:
    """Two runs of one seed, "plain" and "clipped": maxima (steps, L, H), losses (steps,)."""
    top = float(maxima["clipped"].max())
    plain = float(maxima["plain"].max())
    last = max(1, len(losses["plain"]) // 5)
    more = float(losses["clipped"][-last:].mean() - losses["plain"][-last:].mean())
    word = ("no worse" if more < 0.01 else f"{more:.2f} nats higher")
    title = (f"Clipped: no logit above {top:.0f} in place of {plain:.0f}, and the loss ends {word}"
             if top < plain else
             f"Clipped, a logit reaches {top:.0f}; without clipping {plain:.0f}")  # fmt: skip
    figure, (left, middle, right) = picture(title, 9.6, 3.5, columns=3,
                                            width_ratios=(1.2, 1.1, 1.1))  # fmt: skip
    looks = {"plain": (SECOND, "--"), "clipped": (TODAY, "-")}
    step = 1 + np.arange(len(losses["plain"]))
    for name, (colour, line) in looks.items():
        left.plot(step, maxima[name].max((1, 2)), line, color=colour, label=name)
        smooth = np.convolve(losses[name], np.full(MEAN, 1 / MEAN), "valid")
        middle.plot(step[MEAN - 1 :], smooth, line, color=colour, label=name)
    left.axhline(tau, color=INK, linewidth=0.9)
    left.text(step[-1], tau, f"tau {tau:.0f}", ha="right", va="top", fontsize=8.5)
    left.set(xlabel="step", ylabel="largest logit of the model", title="largest logit")
    middle.set(xlabel="step", ylabel="loss (nats a byte)",
               title=f"training loss, mean of {MEAN} steps")
    left.legend(fontsize=8.5)
    layers, heads = maxima["clipped"].shape[1:]
    over = (maxima["clipped"] > tau).reshape(len(step), -1).T
    right.imshow(over, cmap="Greys", vmin=0, vmax=1.2, aspect="auto", interpolation="nearest",
                 extent=(0.5, len(step) + 0.5, layers * heads - 0.5, -0.5))  # fmt: skip
    for layer in range(1, layers):
        right.axhline(layer * heads - 0.5, color=FAINT, linewidth=1)
    right.set_yticks([layer * heads + (heads - 1) / 2 for layer in range(layers)],
                     [f"layer {layer}" for layer in range(layers)])  # fmt: skip
    right.set(xlabel="step", title="dark: this head is clipped")
    return figure
