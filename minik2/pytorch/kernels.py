"""Triton kernels for NVIDIA GPUs, where a measurement showed what they buy over library products.

Unusual here: there are three, and each exists to read or write less. Decoding's attention takes a
tile of latents once, as keys and as values, where two products would read it twice. The largest
logit of each head is found without writing a logit. Few tokens' experts are read where they lie.
Sizes that differ from model to model are arguments; what a kernel does not take, `fits` and its
like say, and the library's way is there for it. LAB_NOTES.md has the measurements.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E = tl.constexpr(1.4426950408889634)


@torch.compiler.assume_constant_result
def processors(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count


@triton.jit
def _attend(
    q, rows, last, parts, weights, row_stride, heads, splits,
    C: tl.constexpr, R: tl.constexpr, HEADS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One split of one sequence's cache for HEADS heads, with a running softmax."""
    b, group, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(last + b).to(tl.int32) + 1
    share = tl.cdiv(tl.cdiv(length, splits), TILE) * TILE
    start = split * share
    stop = tl.minimum(start + share, length)
    h = group * HEADS + tl.arange(0, HEADS)
    live = h < heads
    c, r = tl.arange(0, C), tl.arange(0, R)
    own = q + (b * heads + h)[:, None] * (C + R)
    q_latent = tl.load(own + c[None, :], mask=live[:, None], other=0.0)
    q_rotary = tl.load(own + C + r[None, :], mask=live[:, None], other=0.0)
    held = rows + b.to(tl.int64) * row_stride
    top = tl.full([HEADS], float("-inf"), tl.float32)
    total = tl.zeros([HEADS], tl.float32)
    y = tl.zeros([HEADS, C], tl.float32)
    for first in range(start, stop, TILE):
        place = first + tl.arange(0, TILE)
        seen = place < stop
        row = held + place[:, None] * (C + R)
        latent = tl.load(row + c[None, :], mask=seen[:, None], other=0.0)
        rotary = tl.load(row + C + r[None, :], mask=seen[:, None], other=0.0)
        scores = tl.dot(q_latent, tl.trans(latent)) + tl.dot(q_rotary, tl.trans(rotary))
        scores = tl.where(seen[None, :], scores * LOG2E, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        shrink = tl.exp2(top - higher)
        p = tl.exp2(scores - higher[:, None])
        total = total * shrink + tl.sum(p, 1)
        y = y * shrink[:, None] + tl.dot(p.to(latent.dtype), latent)
        top = higher
    at = (b * heads + h) * splits + split
    # An empty split weighs nothing: its total is 0 and its logarithm minus infinity.
    y = y / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(parts + at[:, None] * C + c[None, :], y, mask=live[:, None])
    tl.store(weights + at, top + tl.log2(total), mask=live)


@triton.jit
def _join(parts, weights, y, C: tl.constexpr, SPLITS: tl.constexpr):
    """The splits of one head, each by its share of the softmax's sum."""
    at = tl.program_id(0).to(tl.int64)
    c, s = tl.arange(0, C), tl.arange(0, SPLITS)
    power = tl.load(weights + at * SPLITS + s)
    share = tl.exp2(power - tl.max(power, 0))
    share = share / tl.sum(share, 0)
    part = tl.load(parts + (at * SPLITS + s)[:, None] * C + c[None, :])
    total = tl.sum(part * share[:, None], 0)
    tl.store(y + at * C + c, total.to(y.dtype.element_ty))


def takes_attention(q: Tensor, held: Tensor, latent: int) -> bool:
    """Whether `absorbed` takes these: one query a sequence, 16 bits, powers of two."""
    rotary = q.shape[-1] - latent
    return (
        _in_16_bits(q, held)
        and q.shape[1] == 1
        and _is_power(latent, 512)
        and _is_power(rotary, 128)
        and held.stride()[1:] == (q.shape[-1], 1)
    )


# Heads, tokens a tile, splits for each processor, warps, stages: the best of those tried on an
# H200 (benchmarks.gpu_kernels --tune).
HEADS, TILE, WAVES, WARPS, STAGES = 16, 64, 1, 4, 3
MOST_SPLITS = 64


def absorbed(q: Tensor, held: Tensor, latent: int, last: Tensor) -> Tensor:
    """As `attention.absorbed`, for one query a sequence: every cached row is read once.

    q: (B, 1, H, C + R), scaled; held: (B, S, C + R); last: (B, 1); y: (B, 1, H, C). Lengths are
    read on the device, so a recorded step serves all of them.
    """
    batch, _, heads, width = q.shape
    groups = triton.cdiv(heads, HEADS)
    wanted = WAVES * processors(q.device) // (batch * groups)
    longest = triton.cdiv(held.shape[1], TILE)
    splits = min(MOST_SPLITS, triton.next_power_of_2(max(1, min(wanted, longest))))
    parts = torch.empty(batch, heads, splits, latent, dtype=torch.float32, device=q.device)
    weights = torch.empty(batch, heads, splits, dtype=torch.float32, device=q.device)
    _attend[(batch, groups, splits)](
        q.contiguous(), held, last, parts, weights, held.stride(0), heads, splits,
        C=latent, R=width - latent, HEADS=HEADS, TILE=TILE, num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip
    y = torch.empty(batch, 1, heads, latent, dtype=q.dtype, device=q.device)
    _join[(batch * heads,)](parts, weights, y, C=latent, SPLITS=splits)
    return y


@triton.jit
def _largest(
    q, k, tops, tokens, heads, scale,
    WIDE: tl.constexpr, REST: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The largest logit of TILE queries of one head over the keys that they see."""
    block, at = tl.program_id(0), tl.program_id(1)
    b, h = at // heads, at % heads
    t = block * TILE + tl.arange(0, TILE)
    d, e = tl.arange(0, WIDE), WIDE + tl.arange(0, REST)
    base = b.to(tl.int64) * tokens * heads + h
    own = q + (base + t.to(tl.int64) * heads)[:, None] * WIDTH
    here = t < tokens
    first = tl.load(own + d[None, :], mask=here[:, None], other=0.0)
    second = tl.load(own + e[None, :], mask=here[:, None] & (e < WIDTH)[None, :], other=0.0)
    top = tl.full([TILE, TILE], float("-inf"), tl.float32)
    for start in range(0, (block + 1) * TILE, TILE):
        s = start + tl.arange(0, TILE)
        there = k + (base + s.to(tl.int64) * heads)[None, :] * WIDTH
        held = s < tokens
        logits = tl.dot(first, tl.load(there + d[:, None], mask=held[None, :], other=0.0))
        rest = tl.load(there + e[:, None], mask=held[None, :] & (e < WIDTH)[:, None], other=0.0)
        logits += tl.dot(second, rest)
        seen = (s[None, :] <= t[:, None]) & here[:, None]
        # A maximum that takes NaN for the larger, so that a broken logit is seen.
        top = tl.maximum(top, tl.where(seen, logits, float("-inf")),
                         propagate_nan=tl.PropagateNan.ALL)  # fmt: skip
    most = tl.reduce(tl.reduce(top, 1, _larger), 0, _larger)
    tl.store(tops + at * tl.num_programs(0) + block, most * scale)


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


LARGEST_TILE, LARGEST_WARPS, LARGEST_STAGES = 64, 4, 2


def takes_logits(q: Tensor, k: Tensor) -> bool:
    """Whether `max_logits` takes these: 16 bits on a GPU, 32 to 256 numbers a head."""
    return _in_16_bits(q, k) and 32 <= q.shape[-1] <= 256


def max_logits(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """As `qk_clip.max_logits`: (H,) float32, no logit written, none rounded to 16 bits."""
    batch, tokens, heads, width = q.shape
    wide = triton.next_power_of_2(width + 1) // 2
    rest = max(16, triton.next_power_of_2(width - wide)) if width > wide else 16
    blocks = triton.cdiv(tokens, LARGEST_TILE)
    tops = torch.empty(batch, heads, blocks, dtype=torch.float32, device=q.device)
    _largest[(blocks, batch * heads)](
        q.contiguous(), k.contiguous(), tops, tokens, heads, scale, WIDE=wide, REST=rest,
        WIDTH=width, TILE=LARGEST_TILE, num_warps=LARGEST_WARPS, num_stages=LARGEST_STAGES,
    )  # fmt: skip
    return tops.amax(dim=(0, 2))


@triton.jit
def _gate_up(
    x, indices, stack, hidden, size, width, K: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """silu(gate x) · up x for ROWS hidden numbers of one (token, choice) pair."""
    pair, block = tl.program_id(0), tl.program_id(1)
    expert = tl.load(indices + pair)
    i, d = block * ROWS + tl.arange(0, ROWS), tl.arange(0, TILE)
    live = i < width
    gate_rows = stack + (expert * 2 * width + i)[:, None] * size
    gate = tl.zeros([ROWS, TILE], tl.float32)
    up = tl.zeros([ROWS, TILE], tl.float32)
    for start in range(0, size, TILE):
        at = start + d
        mask = live[:, None] & (at < size)[None, :]
        own = tl.load(x + (pair // K) * size + at, mask=at < size, other=0.0)
        own, place = own.to(tl.float32)[None, :], gate_rows + at[None, :]
        gate += own * tl.load(place, mask=mask, other=0.0).to(tl.float32)
        up += own * tl.load(place + width.to(tl.int64) * size, mask=mask, other=0.0).to(tl.float32)
    g, u = tl.sum(gate, 1), tl.sum(up, 1)
    y = g / (1.0 + tl.exp(-g)) * u
    tl.store(hidden + pair * width + i, y.to(hidden.dtype.element_ty), mask=live)


@triton.jit
def _down(
    hidden, indices, weights, stack, y, size, width, K: tl.constexpr, ROWS: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """Σ_k weight_k down_k hidden_k for ROWS numbers of one token."""
    token, block = tl.program_id(0), tl.program_id(1)
    d, i = block * ROWS + tl.arange(0, ROWS), tl.arange(0, TILE)
    live = d < size
    total = tl.zeros([ROWS, TILE], tl.float32)
    for k in range(K):
        pair = token * K + k
        expert = tl.load(indices + pair)
        weight = tl.load(weights + pair).to(tl.float32)
        rows = stack + (expert * size + d)[:, None] * width
        for start in range(0, width, TILE):
            at = start + i
            own = tl.load(hidden + pair * width + at, mask=at < width, other=0.0).to(tl.float32)
            mask = live[:, None] & (at < width)[None, :]
            matrix = tl.load(rows + at[None, :], mask=mask, other=0.0).to(tl.float32)
            total += (weight * own)[None, :] * matrix
    tl.store(y + token * size + d, tl.sum(total, 1).to(y.dtype.element_ty), mask=live)


EXPERT_ROWS, EXPERT_TILE, EXPERT_WARPS = 1, 1024, 4
# With more tokens the experts' matrices would be read more than once.
FEW = 4


def takes_experts(x: Tensor, stack: Tensor) -> bool:
    """Whether `experts` takes these: a few tokens in 16 bits on a GPU, no gradient."""
    return _in_16_bits(x, stack) and len(x) <= FEW and not torch.is_grad_enabled()


def experts(
    x: Tensor, indices: Tensor, weights: Tensor, gate_up_proj: Tensor, down_proj: Tensor
) -> Tensor:
    """As `grouped.experts`, pair by pair: each chosen matrix is read once for each token."""
    (tokens, chosen), hidden, width = indices.shape, x.shape[1], down_proj.shape[2]
    middle = x.new_empty(tokens * chosen, width)
    _gate_up[(tokens * chosen, triton.cdiv(width, EXPERT_ROWS))](
        x.contiguous(), indices.contiguous(), gate_up_proj, middle, hidden, width, K=chosen,
        ROWS=EXPERT_ROWS, TILE=EXPERT_TILE, num_warps=EXPERT_WARPS,
    )  # fmt: skip
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    _down[(tokens, triton.cdiv(hidden, EXPERT_ROWS))](
        middle, indices.contiguous(), weights.contiguous(), down_proj, y, hidden, width, K=chosen,
        ROWS=EXPERT_ROWS, TILE=EXPERT_TILE, num_warps=EXPERT_WARPS,
    )  # fmt: skip
    return y


def _in_16_bits(left: Tensor, right: Tensor) -> bool:
    """What all of them ask for: a GPU, and two operands of one 16-bit dtype."""
    return left.device.type == "cuda" and left.dtype == right.dtype in (
        torch.bfloat16, torch.float16)  # fmt: skip


def _is_power(size: Any, most: int) -> bool:
    return 16 <= size <= most and size & (size - 1) == 0
