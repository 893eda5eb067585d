"""The right answers of lesson 05 are the engine's router and block, on random numbers each time."""

import random

import numpy as np
import pytest

from minik2 import reference
from minik2.checks import exercises
from minik2.config import ModelConfig

RIGHT = {e.id: e.reference for e in exercises()}


@pytest.fixture
def rng():
    seed = random.SystemRandom().randrange(10**6)
    print("seed:", seed)
    return np.random.default_rng(seed)


def config(**changes):
    return ModelConfig.preset("tiny").replace(**changes)


def dense(indices, weights, experts):
    gates = np.zeros((len(indices), experts))
    np.put_along_axis(gates, indices, weights, axis=1)
    return gates


def near(got, expected):
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_choose_and_weigh_is_the_engines_router(rng):
    cfg = config(n_routed_experts=12, num_experts_per_tok=3, routed_scaling_factor=2.4)
    x, weight = rng.normal(size=(40, cfg.hidden_size)), rng.normal(size=(12, cfg.hidden_size))
    weight /= np.sqrt(cfg.hidden_size)
    bias = 0.4 * rng.normal(size=12)
    (indices, weights), _ = reference.router.forward(x, weight, bias, cfg)
    near(RIGHT["router.choose_and_weigh"](x, weight, bias, 3, 2.4), dense(indices, weights, 12))


def test_group_limited_is_the_engines_choice(rng):
    cfg = config(n_routed_experts=24, num_experts_per_tok=5, n_group=6, topk_group=3)
    x, weight = rng.normal(size=(60, cfg.hidden_size)), rng.normal(size=(24, cfg.hidden_size))
    # Low biases: many biased scores are negative.
    bias = 0.4 * rng.normal(size=24) - 0.6
    (indices, _), saved = reference.router.forward(x, weight, bias, cfg)
    chosen = RIGHT["router.group_limited"](saved["scores"] + bias, 6, 3, 5)
    np.testing.assert_array_equal(chosen, dense(indices, True, 24) > 0)


def test_bias_update_is_the_engines(rng):
    chosen = rng.uniform(size=(30, 10)).argsort(axis=1)[:, :4]
    chosen[chosen == 2] = 3  # expert 2 idle
    gates = dense(chosen, rng.uniform(0.1, 1, chosen.shape), 10)
    bias = rng.normal(size=10)
    engine = bias.copy()
    reference.router.update_bias(engine, (gates != 0).sum(axis=0), 0.03)
    near(RIGHT["router.bias_update"](bias, gates, 0.03), engine)


def test_with_shared_expert_is_the_engines_block(rng):
    cfg = config(n_routed_experts=8, num_experts_per_tok=3)
    layer = reference.Model.init(cfg, dtype="float64").layers[-1]["mlp"]
    shared = layer["shared_experts"]
    for array in (*layer.values(), *shared.values()):
        if isinstance(array, np.ndarray):
            array[...] = rng.normal(size=array.shape) / np.sqrt(array.shape[-1])
    x = rng.normal(size=(1, 20, cfg.hidden_size))
    y, saved = reference.moe.forward(x, layer, cfg)
    gates = dense(saved["router"]["indices"], saved["router"]["weights"], 8)
    shared_gate_up = np.concatenate([shared["gate_proj.weight"], shared["up_proj.weight"]])
    near(RIGHT["router.with_shared_expert"](
        x[0], gates, layer["experts.gate_up_proj"], layer["experts.down_proj"], shared_gate_up,
        shared["down_proj.weight"]), y[0])
