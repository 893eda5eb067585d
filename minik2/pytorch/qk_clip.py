"""QK-Clip in torch: the heads' largest logits, and the edit of the up-projections' rows."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from minik2.config import ModelConfig
from minik2.pytorch.accelerated import kernels

# Queries taken at a time, and the most logits held at a time if that allows 16 of them: 128 MB in
# bfloat16. No T x T matrix is ever held.
BLOCK, LOGITS = 512, 2**26


@torch.no_grad()
def max_logits(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Each head's largest logit: max over b, t and s ≤ t of scale q_t · k_s, signed.

    q, k: (B, T, H, N + R); scale > 0; returns (H,), float32 for 16-bit inputs. Fused attention does
    not tell its largest logit, so this is a pass of its own, about B H T² (N + R) multiplications
    and additions for long T. In 16 bits the result is the true maximum rounded, because rounding
    keeps the order: up to 0.4% off in bfloat16; a GPU's kernel does not round it. The maxima of
    several batches are joined by torch.maximum. Source: arXiv 2507.20534 §2.1 (after softmax
    scaling, before the softmax).
    """
    if kernels is not None and kernels.takes_logits(q, k):
        return kernels.max_logits(q, k, scale)
    batch, tokens, heads, _ = q.shape
    queries, keys = q.transpose(1, 2), k.permute(0, 2, 3, 1)
    block = min(BLOCK, max(16, LOGITS // (batch * heads * tokens)))
    tops = []
    for start in range(0, tokens, block):
        stop = min(start + block, tokens)
        logits = queries[:, :, start:stop] @ keys[..., :stop]
        # Keys before the block are seen by all of its queries; only its own need a mask.
        own = torch.ones(stop - start, stop - start, dtype=torch.bool, device=q.device).triu(1)
        logits[..., start:].masked_fill_(own, -torch.inf)
        tops.append(logits.amax(dim=(0, 2, 3)))
    exact = torch.promote_types(q.dtype, torch.float32)
    return torch.stack(tops).amax(dim=0).to(exact) * scale


def check_tau(tau: float) -> None:
    """Raises ValueError for a tau that no logit can be held to."""
    if not 0 < tau < math.inf:
        raise ValueError(f"QK-Clip's tau is the largest logit allowed, above 0, not {tau}.")


@torch.no_grad()
def gamma(max_logits: Tensor, cfg: ModelConfig, tau: float) -> Tensor:
    """γ = min(1, tau / max_logits) of one layer's heads, (H,), 1 exactly for heads left alone.

    Raises ValueError for another number of heads, a tau that is 0 or less or infinite, and maxima
    that are not finite.
    """
    heads = cfg.num_attention_heads
    if max_logits.shape != (heads,):
        raise ValueError(
            f"QK-Clip wants one maximum for each of {heads} heads, shape ({heads},), not "
            f"{tuple(max_logits.shape)}."
        )
    check_tau(tau)
    finite = max_logits.isfinite()
    if not finite.all():
        bad = (~finite).nonzero().flatten().tolist()
        raise ValueError(
            f"The largest logits of heads {bad} are not finite; go back to a good checkpoint."
        )
    return shrink(max_logits, tau)


def shrink(max_logits: Tensor, tau: float) -> Tensor:
    """`gamma` of any number of layers, unchecked: the host need not wait for the numbers."""
    # In 16 bits γ itself would be off by up to 0.4%.
    exact = max_logits.to(torch.promote_types(max_logits.dtype, torch.float32))
    # torch takes a number over a tensor as its reciprocal times the number: 49 / 49 is not 1 then.
    return torch.full_like(exact, tau) / exact.clamp(min=tau)


def row_factors(gamma: Tensor, cfg: ModelConfig) -> dict[str, Tensor]:
    """What each row is multiplied with, by checkpoint name below `self_attn.`; gamma (H,).

    √γ for the parts without position, which meet in a product, γ for the rotary query, whose key
    all heads share, and 1, which changes no bit, for the values. Source: arXiv 2507.20534
    algorithm 1.
    """
    root, ones = gamma.sqrt(), torch.ones_like(gamma)

    def rows(*parts: tuple[Tensor, int]) -> Tensor:
        return torch.cat([f[:, None].expand(-1, size) for f, size in parts], 1).flatten()

    query = "q_proj.weight" if cfg.q_lora_rank is None else "q_b_proj.weight"
    return {
        query: rows((root, cfg.qk_nope_head_dim), (gamma, cfg.qk_rope_head_dim)),
        "kv_b_proj.weight": rows((root, cfg.qk_nope_head_dim), (ones, cfg.v_head_dim)),
    }


@torch.no_grad()
def clip(
    weights: Mapping[str, Tensor], max_logits: Tensor, cfg: ModelConfig, tau: float = 100.0
) -> Tensor:
    """Scale one layer's heads in place so that the logits that gave max_logits are at most tau.

    weights: checkpoint names below `self_attn.`, master copies where there are any, or the next
    update would undo the edit; max_logits: (H,), the largest logit of each head over the whole
    batch and all ranks; returns `gamma`, and raises what it raises.
    Source: arXiv 2507.20534 algorithm 1; tau 100 is K2's.
    """
    factor = gamma(max_logits, cfg, tau)
    scale_rows(weights, factor, cfg)
    return factor


@torch.no_grad()
def scale_rows(weights: Mapping[str, Tensor], gamma: Tensor, cfg: ModelConfig) -> None:
    """Multiply one layer's rows by `row_factors`, in place."""
    for name, rows in row_factors(gamma, cfg).items():
        weight = weights[name]
        exact = torch.promote_types(weight.dtype, torch.float32)
        weight.mul_(rows.to(weight.device, exact)[:, None])
