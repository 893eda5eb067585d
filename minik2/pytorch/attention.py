"""Causal softmax attention: over keys and values by PyTorch's own fused kernel, and over latents.

Unusual here: the queries may be those of the last few tokens alone, and where a mask or scores are
needed, queries are taken in blocks, so that neither grows with the square of the context.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from minik2.pytorch.accelerated import kernels

# Numbers in one block's mask or scores.
AT_ONCE = 2**24
# In this order on a GPU. On an H200 cuDNN's kernel, the only one that is at its best with values
# narrower than keys, is there and back 9 times as fast as what PyTorch chooses by itself.
ORDER = [SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(scale q kᵀ + causal mask) v, head by head, for the last T of S tokens.

    q: (B, T, H, N + R); k: (B, S, H, N + R); v: (B, S, H, V); y: (B, T, H, V).
    Source: arXiv 1706.03762 eq. 1.
    """
    # MLA's values are narrower than its keys. The CPU's fused kernel wants them alike: without
    # these zeros PyTorch falls back to a T x T matrix and takes twice as long.
    narrower = q.shape[-1] - v.shape[-1]
    padded = F.pad(v, (0, narrower)) if narrower > 0 and v.device.type == "cpu" else v
    q, k, padded = q.transpose(1, 2), k.transpose(1, 2), padded.transpose(1, 2)
    tokens, before = q.shape[2], k.shape[2] - q.shape[2]
    if before == 0:
        on_cpu = q.device.type == "cpu"
        with nullcontext() if on_cpu else sdpa_kernel(ORDER, set_priority=True):
            y = F.scaled_dot_product_attention(q, k, padded, is_causal=True, scale=scale)
        return y.transpose(1, 2)[..., : v.shape[-1]]
    blocks = []
    for own in _blocks(tokens, k.shape[2]):
        seen = before + own.stop
        # is_causal would align the first query with the first key.
        mask = torch.ones(own.stop - own.start, seen, dtype=torch.bool, device=q.device)
        blocks.append(F.scaled_dot_product_attention(
            q[:, :, own], k[:, :, :seen], padded[:, :, :seen], mask.tril(before + own.start),
            scale=scale))  # fmt: skip
    y = blocks[0] if len(blocks) == 1 else torch.cat(blocks, 2)
    return y.transpose(1, 2)[..., : v.shape[-1]]


def absorbed(q: Tensor, held: Tensor, latent: int, last: Tensor | None) -> Tensor:
    """softmax(q heldᵀ + causal mask) held[..., :latent], the same keys for every head.

    q: (B, T, H, C + R), scaled already; held: (B, S, C + R), latents of C = `latent` numbers and
    rotary keys; last: (B, T) the last of the S tokens that each query sees, None where all see all;
    y: (B, T, H, C). The softmax is float32 at least. Source: arXiv 2405.04434 §2.1.2.
    """
    batch, tokens, heads, _ = q.shape
    if kernels is not None and kernels.takes_attention(q, held, latent):
        if last is None:
            last = torch.full((batch, 1), held.shape[1] - 1, device=q.device)
        return kernels.absorbed(q, held, latent, last)
    keys, values = held.transpose(1, 2), held[..., :latent]
    exact = torch.promote_types(q.dtype, torch.float32)
    blocks = []
    for own in _blocks(tokens, batch * heads * held.shape[1]):
        scores = torch.bmm(q[:, own].flatten(1, 2), keys)
        if last is not None:
            place = torch.arange(held.shape[1], device=q.device)
            unseen = place > last[:, own, None, None]
            scores.unflatten(1, (-1, heads)).masked_fill_(unseen, -torch.inf)
        shares = scores.softmax(-1, dtype=exact).to(q.dtype)
        blocks.append(torch.bmm(shares, values))
    y = blocks[0] if len(blocks) == 1 else torch.cat(blocks, 1)
    return y.unflatten(1, (tokens, heads))


def _blocks(tokens: int, numbers: int) -> list[slice]:
    """All tokens in order, as many at a time as AT_ONCE holds at `numbers` a token."""
    size = max(1, AT_ONCE // numbers)
    return [slice(start, min(start + size, tokens)) for start in range(0, tokens, size)]
