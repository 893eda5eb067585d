"""The model once more, as a slow specification: float64, one token at a time, straight from papers.

Nothing here is shared with either engine. Rotation is multiplication by a complex number, a head's
attention is a loop over queries, the router ranks Python lists, and every expert is applied to one
token. Sources: arXiv 2405.04434 §2.1, arXiv 2412.19437 eq. 1-16, arXiv 2309.00071.
"""

from __future__ import annotations

import math

import numpy as np

from minik2.config import ModelConfig


def random_weights(cfg: ModelConfig, seed: int) -> dict[str, np.ndarray]:
    """float64 weights by checkpoint name, none of them trivial: norms off 1, biases off 0."""
    rng, weights = np.random.default_rng(seed), {}
    for name, shape in cfg.tensor_shapes().items():
        noise = rng.standard_normal(shape)
        if name.endswith("norm.weight"):
            weights[name] = 1 + 0.3 * noise
        elif name.endswith("e_score_correction_bias"):
            # float32 values, which the torch engine keeps exactly; some drive scores below zero.
            weights[name] = (noise - 0.5).astype(np.float32).astype(np.float64)
        else:
            weights[name] = noise / np.sqrt(shape[-1])
    return weights


def below(weights: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The weights whose names start with `prefix`, by the rest of their names."""
    return {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}


def rms_norm(x, weight, eps):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def frequencies(cfg: ModelConfig) -> list[float]:
    """YaRN by its definition: how often each pair turns over the original context."""
    size, yarn, out = cfg.qk_rope_head_dim, cfg.rope_scaling, []
    for i in range(size // 2):
        plain = cfg.rope_theta ** (-2 * i / size)
        if yarn is None:
            out.append(plain)
            continue

        def pair(turns):
            # The pair (a real number) that turns so often: context theta^(-2i/R) = 2 pi turns.
            ratio = yarn.original_max_position_embeddings / (2 * math.pi * turns)
            return size / 2 * math.log(ratio, cfg.rope_theta)

        low, high = max(math.floor(pair(yarn.beta_fast)), 0), pair(yarn.beta_slow)
        high = min(math.ceil(high), size - 1)
        ramp = (i - low) / ((high - low) if high != low else 0.001)
        ramp = min(max(ramp, 0.0), 1.0)
        out.append(plain * (1 - ramp) + plain / yarn.factor * ramp)
    return out


def rotate(x, position, cfg):
    """x: (R,), turned to `position`: neighbours (or halves) as the parts of complex numbers."""
    half = cfg.qk_rope_head_dim // 2
    pairs = x[0::2] + 1j * x[1::2] if cfg.rope_interleave else x[:half] + 1j * x[half:]
    angles = position * np.array(frequencies(cfg))
    turned = pairs * np.exp(1j * angles) * rotation_gain(cfg)
    if not cfg.rope_interleave:
        return np.concatenate([turned.real, turned.imag])
    return np.stack([turned.real, turned.imag], axis=-1).reshape(-1)


def temperature(yarn, strength):
    return 1.0 if yarn.factor <= 1 else 0.1 * strength * math.log(yarn.factor) + 1


def rotation_gain(cfg):
    yarn = cfg.rope_scaling
    if yarn is None:
        return 1.0
    if yarn.mscale and yarn.mscale_all_dim:
        return temperature(yarn, yarn.mscale) / temperature(yarn, yarn.mscale_all_dim)
    return temperature(yarn, 1)


def softmax_scale(cfg):
    scale, yarn = 1 / math.sqrt(cfg.qk_nope_head_dim + cfg.qk_rope_head_dim), cfg.rope_scaling
    return scale * temperature(yarn, yarn.mscale_all_dim) ** 2 if yarn else scale


def softmax(x):
    powers = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def attention(q, k, v, scale):
    """q, k: (B, T, H, N + R); v: (B, T, H, V)."""
    y = np.zeros(q.shape[:-1] + v.shape[-1:])
    for b, t, h in np.ndindex(q.shape[:3]):
        chances = softmax(scale * (k[b, : t + 1, h] @ q[b, t, h]))
        y[b, t, h] = chances @ v[b, : t + 1, h]
    return y


def mla(x, w, cfg):
    """x: (B, T, D); w: names below `self_attn.`."""
    heads, nope, eps = cfg.num_attention_heads, cfg.qk_nope_head_dim, cfg.rms_norm_eps
    q_shape = (*x.shape[:2], heads, cfg.qk_head_dim)
    q, k = np.zeros(q_shape), np.zeros(q_shape)
    v = np.zeros((*x.shape[:2], heads, cfg.v_head_dim))
    for b, t in np.ndindex(x.shape[:2]):
        token = x[b, t]
        if cfg.q_lora_rank is None:
            queries = w["q_proj.weight"] @ token
        else:
            c_q = rms_norm(w["q_a_proj.weight"] @ token, w["q_a_layernorm.weight"], eps)
            queries = w["q_b_proj.weight"] @ c_q
        down = w["kv_a_proj_with_mqa.weight"] @ token
        c_kv = rms_norm(down[: cfg.kv_lora_rank], w["kv_a_layernorm.weight"], eps)
        shared_key = rotate(down[cfg.kv_lora_rank :], t, cfg)
        up = (w["kv_b_proj.weight"] @ c_kv).reshape(heads, nope + cfg.v_head_dim)
        for h, query in enumerate(queries.reshape(heads, -1)):
            q[b, t, h] = np.concatenate([query[:nope], rotate(query[nope:], t, cfg)])
            k[b, t, h] = np.concatenate([up[h, :nope], shared_key])
            v[b, t, h] = up[h, nope:]
    return attention(q, k, v, softmax_scale(cfg)).reshape(*x.shape[:2], -1) @ w["o_proj.weight"].T


def ffn(x, w):
    gate = w["gate_proj.weight"] @ x
    return w["down_proj.weight"] @ (gate / (1 + np.exp(-gate)) * (w["up_proj.weight"] @ x))


def route(x, w, cfg) -> list[tuple[int, float]]:
    """The chosen experts of one token (D,), each with its weight, best first."""
    logits = w["gate.weight"] @ x
    scores = 1 / (1 + np.exp(-logits)) if cfg.scoring_func == "sigmoid" else softmax(logits)
    bias = w.get("gate.e_score_correction_bias", np.zeros(len(scores)))
    size = cfg.n_routed_experts // cfg.n_group
    best = 2 if cfg.topk_method == "noaux_tc" else 1

    def worth(group):
        own = [scores[e] + bias[e] for e in range(group * size, (group + 1) * size)]
        return sum(sorted(own)[-best:])

    groups = sorted(range(cfg.n_group), key=lambda g: (-worth(g), g))[: cfg.topk_group]
    allowed = [e for e in range(len(scores)) if e // size in groups]
    chosen = sorted(allowed, key=lambda e: (-(scores[e] + bias[e]), e))[: cfg.num_experts_per_tok]
    whole = sum(scores[e] for e in chosen) if cfg.norm_topk_prob else 1.0
    return [(e, scores[e] / whole * cfg.routed_scaling_factor) for e in chosen]


def moe(x, w, cfg):
    """One token (D,); w: names below `mlp.`."""
    y = ffn(x, below(w, "shared_experts."))
    for expert, weight in route(x, w, cfg):
        y = y + weight * ffn(x, below(w, f"experts.{expert}."))
    return y


def model(tokens, weights, cfg):
    """tokens (B, T) -> logits (B, T, vocab)."""
    eps = cfg.rms_norm_eps
    x = weights["model.embed_tokens.weight"][tokens]
    for layer in range(cfg.num_hidden_layers):
        w = below(weights, f"model.layers.{layer}.")
        x = x + mla(rms_norm(x, w["input_layernorm.weight"], eps), below(w, "self_attn."), cfg)
        rows = rms_norm(x, w["post_attention_layernorm.weight"], eps).reshape(-1, x.shape[-1])
        mlp = below(w, "mlp.")
        dense = layer < cfg.first_k_dense_replace
        y = np.stack([ffn(r, mlp) if dense else moe(r, mlp, cfg) for r in rows])
        x = x + y.reshape(x.shape)
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    return rms_norm(x, weights["model.norm.weight"], eps) @ head.T
