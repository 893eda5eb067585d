"""Weights that nobody stores: each is a function of seed, tensor name, row and column.

Unusual here: a name is enough to have a tensor, whatever its size, and any part of it. Numbers are
uniform on ±√3 std, which has zero mean and the standard deviation `initializer_range`; a normal
distribution would take several times as long and change nothing that is shown here. Norms are 1.
What is asked for is counted: weights made, and operations done with them.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numba
import numpy as np

from minik2.config import ModelConfig
from minik2.fullsize import kernels

Array = np.ndarray[Any, np.dtype[Any]]


class Weights:
    """Every tensor of a checkpoint of `cfg`, made when asked for, in float32 or float64.

    Element (r, c) of a matrix is scale x n(r, c), with n a whole number of 32 bits and scale
    √3 initializer_range / 2^31; a vector is the first row of a matrix. No two rows of a model have
    one key: a tensor's rows are counted on from a base of 64 bits, a hash of seed and name, and for
    the models that ship with minik2 a test shows that these stretches do not meet.

    made: weights made or, in norms, met; flops: two for each multiply-add with a weight.
    """

    def __init__(self, cfg: ModelConfig, seed: int = 0, dtype: str = "float32") -> None:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64:
            raise ValueError(f"seed must be a whole number from 0 to 2^64 - 1, not {seed!r}.")
        if np.dtype(dtype) not in (np.float32, np.float64):
            raise TypeError(f"Weights are made in float32 or float64, not in {dtype}.")
        self.seed, self.dtype = seed, np.dtype(dtype)
        self.scale = self.dtype.type(math.sqrt(3) * cfg.initializer_range / 2**31)
        pieces = numba.get_num_threads()
        self.room = np.empty((pieces, kernels.ROWS, kernels.BLOCK), self.dtype)
        self.made = self.flops = 0

    def base(self, name: str) -> np.uint64:
        """Where the rows of the tensor called `name` begin to be counted, a hash of 64 bits."""
        digest = hashlib.blake2b(f"{self.seed} {name}".encode(), digest_size=8).digest()
        return np.uint64(int.from_bytes(digest, "little"))

    def rows(self, name: str, rows: Any, width: int) -> Array:
        """Some rows of a tensor that is `width` wide: whole numbers (n,) -> (n, width)."""
        y = np.empty((len(rows), width), self.dtype)
        kernels.fill(self.base(name), np.asarray(rows, np.int64), y[None])
        y *= self.scale
        return y

    def tensor(self, name: str, shape: tuple[int, ...]) -> Array:
        """All of a tensor, as an engine would load it: a matrix, a vector, or a norm's ones."""
        if name.endswith("norm.weight"):
            return np.ones(shape, self.dtype)
        rows = shape[0] if len(shape) == 2 else 1
        return self.rows(name, range(rows), shape[-1]).reshape(shape)

    def vector(self, name: str, width: int) -> Array:
        """A norm's gain or the router's correction bias, (width,), counted as met."""
        self.made += width
        return self.tensor(name, (width,))

    def product(self, name: str, x: Array, rows: int) -> Array:
        """x Wᵀ with W (rows, width) called `name`, never in memory: (B, width) -> (B, rows)."""
        return self.products(name, x[None], rows, 0, 0)[0]

    def products(self, name: str, x: Array, rows: int, first: int, stride: int) -> Array:
        """The same for groups of rows, each with an x of its own: (G, B, width) -> (G, B, rows).

        Group g's rows are first + g stride and those after it.
        """
        y = np.empty((*x.shape[:2], rows), self.dtype)
        kernels.product(self.base(name), first, stride, np.ascontiguousarray(x), y,
                        self.room)  # fmt: skip
        return self._counted(y, rows * x.shape[2])

    def products_from_left(self, name: str, x: Array, width: int, first: int, stride: int) -> Array:
        """x W instead of x Wᵀ: (G, B, rows) -> (G, B, width)."""
        y = np.empty((*x.shape[:2], width), self.dtype)
        kernels.product_from_left(self.base(name), first, stride, np.ascontiguousarray(x), y,
                                  self.room)  # fmt: skip
        return self._counted(y, x.shape[2] * width)

    def _counted(self, y: Array, size: int) -> Array:
        """y to its scale; size: weights of a group."""
        y *= self.scale
        self.made += len(y) * size
        self.flops += 2 * len(y) * y.shape[1] * size
        return y
