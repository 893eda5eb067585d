"""Both forms of attention over a grid of new tokens and context: does the cost rule choose well?

    python -m benchmarks.absorption              print it
    python -m benchmarks.absorption --record     and write results/absorption.json and the figure

One MLA block of the preset, float32, in the reference. At every point the two forms take turns.
Fails where the form that `cost.absorb` chooses takes more than 1.25 times as long as the other.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks import records
from minik2 import ModelConfig, cost, reference
from minik2.doctor import machine
from minik2.plots import absorption as picture
from minik2.reference import mla, rope

NEW = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
CACHED = (0, 128, 512, 1024, 2048, 4096, 8192)
ALLOWED = 1.25


def point(
    cfg: ModelConfig, weights: dict[str, Any], new: int, cached: int, rounds: int
) -> dict[str, Any]:
    """Median seconds of both forms for `new` tokens after `cached`, and what the rule says."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((new, cfg.hidden_size)).astype(np.float32)
    width = cfg.kv_lora_rank + cfg.qk_rope_head_dim
    rows = rng.standard_normal((1, cached + new, width)).astype(np.float32)
    cos, sin = rope.table(cfg, np.arange(cached, cached + new), np.float32)
    spans = [(0, slice(0, new), slice(cached, cached + new))]
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(rounds + 1):
        for absorbed in (True, False):
            start = time.perf_counter()
            mla.cached(x, weights, cfg, cos, sin, rows, spans, absorbed)
            if turn:  # the first one touches the memory
                seconds[absorbed].append(time.perf_counter() - start)
    few, many = cost.absorbed(cfg, new, cached), cost.expanded(cfg, new, cached)
    return {"new": new, "cached": cached, "absorbed": statistics.median(seconds[True]),
            "expanded": statistics.median(seconds[False]),
            "chosen": "absorbed" if cost.absorb(cfg, new, cached) else "expanded",
            "flops": {"absorbed": few.flops, "expanded": many.flops},
            "bytes": {"absorbed": few.bytes, "expanded": many.bytes}}  # fmt: skip


def loss(found: dict[str, Any]) -> float:
    """How many times the other form's time the chosen one took."""
    other = "expanded" if found["chosen"] == "absorbed" else "absorbed"
    return found[found["chosen"]] / found[other]


def table(points: Sequence[dict[str, Any]]) -> str:
    """Time of the chosen form over that of the other; * where the chosen form is the absorbed."""
    lines = ["new \\ cached" + "".join(f"{c:>9}" for c in CACHED)]
    for new in NEW:
        row = [p for p in points if p["new"] == new]
        cells = [f"{loss(p):.2f}{'*' if p['chosen'] == 'absorbed' else ' '}" for p in row]
        lines.append(f"{new:>12}" + "".join(f"{cell:>9}" for cell in cells))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", default="bench")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--record", action="store_true", help="write the results and the figure")
    chosen = parser.parse_args(arguments)
    cfg = ModelConfig.preset(chosen.preset)
    weights = reference.Model.init(cfg.replace(num_hidden_layers=1)).layers[0]["self_attn"]
    grid = [(new, cached) for new in NEW for cached in CACHED]
    points = [point(cfg, weights, new, cached, chosen.rounds)
              for new, cached in tqdm(grid, desc="points", disable=None)]  # fmt: skip
    print(f"{chosen.preset}, medians of {chosen.rounds}\n\n{table(points)}")
    if chosen.record:
        record = {**machine.stamp(), "preset": chosen.preset, "rounds": chosen.rounds,
                  "points": points}  # fmt: skip
        records.write_json(records.RESULTS / "absorption.json", record)
        picture.absorption(record).write(records.ROOT / "figures" / "absorption.png")
    worst = max(points, key=loss)
    if loss(worst) > ALLOWED:
        print(f"\nAt {worst['new']} new tokens after {worst['cached']} the {worst['chosen']} form "
              f"took {loss(worst):.2f} times as long as the other.", file=sys.stderr)  # fmt: skip
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
