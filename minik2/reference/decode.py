"""Decoding: one new token for each of a few sequences, at the speed of the memory.

Unusual here: no BLAS. A step reads every weight that it meets once and does two operations with
each, so what counts is that both threads read without a pause. The loops are in kernels_decode.py;
here is the collecting: what a layer reads as one tuple, what it writes as another, made once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from minik2 import tokens as token_ids
from minik2.reference import kernels_decode, rope

if TYPE_CHECKING:
    from minik2.reference.cache import Cache
    from minik2.reference.model import Model

Array = np.ndarray[Any, np.dtype[Any]]

# More sequences than this share enough weights for matrix products to be faster.
FEW = 8


class Decoder:
    """A model's decoding step. `Model.__call__` keeps one; make one to choose other weights.

    weights: the model's own dtype, or "bfloat16" for half the bytes to read of a float32 model:
    matrices are copied, rounded and kept as 16 bits; norms, router and embedding stay as they are,
    and all arithmetic is float32. The copy does not follow later changes of the model.
    Raises ValueError for other weights.
    """

    def __init__(self, model: Model, weights: str | None = None) -> None:
        cfg, own = model.cfg, model.dtype.name
        if weights not in (None, own) and (weights, own) != ("bfloat16", "float32"):
            raise ValueError(
                f"A decoder of a {own} model has weights in {own}, or, of a float32 model, in "
                f"bfloat16, not in {weights}."
            )
        self.model, self.narrow = model, weights == "bfloat16"
        self.layers = [self._collect(layer) for layer in model.layers]
        self.head = self._weight(model.head)
        real = model.dtype.type
        self.eps, self.scale = real(cfg.rms_norm_eps), real(rope.softmax_scale(cfg))
        self.inverse = rope.inverse_frequencies(cfg)
        self.gain = float(rope.table(cfg, np.zeros(1), np.float64)[0][0, 0])
        self.turn = (2, 1) if cfg.rope_interleave else (1, cfg.qk_rope_head_dim // 2)
        self.rule = (cfg.scoring_func == "sigmoid", 2 if cfg.topk_method == "noaux_tc" else 1,
                     cfg.norm_topk_prob, real(cfg.routed_scaling_factor))  # fmt: skip
        self._make_room(1)

    def __call__(self, tokens: Array, cache: Cache) -> Array:
        """Logits (B, 1, vocab) after one new token a sequence, (B, 1), which the cache takes in.

        Raises what `Model.__call__` raises.
        """
        model = self.model
        tokens = token_ids.check(tokens, model.cfg)
        cache.check(model.cfg, model.dtype, tokens.shape, None)
        if tokens.shape[1] != 1:
            raise ValueError(f"A decoder takes one token a sequence, not {tokens.shape[1]}.")
        return self.step(tokens, cache)

    def step(self, tokens: Array, cache: Cache) -> Array:
        """The same without the checks."""
        if len(tokens) != len(self.x):
            self._make_room(len(tokens))
        k, model = kernels_decode, self.model
        k.angles(cache.lengths, self.inverse, self.gain, self.cos, self.sin)
        np.take(model.weights["model.embed_tokens.weight"], tokens[:, 0], axis=0, out=self.x)
        for weights, scratch, rows in zip(self.layers, self.scratch, cache.rows, strict=True):
            k.layer(self.x, weights, scratch, rows, cache.lengths, self.cos, self.sin, self.eps,
                    self.scale, self.turn, self.rule)  # fmt: skip
        logits = np.empty((len(tokens), len(self.head)), model.dtype)
        none = self.head[:0]
        k.normed_products(self.x, model.weights["model.norm.weight"], self.eps, self.head, none,
                          none, logits, self.normed)  # fmt: skip
        cache.lengths += 1
        return logits[:, None]

    def _collect(self, layer: dict[str, Any]) -> tuple[Array, ...]:
        """A layer's arrays in the order of `kernels_decode.layer`; empty where it has none."""
        cfg, mlp = self.model.cfg, layer["mlp"]
        own = {name.removesuffix(".weight"): w for name, w in layer["self_attn"].items()}
        routed = "gate.weight" in mlp
        shared = mlp["shared_experts"] if routed else mlp
        if cfg.q_lora_rank is None:
            q_a, q_b = own["q_proj"], own["q_proj"][:0]
        else:
            q_a, q_b = own["q_a_proj"], own["q_b_proj"]
        heads, hidden, width = cfg.num_attention_heads, cfg.hidden_size, cfg.moe_intermediate_size
        none, real = np.empty((0, hidden), self.model.dtype), self.model.dtype
        up = own["kv_b_proj"].reshape(heads, -1, cfg.kv_lora_rank)
        gate = mlp.get("gate.weight", none)
        gate_up = mlp.get("experts.gate_up_proj", np.empty((0, 2 * width, hidden), real))
        down = mlp.get("experts.down_proj", np.empty((0, hidden, width), real))
        w = self._weight
        return (
            layer["input_layernorm.weight"], w(q_a), own.get("q_a_layernorm", none[:, 0]), w(q_b),
            w(own["kv_a_proj_with_mqa"]), own["kv_a_layernorm"], w(up), w(own["o_proj"]),
            layer["post_attention_layernorm.weight"], gate,
            mlp.get("gate.e_score_correction_bias", np.zeros(len(gate), real)), w(gate_up), w(down),
            w(shared["gate_proj.weight"]), w(shared["up_proj.weight"]),
            w(shared["down_proj.weight"]),
        )  # fmt: skip

    def _weight(self, weight: Array) -> Array:
        """The array itself, or its bfloat16 numbers, rounded to nearest even, as uint16."""
        if not self.narrow:
            return weight
        bits = weight.view(np.uint32)
        rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> 16
        return rounded.astype(np.uint16)

    def _make_room(self, batch: int) -> None:
        """Everything that a step of `batch` sequences writes but its logits and the cache."""
        cfg, pieces = self.model.cfg, numba.get_num_threads()
        heads, latents, rotary = cfg.num_attention_heads, cfg.kv_lora_rank, cfg.qk_rope_head_dim
        inner = cfg.q_lora_rank or heads * cfg.qk_head_dim

        def room(*shape: int, dtype: Any = self.model.dtype) -> Array:
            return np.zeros(shape, dtype)

        self.x, self.normed = room(batch, cfg.hidden_size), room(pieces, batch, cfg.hidden_size)
        self.cos, self.sin = room(batch, rotary // 2), room(batch, rotary // 2)
        attention = (
            self.normed, room(pieces, batch, inner), room(pieces, 1, cfg.qk_head_dim),
            room(batch, inner + latents + rotary), room(batch, heads, latents + rotary),
            room(batch, pieces, heads, kernels_decode.BLOCK), room(batch, pieces, heads),
            room(batch, pieces, heads), room(batch, pieces, heads, latents),
            room(batch, heads * cfg.v_head_dim),
        )  # fmt: skip
        self.scratch = []
        for layer in range(cfg.num_hidden_layers):
            experts, chosen, shared = 0, 0, cfg.intermediate_size
            if cfg.is_moe(layer):
                experts, chosen = cfg.n_routed_experts, cfg.num_experts_per_tok
                shared = cfg.n_shared_experts * cfg.moe_intermediate_size
            self.scratch.append((
                *attention, room(batch, experts + 2 * shared), room(experts), room(cfg.n_group),
                room(cfg.topk_group, dtype=np.int64), room(batch, chosen, dtype=np.int64),
                room(batch, chosen), room(batch, chosen, cfg.moe_intermediate_size),
                room(batch, shared),
            ))  # fmt: skip
