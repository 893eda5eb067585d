"""A model of any size whose weights are made while they are multiplied with.

Unusual here: the reference's own norm, rotation, router and cache, and none of its weights.
Attention is always absorbed: kv_b_proj is met twice, its key rows from the left by the queries and
its value rows by what comes out of the latents, each row made once. An expert is made once for all
tokens that chose it, and not at all where none did.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minik2 import tokens as token_ids
from minik2.config import ModelConfig
from minik2.fullsize.weights import Weights
from minik2.reference import kernels, norm, rope, router
from minik2.reference.cache import Cache

Array = np.ndarray[Any, np.dtype[Any]]


class Model:
    """A model of the family in float32 or float64 with the weights of `Weights(cfg, seed)`.

    weights counts what was made and done with it; attention_flops: operations of queries with
    cached rows; chosen: of each layer with experts that a call went through, (tokens, K).
    """

    def __init__(self, cfg: ModelConfig, seed: int = 0, dtype: str = "float32") -> None:
        self.cfg, self.weights = cfg, Weights(cfg, seed, dtype)
        self.scale = self.weights.dtype.type(rope.softmax_scale(cfg))
        self.attention_flops = 0
        self.chosen: list[Array] = []

    def new_cache(self, max_tokens: int) -> Cache:
        """An empty cache for one sequence of up to max_tokens tokens."""
        return Cache(self.cfg, 1, max_tokens, self.weights.dtype)

    def __call__(
        self, tokens: Any, cache: Cache, tell: Callable[[int], None] = lambda layer: None
    ) -> Array:
        """Logits (vocabulary,) after the last of new tokens (T,), which the cache takes in.

        tell is given the number of each layer before it begins, and the number of all before the
        head; what it raises ends the call, and leaves the cache as long as it was. Raises TypeError
        and ValueError for tokens that are no ids or for which the cache has no room.
        """
        cfg, weights = self.cfg, self.weights
        tokens = token_ids.check(np.asarray(tokens)[None], cfg)
        count = int(cache.check(cfg, weights.dtype, tokens.shape, None)[0])
        start, self.chosen = int(cache.lengths[0]), []
        turn = rope.table(cfg, np.arange(start, start + count), weights.dtype)
        x = self._embed(tokens[0])
        for layer, rows in enumerate(cache.rows):
            tell(layer)
            self.layer(x, layer, rows[0], start, turn)
        tell(cfg.num_hidden_layers)
        x = self._norm("model.norm", x[-1:])
        head = "model.embed_tokens" if cfg.tie_word_embeddings else "lm_head"
        logits = weights.product(f"{head}.weight", x, cfg.vocab_size)[0]
        cache.lengths += count
        return logits

    def layer(self, x: Array, layer: int, rows: Array, start: int, turn: Any) -> None:
        """One layer, in place: x (T, D), tokens at position `start` and after it.

        rows: (S, C + R) of this layer's cache; turn: cos and sin of the positions, (T, R/2) each.
        """
        base = f"model.layers.{layer}."
        x += self._attention(self._norm(f"{base}input_layernorm", x), base, rows, start, turn)
        y = self._norm(f"{base}post_attention_layernorm", x)
        if self.cfg.is_moe(layer):
            x += self._experts(y, f"{base}mlp.")
        else:
            x += self._ffn(y, f"{base}mlp.", self.cfg.intermediate_size)

    def _embed(self, tokens: Array) -> Array:
        cfg, name = self.cfg, "model.embed_tokens.weight"
        if not cfg.tie_word_embeddings:  # else the head meets the whole table
            self.weights.made += len(np.unique(tokens)) * cfg.hidden_size
        return self.weights.rows(name, tokens, cfg.hidden_size)

    def _norm(self, name: str, x: Array) -> Array:
        gain = self.weights.vector(f"{name}.weight", x.shape[-1])
        return norm.forward(x, gain, self.cfg.rms_norm_eps)[0]

    def _attention(self, x: Array, base: str, rows: Array, start: int, turn: Any) -> Array:
        cfg, weights, base = self.cfg, self.weights, f"{base}self_attn."
        heads, nope, value = cfg.num_attention_heads, cfg.qk_nope_head_dim, cfg.v_head_dim
        latents, tokens = cfg.kv_lora_rank, len(x)

        down = weights.product(f"{base}kv_a_proj_with_mqa.weight", x, rows.shape[1])
        new = rows[start : start + tokens]
        new[:, :latents] = self._norm(f"{base}kv_a_layernorm", down[:, :latents])
        new[:, latents:] = self._rotated(down[:, None, latents:], turn)[:, 0]

        if cfg.q_lora_rank is None:
            q = weights.product(f"{base}q_proj.weight", x, heads * cfg.qk_head_dim)
        else:
            q = weights.product(f"{base}q_a_proj.weight", x, cfg.q_lora_rank)
            q = self._norm(f"{base}q_a_layernorm", q)
            q = weights.product(f"{base}q_b_proj.weight", q, heads * cfg.qk_head_dim)
        q = q.reshape(tokens, heads, -1)
        up, stride = f"{base}kv_b_proj.weight", nope + value
        moved = np.empty((heads, tokens, rows.shape[1]), x.dtype)
        moved[..., :latents] = weights.products_from_left(
            up, q[..., :nope].transpose(1, 0, 2), latents, 0, stride)  # fmt: skip
        moved[..., latents:] = self._rotated(q[..., nope:], turn).transpose(1, 0, 2)

        context = np.empty((heads, tokens, latents), x.dtype)
        for t in range(tokens):
            context[:, t] = self._look(moved[:, t], rows[: start + t + 1])
        y = weights.products(up, context, value, nope, stride).transpose(1, 0, 2)
        return weights.product(f"{base}o_proj.weight", y.reshape(tokens, -1), cfg.hidden_size)

    def _look(self, q: Array, seen: Array) -> Array:
        """All heads' queries (H, C + R) at the rows (S, C + R) that one token sees: (H, C)."""
        scores = q @ seen.T
        scores -= scores.max(axis=1, keepdims=True)
        chances = np.exp(scores * self.scale)
        chances /= chances.sum(axis=1, keepdims=True)
        self.attention_flops += 2 * scores.size * (seen.shape[1] + self.cfg.kv_lora_rank)
        return chances @ seen[:, : self.cfg.kv_lora_rank]

    def _rotated(self, x: Array, turn: Any) -> Array:
        return rope.rotate(x, turn[0], turn[1], self.cfg.rope_interleave)

    def _experts(self, x: Array, base: str) -> Array:
        cfg, weights = self.cfg, self.weights
        count, width = cfg.n_routed_experts, cfg.moe_intermediate_size
        logits = weights.product(f"{base}gate.weight", x, count)
        bias = None
        if cfg.topk_method == "noaux_tc":
            bias = weights.vector(f"{base}gate.e_score_correction_bias", count)
        chosen, shares, _ = router.choose(logits, bias, cfg)
        self.chosen.append(chosen)
        y = self._ffn(x, f"{base}shared_experts.", cfg.n_shared_experts * width)
        for expert in np.unique(chosen):
            token, place = np.nonzero(chosen == expert)
            out = self._ffn(x[token], f"{base}experts.{expert}.", width)
            y[token] += shares[token, place, None] * out
        return y

    def _ffn(self, x: Array, base: str, width: int) -> Array:
        gate_up = np.empty((len(x), 2 * width), x.dtype)
        gate_up[:, :width] = self.weights.product(f"{base}gate_proj.weight", x, width)
        gate_up[:, width:] = self.weights.product(f"{base}up_proj.weight", x, width)
        hidden = np.empty((len(x), width), x.dtype)
        kernels.swiglu(gate_up, hidden)
        return self.weights.product(f"{base}down_proj.weight", hidden, x.shape[1])
