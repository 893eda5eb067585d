"""QK-Clip: after an update, heads whose logits grew past a threshold are scaled back to it.

Unusual here: nothing in the forward pass changes. A logit is a sum of two products, one of the
no-position parts and one of the rotary parts; both must shrink by γ. The first is shared out, √γ
to the query and √γ to the key. The rotary key belongs to all heads, so there the query takes all
of γ. What is edited are rows of the up-projections: a norm stands behind the down-projections and
would undo the edit.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from minik2.config import ModelConfig
from minik2.reference.attention import SCORES

Array = np.ndarray[Any, np.dtype[Any]]


def max_logits(q: Array, k: Array, scale: float) -> Array:
    """Each head's largest logit: max over b, t and s ≤ t of scale q_t · k_s, signed.

    q, k: (B, T, H, N + R), what `mla.forward` saves under "attention" with its scale; scale > 0;
    returns (H,). The maxima of several batches are joined by np.maximum. Source: arXiv 2507.20534
    §2.1 (after softmax scaling, before the softmax).
    """
    batch, tokens, heads, _ = q.shape
    top = np.full(heads, -np.inf, q.dtype)
    queries, keys = q.transpose(0, 2, 1, 3), k.transpose(0, 2, 3, 1)
    # In blocks of queries: no T x T matrix is ever held.
    block = min(128, max(16, SCORES // (batch * heads * tokens)))
    for start in range(0, tokens, block):
        stop = min(start + block, tokens)
        logits = queries[:, :, start:stop] @ keys[..., :stop]
        unseen = np.arange(stop) > np.arange(start, stop)[:, None]
        logits[..., unseen] = -np.inf
        top = np.maximum(top, logits.max(axis=(0, 2, 3)))
    return top * q.dtype.type(scale)


def check_tau(tau: float) -> None:
    """Raises ValueError for a tau that no logit can be held to."""
    if not 0 < tau < math.inf:
        raise ValueError(f"QK-Clip's tau is the largest logit allowed, above 0, not {tau}.")


def clip(
    weights: Mapping[str, Array], max_logits: Array, cfg: ModelConfig, tau: float = 100.0
) -> Array:
    """Scale one layer's heads in place so that the logits that gave max_logits are at most tau.

    weights: checkpoint names below `self_attn.`; max_logits: (H,), the largest logit of each head
    over the whole batch; returns γ = min(1, tau / max_logits), (H,), 1 for heads left alone. Of
    q_b_proj (or q_proj), rows of the no-position part take √γ, rows of the rotary part γ; of
    kv_b_proj, rows of keys take √γ, rows of values nothing. The bound is for the inputs and weights
    that were measured: the next step may pass tau a little. Raises ValueError for another number
    of heads, a tau that is 0 or less or infinite, and maxima that are not finite.
    Source: arXiv 2507.20534 algorithm 1; tau 100 is K2's.
    """
    max_logits = np.asarray(max_logits, np.float64)
    if max_logits.shape != (cfg.num_attention_heads,):
        raise ValueError(
            f"QK-Clip wants one maximum for each of {cfg.num_attention_heads} heads, shape "
            f"({cfg.num_attention_heads},), not {max_logits.shape}."
        )
    check_tau(tau)
    if not np.isfinite(max_logits).all():
        bad = np.flatnonzero(~np.isfinite(max_logits)).tolist()
        raise ValueError(
            f"The largest logits of heads {bad} are not finite; go back to a good checkpoint."
        )
    nope, rope, v = cfg.qk_nope_head_dim, cfg.qk_rope_head_dim, cfg.v_head_dim
    query = weights["q_proj.weight" if cfg.q_lora_rank is None else "q_b_proj.weight"]
    key_value = weights["kv_b_proj.weight"]
    gamma = tau / np.maximum(max_logits, tau)
    for head in np.flatnonzero(gamma < 1):
        start = head * (nope + rope)
        query[start : start + nope] *= np.sqrt(gamma[head])
        query[start + nope : start + nope + rope] *= gamma[head]
        start = head * (nope + v)
        key_value[start : start + nope] *= np.sqrt(gamma[head])
    return gamma
