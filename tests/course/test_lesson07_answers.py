"""The right answers of lesson 07 are the engine's own backward passes."""

import random

import numpy as np
import pytest

from minik2.checks import exercises
from minik2.config import ModelConfig
from minik2.reference import attention, norm, router

RIGHT = {e.id: e.reference for e in exercises() if e.lesson == "07"}


@pytest.fixture
def rng():
    seed = random.SystemRandom().randrange(10**6)
    print("seed:", seed)
    return np.random.default_rng(seed)


def assert_same(found, engine):
    scale = max(np.abs(array).max() for array in engine.values())
    assert set(found) == set(engine)
    for name, array in engine.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-12 * scale)


def test_rms_norm_is_the_engines(rng):
    dy, x = rng.normal(size=(2, 7, 12))
    weight = rng.normal(size=12)
    dx, grads = norm.backward(dy, norm.forward(x, weight, 0.1)[1])
    assert_same(RIGHT["backward.rms_norm"](dy, x, weight, 0.1), grads | {"x": dx})


def test_attention_is_the_engines(rng):
    q, k = rng.normal(size=(2, 9, 6))
    dy, v = rng.normal(size=(2, 9, 4))
    lifted = [a[None, :, None] for a in (q, k, v)]
    grads = attention.backward(dy[None, :, None], attention.forward(*lifted, 6**-0.5)[1])
    engine = {name: g[0, :, 0] for name, g in zip("qkv", grads, strict=True)}
    assert_same(RIGHT["backward.attention"](dy, q, k, v), engine)


def test_router_is_the_engines(rng):
    cfg = ModelConfig.preset("tiny")
    x = rng.normal(size=(11, cfg.hidden_size))
    weight = rng.normal(size=(cfg.n_routed_experts, cfg.hidden_size)) / 4
    bias = 0.2 * rng.normal(size=cfg.n_routed_experts)
    (indices, weights), saved = router.forward(x, weight, bias, cfg)
    dweights = rng.normal(size=weights.shape)
    dx, grads = router.backward(dweights, saved)
    found = RIGHT["backward.router"](dweights, x, weight, bias, indices, cfg.routed_scaling_factor)
    assert_same(found, grads | {"x": dx})


def test_the_check_of_gradients_finds_what_was_planted(rng):
    """Its own reference, whose expected values come from no formula, against the planted error."""
    x, a, b = rng.uniform(0.5, 2, size=(3, 4, 5))
    right = a * b * np.cos(a * x)
    check = RIGHT["backward.check_gradient"]
    assert check(x, a, b, right) < 1e-7
    claimed = right.copy()
    claimed[2, 3] += 0.125 * np.abs(right).max()
    assert check(x, a, b, claimed) == pytest.approx(0.125, abs=1e-6)
