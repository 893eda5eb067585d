"""Figures of full size: where the weights are, what decoding and training take; with sliders.

Unusual here: the sliders draw nothing of their own. `explore` and `explore_training` call `serving`
and `training`, which draw the static figures, each time one is moved.
"""

from __future__ import annotations

from typing import Any

from minik2 import sizing
from minik2.config import ModelConfig
from minik2.plots.common import (
    FAINT,
    INK,
    LATENT,
    PLAIN,
    SECOND,
    SOFT,
    TODAY,
    Picture,
    picture,
    styled,
)  # fmt: skip
from minik2.plots.sliders import sliders, widgets
from minik2.sizing import units

BATCHES = tuple(2**n for n in range(11))
CONTEXTS = tuple(1024 * 2**n for n in range(9))
COUNTS = tuple(2**n for n in range(8))
# What a GPU holds in training: colour and hatch, so that a grey print tells the parts apart too.
HELD = {"parameters": (INK, None), "gradients": (SOFT, None), "optimizer": (SECOND, "///"),
        "activations": (FAINT, "..")}  # fmt: skip


@styled
def waterfall(cfg: ModelConfig, name: str = "this model") -> Picture:
    """Where the parameters are: each part on top of those before it, and what one token reads."""
    counted = sizing.parameters(cfg)
    parts = sorted(counted.by_part.items(), key=lambda item: item[1])
    largest, most = parts[-1]
    figure, (left, right) = picture(
        f"{most / counted.total:.1%} of {name}'s {units.amount(counted.total)} weights are "
        f"{largest.replace('_', ' ')}; a token reads {counted.read / counted.total:.1%} of all",
        9.6, 3.6, columns=2, width_ratios=(1.5, 1))  # fmt: skip
    bottom = 0
    for row, (part, count) in enumerate(parts):
        left.barh(row, count, left=bottom, color=TODAY if part == largest else SOFT, height=0.7)
        # In the bar where it is long, else beside it, on the side that has room.
        long, late = count > 0.3 * counted.total, bottom > 0.7 * counted.total
        left.text(bottom if late and not long else bottom + count, row,
                  f" {units.amount(count)} ", ha="right" if long or late else "left", va="center",
                  color="white" if long else INK, fontsize=9)  # fmt: skip
        bottom += count
    left.barh(len(parts), counted.total, color=INK, height=0.7)
    left.text(counted.total, len(parts), f" {units.amount(counted.total)} ", ha="right",
              va="center", color="white", fontsize=9)
    left.set_yticks(range(len(parts) + 1), [n.replace("_", " ") for n, _ in parts] + ["all"])
    left.set(title="stored, one part on top of the other", xticks=[],
             xlim=(-0.02 * counted.total, 1.16 * counted.total))
    for row, (part, _) in enumerate(parts):
        read = counted.read_by_part[part]
        right.barh(row, read, color=TODAY if part == largest else SOFT, height=0.7)
        right.text(read, row, f" {units.amount(read)}", va="center", fontsize=9)
    right.barh(len(parts), counted.read, color=INK, height=0.7)
    right.text(counted.read, len(parts), f" {units.amount(counted.read)}", va="center", fontsize=9)
    right.set(title="read for one token, enlarged", yticks=[], xticks=[],
              xlim=(0, 1.25 * counted.read))  # fmt: skip
    for axes in (left, right):
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    return figure


@styled
def serving(
    cfg: ModelConfig, name: str = "this model", context: int = 32768, batch: int = 32,
    devices: str = "16xh200", weights: str = "float8",
) -> Picture:
    """What decoding takes: bytes held against a machine's memory, and the most tokens a second.

    context: tokens of each of `batch` sequences; devices, weights: as `sizing.sweep` takes them.
    Raises ValueError as it does.
    """
    machine = sizing.machine(devices)
    step = sizing.decode(cfg, machine, context, batch, weights)
    title = f"{machine.devices} x {machine.name}"
    found = (f"at most {units.digits(step.tokens_per_second)} tokens/s, limited by {step.bound}"
             if step.fits else f"{units.amount(step.held_bytes, 'B')} do not fit")
    figure, (left, right) = picture(
        f"{name}, {batch:,} x {context:,} tokens on {title}: {found}", 9.6, 3.3, columns=2)
    cache = step.cache_bytes
    held = step.held_bytes - cache
    left.barh(0, held, color=SOFT, height=0.5)
    left.barh(0, cache, left=held, color=LATENT, height=0.5)
    left.axvline(step.capacity, color=SECOND)
    most = max(step.capacity, step.held_bytes)
    left.text(step.capacity, 0.62, f"memory {units.amount(step.capacity, 'B')} ", color=SECOND,
              ha="right", fontsize=9)
    left.text(0, -0.4, f"weights {units.amount(held, 'B')}", color=INK, va="top", fontsize=9)
    left.text(0, -0.62, f"cache {units.amount(cache, 'B')}", color=LATENT, va="top", fontsize=9)
    left.set(title="bytes held", ylim=(-1, 0.9), yticks=[], xticks=[], xlim=(0, 1.02 * most))
    left.spines[:].set_visible(False)

    steps = sizing.sweep(cfg, machine, context, sorted({*BATCHES, batch}), weights).steps
    fit = [s for s in steps if s.fits]
    right.plot([s.batch for s in steps], [s.tokens_per_second for s in steps], color=FAINT)
    right.plot([s.batch for s in fit], [s.tokens_per_second for s in fit], color=PLAIN[1],
               label="fits")  # fmt: skip
    right.plot(batch, step.tokens_per_second, "o", color=INK)
    right.set(xscale="log", yscale="log", xlabel="sequences at a time",
              title="tokens a second at most, all together")  # fmt: skip
    if fit:
        right.legend(loc="upper left")
    return figure


@styled
def training(
    cfg: ModelConfig, name: str = "this model", layout: sizing.Layout | None = None,
    device: str = "h800", recompute: str = "selective", published: float | None = None,
    tokens: int = 4096,
) -> Picture:
    """What one GPU of each pipeline stage holds in training, part on part, against its memory.

    layout: 16 stages of 16 GPUs, one copy, if not given. recompute: as in `sizing.activations`.
    published: bytes of states that the makers give for a GPU, drawn as a line. tokens: of a
    micro-batch. Raises ValueError as `sizing.cluster` does.
    """
    layout = layout or sizing.Layout(pp=16, ep=16)
    laid = sizing.cluster(cfg, layout, tokens, recompute=recompute)
    one = sizing.machine(device)
    fits = sum(stage.total <= one.memory for stage in laid.stages)
    most = laid.fullest.total
    found = ("every stage fits" if fits == layout.pp else
             f"{fits} of {layout.pp} stages fit" if fits else "no stage fits")
    figure, axes = picture(
        f"{name} on {layout.gpus:,} x {one.name}: {found}, the fullest with "
        f"{units.amount(most, 'B')} a GPU", 9.6, 3.6)  # fmt: skip
    places, bottom = range(layout.pp), [0.0] * layout.pp
    for part, (colour, hatch) in HELD.items():
        heights = [getattr(stage, part) / 1e9 for stage in laid.stages]
        axes.bar(places, heights, 0.72, bottom, label="weights" if part == "parameters" else part,
                 color=colour, hatch=hatch, edgecolor="white" if hatch != ".." else SOFT,
                 linewidth=0.6)  # fmt: skip
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    axes.axhline(one.memory / 1e9, color=TODAY, linewidth=1.5,
                 label=f"memory of {one.name}: {units.amount(one.memory, 'B')}")
    if published is not None:
        axes.axhline(published / 1e9, color=INK, linewidth=1.5, linestyle=(0, (4, 2)),
                     label=f"published, without activations: {units.amount(published, 'B')}")
    axes.set(xlabel=f"pipeline stage ({layout.stage_gpus} GPUs each)", ylabel="GB a GPU",
             ylim=(0, 1.08 * max(most, one.memory) / 1e9))  # fmt: skip
    axes.set_xticks(places if layout.pp <= 32 else places[::8])
    axes.legend(fontsize=8.5, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def explore(name: str = "kimi-k2") -> Any:
    """`serving` of a preset with sliders for context, batch, machine and format; an ipywidget.

    Raises ImportError where ipywidgets is not installed (it comes with minik2[course]).
    """
    cfg, kinds = ModelConfig.preset(name), widgets()

    def draw(context: int, batch: int, devices: str, weights: str) -> Picture:
        return serving(cfg, name, context, batch, devices, weights)

    return sliders(
        draw,
        context=kinds.SelectionSlider(options=[(f"{n:,}", n) for n in CONTEXTS], value=32768),
        batch=kinds.SelectionSlider(options=BATCHES, value=32),
        devices=kinds.Dropdown(options=["laptop", "8xh800", "16xh800", "8xh200", "16xh200"],
                               value="16xh200"),
        weights=kinds.Dropdown(options=["bfloat16", "float8", "int4"], value="float8"),
    )  # fmt: skip


def explore_training(name: str = "kimi-k2") -> Any:
    """`training` of a preset with sliders for stages, their GPUs, copies and recomputation.

    Sliders have the powers of two that fit the model. Raises ImportError as `explore` does.
    """
    cfg, kinds = ModelConfig.preset(name), widgets()
    stages = [n for n in COUNTS if n <= cfg.num_hidden_layers]
    shares = [n for n in COUNTS if cfg.n_routed_experts % n == 0]

    def draw(stages: int, experts_over: int, copies: int, recompute: str) -> Picture:
        layout = sizing.Layout(pp=stages, ep=experts_over, dp=copies)
        return training(cfg, name, layout, recompute=recompute)

    return sliders(
        draw,
        stages=kinds.SelectionSlider(options=stages, value=min(16, stages[-1])),
        experts_over=kinds.SelectionSlider(options=shares, value=min(16, shares[-1])),
        copies=kinds.SelectionSlider(options=COUNTS, value=8),
        recompute=kinds.Dropdown(options=["none", "selective", "full"], value="selective"),
    )  # fmt: skip
