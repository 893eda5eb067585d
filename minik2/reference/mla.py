"""Multi-head latent attention: queries, keys and values squeezed through small latents.

Unusual here: a head's query and key are two vectors end to end. The "nope" part carries content
and no position; the rotary part carries position, and its key is one vector shared by all heads.
So one row of C + R numbers a token is all that a cache keeps, and there are two ways to look at it:
expanded, which forms every head's keys and values from the latents, and absorbed, which moves the
queries into the space of the latents instead. `minik2.cost` says which is the cheaper one when.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minik2.config import ModelConfig
from minik2.reference import attention, kernels, kernels_backward, norm, products, rope

Array = np.ndarray[Any, np.dtype[Any]]
# One sequence among new tokens: its row of the batch, its tokens, their positions.
Span = tuple[int, slice, slice]


def forward(
    x: Array, weights: Mapping[str, Array], cfg: ModelConfig, cos: Array, sin: Array
) -> tuple[Array, dict[str, Any]]:
    """One MLA block without its input norm and residual.

    x: (B, T, D); weights: checkpoint names below `self_attn.`, each (out, in); cos, sin: (T, R/2)
    from `rope.table`; y: (B, T, D). Source: arXiv 2412.19437 eq. 1-11; the norms on both latents
    are its §4.2; the shared rotary key is not normalised.
    """
    batch, tokens, _ = x.shape
    q, latent, k_rope, saved = _project(x, weights, cfg, cos, sin)
    k, v = _expand(latent, k_rope, weights["kv_b_proj.weight"], cfg)
    context, saved["attention"] = attention.forward(q, k, v, rope.softmax_scale(cfg))
    context = context.reshape(batch, tokens, -1)
    y = products.product(context, weights["o_proj.weight"])
    saved |= {"x": x, "latent": latent, "k_rope": k_rope, "context": context,
              "weights": weights, "cfg": cfg, "cos": cos, "sin": sin}  # fmt: skip
    return y, saved


def cached(
    x: Array, weights: Mapping[str, Array], cfg: ModelConfig, cos: Array, sin: Array,
    rows: Array, spans: Sequence[Span], absorbed: bool,
) -> Array:
    """The same for new tokens of several sequences, after what a cache holds of each.

    x: (tokens, D), those of all sequences one after the other; cos, sin: (tokens, R/2); rows: this
    layer of a cache, (B, S, C + R), a token's latent and rotary key side by side. Each span is one
    sequence: its row of the batch, its slice of x, and the slice of positions where they go. Their
    rows are written there; then every token looks at those up to its own. Returns (tokens, D).
    Source: arXiv 2405.04434 §2.1.2 for the absorbed form.
    """
    q, latent, k_rope, _ = _project(x[None], weights, cfg, cos, sin)
    # Of a matrix in its file a copy: the absorbed form takes it apart.
    up = np.asarray(weights["kv_b_proj.weight"])
    q, scale = q[0], rope.softmax_scale(cfg)
    context = np.empty((*q.shape[:2], cfg.v_head_dim), x.dtype)
    for b, own, place in spans:
        rows[b, place, : cfg.kv_lora_rank] = latent[0, own]
        rows[b, place, cfg.kv_lora_rank :] = k_rope[0, own]
        held = rows[b, : place.stop]
        if absorbed:
            attention.absorbed(q[own], held, up, context[own], scale)
        else:
            k, v = _expand(held[None, :, : cfg.kv_lora_rank], held[None, :, cfg.kv_lora_rank :],
                           up, cfg)  # fmt: skip
            context[own] = attention.forward(q[None, own], k, v, scale)[0][0]
    return products.product(context.reshape(len(x), -1), weights["o_proj.weight"])


def _project(
    x: Array, weights: Mapping[str, Array], cfg: ModelConfig, cos: Array, sin: Array
) -> tuple[Array, Array, Array, dict[str, Any]]:
    """Queries (B, T, H, N + R), latents (B, T, C), rotary keys (B, T, R), and what was saved."""
    batch, tokens, _ = x.shape
    nope, eps = cfg.qk_nope_head_dim, cfg.rms_norm_eps
    saved: dict[str, Any] = {}

    if cfg.q_lora_rank is None:
        q = products.product(x, weights["q_proj.weight"])
    else:
        q_latent = products.product(x, weights["q_a_proj.weight"])
        q_latent, saved["q_a_layernorm"] = norm.forward(
            q_latent, weights["q_a_layernorm.weight"], eps
        )
        q = products.product(q_latent, weights["q_b_proj.weight"])
        saved["q_latent"] = q_latent
    q = q.reshape(batch, tokens, cfg.num_attention_heads, cfg.qk_head_dim)

    compressed = products.product(x, weights["kv_a_proj_with_mqa.weight"])
    latent, k_rope = compressed[..., : cfg.kv_lora_rank], compressed[..., cfg.kv_lora_rank :]
    latent, saved["kv_a_layernorm"] = norm.forward(latent, weights["kv_a_layernorm.weight"], eps)

    rope.rotate(q[..., nope:], cos, sin, cfg.rope_interleave, out=q[..., nope:])
    k_rope = rope.rotate(k_rope[:, :, None], cos, sin, cfg.rope_interleave)[:, :, 0]
    return q, latent, k_rope, saved


def _expand(latent: Array, k_rope: Array, up: Array, cfg: ModelConfig) -> tuple[Array, Array]:
    """Every head's keys (B, S, H, N + R) and values (B, S, H, V) from latents and rotary keys."""
    heads, nope = cfg.num_attention_heads, cfg.qk_nope_head_dim
    kv = products.product(latent, up).reshape(*latent.shape[:2], heads, -1)
    k = np.empty((*kv.shape[:3], cfg.qk_head_dim), kv.dtype)
    kernels.join_heads(kv, k_rope, k)
    return k, kv[..., nope:]


def backward(dy: Array, saved: dict[str, Any]) -> tuple[Array, dict[str, Array]]:
    """dx as x, and the gradients of the matrices and norms by their names.

    The shared rotary key collects what all heads say about it; keys and values of all heads meet in
    one latent, and latents and queries in x.
    """
    x, weights, cfg = saved["x"], saved["weights"], saved["cfg"]
    batch, tokens, _ = x.shape
    heads, nope = cfg.num_attention_heads, cfg.qk_nope_head_dim
    turn = saved["cos"], saved["sin"], cfg.rope_interleave
    grads: dict[str, Array] = {}

    def back(name: str, dy: Array, x: Array) -> Array:
        weight = f"{name}.weight"
        dx, grads[weight] = products.product_backward(dy, x, weights[weight])
        return dx

    def back_norm(name: str, dy: Array) -> Array:
        dx, own = norm.backward(dy, saved[name])
        grads[f"{name}.weight"] = own["weight"]
        return dx

    dcontext = back("o_proj", dy, saved["context"])
    dq, dk, dv = attention.backward(
        dcontext.reshape(batch, tokens, heads, -1), saved["attention"]
    )

    dkv = np.empty((batch, tokens, heads, nope + cfg.v_head_dim), dy.dtype)
    dk_rope = np.empty((batch, tokens, 1, cfg.qk_rope_head_dim), dy.dtype)
    kernels_backward.part_heads(dk, dv, dkv, dk_rope[:, :, 0])
    dkv = dkv.reshape(batch, tokens, -1)
    dlatent = back_norm("kv_a_layernorm", back("kv_b_proj", dkv, saved["latent"]))
    rope.backward(dk_rope, *turn, out=dk_rope)
    dcompressed = np.concatenate([dlatent, dk_rope[:, :, 0]], axis=-1)
    dx = back("kv_a_proj_with_mqa", dcompressed, x)

    rope.backward(dq[..., nope:], *turn, out=dq[..., nope:])
    dq = dq.reshape(batch, tokens, -1)
    if cfg.q_lora_rank is None:
        dx += back("q_proj", dq, x)
    else:
        dlatent = back_norm("q_a_layernorm", back("q_b_proj", dq, saved["q_latent"]))
        dx += back("q_a_proj", dlatent, x)
    return dx, grads
