"""Rotary positions: pairs of numbers turned by an angle that grows with the token's position.

Unusual here: pairs are neighbours (0,1), (2,3), … as the checkpoints store them, and YaRN's ramp
is computed from the config, so that K2's (a hard step, because beta_fast = beta_slow) and V3's
(a slope) come out of the same three lines.
"""

import math
from typing import Any

import numpy as np

from minik2.config import ModelConfig, RopeScaling
from minik2.reference import kernels

Array = np.ndarray[Any, np.dtype[Any]]


def inverse_frequencies(cfg: ModelConfig) -> Array:
    """Radians a position for each pair: (R/2,) float64.

    theta^(-2i/R), and under YaRN the slow pairs (few turns over the original context) divided by
    `factor`, with a linear ramp between. Source: arXiv 2309.00071 §3.2.
    """
    size = cfg.qk_rope_head_dim
    plain = cfg.rope_theta ** (-np.arange(0, size, 2) / size)
    if cfg.rope_scaling is None:
        return plain
    low, high = yarn_boundaries(cfg, cfg.rope_scaling)
    width = high - low or 0.001
    slow = np.clip((np.arange(size // 2) - low) / width, 0, 1)
    return plain * (1 - slow) + plain / cfg.rope_scaling.factor * slow


def yarn_boundaries(cfg: ModelConfig, scaling: RopeScaling) -> tuple[int, int]:
    """Pairs (low, high): up to `low` a pair keeps its frequency, from `high` on it is divided."""
    size, context = cfg.qk_rope_head_dim, scaling.original_max_position_embeddings

    def pair_that_turns(times: float) -> float:
        turns = math.log(context / (2 * math.pi * times))
        return size * turns / (2 * math.log(cfg.rope_theta))

    low = max(math.floor(pair_that_turns(scaling.beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(scaling.beta_slow)), size - 1)
    return low, high


def mscale(factor: float, strength: float) -> float:
    """YaRN's temperature 0.1 strength ln(factor) + 1; 1 where nothing is stretched."""
    return 0.1 * strength * math.log(factor) + 1 if factor > 1 else 1.0


def softmax_scale(cfg: ModelConfig) -> float:
    """What multiplies q·k before the softmax: 1/sqrt(N + R), times mscale² under YaRN.

    Source: DeepSeek-V3's inference/model.py. K2: 0.13086.
    """
    scale = cfg.qk_head_dim**-0.5
    yarn = cfg.rope_scaling
    if yarn is None or not yarn.mscale_all_dim:
        return scale
    return scale * mscale(yarn.factor, yarn.mscale_all_dim) ** 2


def table(cfg: ModelConfig, positions: Array, dtype: Any) -> tuple[Array, Array]:
    """cos and sin of every position's angles: two (T, R/2) arrays of `dtype`.

    Angles are taken in float64: at position 131,072 a float32 angle is off by 0.004 radians.
    """
    angles = np.outer(np.asarray(positions, np.float64), inverse_frequencies(cfg))
    gain = 1.0
    if (yarn := cfg.rope_scaling) is not None:
        # YaRN also scales the rotated parts, unless mscale_all_dim says it is done to all of q·k.
        if yarn.mscale and yarn.mscale_all_dim:
            gain = mscale(yarn.factor, yarn.mscale) / mscale(yarn.factor, yarn.mscale_all_dim)
        else:
            gain = mscale(yarn.factor, 1.0)
    return (np.cos(angles) * gain).astype(dtype), (np.sin(angles) * gain).astype(dtype)


def rotate(
    x: Array, cos: Array, sin: Array, interleave: bool = True, out: Array | None = None
) -> Array:
    """Turn every pair of x by its token's angle: (a, b) -> (a cos - b sin, a sin + b cos).

    x: (..., T, heads, R); cos, sin: (T, R/2), or with x's leading axes before T. Pairs are
    neighbours, or the two halves of the vector when `interleave` is false. out: where the result
    goes, x itself if need be; a new array where none is given.
    Source: arXiv 2104.09864 eq. 34.
    """
    *lead, tokens, heads, size = x.shape
    y = np.empty(x.shape, x.dtype) if out is None else out
    cos = np.broadcast_to(cos, (*lead, tokens, size // 2)).reshape(-1, size // 2)
    sin = np.broadcast_to(sin, (*lead, tokens, size // 2)).reshape(-1, size // 2)
    step, other = (2, 1) if interleave else (1, size // 2)
    flat = (-1, heads, size)
    kernels.rotate_pairs(x.reshape(flat), cos, sin, y.reshape(flat, copy=False), step, other)
    return y


def backward(
    dy: Array, cos: Array, sin: Array, interleave: bool = True, out: Array | None = None
) -> Array:
    """The gradient of `rotate`'s x: the same pairs turned back, and stretched by the same gain."""
    return rotate(dy, cos, -sin, interleave, out)


def to_halves(size: int) -> Array:
    """Indices p that turn the neighbours layout into the halves layout: halves = pairs[..., p].

    >>> to_halves(6).tolist()
    [0, 2, 4, 1, 3, 5]
    """
    return np.concatenate([np.arange(0, size, 2), np.arange(1, size, 2)])
