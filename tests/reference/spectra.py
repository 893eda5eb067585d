"""Matrices that are hard to orthogonalise, and how far two answers are apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def with_singular_values(rng: np.random.Generator, rows: int, columns: int, values: Array) -> Array:
    """A random matrix (rows, columns) with the given min(rows, columns) singular values."""
    short, long = sorted((rows, columns))
    left, _ = np.linalg.qr(rng.standard_normal((short, short)))
    right, _ = np.linalg.qr(rng.standard_normal((long, short)))
    wide = (left * values) @ right.T
    return wide if rows <= columns else wide.T.copy()


def _ill_conditioned(exponent: int) -> Callable[[np.random.Generator, int, int], Array]:
    def draw(rng: np.random.Generator, rows: int, columns: int) -> Array:
        values = np.logspace(0, -exponent, min(rows, columns))
        return with_singular_values(rng, rows, columns, values)

    return draw


def _rank_deficient(rng: np.random.Generator, rows: int, columns: int) -> Array:
    short = min(rows, columns)
    return with_singular_values(rng, rows, columns, np.arange(short) < (short + 1) // 2)


def _spike(rng: np.random.Generator, rows: int, columns: int) -> Array:
    out = np.zeros((rows, columns))
    out[rng.integers(rows), rng.integers(columns)] = 3.0
    return out


# Each (rng, rows, columns) -> float64 (rows, columns).
INPUTS: dict[str, Callable[[np.random.Generator, int, int], Array]] = {
    "gaussian": lambda rng, rows, columns: rng.standard_normal((rows, columns)),
    "condition 1e2": _ill_conditioned(2),
    "condition 1e4": _ill_conditioned(4),
    "condition 1e6": _ill_conditioned(6),
    "condition 1e8": _ill_conditioned(8),
    "rank deficient": _rank_deficient,
    "spike": _spike,
    "spike in noise": lambda rng, rows, columns: (
        1000 * _spike(rng, rows, columns) + rng.standard_normal((rows, columns))
    ),
    "zero": lambda rng, rows, columns: np.zeros((rows, columns)),
}


def mostly_zero(rng: np.random.Generator, rows: int, columns: int, kept: int) -> Array:
    """Gaussian in `kept` rows, or columns, of the long side, zero in the others."""
    out = rng.standard_normal((rows, columns))
    out[rng.permutation(rows)[kept:]] = 0
    return out if rows >= columns else mostly_zero(rng, columns, rows, kept).T.copy()


def error(got: Any, want: Any) -> float:
    """|got - want| / |want| in the Frobenius norm; |got| where nothing is wanted."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    size = np.linalg.norm(want)
    worst = np.linalg.norm(got - want) / (size if size else 1.0)
    return float(worst) if np.isfinite(worst) else float("inf")
