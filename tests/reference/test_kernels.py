"""The Numba loops against plain NumPy lines in extended precision, with bounds from rounding."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from minik2.reference import kernels
from tests.reference.bounds import within

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])
SEEDS = st.integers(0, 2**32 - 1)
NAN, INF = np.nan, np.inf


def normal(seed, shape, dtype, spread=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * spread).astype(dtype)


def wide(*arrays):
    """Extended precision where the machine has it; float64 elsewhere, which the bounds allow."""
    return tuple(np.asarray(a).astype(np.longdouble) for a in arrays)


@DTYPES
@given(rows=st.integers(1, 9), width=st.integers(1, 300), seed=SEEDS)
@settings(max_examples=40, deadline=None)
def test_rms_norm(dtype, rows, width, seed):
    x, weight = normal(seed, (rows, width), dtype, 3), normal(seed + 1, width, dtype)
    y, scale = np.empty_like(x), np.empty(rows, dtype)
    kernels.rms_norm(x, weight, dtype(1e-5), y, scale)
    exact, gain = wide(x, weight)
    inverse = 1 / np.sqrt((exact**2).mean(axis=1) + np.longdouble(dtype(1e-5)))
    want = exact * inverse[:, None] * gain
    # A sum of n squares in any order errs by n roundings, the rest by a few more.
    unit = (width + 8) * np.finfo(dtype).eps
    assert within(scale, inverse, unit * inverse)
    assert within(y, want, unit * np.abs(want))


@DTYPES
@pytest.mark.parametrize("interleave", [True, False])
@given(tokens=st.integers(1, 7), heads=st.integers(1, 4), pairs=st.integers(1, 20), seed=SEEDS)
@settings(max_examples=30, deadline=None)
def test_rotate_pairs(dtype, interleave, tokens, heads, pairs, seed):
    x = normal(seed, (tokens, heads, 2 * pairs), dtype)
    angle = normal(seed + 1, (tokens, pairs), np.float64, 100)
    cos, sin = np.cos(angle).astype(dtype), np.sin(angle).astype(dtype)
    y = np.full_like(x, NAN)
    step, other = (2, 1) if interleave else (1, pairs)
    kernels.rotate_pairs(x, cos, sin, y, step, other)
    first = slice(0, None, 2) if interleave else slice(0, pairs)
    second = slice(1, None, 2) if interleave else slice(pairs, None)
    a, b, c, s = wide(x[..., first], x[..., second], cos[:, None], sin[:, None])
    bound = 2 * np.finfo(dtype).eps * (abs(a) + abs(b))
    assert within(y[..., first], a * c - b * s, bound)
    assert within(y[..., second], a * s + b * c, bound)


@DTYPES
@given(heads=st.integers(1, 3), queries=st.integers(1, 9), start=st.integers(0, 40),
       spread=st.sampled_from([0.1, 3.0, 60.0]), seed=SEEDS)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_causal_softmax(dtype, heads, queries, start, spread, seed):
    keys, scale = start + queries, dtype(0.37)
    scores = normal(seed, (heads, queries, keys), dtype, spread)
    (exact,) = wide(scores)
    hidden = np.arange(keys) > start + np.arange(queries)[:, None]
    exact = np.where(hidden, -np.inf, exact * np.longdouble(scale))
    powers = np.exp(exact - exact.max(axis=2, keepdims=True))
    want = powers / powers.sum(axis=2, keepdims=True)
    visible = np.where(hidden, -np.inf, scores)
    tops = np.full((heads, queries), NAN, dtype)
    kernels.causal_softmax(scores, tops, start, scale)
    assert (tops == visible.max(axis=2)).all()
    # An exponent z is rounded twice and moves e^z by |z| roundings; the sum adds `keys` of them.
    depth = np.abs(exact[~np.broadcast_to(hidden, exact.shape)]).max() * 2
    unit = (2 * depth + keys + 8) * np.finfo(dtype).eps
    # Single precision stops at e^-87, which is 1.6e-38 of the largest weight.
    assert within(scores, want, unit * want + 2e-38)
    assert (scores[np.broadcast_to(hidden, scores.shape)] == 0).all()


@DTYPES
@given(rows=st.integers(1, 9), width=st.integers(1, 70), spread=st.sampled_from([1.0, 30.0]),
       seed=SEEDS)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_swiglu(dtype, rows, width, spread, seed):
    gate_up = normal(seed, (rows, 2 * width), dtype, spread)
    y = np.empty((rows, width), dtype)
    kernels.swiglu(gate_up, y)
    gate, up = wide(gate_up[:, :width], gate_up[:, width:])
    want = gate / (1 + np.exp(-gate)) * up
    # Below -88 single precision stops at e^88: silu is smaller than 1e-36 there either way.
    assert within(y, want, 8 * np.finfo(dtype).eps * np.abs(want) + 1e-36 * np.abs(up))


@DTYPES
@given(tokens=st.integers(1, 9), columns=st.integers(1, 40), data=st.data(), seed=SEEDS)
@settings(max_examples=40, deadline=None)
def test_top_k_ranks_as_a_stable_sort_does(dtype, tokens, columns, data, seed):
    k = data.draw(st.integers(1, columns))
    # Few different values: most rows hold ties, and the lower column must win them.
    scores = np.random.default_rng(seed).integers(-3, 3, (tokens, columns)).astype(dtype)
    chosen = np.full((tokens, k), -1, np.int64)
    kernels.top_k(scores, chosen)
    assert (chosen == np.argsort(-scores, axis=1, kind="stable")[:, :k]).all()


def test_top_k_of_strange_numbers():
    scores = np.array([
        [1.0, NAN, 5.0, NAN],   # NaN first, in order, then the numbers
        [-INF, -INF, -INF, 2],  # nothing left but -inf: the lower column
        [INF, -1.0, INF, 0.0],
    ])  # fmt: skip
    chosen = np.empty((3, 3), np.int64)
    kernels.top_k(scores, chosen)
    assert chosen.tolist() == [[1, 3, 2], [3, 0, 1], [0, 2, 3]]


@DTYPES
@given(tokens=st.integers(1, 9), k=st.integers(1, 4), width=st.integers(1, 60), seed=SEEDS)
@settings(max_examples=30, deadline=None)
def test_combine(dtype, tokens, k, width, seed):
    rows = normal(seed, (tokens * k, width), dtype)
    weights, y = normal(seed + 1, (tokens, k), dtype), normal(seed + 2, (tokens, width), dtype)
    position = np.random.default_rng(seed).permutation(tokens * k).reshape(tokens, k)
    exact_rows, exact_weights, exact_y = wide(rows, weights, y)
    terms = exact_weights[..., None] * exact_rows[position]
    want = exact_y + terms.sum(axis=1)
    size = np.abs(exact_y) + np.abs(terms).sum(axis=1)
    kernels.combine(rows, position, weights, y)
    assert within(y, want, (k + 1) * np.finfo(dtype).eps * size)


@njit(fastmath=kernels.FAST, error_model="numpy")
def exponentials(x, y):
    for i in range(x.size):
        y[i] = kernels._exp(x[i])


def test_the_float32_exponential_errs_by_less_than_one_unit_in_the_last_place():
    """Every 167th float32 between the ends of its range, some 13 million in all."""
    for sign, largest in ((1, 88.0), (-1, 87.0)):
        stop = np.float32(largest).view(np.uint32)
        x = sign * np.arange(0, stop, 167, dtype=np.uint32).view(np.float32)
        y = np.empty_like(x)
        exponentials(x, y)
        want = np.exp(x.astype(np.float64))
        assert (np.abs(y - want) < 2.0**-23 * want).all()


def test_the_exponential_at_and_beyond_its_ends():
    for dtype in (np.float32, np.float64):
        x = np.array([0.0, -0.0, NAN, 1.0], dtype)
        y = np.empty_like(x)
        exponentials(x, y)
        assert y[0] == y[1] == 1 and np.isnan(y[2]) and abs(y[3] - np.e) <= np.finfo(dtype).eps * 2
    beyond = np.array([INF, 1e30, 88.5, -INF, -1e30, -87.5], np.float32)
    y = np.empty_like(beyond)
    exponentials(beyond, y)
    # Saturated at the ends, never wrapped round: the exponent bits would turn to nonsense.
    assert (y[:3] == y[0]).all() and 1.6e38 < y[0] < 1.7e38
    assert (y[3:] == y[3]).all() and 1.6e-38 < y[3] < 1.7e-38


@DTYPES
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("place", [0, 1, 39, 40])
def test_trouble_is_passed_on_and_stays_in_its_row(dtype, bad, place):
    x = normal(0, (3, 41), dtype)
    x[1, place] = bad
    y, scale = np.empty_like(x), np.empty(3, dtype)
    kernels.rms_norm(x, np.ones(41, dtype), dtype(1e-6), y, scale)
    assert not np.isfinite(y[1]).all() and np.isfinite(y[[0, 2]]).all()

    rows = x.copy()[:, None]
    tops = np.empty((3, 1), dtype)
    kernels.causal_softmax(rows, tops, 40, dtype(0.5))
    assert np.array_equal(tops, x.max(axis=1, keepdims=True), equal_nan=True)
    # A score of -inf is a key that gets no weight; the other two leave nothing to trust.
    assert np.isnan(rows[1]).all() if bad != -INF else rows[1, 0, place] < 1e-37
    assert np.isfinite(rows[[0, 2]]).all()

    gate_up = np.ones((3, 82), dtype)
    gate_up[1, place] = bad
    kernels.swiglu(gate_up, y)
    assert not np.isfinite(y[1, place]) and np.isfinite(y[[0, 2]]).all()
    gate_up[1, place], gate_up[1, 41 + place] = 1, bad
    kernels.swiglu(gate_up, y)
    assert not np.isfinite(y[1, place]) and np.isfinite(np.delete(y, [41 + place])).all()
