"""The backward pass's Numba loops against NumPy in extended precision, bounded by rounding."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from minik2.reference import kernels_backward as kernels
from tests.reference.bounds import within
from tests.reference.test_kernels import DTYPES, NAN, SEEDS, normal, wide

examples = settings(max_examples=30, deadline=None)


@DTYPES
@given(rows=st.integers(1, 9), width=st.integers(1, 200), parts=st.integers(1, 5), seed=SEEDS)
@examples
def test_rms_norm_backward(dtype, rows, width, parts, seed):
    parts = min(parts, rows)
    x, dy = normal(seed, (rows, width), dtype, 3), normal(seed + 1, (rows, width), dtype)
    weight = normal(seed + 2, width, dtype)
    scale = (1 / np.sqrt((x**2).mean(axis=1) + 0.1)).astype(dtype)
    dx, sums = np.full_like(x, NAN), np.full((parts, width), NAN, dtype)
    kernels.rms_norm_backward(dy, x, weight, scale, dx, sums)
    exact, d, gain, s = wide(x, dy, weight, scale[:, None])
    along = d * gain * exact
    mean = along.mean(axis=1, keepdims=True) * s**2
    unit = (width + 8) * np.finfo(dtype).eps
    size = s * (abs(d * gain) + abs(exact) * abs(along).mean(axis=1, keepdims=True) * s**2)
    assert within(dx, s * (d * gain - exact * mean), unit * size)
    terms = d * exact * s
    # The parts' own sums, one after the other, are whatever rows they were given.
    assert within(sums.sum(axis=0), terms.sum(axis=0),
                  (rows + parts + 4) * np.finfo(dtype).eps * abs(terms).sum(axis=0))  # fmt: skip


@DTYPES
@given(rows=st.integers(1, 9), width=st.integers(1, 70), spread=st.sampled_from([1.0, 20.0]),
       seed=SEEDS)  # fmt: skip
@examples
def test_swiglu_backward(dtype, rows, width, spread, seed):
    gate_up = normal(seed, (rows, 2 * width), dtype, spread)
    dy, d = normal(seed + 1, (rows, width), dtype), np.full_like(gate_up, NAN)
    kernels.swiglu_backward(dy, gate_up, d)
    gate, up, exact = wide(gate_up[:, :width], gate_up[:, width:], dy)
    sigma = 1 / (1 + np.exp(-gate))
    eps = np.finfo(dtype).eps
    # 1 - σ is off by a rounding of 1, gate times that; below -88 single precision stops at e^88.
    size = abs(exact * up) * sigma * (1 + abs(gate))
    assert within(d[:, :width], exact * up * sigma * (1 + gate * (1 - sigma)),
                  16 * eps * size + 1e-35 * abs(exact * up))  # fmt: skip
    assert within(d[:, width:], exact * gate * sigma,
                  12 * eps * abs(exact * gate) * sigma + 1e-35 * abs(exact))  # fmt: skip


@DTYPES
@given(rows=st.integers(1, 9), width=st.integers(2, 70), spread=st.sampled_from([0.1, 3.0, 60.0]),
       seed=SEEDS)  # fmt: skip
@examples
def test_cross_entropy_and_its_backward(dtype, rows, width, spread, seed):
    logits = normal(seed, (rows, width), dtype, spread)
    targets = np.random.default_rng(seed).integers(0, width, rows)
    targets[1::3] = -100
    tops, logs = np.full((2, rows), NAN, dtype)
    d, dloss = np.full_like(logits, NAN), dtype(0.3)
    kernels.log_sum_exp(logits, tops, logs)
    kernels.cross_entropy_backward(logits, targets, tops + logs, dloss, d)
    (exact,) = wide(logits)
    top, eps, counted = exact.max(axis=1), np.finfo(dtype).eps, targets >= 0
    want = np.log(np.exp(exact - top[:, None]).sum(axis=1))
    assert (tops == top).all()
    # An exponent is rounded by itself, which matters the less the more negative it is (z e^-z is
    # below 0.4), and so is the sum, at least 1; the exponential stops at e^-87 in single precision.
    assert within(logs, want, 2 * (width + 4) * eps)
    assert (d[~counted] == 0).all()
    sums = top + want
    chances = np.exp(exact - sums[:, None])
    want = chances - (np.arange(width) == targets[:, None])
    # An exponent is off by log_sums' error and its own rounding.
    off = (width + 12) * eps + 3 * eps * (abs(sums)[:, None] + abs(exact))
    bound = dloss * (off * chances + 2 * eps * abs(want) + 1e-37)
    assert within(d[counted], (np.longdouble(dloss) * want)[counted], bound[counted])


def test_a_nan_among_the_logits_makes_the_loss_nan():
    for place in range(3):
        logits = np.zeros((1, 3))
        logits[0, place] = NAN
        tops, logs = np.zeros((2, 1))
        kernels.log_sum_exp(logits, tops, logs)
        assert np.isnan(tops + logs).all()


@DTYPES
@given(rows=st.integers(1, 30), sums=st.integers(1, 6), width=st.integers(1, 40), seed=SEEDS)
@examples
def test_sum_rows(dtype, rows, sums, width, seed):
    x = normal(seed, (rows, width), dtype)
    owner = np.random.default_rng(seed).integers(0, sums, rows)
    order, y = np.argsort(owner, kind="stable"), np.full((sums, width), NAN, dtype)
    offsets = np.concatenate([[0], np.bincount(owner, minlength=sums).cumsum()])
    kernels.sum_rows(x, order, offsets, y)
    (exact,) = wide(x)
    own = (owner == np.arange(sums)[:, None]).astype(np.longdouble)
    assert within(y, own @ exact, rows * np.finfo(dtype).eps * (own @ abs(exact)))
