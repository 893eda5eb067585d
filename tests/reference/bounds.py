"""How far rounding may carry a right answer: bounds from the arithmetic, not from a run."""

from __future__ import annotations

import numpy as np

# A model of a hundred numbers a row, three layers deep, makes sums of some thousands of rounded
# terms: 1e4 units of 1.1e-16. A wrong formula is off by far more than this in random weights.
FLOAT64 = 1e-12


def relative_error(got, want) -> float:
    """Largest difference over the largest wanted value; infinite where a NaN or infinity stands."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    worst = np.abs(got - want).max() / np.abs(want).max()
    return float(worst) if np.isfinite(worst) else float("inf")


def within(got, want, bound) -> bool:
    """|got - want| <= bound, element by element; false for NaN and infinities."""
    wide = np.asarray(got).astype(np.longdouble)
    return wide.shape == np.shape(want) and bool((np.abs(wide - want) <= bound).all())
