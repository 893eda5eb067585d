"""The correction bias and its updates, the same rule in both engines."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minik2.pytorch import router as torch_router
from minik2.reference import router


def updated(engine, bias, loads, *arguments):
    """The bias after one update by the engine, float32 or float64 as it is."""
    if engine == "reference":
        bias = bias.copy()
        router.update_bias(bias, np.asarray(loads), *arguments)
        return bias
    own = torch.from_numpy(bias.copy())
    torch_router.update_bias(own, torch.as_tensor(loads), *arguments)
    return own.numpy()


engines = pytest.mark.parametrize("engine", ["reference", "pytorch"])


@engines
def test_the_bias_moves_against_the_load(engine):
    """Mean 5: those below it rise, those above it fall, the one on it stays."""
    bias = np.array([0.5, -0.25, 0.0, 1.0])
    got = updated(engine, bias, [5, 0, 11, 4], 0.001)
    assert (got == bias + 0.001 * np.array([0, 1, -1, 1])).all()
    # Signs 0, 1, -1, 1 have a mean of 1/4.
    got = updated(engine, bias, [5, 0, 11, 4], 0.001, True)
    assert np.allclose(got, bias + 0.001 * np.array([-0.25, 0.75, -1.25, 0.75]), rtol=1e-15)


@engines
@given(experts=st.integers(1, 40), dtype=st.sampled_from([np.float32, np.float64]),
       mean_free=st.booleans(), speed=st.sampled_from([1e-3, 0.25]),
       seed=st.integers(0, 2**31))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_the_bias_follows_its_formula(engine, experts, dtype, mean_free, speed, seed):
    rng = np.random.default_rng(seed)
    bias = rng.standard_normal(experts).astype(dtype)
    loads = rng.integers(0, 6, experts)
    got = updated(engine, bias, loads, speed, mean_free)
    mean = Fraction(int(loads.sum()), experts)
    sign = [(mean > n) - (mean < n) for n in loads.tolist()]
    step = speed * (np.array(sign) - (np.mean(sign) if mean_free else 0))
    unit = np.finfo(dtype).eps
    assert got.dtype == dtype
    assert (np.abs(got - (bias + step)) <= 2 * unit * (np.abs(bias) + speed * 2)).all()
    if mean_free:
        drift = got.astype(np.float64).sum() - bias.astype(np.float64).sum()
        assert abs(drift) <= 2 * unit * (np.abs(bias).sum() + 2 * speed * experts)


@engines
def test_speed_zero_and_equal_loads_leave_the_bias(engine):
    bias = np.array([0.5, -0.0, 1e-30], np.float32)
    for loads, speed in (([9, 0, 0], 0.0), ([9, 0, 0], 0)):
        assert updated(engine, bias, loads, speed).tobytes() == bias.tobytes()
    for mean_free in (False, True):
        assert (updated(engine, bias, [4, 4, 4], 0.1, mean_free) == bias).all()


@engines
def test_updates_that_cannot_be_meant_get_a_sentence_and_leave_the_bias(engine):
    bias = np.zeros(4)
    with pytest.raises(ValueError, match=r"one number an expert, not \(4,\) and \(3,\)"):
        updated(engine, bias, [1, 2, 3], 0.1)
    with pytest.raises(ValueError, match=r"not \(1, 4\) and \(1, 4\)"):
        updated(engine, bias[None], [[1, 2, 3, 4]], 0.1)
    for speed in (-0.1, np.inf, np.nan):
        with pytest.raises(ValueError, match="finite number, 0 or more"):
            updated(engine, bias, [1, 2, 3, 4], speed)
    assert not bias.any()
