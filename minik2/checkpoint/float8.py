"""FP8 weights: numbers of eight bits (e4m3), with one scale for each block of 128 x 128.

Unusual here: the scale's name in the files is `weight_scale_inv`, and yet it is multiplied with.
Blocks at the right and lower edges are ragged where 128 does not divide the sides.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from minik2.checkpoint.errors import CheckpointError

Array = np.ndarray[Any, np.dtype[Any]]

BLOCK = (128, 128)
E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
LARGEST = np.float32(448.0)
# The value of each of the 256 bytes; 0x7F and 0xFF are NaN, and there is no infinity.
VALUES = np.arange(256, dtype=np.uint8).view(E4M3).astype(np.float32)


def quantize(
    weight: Array, block: tuple[int, int] = BLOCK, power_of_two: bool = False
) -> tuple[Array, Array]:
    """A matrix (rows, columns) as e4m3 numbers (rows, columns) and float32 scales, one a block.

    scale = max |w| / 448, so that a block's largest number is the format's; power_of_two: rounded
    up to a power of two, as V3.1's. A block of zeros gets the scale 1. Numbers are rounded to the
    nearest, ties to even. Raises CheckpointError for a number that is not finite.
    Source: DeepSeek-V3's inference/kernel.py (act_quant); arXiv 2412.19437 §3.3.
    """
    weight = np.asarray(weight, np.float32)
    tops = np.abs(weight)
    for axis, size in enumerate(block):
        tops = np.maximum.reduceat(tops, np.arange(0, weight.shape[axis], size), axis)
    if not np.isfinite(tops).all():
        raise CheckpointError("Only finite weights can be narrowed; mend the run that made them.")
    scales = tops / LARGEST
    scales[scales == 0] = 1
    if power_of_two:
        # scale = fraction x 2^exponent with 1/2 <= fraction < 1.
        fraction, exponent = np.frexp(scales)
        scales = np.ldexp(np.float32(1), exponent - (fraction == 0.5)).astype(np.float32)
    # A scale that is rounded, or too small for float32's full precision, can leave more than 448.
    scaled = np.clip(weight / spread(scales, weight.shape, block), -LARGEST, LARGEST)
    return scaled.astype(E4M3), scales


def dequantize(values: Array, scales: Array, block: tuple[int, int] = BLOCK) -> Array:
    """The float32 matrix that e4m3 numbers (or their bytes) and scales stand for: values x scale.

    Source: DeepSeek-V3's README_WEIGHTS.md.
    """
    return VALUES[values.view(np.uint8)] * spread(scales, values.shape, block)


def spread(scales: Array, shape: tuple[int, ...], block: tuple[int, int]) -> Array:
    """Every number's scale: (rows, columns) from one a block."""
    rows, columns = shape
    return scales.repeat(block[0], 0)[:rows].repeat(block[1], 1)[:, :columns]
