"""Figures of lesson 00: what a minute of training does to a small model, and where K2 is large."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.patches import Rectangle

from minik2.plots.common import (
    FAINT,
    INK,
    LATENT,
    PLAIN,
    ROTARY,
    SOFT,
    TODAY,
    Picture,
    heat,
    letters,
    picture,
    readable,
    signed,
    styled,
    ticks,
)  # fmt: skip
from minik2.sizing import Parameters

Array = np.ndarray[Any, np.dtype[Any]]

# Kinds of characters, and what belongs to each; the last takes the rest.
KINDS: Any = {"small letters": str.islower, "digits": str.isdigit, "capitals": str.isupper,
              "signs": lambda c: True}  # fmt: skip


@styled
def loss_curve(
    train: Sequence[float], held_out: Mapping[int, float], yardsticks: Mapping[str, float]
) -> Picture:
    """Loss in nats a byte: train at every step, held_out {step: loss}, yardsticks {name: loss}.

    The title names the best yardstick that the last held-out loss is below.
    """
    steps, losses = list(held_out), list(held_out.values())
    beaten = {n: y for n, y in yardsticks.items() if losses[-1] < y}
    title = f"{steps[-1]} steps of training beat no yardstick yet"
    if beaten:
        best = min(beaten, key=beaten.__getitem__)
        first = next(s for s, loss in held_out.items() if loss < beaten[best])
        title = f"After {first} steps the model knows more than {best} can tell"
    figure, axes = picture(title, 9, 3.6)
    axes.plot(np.arange(1, len(train) + 1), train, color=SOFT, linewidth=0.8,
              label="training, one batch")  # fmt: skip
    axes.plot(steps, losses, "o-", color=TODAY, markersize=4, label="held-out files")
    for name, loss in yardsticks.items():
        axes.axhline(loss, color=INK, linewidth=0.8, linestyle="--")
        axes.text(len(train), loss + 0.06, f"{name}: {loss:.2f}", ha="right", fontsize=9)
    axes.set(xlabel="step", ylabel="loss, nats a byte", ylim=(0, None), xlim=(0, len(train)))
    axes.legend(loc="lower left")
    return figure


@styled
def surprise(text: str, before: Array, after: Array) -> Picture:
    """Every byte of a text on its loss in nats, (T,) each, before and after training."""
    rows = _rows(text)
    now, then = float(after.mean()), float(before.mean())
    quarter = np.sort(after)[-max(len(after) // 4, 1) :].sum() / after.sum()
    title = (f"From {then:.1f} to {now:.1f} nats a byte, and a quarter of the bytes "
             f"holds {quarter:.0%} of what is left" if now < then else
             f"Training did not help on this text: {then:.1f} nats a byte before, "
             f"{now:.1f} after")  # fmt: skip
    wide = max(len(row) for row in rows)
    figure, panels = picture(title, 9.6, 0.9 + 0.5 * len(rows), rows=2)
    for axes, losses, name in ((panels[0], before, "untrained"), (panels[1], after, "trained")):
        grid = np.full((len(rows), wide), np.nan)
        for line, row in enumerate(rows):
            grid[line, : len(row)] = losses[row]
        image = heat(axes, grid, low=0, high=8)
        axes.set(xticks=[], yticks=[], ylabel=name, aspect="auto")
        for line, row in enumerate(rows):
            for column, place in enumerate(row):
                sign = letters(text[place])[0]
                axes.text(column, line, sign, ha="center", va="center", fontsize=9,
                          alpha=0.5 if sign in "␣↵" else 1, color=readable(image, losses[place]))
    figure.colorbar(image, ax=panels, shrink=0.8, label="nats", ticks=(0, 2, 4, 6, 8))
    return figure


def _rows(text: str) -> list[range]:
    """The places of each line of a text, its line end included."""
    ends = [i + 1 for i, c in enumerate(text) if c == "\n"]
    cuts = [0, *ends] if ends and ends[-1] == len(text) else [0, *ends, len(text)]
    return [range(a, b) for a, b in itertools.pairwise(cuts)]


@styled
def embedding(characters: str, vectors: Array) -> Picture:
    """The embedding's rows of some characters, (n, D), on the two directions they differ most in.

    The title compares how often the nearest row (by cosine, in all D dimensions) is of the same
    kind with chance.
    """
    kinds = np.array([next(n for n, belongs in enumerate(KINDS.values()) if belongs(c))
                      for c in characters])  # fmt: skip
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    alike = unit @ unit.T
    np.fill_diagonal(alike, -np.inf)
    same = float((kinds[alike.argmax(1)] == kinds).mean())
    chance = float(((kinds[:, None] == kinds).sum(1) - 1).mean() / (len(kinds) - 1))
    verb = "have found their kind" if same > 1.5 * chance else "do not know their kind yet"
    figure, axes = picture(f"Bytes {verb}: {same:.0%} are nearest to one of their own "
                           f"(chance: {chance:.0%})", 9, 4.6)  # fmt: skip
    centred = unit - unit.mean(0)
    places = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    places = _apart(places / np.ptp(places, axis=0) * (6.6, 3.8))
    axes.set(xlim=_span(places[:, 0]), ylim=_span(places[:, 1]), xticks=[], yticks=[],
             xlabel="direction of the largest difference", ylabel="of the second largest")
    for n, name in enumerate(KINDS):
        axes.plot([], [], "s", color=PLAIN[n], label=name)
        own = kinds == n
        for character, (x, y) in zip(np.array(letters(characters))[own], places[own], strict=True):
            axes.text(x, y, character, color=PLAIN[n], ha="center", va="center", fontsize=12,
                      fontweight="bold")  # fmt: skip
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _apart(places: Array, room: float = 0.16) -> Array:
    """Places (n, 2) of labels in inches, moved by a hair where two would lie on each other."""
    for _ in range(100):
        gaps = places[:, None] - places
        far = np.linalg.norm(gaps, axis=-1, keepdims=True)
        push = np.where(far < room, (room - far) / 2 * gaps / np.maximum(far, 1e-9), 0)
        places = places + push.sum(axis=1)
    return places


def _span(values: Array) -> tuple[float, float]:
    room = 0.06 * np.ptp(values)
    return float(values.min() - room), float(values.max() + room)


@styled
def latents(text: str, latent: Array, rotary: Array, expanded: int, layer: int) -> Picture:
    """What one layer keeps of every token: latent (T, C) and rotary key (T, R).

    expanded: how many numbers the keys and values of all heads would be.
    """
    kept = latent.shape[1] + rotary.shape[1]
    title = (f"All that layer {layer} keeps of a token: {kept} numbers, "
             f"where keys and values would be {expanded}")  # fmt: skip
    figure, panels = picture(title, 9.6, 0.9 + 0.17 * len(text), columns=2,
                             width_ratios=(latent.shape[1], rotary.shape[1]))  # fmt: skip
    named = ((latent, LATENT, "latent"), (rotary, ROTARY, "rotary key"))
    for axes, (values, colour, name) in zip(panels, named, strict=True):
        # A few large numbers would leave the others white.
        signed(axes, values, high=2.5 * float(np.sqrt((values**2).mean())))
        axes.set(xticks=[], yticks=[], aspect="auto")
        axes.set_title(f"{name}: {values.shape[1]} numbers", pad=14)
        axes.add_patch(Rectangle((0, 1), 1, 0.025, transform=axes.transAxes, facecolor=colour,
                                 clip_on=False, linewidth=0))  # fmt: skip
    ticks(panels[0], y=letters(text))
    panels[0].tick_params(axis="y", labelsize=8)
    return figure


@styled
def attention(text: str, weights: Array, layer: int, head: int) -> Picture:
    """Where one trained head looks: weights (T, T). The title names its favourite distance."""
    reach = 8
    queries = np.arange(reach, len(weights))
    shares = [float(weights[queries, queries - d].mean()) for d in range(reach + 1)]
    best = int(np.argmax(shares))
    where = ("at the byte itself", "one byte back")[best] if best < 2 else f"{best} bytes back"
    title = (f"Nobody asked for it: head {head} of layer {layer} looks {where}, with "
             f"{shares[best]:.0%} of its weight" if shares[best] > 0.25 else
             f"Head {head} of layer {layer} has no favourite distance: at most {shares[best]:.0%} "
             "of its weight")  # fmt: skip
    figure, axes = picture(title, 8.4, 5.8)
    seen = np.tri(len(weights), dtype=bool)
    image = heat(axes, np.where(seen, weights, np.nan), low=0, high=1)
    figure.colorbar(image, ax=axes, shrink=0.8, label="attention weight")
    ticks(axes, letters(text), letters(text))
    axes.tick_params(labelsize=8)
    axes.set(xlabel="looks at", ylabel="token")
    return figure


@styled
def router(text: str, weights: Array, layer: int, same: float, other: float) -> Picture:
    """Which experts the bytes of a text go to: weights (T, E), zero where not chosen.

    same, other: the share of experts that two copies of a byte, and two different bytes, have in
    common.
    """
    others = f"two different bytes {other:.0%}"
    if same <= 1.2 * other:
        others = f"hardly more than different ones: {other:.0%}"
    verdict = f"In layer {layer} two copies of a byte share {same:.0%} of their experts, {others}"
    figure, axes = picture(verdict, 9.6, 4.0)
    image = heat(axes, weights.T, low=0)
    axes.set_xticks(np.arange(len(weights)) - 0.5, minor=True)
    axes.set_yticks(np.arange(weights.shape[1]) - 0.5, minor=True)
    axes.grid(which="minor", color=FAINT, linewidth=0.8)
    axes.tick_params(which="minor", length=0)
    ticks(axes, x=letters(text))
    axes.set(ylabel=f"expert of layer {layer}", xlabel="byte", aspect="auto",
             yticks=range(0, weights.shape[1], 5))
    figure.colorbar(image, ax=axes, shrink=0.8, label="weight of the expert")
    return figure


PARTS = {
    "routed experts": ("routed_experts",),
    "attention": ("attention",),
    "shared experts": ("shared_experts",),
    "embedding and head": ("embedding", "head"),
    "dense layers, router, norms": ("dense_ffn", "router", "norms"),
}


@styled
def where_parameters(models: Mapping[str, Parameters]) -> Picture:
    """Shares of the parameters by part, one bar a model; the title is about the last one.

    One bar more shows the last model without its largest part, which hides the others.
    """
    rows = []
    for model, counts in models.items():
        sums = {part: sum(counts.by_part[key] for key in keys) for part, keys in PARTS.items()}
        rows.append((f"{model}: {counts.total:,} parameters, {counts.active:,} of them for a token",
                     sums))
    largest = max(sums, key=sums.__getitem__)
    share = sums[largest] / counts.total
    rows.append((f"the other {1 - share:.1%} of {model}, enlarged", sums | {largest: 0}))
    figure, axes = picture(
        f"{share:.1%} of {model}'s parameters are {largest}; a token meets "
        f"{counts.active / counts.total:.1%} of all", 9.6, 3.5)  # fmt: skip
    for row, (text, sums) in enumerate(rows):
        left, total = 0.0, sum(sums.values())
        for (part, number), colour in zip(sums.items(), PLAIN, strict=True):
            width = number / total
            axes.barh(row, width, left=left, color=colour, height=0.55, edgecolor="white",
                      linewidth=0.8, label=part if row == 0 else None)  # fmt: skip
            if width > 0.05:
                axes.text(left + width / 2, row, f"{number / total:.1%}", ha="center",
                          va="center", color="white" if colour in PLAIN[:3] else INK, fontsize=9)
            left += width
        axes.text(0, row - 0.33, text, fontsize=9, va="bottom", ha="left")
    axes.set(ylim=(len(rows) - 0.6, -0.7), yticks=[], xlim=(-0.008, 1.008), xticks=[])
    axes.spines[:].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(0, 0.02), ncols=3, fontsize=9)
    return figure
