"""One drawing of the whole model, the same through the course, with today's part lit.

Unusual here: the sizes in the boxes come from a ModelConfig, so the map of K2 and that of the
small model are one function. Lit boxes keep the course's colours: what lives in the latent is
blue, what carries positions is orange, everything else that is lit is green.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from minik2.config import ModelConfig
from minik2.plots.common import (
    FAINT,
    INK,
    LATENT,
    ROTARY,
    SOFT,
    TODAY,
    Picture,
    picture,
    styled,
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """One box: its place on a sheet of 100 x 40, its two lines of text, its colour when lit."""

    x: float
    y: float
    width: float
    height: float
    text: str
    note: str = ""
    colour: str = TODAY


def parts(cfg: ModelConfig) -> dict[str, Part]:
    """The boxes by name; these names are what `model_map` takes."""
    h, e = cfg.num_attention_heads, cfg.n_routed_experts
    query = f"{cfg.q_lora_rank:,}" if cfg.q_lora_rank else f"{cfg.hidden_size:,}"
    return {
        "embedding": Part(1, 20, 9, 6, "embedding", f"{cfg.vocab_size:,}"),
        "query": Part(17, 29, 10, 6, "query latent", query),
        "rope": Part(17, 20, 10, 6, "rotary positions", f"{cfg.qk_rope_head_dim}", ROTARY),
        "latent": Part(17, 11, 10, 6, "key/value latent", f"{cfg.kv_lora_rank}", LATENT),
        "attention": Part(33, 24.5, 11, 7, "causal attention", f"{h} heads"),
        "cache": Part(33, 12.2, 11, 7, "cache", f"{cfg.kv_lora_rank} + {cfg.qk_rope_head_dim}",
                      LATENT),
        "output": Part(48, 24.5, 7, 7, "output", ""),
        "router": Part(61, 26, 7.5, 7, "router", f"{cfg.num_experts_per_tok} of {e}"),
        "experts": Part(71.5, 20.5, 10, 14.5, "", ""),
        "shared": Part(71.5, 11, 10, 6, "shared expert", ""),
        "head": Part(90, 20, 9, 6, "head", f"{cfg.vocab_size:,}"),
        "loss": Part(90, 1.2, 9, 4.4, "loss", ""),
        "backward": Part(66, 1.2, 15, 4.4, "gradients", ""),
        "muon": Part(40, 1.2, 15, 4.4, "Muon", ""),
        "qk_clip": Part(14, 1.2, 15, 4.4, "QK-Clip", ""),
    }


@styled
def model_map(
    lit: Iterable[str] = (), title: str = "The whole model", cfg: ModelConfig | None = None
) -> Picture:
    """Draw the model of `cfg` (Kimi K2 if not given) with the parts named in `lit` coloured.

    Names: the keys of `parts(cfg)`, or "all". Raises ValueError for an unknown name.
    """
    cfg = cfg or ModelConfig.preset("kimi-k2")
    boxes = parts(cfg)
    chosen = set(boxes) if "all" in (names := set(lit)) else names
    if unknown := chosen - set(boxes):
        raise ValueError(
            f"The map has no part named {', '.join(sorted(unknown))}; it has {', '.join(boxes)}."
        )
    figure, axes = picture(title, 9.6, 4.2)
    axes.set(xlim=(0, 100), ylim=(0, 41))
    axes.set_axis_off()
    _frames(axes, cfg)
    _arrows(axes)
    for name, part in boxes.items():
        _box(axes, part, name in chosen)
    _experts(axes, boxes["experts"], cfg, "experts" in chosen)
    return figure


def _box(axes: Axes, part: Part, lit: bool) -> None:
    face = part.colour if lit else "white"
    ink = ("white" if part.colour != ROTARY else INK) if lit else SOFT
    axes.add_patch(FancyBboxPatch(
        (part.x, part.y), part.width, part.height, boxstyle="round,pad=0,rounding_size=0.8",
        facecolor=face, edgecolor=face if lit else "#B9BEC6", linewidth=1, zorder=3,
    ))  # fmt: skip
    if lit and part.text == "cache":
        axes.add_patch(Rectangle((part.x + 0.8, part.y), part.width - 1.6, 0.9, facecolor=ROTARY,
                                 linewidth=0, zorder=4))
    middle, centre = part.x + part.width / 2, part.y + part.height / 2
    lift = 1.1 if part.note else 0
    wide = len(part.text) > 10 and part.width < 12
    text = part.text.replace(" ", "\n", 1) if wide else part.text
    lift = 1.0 if "\n" in text and part.note else lift
    axes.text(middle, centre + lift, text, ha="center", va="center", color=ink, zorder=4,
              fontsize=8.5, fontweight="bold" if lit else "normal", linespacing=0.95)
    if part.note:
        drop = 2.05 if "\n" in text else 1.4
        axes.text(middle, centre - drop, part.note, ha="center", va="center", color=ink, zorder=4,
                  fontsize=7.5)


def _frames(axes: Axes, cfg: ModelConfig) -> None:
    layers, dense = cfg.num_hidden_layers, min(cfg.first_k_dense_replace, cfg.num_hidden_layers)
    which = "layer 0 has" if dense == 1 else f"layers 0 to {dense - 1} have"
    exception = f"{which} one dense block here" if dense else ""
    frames = ((14.5, 42, "attention", ""), (59, 24.5, "feed-forward", exception))
    for x, width, text, below in frames:
        axes.add_patch(FancyBboxPatch(
            (x, 8.6), width, 28.4, boxstyle="round,pad=0,rounding_size=1.2",
            facecolor=FAINT, edgecolor="none", zorder=0,
        ))  # fmt: skip
        axes.text(x + 1, 38, text, color=SOFT, fontsize=8.5)
        axes.text(x + width / 2, 9.3, below, color=SOFT, fontsize=7, ha="center")
    axes.text(83.5, 38, f"{layers} layers of this", color=SOFT, fontsize=8.5, ha="right")
    axes.text(1, 7.3, "training", color=SOFT, fontsize=8.5)


def _arrows(axes: Axes) -> None:
    lines = [
        # Positions turn the queries on their way, and the one key that the cache keeps.
        ((27, 24.5), (29.8, 30.6)),
        ((10, 23), (17, 32)), ((10, 23), (17, 23)), ((10, 23), (17, 14)), ((27, 32), (33, 29)),
        ((27, 22), (33, 17.5)), ((27, 14), (33, 15)), ((38.5, 19.2), (38.5, 24.5)),
        ((44, 28), (48, 28)), ((55, 28), (61, 29.5)), ((55, 28), (71.5, 14)),
        ((68.5, 29.5), (71.5, 29.5)), ((81.5, 28), (90, 23)), ((81.5, 14), (90, 23)),
        ((94.5, 20), (94.5, 5.6)), ((90, 3.4), (81, 3.4)), ((66, 3.4), (55, 3.4)),
        ((40, 3.4), (29, 3.4)),
    ]
    for start, end in lines:
        axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=7, color=SOFT,
                                       linewidth=0.8, shrinkA=0, shrinkB=0, zorder=1))


def _experts(axes: Axes, part: Part, cfg: ModelConfig, lit: bool) -> None:
    """The experts as small squares, as many as there are up to 96, the chosen share dark."""
    shown = min(cfg.n_routed_experts, 96)
    columns = 12 if shown > 16 else 4
    rows = -(-shown // columns)
    step_x, step_y = part.width / (columns + 0.6), (part.height - 4.6) / (rows + 0.4)
    # Which ones are dark stands for any choice; spread so that they read as single squares.
    dark = {(n * 29 + 7) % shown for n in range(cfg.num_experts_per_tok)}
    for n in range(shown):
        x = part.x + step_x * (n % columns + 0.45)
        y = part.y + 4.5 + step_y * (n // columns + 0.2)
        empty = "#FFFFFF55" if lit else FAINT
        full = "white" if lit else SOFT
        axes.add_patch(Rectangle((x, y), step_x * 0.7, step_y * 0.7, zorder=4, linewidth=0,
                                 facecolor=full if n in dark else empty))
    axes.text(part.x + part.width / 2, part.y + 2.2, f"{cfg.n_routed_experts} experts",
              ha="center", va="center", fontsize=8.5, zorder=4, color="white" if lit else SOFT,
              fontweight="bold" if lit else "normal")
