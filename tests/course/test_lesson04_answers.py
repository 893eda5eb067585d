"""The right answers of lesson 04 are the engine's functions, on drawn and on released configs."""

import numpy as np
import pytest
import torch

import minik2
from minik2 import pytorch, reference
from minik2.checks import exercises
from minik2.config import RopeScaling

RIGHT = {e.id: e.reference for e in exercises()}
RELEASED = ["kimi-k2", "kimi-k2-thinking", "deepseek-v3", "deepseek-v2-lite"]


def stretched(rng):
    """A config with drawn YaRN, whose two strengths are one, as in every released model."""
    slow, strength = float(rng.uniform(0.2, 3)), float(rng.uniform(0.3, 2))
    return minik2.ModelConfig.preset("tiny").replace(
        qk_rope_head_dim=2 * int(rng.integers(4, 40)), rope_theta=float(rng.uniform(50, 60_000)),
        rope_scaling=RopeScaling(
            factor=float(rng.uniform(1, 60)),
            original_max_position_embeddings=int(rng.integers(64, 9000)),
            beta_fast=slow + float(rng.choice([0, rng.uniform(1, 40)])), beta_slow=slow,
            mscale=strength, mscale_all_dim=strength))


def configs():
    rng = np.random.default_rng()
    drawn = [stretched(rng) for _ in range(50)]
    return drawn + [minik2.ModelConfig.preset(name) for name in RELEASED]


def test_boundaries_frequencies_and_scale_are_the_engines():
    for cfg in configs():
        config = cfg.to_json()
        assert tuple(RIGHT["yarn.boundary_pairs"](config)) == reference.rope.yarn_boundaries(
            cfg, cfg.rope_scaling), cfg
        for rope in (reference.rope, pytorch.rope):
            np.testing.assert_allclose(RIGHT["yarn.inverse_frequencies"](config),
                                       rope.inverse_frequencies(cfg), rtol=1e-13, err_msg=str(cfg))
            assert RIGHT["yarn.softmax_scale"](config) == pytest.approx(
                rope.softmax_scale(cfg), rel=1e-14), cfg


def test_a_score_is_what_the_engine_gives_to_the_softmax():
    """The same rotation, dot product and scale as in a layer: its largest q·k, times its scale."""
    rng = np.random.default_rng()
    for cfg in configs():
        m = int(rng.integers(1, 5000))
        q, k = rng.normal(size=(2, cfg.qk_head_dim))
        cut = cfg.qk_nope_head_dim
        cos, sin = reference.rope.table(cfg, np.array([m, 0]), np.float64)
        rotary = reference.rope.rotate(np.stack([q, k])[:, None, cut:], cos, sin)
        queries, keys = (np.append(x[:cut], r) for x, r in zip((q, k), rotary[:, 0], strict=True))
        scale = reference.rope.softmax_scale(cfg)
        _, saved = reference.attention.forward(
            queries[None, None, None], keys[None, None, None], np.ones((1, 1, 1, 1)), scale)
        ours = RIGHT["yarn.score"](q, k, m, 0, cfg.to_json())
        assert ours == pytest.approx(saved["tops"].item() * scale, rel=1e-9, abs=1e-9), cfg


def test_released_models_frequencies_and_scales_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as theirs

    from tests.oracle.twin import in_float64
    for name in RELEASED[:3]:
        cfg = minik2.ModelConfig.preset(name)
        config = transformers.AutoConfig.for_model(**cfg.to_json())
        with in_float64():
            frequencies = theirs.DeepseekV3RotaryEmbedding(config).inv_freq
        assert frequencies.dtype == torch.float64
        np.testing.assert_allclose(RIGHT["yarn.inverse_frequencies"](cfg.to_json()), frequencies,
                                   rtol=1e-13)
        scale = theirs.yarn_apply_mscale(config.rope_parameters, cfg.qk_head_dim**-0.5)
        assert RIGHT["yarn.softmax_scale"](cfg.to_json()) == pytest.approx(scale, rel=1e-14)
