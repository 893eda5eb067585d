"""What the GPU benchmarks found: kernels beside the library's way, and where a step's time goes.

Unusual here: drawn from a benchmark's record alone, the title too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minik2.plots.common import INK, LATENT, SECOND, SOFT, Picture, picture, styled


@styled
def kernels(record: Mapping[str, Any]) -> Picture:
    """The record of `benchmarks.gpu_kernels`: of each task, the library's way and ours."""
    tasks: dict[str, list[Mapping[str, Any]]] = {}
    for line in record["lines"]:
        tasks.setdefault(line["what"], []).append(line)
    chosen = max(tasks.get("decode attention, batch 64", record["lines"]),
                 key=lambda line: line["of_the_limit"])  # fmt: skip
    share = chosen["of_the_limit"]
    figure, axes = picture(
        f"{record['device']}: attention of 64 sequences at 8,192 tokens, {share:.0%} of the "
        "memory's rate", 10.5, 0.44 * len(tasks) + 1.3)  # fmt: skip
    for row, lines in enumerate(tasks.values()):
        for line, offset, colour in zip(lines[:2], (-0.2, 0.2), (SECOND, LATENT), strict=False):
            share = line["of_the_limit"]
            axes.barh(row + offset, share, 0.36, color=colour)
            axes.text(share + 0.01, row + offset, f"{line['way']}: {_time(line['milliseconds'])}",
                      va="center", fontsize=8, color=INK)  # fmt: skip
    axes.axvline(1, color=SOFT, linewidth=1.2, dashes=(5, 3))
    axes.set_yticks(range(len(tasks)), list(tasks))
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.25), xlabel="share of the limit: bytes at the rate of a copy, or operations"
             " at that of a large product")  # fmt: skip
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
    return figure


@styled
def training(record: Mapping[str, Any]) -> Picture:
    """The record of `benchmarks.gpu_training`: the milliseconds of a batch and an update, by kind.

    The dashed line is what the model's operations alone would take at the rate of a large product.
    """
    spent = sorted(record["profile_milliseconds"].items(), key=lambda kind: -kind[1])
    total = sum(time for _, time in spent)
    least = 1e3 * record["flops_a_batch"] / record["bfloat16_flops_a_second"]
    products = sum(time for kind, time in spent if kind.endswith("products"))
    figure, axes = picture(
        f"{record['device']}: a batch and MuonClip's update take {_time(total)}, products "
        f"{products / total:.0%} of it", 10.5, 0.36 * len(spent) + 1.3)  # fmt: skip
    widest = max(least, spent[0][1])
    for row, (kind, time) in enumerate(spent):
        axes.barh(row, time, 0.7, color=LATENT if kind.endswith("products") else SECOND)
        axes.text(time + 0.01 * widest, row, f"{_time(time)}, {time / total:.0%}", va="center",
                  fontsize=8, color=INK)  # fmt: skip
    axes.axvline(least, color=SOFT, linewidth=1.2, dashes=(5, 3))
    axes.set_yticks(range(len(spent)), [kind for kind, _ in spent])
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.2 * widest), xlabel="milliseconds of the device; dashed: the model's "
             f"operations at the rate of a large product, {_time(least)}")  # fmt: skip
    return figure


def _time(milliseconds: float) -> str:
    if milliseconds < 1:
        return f"{1e3 * milliseconds:.0f} µs"
    return f"{milliseconds:.1f} ms"
