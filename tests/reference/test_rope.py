"""Frequencies, YaRN's boundaries and the softmax scale: the figures of the released models."""

import math

import numpy as np
import pytest

from minik2.config import ModelConfig, RopeScaling
from minik2.reference import rope

K2, V3 = ModelConfig.preset("kimi-k2"), ModelConfig.preset("deepseek-v3")
V2_LITE = ModelConfig.preset("deepseek-v2-lite")
THINKING = ModelConfig.preset("kimi-k2-thinking")
MOONLIGHT = ModelConfig.preset("moonlight-16b-a3b")
# K2.5 differs from K2-Thinking in beta_fast alone.
K2_5 = THINKING.replace(rope_scaling=RopeScaling(64, 4096, 32, 1, 1, 1))


@pytest.mark.parametrize(
    ("cfg", "low", "high"), [(K2, 19, 20), (V3, 10, 23), (V2_LITE, 10, 23), (K2_5, 8, 20)]
)
def test_where_yarns_ramp_lies(cfg, low, high):
    assert rope.yarn_boundaries(cfg, cfg.rope_scaling) == (low, high)
    plain = rope.inverse_frequencies(cfg.replace(rope_scaling=None))
    ratio = rope.inverse_frequencies(cfg) / plain
    factor = cfg.rope_scaling.factor
    assert np.allclose(ratio[: low + 1], 1, rtol=1e-15)
    assert np.allclose(ratio[high:], 1 / factor, rtol=1e-15)
    # Between the two, equal steps down.
    steps = np.diff(ratio[low : high + 1])
    assert np.allclose(steps, (1 / factor - 1) / (high - low), rtol=1e-12)


def test_k2s_ramp_is_a_hard_step():
    """Pairs 0 to 19 keep their frequency, 20 to 31 have it divided by 32: nothing in between."""
    i = np.arange(32)
    want = 50000.0 ** (-i / 32) / np.where(i < 20, 1, 32)
    assert np.allclose(rope.inverse_frequencies(K2), want, rtol=1e-14)


def test_plain_frequencies():
    assert np.allclose(
        rope.inverse_frequencies(MOONLIGHT), 50000.0 ** (-2 * np.arange(32) / 64), rtol=1e-14
    )


def test_a_ramp_of_no_width_does_not_divide_by_zero():
    # One pair, which turns so often that both boundaries lie beyond it.
    yarn = RopeScaling(32, 4096, 1, 1)
    cfg = MOONLIGHT.replace(qk_rope_head_dim=2, rope_theta=100.0, rope_scaling=yarn)
    assert rope.yarn_boundaries(cfg, yarn) == (1, 1)
    assert rope.inverse_frequencies(cfg).tolist() == [1.0]


@pytest.mark.parametrize(
    ("cfg", "scale"),
    [
        (K2, 0.13086), (MOONLIGHT, 0.07217), (V3, 1.87385 / math.sqrt(192)),
        (V2_LITE, 1.58963 / math.sqrt(192)), (THINKING, 2.00474 / math.sqrt(192)),
    ],
)  # fmt: skip
def test_softmax_scales(cfg, scale):
    # The published figures have five digits.
    assert rope.softmax_scale(cfg) == pytest.approx(scale, rel=5e-5)


def test_k2s_temperature():
    assert rope.mscale(32, 1) == pytest.approx(1.34657, abs=5e-6)
    assert rope.mscale(32, 1) ** 2 == pytest.approx(1.81326, abs=5e-6)
    assert rope.mscale(1, 1) == rope.mscale(0.5, 1) == 1


@pytest.mark.parametrize("cfg", [K2, V3, V2_LITE, THINKING, MOONLIGHT])
def test_the_released_models_do_not_scale_the_rotation(cfg):
    """cos and sin carry mscale / mscale_all_dim, which is 1 in every one of them."""
    cos, sin = rope.table(cfg, np.arange(64), np.float64)
    assert np.allclose(cos**2 + sin**2, 1, rtol=1e-14)


@pytest.mark.parametrize(
    ("mscale", "mscale_all_dim", "gain", "on_the_scale"),
    [(0.0, 0.0, 1.34657, 1.0), (1.0, 0.0, 1.34657, 1.0), (1.0, 1.0, 1.0, 1.81326),
     (0.707, 1.0, 1.24503 / 1.34657, 1.81326), (0.0, 1.0, 1.34657, 1.81326)],
)  # fmt: skip
def test_what_each_mscale_multiplies(mscale, mscale_all_dim, gain, on_the_scale):
    cfg = K2.replace(rope_scaling=RopeScaling(32, 4096, 1, 1, mscale, mscale_all_dim))
    cos, sin = rope.table(cfg, np.arange(5), np.float64)
    assert np.allclose(np.hypot(cos, sin), gain, rtol=1e-5)
    assert rope.softmax_scale(cfg) * math.sqrt(192) == pytest.approx(on_the_scale, rel=1e-5)


def test_the_last_position_of_k2_is_turned_to_float32s_own_precision():
    positions = np.array([131071])
    cos, sin = rope.table(K2, positions, np.float32)
    exact, _ = rope.table(K2, positions, np.float64)
    assert cos.dtype == sin.dtype == np.float32
    assert np.abs(cos - exact).max() <= 2**-24


def test_scores_depend_on_the_distance_alone():
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 1, 1, 64))

    def score(query_at, key_at):
        turned = [rope.rotate(x, *rope.table(K2, np.array([p]), np.float64))
                  for x, p in ((q, query_at), (k, key_at))]  # fmt: skip
        return float((turned[0] * turned[1]).sum())

    for distance in (0, 1, 17, 4000):
        scores = [score(start + distance, start) for start in (0, 5, 900, 100_000)]
        # Angles up to 104,000 radians, each right to 2e-11.
        assert np.ptp(scores) < 64 * 4 * 131072 * 2**-53 * np.abs(q).max() * np.abs(k).max()
    assert abs(score(10, 3) - score(3, 10)) > 1e-3
