"""A matrix that stays in its file: products with it, and a few of its rows.

Unusual here: what is in memory is the few rows that are being multiplied. They are mapped, read by
the product's loop as they are stored (FP8, INT4, bfloat16, …), and let go of.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numba
import numpy as np

from minik2.checkpoint.tensor import PIECE, Tensor
from minik2.reference import kernels_stored

Array = np.ndarray[Any, np.dtype[Any]]

# As what the kernel takes the numbers of a file.
VIEWS: dict[Any, Any] = {
    np.dtype(ml_dtypes.float8_e4m3fn): np.int8,
    np.dtype(np.int32): np.uint8,
    np.dtype(ml_dtypes.bfloat16): np.uint16,
}


class Matrix:
    """A matrix of a checkpoint, (out, in), for a model that computes in dtype.

    As an array (`np.asarray`) it is read whole.
    """

    def __init__(self, tensor: Tensor, dtype: Any) -> None:
        self.tensor, self.dtype, self.shape = tensor, np.dtype(dtype), tensor.shape

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self.tensor.read().astype(dtype or self.dtype, copy=False)

    def __getitem__(self, numbers: Array) -> Array:
        """The rows with these numbers, (...,) -> (..., in)."""
        found = [self.tensor.rows(slice(n, n + 1)) for n in numbers.reshape(-1).tolist()]
        return np.concatenate(found).astype(self.dtype).reshape(*numbers.shape, -1)

    def product(self, x: Array) -> Array:
        """x times the matrix, turned: (..., in) -> (..., out).

        Raises CheckpointError for weights and scales that are not finite.
        """
        rows = np.ascontiguousarray(x.reshape(-1, x.shape[-1]))
        y = np.empty((len(rows), len(self)), self.dtype)
        said = self.tensor.quantization
        tall, wide = said.block if said else (1, 1)
        step = max(1, PIECE * len(self) // self.tensor.values.nbytes)
        for start in range(0, len(self), step):
            values, scales = self.tensor.part(slice(start, min(start + step, len(self))))
            values = values.view(VIEWS[values.dtype]) if values.dtype in VIEWS else values
            if values.dtype == np.float16:
                values = values.astype(np.float32)
            exact = self.dtype if values.dtype == np.float64 else np.float32
            lines = np.empty((numba.get_num_threads(), rows.shape[1]), exact)
            kernels_stored.stored_product(values, scales, start, tall, wide, rows, y, lines)
        if not np.isfinite(y).all():
            self.tensor.check_finite()  # if it is not the weights, it is x, and shows in the logits
        return y.reshape(*x.shape[:-1], len(self))
