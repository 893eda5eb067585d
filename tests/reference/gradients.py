"""How gradients are compared: with another implementation's, and with the function's slope."""

from __future__ import annotations

import numpy as np

from tests.reference.bounds import FLOAT64


def assert_alike(got, want, terms: float = 0.0) -> None:
    """Every gradient of a part or a model, by name, right to rounding in float64.

    Some gradients are sums whose terms all cancel: of the only visible key, of the router where the
    only chosen expert is renormalised to weight 1. What is left of them is the rounding of terms
    about as large as the largest gradient, or as `terms`, some thousand units of 1.1e-16.
    """
    assert set(got) == set(want)
    got = {name: np.asarray(g, np.float64) for name, g in got.items()}
    want = {name: np.asarray(w, np.float64) for name, w in want.items()}
    largest = max(terms, *(np.abs(w).max() for w in want.values()))
    for name, w in want.items():
        assert got[name].shape == w.shape, name
        error = np.abs(got[name] - w).max()
        assert error <= FLOAT64 * np.abs(w).max() + 1e3 * 2**-53 * largest, (name, error)


def assert_slopes(function, inputs, grads, seed: int = 0) -> None:
    """grads[name] gives the slope of function(inputs), a number, along a random direction.

    Differences of the fourth order: (8 (f₊₁ - f₋₁) - (f₊₂ - f₋₂)) / 12h errs by h⁴/30 times the
    fifth derivative, and by the rounding of f, some hundred units of 1.1e-16 of its terms, over h.
    A direction is as long as the input itself. With h = 2e-4 the rounding costs 1e-10 of the terms,
    and the derivative less as long as it is below a million times them; the terms are what is added
    up to the slope and to the function's value.
    """
    rng, h = np.random.default_rng(seed), 2e-4
    size = abs(function(inputs))
    for name, grad in grads.items():
        direction = rng.standard_normal(grad.shape)
        direction *= np.linalg.norm(inputs[name]) / np.linalg.norm(direction)
        f = {step: function(inputs | {name: inputs[name] + step * h * direction})
             for step in (-2, -1, 1, 2)}  # fmt: skip
        slope = (8 * (f[1] - f[-1]) - (f[2] - f[-2])) / (12 * h)
        terms = grad * direction
        scale = size + np.sqrt(terms.size) * np.abs(terms).max()
        assert abs(slope - terms.sum()) <= 1e-9 * scale, (name, slope, terms.sum())
