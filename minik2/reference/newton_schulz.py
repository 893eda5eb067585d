"""Newton–Schulz: a matrix made nearly orthogonal by products alone, each expert of a stack apart.

Unusual here: the iteration need not touch the matrix. A step multiplies X from the left by a
polynomial P of the small Gram matrix R = X Xᵀ. All these polynomials commute, so R itself can be
stepped on (it becomes P R P = P² R), the P multiplied up to one Q, and Q X formed at the end: less
work for a matrix much wider than tall. But rounding moves R's eigenvalues by about u |R|, and each
step on R multiplies what it did to the small ones by a² ≈ 12: with five in a row float32 keeps 3
digits and bfloat16 none. So after three steps X is formed and R taken afresh from it. The shape
decides which way is cheaper. One kind of input pays for it: with nearly all rows of the long side
zero, X has no small singular values that rounding could move, but R has. There the error is up to
30 times the plain iteration's, 5e-5 in float32.
"""

from typing import Any

import numpy as np

from minik2.reference import parallel

Array = np.ndarray[Any, np.dtype[Any]]

# Chosen for a steep start at 0, not for an end at 1: singular values land between 0.68 and 1.13.
A, B, C = 3.4445, -4.7750, 2.0315
# The floor of a gradient's norm: a smaller one is not blown up to full size (torch.optim.Muon's).
EPS = 1e-7
# Steps on one Gram matrix, and the least number of its rows: with fewer, there is little work to
# save, and few rounding errors to average out, so that the plain steps are the more exact ones.
RESTART, ROWS = 3, 128
TILE = 128
# Numbers that one thread takes at a time, 256 KB in float32: Python's share of the work on a small
# matrix, during which the other threads wait, is as large as the matrix's own.
BATCH = 2**16


def plain(G: Array, steps: int = 5) -> Array:
    """The definition: X = G / |G|, then `steps` times X = a X + (b R + c R²) X with R = X Xᵀ.

    G: (r, c) or (E, r, c) float32 or float64; the result as G, with G's singular vectors and
    singular values near 1. |G| is the Frobenius norm, at least 1e-7; a G taller than wide is
    turned on its side first. a, b, c = 3.4445, -4.7750, 2.0315. Source: arXiv 2502.16982 §2.1.
    """
    X = _start(G, steps)
    for _ in range(steps):
        R = X @ X.swapaxes(-1, -2)
        X = A * X + (B * R + C * R @ R) @ X
    return X if _is_wide(G) else X.swapaxes(-1, -2)


def newton_schulz(G: Array, steps: int = 5) -> Array:
    """What `plain` computes, to rounding, in fewer operations and with every core busy.

    G: (r, c), or a stack (E, r, c) whose matrices are shared out among the cores. Raises ValueError
    for other numbers of axes and for steps below 1, TypeError for other dtypes than float32 and
    float64.
    """
    if G.ndim != 3:
        return together(G, steps)
    parts = parallel.each(lambda own: together(G[own], steps), batches(*G.shape))
    return np.concatenate(parts)


def together(G: Array, steps: int = 5) -> Array:
    """`newton_schulz` without threads of its own, small matrices of a stack in one call."""
    X = _start(G, steps)
    rows, columns = X.shape[-2:]
    lengths = segments(rows, columns, steps)
    if X.ndim == 2 or max(lengths) == 1:
        X = _iterate(X, lengths)
    else:
        X = np.stack([_iterate(matrix, lengths) for matrix in X])
    return X if _is_wide(G) else X.swapaxes(-1, -2)


def batches(count: int, rows: int, columns: int) -> list[slice]:
    """0 to count in slices: the matrices (rows, columns) that one thread takes at a time."""
    own = max(1, BATCH // (rows * columns))
    return [slice(start, start + own) for start in range(0, count, own)]


def segments(rows: int, columns: int, steps: int) -> list[int]:
    """How many steps to take on each Gram matrix; all ones are the plain steps."""
    ones = [1] * steps
    if min(rows, columns) < ROWS:
        return ones
    restarted = [min(RESTART, steps - done) for done in range(0, steps, RESTART)]
    return min(ones, restarted, key=lambda lengths: flops(rows, columns, lengths))


def flops(rows: int, columns: int, lengths: list[int]) -> int:
    """Multiplications and additions in one matrix's products, by the lengths of its segments.

    X Xᵀ, R Rᵀ and P Pᵀ count half: NumPy sees a matrix times its own transpose, and BLAS computes
    one triangle of it.
    """
    r, c = sorted((rows, columns))
    total = 0
    for steps in lengths:
        total += r * r * c + 2 * r * r * c  # X Xᵀ, Q X
        total += steps * r**3 + (steps - 1) * 5 * r**3  # R Rᵀ; P Pᵀ, (P Pᵀ) R, P Q
    return total


def _start(G: Array, steps: int) -> Array:
    """G over its norm, lying on its long side; what newton_schulz and plain refuse."""
    if G.ndim not in (2, 3):
        raise ValueError(
            f"Newton–Schulz takes a matrix (r, c) or a stack (E, r, c), not the shape {G.shape}; "
            "leave vectors to AdamW and give what has more axes as a stack."
        )
    if G.dtype not in (np.float32, np.float64):
        raise TypeError(f"Newton–Schulz takes float32 or float64, not {G.dtype}; convert it first.")
    if steps < 1:
        raise ValueError(f"Newton–Schulz takes at least one step, not {steps}; 5 is usual.")
    norm = np.linalg.norm(G, axis=(-2, -1), keepdims=True)
    X = G / np.maximum(norm, G.dtype.type(EPS))
    return X if _is_wide(G) else X.swapaxes(-1, -2)


def _is_wide(G: Array) -> bool:
    return G.shape[-2] <= G.shape[-1]


def _iterate(X: Array, lengths: list[int]) -> Array:
    for steps in lengths:
        X = _plain_step(X) if steps == 1 else _gram_steps(X, steps)
    return X


def _plain_step(X: Array) -> Array:
    # a X is added last and not a I to the polynomial, whose small numbers it would round away.
    Y = _curve(X @ X.swapaxes(-1, -2)) @ X
    Y += A * X
    return Y


def _gram_steps(X: Array, steps: int) -> Array:
    """`steps` steps as one product Q X."""
    R = X @ X.T
    P = Q = _with_diagonal(_curve(R))
    for _ in range(steps - 1):
        R = _symmetric((P @ P.T) @ R)
        P = _with_diagonal(_curve(R))
        Q = P @ Q
    return Q @ X


def _symmetric(R: Array) -> Array:
    """The mean of R and Rᵀ, in place: what is symmetric but for rounding has less error so.

    By tiles that a cache holds: read against its rows, a large matrix costs seven times as much.
    """
    for i in range(0, len(R), TILE):
        for j in range(i, len(R), TILE):
            upper, lower = R[i : i + TILE, j : j + TILE], R[j : j + TILE, i : i + TILE]
            mean = upper + lower.T
            mean *= 0.5
            upper[...], lower[...] = mean, mean.T
    return R


def _curve(R: Array) -> Array:
    """b R + c R², for a symmetric R or a stack of them."""
    P = R @ R.swapaxes(-1, -2)
    P *= C
    P += B * R
    return P


def _with_diagonal(P: Array) -> Array:
    """a I added to P in place."""
    P.flat[:: len(P) + 1] += A
    return P
