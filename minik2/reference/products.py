"""c = a b on all threads, whichever way round is the cheaper one."""

from typing import Any

import numba
import numpy as np
from numba import prange, types

from minik2.reference.gemm import compiled, gemm
from minik2.reference.instructions import VECTOR, WIDEST
from minik2.reference.stored import Matrix

Array = np.ndarray[Any, np.dtype[Any]]


def product(x: Array, weight: Array | Matrix) -> Array:
    """x weightᵀ: x (..., in), weight (out, in), an array or in its file -> (..., out)."""
    if isinstance(weight, Matrix):
        return weight.product(x)
    rows = x.reshape(-1, x.shape[-1])
    y = np.empty((len(rows), len(weight)), np.result_type(x, weight))
    multiply(rows, weight.T, y)
    return y.reshape(*x.shape[:-1], len(weight))


def product_backward(dy: Array, x: Array, weight: Array) -> tuple[Array, Array]:
    """Gradients of `product`'s x and weight: dy weight, and dyᵀ x over all rows."""
    rows, inputs = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1])
    return product(dy, weight.T), product(rows.T, inputs.T)


def multiply(a: Array, b: Array, c: Array) -> None:
    """c = a b: a (M, K), b (K, N), c (M, N), of any strides, c apart from both.

    Of one dtype, float32 or float64, or a TypeError; of shapes that fit, or a ValueError.
    """
    if a.shape[1] != b.shape[0] or c.shape != (a.shape[0], b.shape[1]):
        raise ValueError(f"{a.shape} times {b.shape} into {c.shape} is not a product of matrices.")
    if _copied(b.T, a.T, c.T) < _copied(a, b, c):
        a, b, c = b.T, a.T, c.T
    threads, vectors = numba.get_num_threads(), -(-b.shape[1] * b.itemsize // VECTOR)
    # A piece of less than a panel is slow; rows are cut where there are too few columns.
    wide = max(1, min(threads, vectors // WIDEST))
    _pieces(a, b, c, threads // wide, wide)


def _copied(a: Array, b: Array, c: Array) -> int:
    """How many numbers `gemm` copies: b always, the others if their rows have gaps."""
    return b.size + sum(x.size for x in (a, c) if x.strides[1] != x.itemsize)


@compiled(
    lambda read, written, line: types.void(read, read, written, types.intp, types.intp),
    parallel=True,
)
def _pieces(a, b, c, tall, wide):
    """`gemm` on tall x wide pieces of c side by side, cut between vectors of columns."""
    lanes = VECTOR // a.itemsize
    vectors = -(-b.shape[1] // lanes)
    for n in prange(tall * wide):
        i, j = n // wide, n % wide
        top, bottom = len(a) * i // tall, len(a) * (i + 1) // tall
        left = vectors * j // wide * lanes
        right = min(vectors * (j + 1) // wide * lanes, b.shape[1])
        gemm(a[top:bottom], b[:, left:right], c[top:bottom, left:right])
