"""INT4 weights: eight numbers of four bits in an int32, with one scale for each 32 of a row.

Unusual here: the layout is that of the package compressed-tensors ("pack-quantized"), in which
K2-Thinking's routed experts are published: a number w is stored as w + 8, the first of eight in
the lowest four bits. The publisher trained with these weights, by a rule for the scales that is not
known; ours is the package's own, from the largest number of each group.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from minik2.checkpoint.errors import CheckpointError

Array = np.ndarray[Any, np.dtype[Any]]

GROUP, WORD = 32, 8
SHIFTS = np.arange(0, 32, 4, dtype=np.int32)


def quantize(weight: Array, group: int = GROUP) -> tuple[Array, Array]:
    """A matrix (rows, columns) as int32 (rows, columns / 8) and bfloat16 scales, one a group.

    scale = max |w| / 7.5, rounded to bfloat16; w / scale is rounded to the nearest of -8 … 7, ties
    to even. A group of zeros gets the scale 1. Raises CheckpointError for columns that are no whole
    groups, and for a number that is not finite. Source: compressed-tensors, calculate_qparams.
    """
    rows, columns = weight.shape
    if columns % group:
        raise CheckpointError(
            f"INT4 scales groups of {group} weights of a row, but {group} does not divide "
            f"{columns}; choose another format, or widths that are multiples of {group}."
        )
    groups = np.asarray(weight, np.float32).reshape(rows, -1, group)
    tops = np.abs(groups).max(axis=2)
    if not np.isfinite(tops).all():
        raise CheckpointError("Only finite weights can be narrowed; mend the run that made them.")
    scales = (tops / np.float32(7.5)).astype(ml_dtypes.bfloat16)
    scales[scales == 0] = 1
    whole = np.rint(groups / scales.astype(np.float32)[:, :, None]).clip(-8, 7).astype(np.int32)
    words = (whole.reshape(rows, -1, WORD) + 8) << SHIFTS
    return np.bitwise_or.reduce(words, axis=2), scales


def dequantize(packed: Array, scales: Array) -> Array:
    """The float32 matrix (rows, columns) that int32 words and scales stand for: w x scale, exact.

    packed: (rows, columns / 8); scales: (rows, groups), of any float dtype. (compressed-tensors
    itself rounds the product to the scales' dtype.)
    """
    rows, words = packed.shape
    whole = ((packed[:, :, None] >> SHIFTS) & 15) - 8
    return (
        whole.reshape(rows, scales.shape[1], -1) * scales.astype(np.float32)[:, :, None]
    ).astype(np.float32).reshape(rows, words * WORD)
