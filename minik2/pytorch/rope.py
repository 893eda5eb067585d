"""Rotary positions in torch: the angles of a config, and the turning of pairs."""

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from minik2.config import ModelConfig


# Asked for at every token of a decoding; the answer is not to be written to.
@lru_cache
@torch.inference_mode(False)
def inverse_frequencies(cfg: ModelConfig) -> Tensor:
    """Radians a position for each pair: (R/2,) float64. Source: arXiv 2309.00071 §3.2."""
    size, yarn = cfg.qk_rope_head_dim, cfg.rope_scaling
    pair = torch.arange(size // 2, dtype=torch.float64, device="cpu")
    plain = cfg.rope_theta ** (-2 * pair / size)
    if yarn is None:
        return plain

    def pair_that_turns(times: float) -> float:
        turns = math.log(yarn.original_max_position_embeddings / (2 * math.pi * times))
        return size * turns / (2 * math.log(cfg.rope_theta))

    low = max(math.floor(pair_that_turns(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(yarn.beta_slow)), size - 1)
    slow = ((pair - low) / (high - low or 0.001)).clamp(0, 1)
    return torch.lerp(plain, plain / yarn.factor, slow)


# A recorded step of decoding may not wait for the host to send them.
@lru_cache
@torch.inference_mode(False)
def _frequencies_on(cfg: ModelConfig, device: torch.device) -> Tensor:
    return inverse_frequencies(cfg).to(device)


def mscale(factor: float, strength: float) -> float:
    """YaRN's temperature 0.1 strength ln(factor) + 1; 1 where nothing is stretched."""
    return 0.1 * strength * math.log(factor) + 1 if factor > 1 else 1.0


def softmax_scale(cfg: ModelConfig) -> float:
    """What multiplies q·k: 1/sqrt(N + R), times mscale² under YaRN."""
    scale, yarn = cfg.qk_head_dim**-0.5, cfg.rope_scaling
    if yarn is not None and yarn.mscale_all_dim:
        scale *= mscale(yarn.factor, yarn.mscale_all_dim) ** 2
    return scale


def table(cfg: ModelConfig, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of every position's angles, (T, R/2) each; angles are taken in float64."""
    frequencies = _frequencies_on(cfg, positions.device)
    angles = torch.outer(positions.double(), frequencies)
    gain, yarn = 1.0, cfg.rope_scaling
    if yarn is not None:
        gain = mscale(yarn.factor, 1.0)
        if yarn.mscale and yarn.mscale_all_dim:
            gain = mscale(yarn.factor, yarn.mscale) / mscale(yarn.factor, yarn.mscale_all_dim)
    return (angles.cos() * gain).to(dtype), (angles.sin() * gain).to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleave: bool = True) -> Tensor:
    """Turn every pair (a, b) of x to (a cos - b sin, a sin + b cos).

    x: (..., T, heads, R); cos, sin: (T, R/2) in float32 or wider, in which the turn is computed.
    Pairs are neighbours, or the two halves when `interleave` is false; y in x's dtype and layout.
    """
    pairs = x.unflatten(-1, (-1, 2)) if interleave else x.unflatten(-1, (2, -1)).transpose(-1, -2)
    on_cpu = x.device.type == "cpu" and not torch.compiler.is_compiling()
    if interleave and on_cpu:
        turn = _AsComplex.apply if torch.is_grad_enabled() else _as_complex
        return turn(pairs.to(cos.dtype), cos, sin).flatten(-2).type_as(x)
    a, b = pairs.unbind(-1)
    cos, sin = cos[:, None], sin[:, None]
    turned = (a * cos - b * sin, a * sin + b * cos)
    if interleave:
        return torch.stack(turned, -1).flatten(-2).type_as(x)
    return torch.cat(turned, -1).type_as(x)


def _as_complex(pairs: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(a + ib)(cos + i sin), one pass over memory where a CPU makes six of the above."""
    numbers = *pairs.stride()[:-1], pairs.storage_offset()
    if pairs.stride(-1) != 1 or any(n % 2 for n in numbers):
        pairs = pairs.clone(memory_format=torch.contiguous_format)
    return torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cos, sin)[:, None])


class _AsComplex(torch.autograd.Function):
    """The same with a gradient, which is turned back; autograd's own keeps a table every time."""

    @staticmethod
    def forward(ctx: Any, pairs: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _as_complex(pairs, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _as_complex(dy, cos, -sin), None, None
