"""What the formats of released checkpoints do to weights and to what a model says.

Unusual here: drawn from the benchmark's record alone (`benchmarks/formats.py`), and the title is
put together from what was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from minik2.plots.common import (
    INK,
    PLAIN,
    SOFT,
    TODAY,
    Picture,
    minus,
    picture,
    styled,
)  # fmt: skip

# Each format's colour, line and name.
LOOKS = {
    "bfloat16": (PLAIN[3], ":", "bfloat16"),
    "float8": (INK, "-", "FP8 (Kimi K2, DeepSeek-V3)"),
    "float8_ue8m0": (PLAIN[2], "--", "FP8, scales powers of two (V3.1)"),
    "int4": (TODAY, "-", "INT4 (K2-Thinking)"),
}


@styled
def formats(record: Mapping[str, Any]) -> Picture:
    """A routed weight's error by its size; how far logits move; what the loss makes of it."""
    found = record["formats"]
    routed = {name: found[name]["parts"]["routed_experts"] for name in found}
    change = {name: found[name]["loss"] for name in found}
    most = max(map(abs, change.values()))
    figure, (left, middle, right) = picture(
        f"INT4 moves routed experts by {routed['int4']:.1%}, FP8 all projections by "
        f"{routed['float8']:.1%}; the loss changes by {most:.4f} nats at most",
        12, 3.8, columns=3, width_ratios=(1.6, 1, 1))  # fmt: skip
    sizes = np.array(record["sizes"])
    for name, (color, line, label) in LOOKS.items():
        errors = np.array(found[name]["by_size"], float)
        known = np.isfinite(errors) & (errors > 0)
        left.plot(sizes[known], errors[known], line, color=color, label=label)
    left.set(xscale="log", yscale="log", xlabel="a routed weight, over the root mean square",
             title="error, in the same unit")  # fmt: skip
    left.plot(sizes, sizes, color=SOFT, linewidth=0.8)
    left.text(sizes[2], sizes[2] * 1.25, "as large as the weight", color=SOFT, fontsize=8,
              rotation=32, rotation_mode="anchor")  # fmt: skip
    left.legend(loc="lower right", fontsize=8)
    names = list(reversed(LOOKS))
    for axes, values, form, title in (
        (middle, {n: found[n]["logits"] for n in names}, ".2%", "how far logits move"),
        (right, change, "+.4f", f"change of the loss, {record['loss']:.3f} nats"),
    ):  # fmt: skip
        widest = max(abs(values[n]) for n in names)
        for row, name in enumerate(names):
            axes.barh(row, values[name], color=LOOKS[name][0], height=0.6)
            end = max(values[name], 0) + (2 * found[name]["loss_error"] if axes is right else 0)
            axes.text(end + 0.03 * widest, row, minus(format(values[name], form)), va="center",
                      fontsize=9)  # fmt: skip
        if axes is right:
            axes.errorbar([values[n] for n in names], range(len(names)), fmt="none", color=SOFT,
                          xerr=[2 * found[n]["loss_error"] for n in names])  # fmt: skip
        axes.axvline(0, color=SOFT, linewidth=0.8)
        low = min(0, *(values[n] for n in names))
        axes.set(title=title, xticks=[], xlim=(1.2 * low, 1.6 * widest),
                 yticks=range(len(names)))  # fmt: skip
        axes.set_yticklabels(names if axes is middle else [])
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    return figure
