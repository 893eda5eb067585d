"""That the device multiplies in the precision that the check is about: no TF32, no bfloat16 sums.

Unusual here: settings are not believed but measured. TF32 keeps 10 bits of a float32's 23, so that
a product of short rows errs by many times what its roundings allow; sums of bfloat16 products that
are kept in bfloat16 err by more than one rounding of the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.check import Check
from benchmarks.rounding import UNIT

# Rows, inner length, columns: short and square enough for a tensor core, and long.
SHAPES = {"float64": (256, 32, 256), "float32": (256, 32, 256), "bfloat16": (64, 4096, 64)}


def set_up() -> None:
    """Products of float32 in float32, sums of bfloat16 products in float32; PyTorch 2.9 and newer.

    PyTorch has an old and a new way to say so, and refuses to read the old one where the two were
    mixed; the function for all products is in both, and cuDNN has no product here.
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def run(section: str, cases: Sequence[Any], device: str) -> Iterator[Check]:
    """Each number of a product may be off by (K + 1) u |A||B| at its place."""
    for precision, (rows, inner, columns) in SHAPES.items():
        rng, held = np.random.default_rng(0), getattr(torch, precision)
        a = rng.standard_normal((rows, inner)).astype(precision).astype("float64")
        b = rng.standard_normal((inner, columns)).astype(precision).astype("float64")
        left, right = (torch.from_numpy(each).to(device, held) for each in (a, b))
        got = left @ right
        within = UNIT["float32"] if precision == "bfloat16" else UNIT[precision]
        # The exact product is NumPy's in float64, which rounds as well.
        allowed = (inner + 1) * (within + UNIT["float64"]) * (np.abs(a) @ np.abs(b))
        if precision == "bfloat16":
            allowed = allowed + UNIT[precision] * np.abs(a @ b)
        off = np.abs(got.to("cpu", torch.float64).numpy() - a @ b) / allowed
        check = Check(section, "a matrix product", precision, note="in units of its roundings")
        check.add(float(off.max()), 1.0, f"{rows} × {inner} × {columns}", off.size)
        yield check
