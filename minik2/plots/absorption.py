"""The two forms of attention: operations, bytes and measured times over new tokens and context.

Unusual here: drawn from the benchmark's record alone, and its title is put together from what was
measured, so that it cannot claim more than that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from minik2.plots.common import INK, SIGNED, Picture, heat, picture, readable, styled, ticks

Record = Mapping[str, Any]


@styled
def absorption(record: Record) -> Picture:
    """How many times the expanded form's cost over the absorbed one's; a line where they change."""
    points = record["points"]
    new = sorted({p["new"] for p in points})
    cached = sorted({p["cached"] for p in points})
    at = {(p["new"], p["cached"]): p for p in points}
    worst = max(p[p["chosen"]] / min(p["absorbed"], p["expanded"]) for p in points)
    figure, axes = picture(
        f"The rule's choice is never more than {worst:.2f} times as slow as the other form",
        12, 4.4, 1, 3,
    )  # fmt: skip
    measures = {
        "operations": lambda p: p["flops"]["expanded"] / p["flops"]["absorbed"],
        "bytes": lambda p: p["bytes"]["expanded"] / p["bytes"]["absorbed"],
        "seconds, measured": lambda p: p["expanded"] / p["absorbed"],
    }
    for own, (name, ratio) in zip(axes, measures.items(), strict=True):
        ratios = np.array([[ratio(at[n, c]) for c in cached] for n in new])
        image = heat(own, np.log2(ratios), SIGNED, -4, 4)
        for (row, column), value in np.ndenumerate(ratios):
            own.text(column, row, _short(value), ha="center", va="center", fontsize=8,
                     color=readable(image, np.log2(value)))  # fmt: skip
        ticks(own, [str(c) for c in cached], [str(n) for n in new])
        own.set_title(f"expanded over absorbed: {name}")
        own.set_aspect("auto")
        own.set_xlabel("tokens in the cache; absorbed right of the line")
        _border(own, [[at[n, c]["chosen"] == "absorbed" for c in cached] for n in new])
    axes[0].set_ylabel("new tokens")
    return figure


def _short(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 9.5 else f"{ratio:.1f}"


def _border(axes: Axes, absorbed: list[list[bool]]) -> None:
    """A line between the points where the rule absorbs (above it) and those where it expands."""
    for column in range(len(absorbed[0])):
        few = sum(row[column] for row in absorbed) - 0.5
        axes.plot([column - 0.5, column + 0.5], [few, few], color=INK, linewidth=2)
        if column:
            before = sum(row[column - 1] for row in absorbed) - 0.5
            axes.plot([column - 0.5] * 2, [before, few], color=INK, linewidth=2)
