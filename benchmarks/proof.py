"""The proof sheet: every part, every pair of implementations, on random configurations.

    python -m benchmarks.proof              print it
    python -m benchmarks.proof --record     and write results/proof.json and the README's table

Fails where any difference exceeds its bound. The bounds are derived in rounding.py; configurations
come from tests/oracle/configs.py, the same ones for the same seed and version of hypothesis.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import hypothesis
import torch
import transformers
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tqdm import tqdm

from benchmarks import records
from benchmarks.comparison import Comparison, Row, cell, compare
from benchmarks.parts import Part
from benchmarks.question import Case, Side
from benchmarks.theirs import PARTS, ask
from minik2.doctor import machine
from tests.oracle.configs import configs

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 40))


def comparisons() -> list[Comparison]:
    """Every pair of implementations, in every precision that both have."""
    out = []
    for precision in ("float64", "float32"):
        ours, torchs = Side("reference", precision), Side("pytorch", precision)
        theirs, gpu = Side("transformers", precision), Side("pytorch", precision, "cuda")
        out += [Comparison("PyTorch, reference", precision, torchs, ours),
                Comparison("reference, transformers", precision, ours, theirs),
                Comparison("PyTorch, transformers", precision, torchs, theirs),
                Comparison("PyTorch on a GPU, reference", precision, gpu, ours)]  # fmt: skip
    exact, half = Side("reference", "float64"), "bfloat16"
    return [*out, Comparison("PyTorch, reference", half, Side("pytorch", half), exact),
            Comparison("PyTorch on a GPU, reference", half, Side("pytorch", half, "cuda"), exact)]


def draw(count: int, seed: int) -> list[Case]:
    """`count` random configurations with shapes and seeds; the same for the same seed."""
    cases: list[Case] = []

    @hypothesis.seed(seed)
    @settings(max_examples=count, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(configs(), SHAPES, st.integers(0, 2**31))
    def collect(cfg: Any, shape: Any, own_seed: int) -> None:
        cases.append(Case(cfg, shape, own_seed))

    collect()
    if len(cases) < count:
        raise RuntimeError(f"hypothesis drew {len(cases)} configurations of the {count} asked for.")
    return cases[:count]


def run(count: int, seed: int, parts: Sequence[Part] = PARTS) -> list[Row]:
    """Every row of the sheet. GPU rows stay open where PyTorch finds none."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    # A GPU's products in true float32, and sums of bfloat16 products in float32.
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    wanted = comparisons()
    rows = {(part.name, c): Row(part.name, c.name, c.precision)
            for part in parts for c in wanted if c.has(part)}  # fmt: skip
    possible = [c for c in wanted if torch.cuda.is_available() or not c.on_gpu]
    for case in tqdm(draw(count, seed), desc="configurations", disable=None):
        for precision in ("float64", "float32", "bfloat16"):
            with ask(case, precision) as question:
                for part in filter(question.has, parts):
                    mine = [c for c in possible if c.precision == precision and c.has(part)]
                    for c in mine:
                        compare(question, part, c, rows[part.name, c], case)
    return list(rows.values())


def table(rows: Sequence[Row], count: int, seed: int, stamp: dict[str, Any]) -> str:
    """The sheet as Markdown: one table a precision, a line a part, a column a comparison."""
    versions = stamp["machine"]["packages"]
    gpus = "".join(f", {gpu['name']}" for gpu in stamp["machine"]["gpus"])
    text = [
        f"{count} random configurations (seed {seed}), {stamp['date']}, NumPy {versions['numpy']}, "
        f"Numba {versions['numba']}, PyTorch {versions['torch']}, transformers "
        f"{versions['transformers']}{gpus}. Each cell: the relative error that came closest to its "
        "bound, that bound, and how many configurations were compared. A bound is the number of "
        "roundings on the longest way between two matrices, times the precision's unit roundoff, "
        "times how far the answer moves when all numbers that go in move "
        "(`benchmarks/rounding.py`). Left out are configurations without the part, and those where "
        "rounding itself may decide which expert a token goes to or, in bfloat16, moves the answer "
        "by more than a quarter. `open`: no such machine was at hand."
    ]  # fmt: skip
    for precision in dict.fromkeys(row.precision for row in rows):
        mine = [row for row in rows if row.precision == precision]
        columns = list(dict.fromkeys(row.compared for row in mine))
        text += ["", f"In {precision}:", "", f"| part | {' | '.join(columns)} |",
                 "|---|" + "---|" * len(columns)]  # fmt: skip
        for part in dict.fromkeys(row.part for row in mine):
            cells = {row.compared: cell(row) for row in mine if row.part == part}
            text.append(f"| {part} | {' | '.join(cells.get(c, '–') for c in columns)} |")
    return "\n".join(text)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--configurations", type=int, default=200, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true",
                        help="write results/proof.json and the table in README.md")  # fmt: skip
    chosen = parser.parse_args(arguments)
    rows = run(chosen.configurations, chosen.seed)
    stamp = machine.stamp()
    sheet = table(rows, chosen.configurations, chosen.seed, stamp)
    print(sheet)
    if chosen.record:
        record = {**stamp, "hypothesis": hypothesis.__version__, "seed": chosen.seed,
                  "configurations": chosen.configurations, "rows": [asdict(row) for row in rows]}
        records.write_json(records.RESULTS / "proof.json", record)
        records.fill(records.ROOT / "README.md", "proof", sheet)
    broken = [row for row in rows if row.state == "broken"]
    for row in broken:
        print(f"\nBroken: {row.part}, {row.compared} in {row.precision}: {row.error:.2e} exceeds "
              f"{row.bound:.2e} with {row.broken_by}", file=sys.stderr)  # fmt: skip
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
