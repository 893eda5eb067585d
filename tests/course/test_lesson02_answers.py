"""Lesson 02's right answers held against the engine and against the shapes of real models."""

import numpy as np
import pytest

import minik2
from minik2 import reference
from minik2.checks import exercises

BY_ID = {e.id: e.reference for e in exercises()}


def config(rng):
    """Every size another one, an eps that shows."""
    return minik2.ModelConfig.preset("tiny").replace(
        hidden_size=26, num_attention_heads=3, q_lora_rank=11, kv_lora_rank=9,
        qk_nope_head_dim=5, qk_rope_head_dim=4, v_head_dim=7, rope_theta=333.0,
        rope_scaling=None, rms_norm_eps=float(rng.uniform(1e-6, 0.3)))


@pytest.fixture
def block():
    """A config, its attention's weights with norms away from 1, x, positions, and the engine's."""
    rng = np.random.default_rng()
    cfg = config(rng)
    weights = {}
    for name, shape in cfg.tensor_shapes().items():
        if name.startswith("model.layers.0.self_attn."):
            noise = rng.normal(size=shape)
            weights[name.removeprefix("model.layers.0.self_attn.")] = (
                1 + 0.3 * noise if len(shape) == 1 else noise / shape[1] ** 0.5)
    x, positions = rng.normal(size=(9, 26)), np.sort(rng.choice(500, 9, replace=False))
    cos, sin = reference.rope.table(cfg, positions, np.float64)
    y, saved = reference.mla.forward(x[None], weights, cfg, cos, sin)
    return cfg, weights, x, positions, y[0], saved


def equal(got, want):
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * np.abs(want).max())


def test_expand_kv_is_the_engines(block):
    cfg, weights, x, _, _, saved = block
    names = ("kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj")
    k_nope, v = BY_ID["mla.expand_kv"](
        x, *(weights[f"{name}.weight"] for name in names), 3, 5, cfg.rms_norm_eps)
    equal(k_nope, saved["attention"]["k"][0, ..., :5])
    equal(v, saved["attention"]["v"][0])


def test_split_and_rotate_is_the_engines(block):
    cfg, weights, x, positions, _, saved = block
    q = saved["q_latent"][0] @ weights["q_b_proj.weight"].T
    compressed = x @ weights["kv_a_proj_with_mqa.weight"].T
    k_nope = saved["attention"]["k"][0, ..., :5]
    q, k = BY_ID["mla.split_and_rotate"](q, k_nope, compressed, positions, cfg.rope_theta)
    equal(q, saved["attention"]["q"][0])
    equal(k, saved["attention"]["k"][0])


def test_forward_is_the_engines(block):
    cfg, weights, x, positions, y, _ = block
    equal(BY_ID["mla.forward"](x, weights, positions, 3, 5, cfg.rope_theta, cfg.rms_norm_eps), y)


@pytest.mark.parametrize("preset", ["kimi-k2", "deepseek-v3", "small", "tiny"])
def test_parameters_are_the_checkpoints(preset):
    cfg = minik2.ModelConfig.preset(preset)
    stored = [shape for name, shape in cfg.tensor_shapes().items()
              if name.startswith("model.layers.0.self_attn.") and len(shape) == 2]
    assert len(stored) == 5
    assert BY_ID["mla.parameters"](cfg.to_json()) == sum(a * b for a, b in stored)
