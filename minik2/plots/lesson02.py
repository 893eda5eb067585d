"""Figures of lesson 02: the bottleneck, what its size costs, and why positions go around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.patches import FancyArrowPatch, Rectangle

from minik2.config import ModelConfig
from minik2.plots.common import (
    FAINT,
    INK,
    LATENT,
    PLAIN,
    ROTARY,
    SECOND,
    SOFT,
    TODAY,
    Picture,
    picture,
    signed,
    styled,
)  # fmt: skip

Array = np.ndarray[Any, np.dtype[Any]]


@styled
def widths(cfg: ModelConfig) -> Picture:
    """One token's vectors on their way through the block of `cfg`, their lengths to scale."""
    heads, rotary, latent = cfg.num_attention_heads, cfg.qk_rope_head_dim, cfg.kv_lora_rank
    made = heads * (cfg.qk_head_dim + cfg.v_head_dim)
    kept = latent + rotary
    title = (f"{kept} numbers of a token carry all {made:,} of its keys and values"
             if kept < made else
             f"No bottleneck here: {kept} numbers for {made:,} of keys and values")  # fmt: skip
    figure, axes = picture(title, 9, 3.7)
    axes.set_axis_off()
    nope, value = heads * cfg.qk_nope_head_dim, heads * cfg.v_head_dim
    unit = 50 / max(made, cfg.hidden_size)
    axes.set(xlim=(-18, 56), ylim=(-0.3, 4.4))
    rows = [
        (3.4, "x", [(cfg.hidden_size, PLAIN[3], f"{cfg.hidden_size:,}")]),
        (2.1, "latent, rotary key", [(latent, LATENT, f"{latent:,}"),
                                     (rotary, ROTARY, f"{rotary}")]),
        (0.5, "keys and values", [(nope, LATENT, f"{heads} × {cfg.qk_nope_head_dim}"),
                                  (heads * rotary, ROTARY, f"the same {rotary}, {heads} times"),
                                  (value, LATENT, f"{heads} × {cfg.v_head_dim}")]),
    ]  # fmt: skip
    notes = {2: ("keys, no position", "keys, rotary part", "values")}
    for number, (height, name, parts) in enumerate(rows):
        axes.text(-1, height + 0.3, name, ha="right", va="center", fontweight="bold")
        left = 0.0
        for n, (size, colour, text) in enumerate(parts):
            axes.add_patch(Rectangle((left, height), size * unit, 0.6, facecolor=colour,
                                     edgecolor="white", linewidth=1.5))
            narrow = size * unit < 0.5 * len(text)
            light = colour == LATENT and not narrow
            axes.text(left + size * unit / 2, height + (0.78 if narrow else 0.3), text,
                      ha="center", va="center", fontsize=8.5, color="white" if light else INK)
            if number in notes:
                axes.text(left + size * unit / 2, height - 0.25, notes[number][n], ha="center",
                          va="center", fontsize=8.5)
            left += size * unit
    behind = (latent + rotary / 2) * unit
    arrows = ((1.2, 3.35, 1.2, 2.8, "kv_a_proj_with_mqa"), (1.2, 2.05, 1.2, 1.2, "norm, kv_b_proj"),
              (behind, 2.05, (nope + heads * rotary / 2) * unit, 1.2, "turned by position"))
    for x, y, end_x, end_y, name in arrows:
        axes.add_patch(FancyArrowPatch((x, y), (end_x, end_y), arrowstyle="-|>",
                                       mutation_scale=9, color=SOFT, shrinkA=0, shrinkB=0))
        axes.text((x + end_x) / 2 + (0.8 if x == end_x else 3), (y + end_y) / 2, name,
                  va="center", fontsize=8.5, color=SOFT)
    return figure


@styled
def rank(
    lost: Array, without: Array, losses: Mapping[int, float], rank: int, enough: float = 0.1
) -> Picture:
    """What is lost of keys and values in a smaller latent, and what the loss says to that.

    lost, without: shares of length lost at the sizes 0, 1, 2, …, of the model's keys and values and
    of ones that came through no bottleneck. losses: nats a byte by size, that of `rank` last.
    """
    need = int((lost <= enough).argmax())
    figure, (left, right) = picture(
        f"{need} of {rank} numbers hold all but {enough:.0%} of these keys and values"
        if need < rank else f"All {rank} numbers are needed to lose less than {enough:.0%}",
        9, 3.5, columns=2, width_ratios=(1.35, 1))  # fmt: skip
    sizes = np.arange(len(lost))
    inside = slice(1, rank + 1)
    left.plot(sizes[: len(without)], np.maximum(without, 1e-3), color=SOFT, linestyle="--",
              label="made of x at full rank")
    left.plot(sizes[inside], np.maximum(lost[inside], 1e-3), color=LATENT, linewidth=2,
              label="the model's own")
    left.axvline(rank, color=LATENT, linewidth=1, linestyle=":")
    left.text(rank + 1, 1.2e-3, f"kv_lora_rank = {rank}", color=LATENT, fontsize=9)
    left.plot([need], [lost[need]], "o", color=LATENT)
    left.set(yscale="log", xlim=(0, min(len(without) - 1, 2 * rank)), ylim=(1e-3, 1.15),
             xlabel="numbers in the latent", ylabel="share of keys and values lost")
    left.legend(loc="upper right", fontsize=8.5)
    right.plot(list(losses), list(losses.values()), "o-", color=TODAY)
    right.axhline(losses[rank], color=FAINT, zorder=0)
    right.set(xlabel="numbers in every layer's latent", ylabel="loss, nats a byte",
              title="the whole model, its latents cut")
    return figure


@styled
def one_matrix(distances: Sequence[int], plain: Array, zero: Array, mean: Array) -> Picture:
    """How wrong scores are if one matrix is to serve at all distances: relative errors.

    plain: without rotation; zero: the matrix of distance 0; mean: the mean of all the matrices.
    """
    failed = max(zero.max(), mean.max()) > 1e-6
    figure, axes = picture(
        f"Rotation inside: no one matrix serves, and the mean of all is up to {mean.max():.0%} off"
        if failed else "One matrix serves at all distances, with rotation or without",
        9, 3.2)  # fmt: skip
    axes.plot(distances, zero, "o-", color=ROTARY, markersize=5,
              label="rotated, the matrix of distance 0")
    axes.plot(distances, mean, "s--", color=SECOND, markersize=4,
              label="rotated, the mean of all matrices")
    axes.plot(distances, plain, "^-", color=LATENT, markersize=5,
              label=f"not rotated, its one matrix: at most {plain.max():.0e}")
    axes.set(ylim=(-0.05, None), xlabel="distance of query and key, tokens",
             ylabel="error of the scores, relative")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8.5)
    return figure


@styled
def two_parts(nope: Array, rotary: Array, head: int, layer: int) -> Picture:
    """One head's scores (T, T) in their two parts, and what each has to say about distance."""
    size = len(nope)
    seen = np.tri(size, dtype=bool)
    by_distance = {"no position": _means(nope), "rotary": _means(rotary)}
    shares = {"no position": explained(nope), "rotary": explained(rotary)}
    told = shares["rotary"] > 2 * shares["no position"]
    figure, axes = picture(
        f"Distance alone explains {shares['rotary']:.0%} of the rotary part, "
        f"{shares['no position']:.0%} of the other" if told else
        f"Here distance explains no more of the rotary part ({shares['rotary']:.0%}) than of the "
        f"other ({shares['no position']:.0%})",
        9.4, 3.6, columns=3, width_ratios=(1, 1, 1.15))  # fmt: skip
    for panel, part, name in zip(axes, (nope, rotary), by_distance, strict=False):
        # The scale leaves out a few scores, or most of the picture would be pale.
        high = float(np.quantile(np.abs(part[seen]), 0.98))
        image = signed(panel, np.where(seen, part, np.nan), high=high)
        figure.colorbar(image, ax=panel, shrink=0.75, label="score")
        panel.set(title=f"{name}: layer {layer}, head {head}", xlabel="key")
    axes[0].set_ylabel("query")
    for name, colour in (("no position", LATENT), ("rotary", ROTARY)):
        axes[2].plot(by_distance[name][: size // 2], color=colour, linewidth=1.8, label=name)
    axes[2].axhline(0, color=FAINT, zorder=0)
    axes[2].set(xlabel="distance of query and key, tokens", ylabel="mean score",
                title="means along the diagonals")
    axes[2].legend(fontsize=8.5)
    return figure


def _means(part: Array) -> Array:
    """The mean score at each distance 0, 1, …"""
    return np.array([part.diagonal(-distance).mean() for distance in range(len(part))])


def explained(part: Array) -> float:
    """The share of the variance of scores (T, T), causal ones, that their distance accounts for."""
    query, key = np.tril_indices(len(part))
    return float(_means(part)[query - key].var() / part[query, key].var())


@styled
def projections(latent: Mapping[str, int], plain: Mapping[str, int], name: str) -> Picture:
    """Weights of one layer's attention by what they make: with latents (their checkpoint names),
    and without (q_proj, k_proj, v_proj, o_proj)."""
    ours, theirs = sum(latent.values()), sum(plain.values())
    heaviest = max(latent, key=lambda key: latent[key])
    figure, axes = picture(
        f"{name}: latents leave {ours / theirs:.0%} of the weights, and {heaviest} is "
        f"{latent[heaviest] / ours:.0%} of these" if ours < theirs else
        f"{name}: with latents the block has {ours / theirs:.2f} times the weights",
        9, 3.2)  # fmt: skip
    jobs = (("queries", SECOND, "q"), ("keys, values", LATENT, "kv"), ("output", TODAY, "o"))
    for row, (_, colour, letters) in enumerate(jobs):
        for parts, shift, fill in ((latent, -0.2, colour), (plain, 0.2, FAINT)):
            own = {n: count / 1e6 for n, count in parts.items() if n.split("_")[0] in letters}
            left = 0.0
            for count in own.values():
                axes.barh(row + shift, count, left=left, height=0.36, color=fill,
                          edgecolor="white" if fill != FAINT else SOFT, linewidth=0.8)
                left += count
            told = " + ".join(f"{n} {count:.1f}" for n, count in own.items())
            axes.text(left + theirs / 1e8, row + shift, told, va="center", fontsize=8.5)
    axes.set_yticks(range(len(jobs)), [job for job, *_ in jobs])
    axes.set(xlabel="million weights in one layer (grey: without latents)",
             xlim=(0, 0.7 * theirs / 1e6))
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    return figure
