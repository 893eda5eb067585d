"""Lesson 09's right answers are both engines', whole and part by part."""

import numpy as np
import pytest
import torch

import minik2
from minik2 import pytorch, reference
from minik2.checks.exercise import find


def right(name):
    return find(f"muonclip.{name}").reference


def test_the_maxima_are_the_engines_of_one_sequence():
    rng = np.random.default_rng()
    q, k = rng.normal(size=(2, 150, 5, 6))
    want = right("max_logits")(q, k, 0.3)
    np.testing.assert_allclose(
        reference.qk_clip.max_logits(q[None], k[None], 0.3), want, rtol=0, atol=1e-12)
    twin = pytorch.qk_clip.max_logits(*(torch.tensor(a)[None] for a in (q, k)), 0.3)
    np.testing.assert_allclose(twin.numpy(), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("preset", ["small", "tiny", "kimi-k2"])
def test_gamma_and_row_factors_are_the_torch_engines(preset):
    cfg = minik2.ModelConfig.preset(preset)
    rng = np.random.default_rng()
    maxima = 100 * rng.normal(size=cfg.num_attention_heads)
    gamma = right("gamma")(maxima, 40.0)
    twin = pytorch.qk_clip.gamma(torch.tensor(maxima), cfg, 40.0)
    np.testing.assert_allclose(twin.numpy(), gamma, rtol=1e-12)
    query, key = right("row_factors")(
        gamma, cfg.qk_nope_head_dim, cfg.qk_rope_head_dim, cfg.v_head_dim)
    twins = pytorch.qk_clip.row_factors(torch.tensor(gamma), cfg)
    np.testing.assert_allclose(twins["q_b_proj.weight"].numpy(), query, rtol=1e-12)
    np.testing.assert_allclose(twins["kv_b_proj.weight"].numpy(), key, rtol=1e-12)


@pytest.mark.parametrize("preset", ["small", "tiny"])
def test_clip_block_is_what_the_reference_engine_does_in_place(preset):
    cfg = minik2.ModelConfig.preset(preset)
    rng = np.random.default_rng()
    shapes = cfg.tensor_shapes()
    weights = {name: rng.normal(size=shapes[f"model.layers.0.self_attn.{name}"])
               for name in ("q_b_proj.weight", "kv_b_proj.weight")}
    maxima = np.append(90.0, 60 * rng.normal(size=cfg.num_attention_heads - 1))
    want = right("clip_block")(*(weights[n].copy() for n in weights), maxima, 30.0,
                               cfg.qk_nope_head_dim, cfg.qk_rope_head_dim)
    before = {name: array.copy() for name, array in weights.items()}
    reference.qk_clip.clip(weights, maxima, cfg, 30.0)
    for name, array in zip(weights, want, strict=True):
        np.testing.assert_allclose(weights[name], array, rtol=1e-12)
        assert np.abs(array - before[name]).max() > 0.1
