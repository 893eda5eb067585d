"""The whole model: embedding, layers, norm, head.

Unusual here: there is no module system. A layer is a dict of arrays under the checkpoint's names;
`Model.weights` shows every tensor of the checkpoint as a view of what the layers compute with, so
loading, saving and training all go through those names. Only the experts are stored otherwise
than named: stacked, one tensor a layer for gate and up, one for down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from minik2 import checkpoint, cost, initial, sampling
from minik2 import tokens as token_ids
from minik2.config import ModelConfig
from minik2.reference import (
    balance,
    decode,
    embedding,
    ffn,
    generate,
    loss,
    mla,
    moe,
    norm,
    products,
    rope,
)
from minik2.reference.cache import Cache
from minik2.reference.watch import Watch

Array = np.ndarray[Any, np.dtype[Any]]


class Model:
    """A decoder-only transformer of the DeepSeek-V3 / Kimi K2 family in NumPy.

    dtype: "float32" or "float64". The constructor leaves the weights unset; use `init` or
    `from_pretrained`.
    """

    decodes = True  # one token more goes through decode.Decoder

    def __init__(self, cfg: ModelConfig, dtype: str = "float32") -> None:
        if np.dtype(dtype) not in (np.float32, np.float64):
            raise TypeError(f"The reference computes in float32 or float64, not in {dtype}.")
        self.cfg, self.dtype = cfg, np.dtype(dtype)
        self.layers: list[dict[str, Any]] = [
            {"self_attn": {}, "mlp": {"shared_experts": {}} if cfg.is_moe(layer) else {}}
            for layer in range(cfg.num_hidden_layers)
        ]
        self.weights = {name: self._allocate(name, s) for name, s in cfg.tensor_shapes().items()}
        if cfg.tie_word_embeddings:
            self.head = self.weights["model.embed_tokens.weight"]
        else:
            self.head = self.weights["lm_head.weight"]
        self._decoder: decode.Decoder | None = None

    def _allocate(self, name: str, shape: tuple[int, ...]) -> Array:
        """Memory for one checkpoint tensor, filed where its layer looks for it."""
        if not name.startswith("model.layers."):
            return np.empty(shape, self.dtype)
        place, key = home(self.layers, name)
        if ".experts." not in name:
            place[key] = np.empty(shape, self.dtype)
        elif "experts.down_proj" not in place:
            count, width = self.cfg.n_routed_experts, self.cfg.moe_intermediate_size
            hidden = self.cfg.hidden_size
            place["experts.gate_up_proj"] = np.empty((count, 2 * width, hidden), self.dtype)
            place["experts.down_proj"] = np.empty((count, hidden, width), self.dtype)
        return _view(self.layers, name)

    @classmethod
    def init(cls, cfg: ModelConfig, seed: int = 0, dtype: str = "float32") -> Model:
        """A model with random weights; the same seed gives the torch engine the same weights."""
        model = cls(cfg, dtype)
        for name, array in model.weights.items():
            array[...] = initial.tensor(name, array.shape, cfg, seed)
        return model

    @classmethod
    def from_pretrained(cls, directory: str | Path, dtype: str = "float32") -> Model:
        """Load config.json and *.safetensors from a directory in the Hugging Face layout."""
        cfg = ModelConfig.from_json(Path(directory))
        source = checkpoint.open_checkpoint(directory, cfg)
        model = cls(cfg, dtype)
        for name, array in model.weights.items():
            array[...] = source[name]
        return model

    def save_pretrained(self, directory: str | Path, format: str | None = None) -> None:
        """Write a checkpoint; format: the weights' own, or as `checkpoint.save` narrows them."""
        checkpoint.save(directory, self.cfg, self.weights, format=format)

    def forward(
        self, tokens: Array, watch: Watch | None = None
    ) -> tuple[Array, list[dict[str, Any]]]:
        """Logits and what every layer saved (attention, router choices, …), layer by layer."""
        saved: list[dict[str, Any]] = []
        return self._run(tokens, saved, watch), saved

    def __call__(
        self, tokens: Array, cache: Cache | None = None, counts: Array | None = None
    ) -> Array:
        """Next-token logits: int array (B, T) -> (B, T, vocab) in the model's dtype.

        With a cache, the tokens come after those that each of its sequences holds, and are
        appended. counts (B,), whole numbers from 0 to T: sequence b takes its first counts[b]
        tokens only; the rest is padding, whose logits are zeros. Raises ValueError, before anything
        is written, for a cache of another model or batch, or one without room.
        """
        if cache is not None:
            return self._extend(tokens, cache, counts)
        if counts is not None:
            raise ValueError("counts say what a cache is to take in; give a cache too.")
        return self._run(tokens, None)

    def new_cache(self, batch: int = 1, max_tokens: int = 4096) -> Cache:
        """An empty cache for this model: `batch` sequences of up to max_tokens tokens each."""
        return Cache(self.cfg, batch, max_tokens, self.dtype)

    def _run(
        self, tokens: Array, saved: list[dict[str, Any]] | None, watch: Watch | None = None
    ) -> Array:
        cfg = self.cfg
        tokens = token_ids.check(tokens, cfg)
        cos, sin = rope.table(cfg, np.arange(tokens.shape[1]), self.dtype)
        x, embedded = embedding.forward(tokens, self.weights["model.embed_tokens.weight"])
        for number, weights in enumerate(self.layers):
            x, layer_saved = self._layer(
                x, weights, lambda y, own: mla.forward(y, own, cfg, cos, sin)
            )
            if watch is not None:
                watch.take(number, layer_saved)
            if saved is not None:
                saved.append(layer_saved)
        x, final = norm.forward(x, self.weights["model.norm.weight"], cfg.rms_norm_eps)
        if saved is not None:
            saved.append({"norm": final, "head": x, "embedding": embedded})
        return products.product(x, self.head)

    def _extend(self, tokens: Array, cache: Cache, counts: Array | None) -> Array:
        """The model over a cache: the new tokens of all sequences one after the other.

        Without padding: all that a layer does is done to each token by itself but for attention,
        which is told whose is which.
        """
        cfg = self.cfg
        tokens = token_ids.check(tokens, cfg)
        counts = cache.check(cfg, self.dtype, tokens.shape, counts)
        taken = np.arange(tokens.shape[1]) < counts[:, None]
        few = tokens.shape[1] == 1 and len(tokens) <= decode.FEW and taken.all()
        if few and self.decodes:
            if self._decoder is None:
                self._decoder = decode.Decoder(self)
            return self._decoder.step(tokens, cache)
        logits = np.zeros((*tokens.shape, cfg.vocab_size), self.dtype)
        if not taken.any():
            return logits
        absorbed = cost.absorb(cfg, int(counts.max()), int(cache.lengths.max()))
        positions = (cache.lengths[:, None] + np.arange(tokens.shape[1]))[taken]
        cos, sin = rope.table(cfg, positions, self.dtype)
        spans = cache.spans(counts)
        x, _ = embedding.forward(tokens[taken], self.weights["model.embed_tokens.weight"])
        for weights, rows in zip(self.layers, cache.rows, strict=True):

            def attend(y: Array, own: dict[str, Array], rows: Array = rows) -> tuple[Array, None]:
                return mla.cached(y, own, cfg, cos, sin, rows, spans, absorbed), None

            x, _ = self._layer(x, weights, attend)
        x, _ = norm.forward(x, self.weights["model.norm.weight"], cfg.rms_norm_eps)
        logits[taken] = products.product(x, self.head)
        # Last: until here the cache holds what it held, whatever went wrong.
        cache.lengths += counts
        return logits

    def _layer(
        self, x: Array, weights: dict[str, Any], attend: Callable[..., tuple[Array, Any]]
    ) -> tuple[Array, dict[str, Any]]:
        """One layer: x + attention(norm(x)), then x + mlp(norm(x))."""
        saved, eps = {}, self.cfg.rms_norm_eps
        y, saved["input_layernorm"] = norm.forward(x, weights["input_layernorm.weight"], eps)
        after, saved["self_attn"] = attend(y, weights["self_attn"])
        after += x
        gain = weights["post_attention_layernorm.weight"]
        y, saved["post_attention_layernorm"] = norm.forward(after, gain, eps)
        y, saved["mlp"] = self._mlp(y, weights["mlp"])
        y += after
        return y, saved

    def _mlp(self, x: Array, weights: dict[str, Any]) -> tuple[Array, dict[str, Any]]:
        if "gate.weight" in weights:
            return moe.forward(x, weights, self.cfg)
        return ffn.forward(x, weights)

    def loss(self, tokens: Array, targets: Array) -> float:
        """Mean cross-entropy in nats over targets other than -100, already shifted; (B, T) each."""
        return loss.forward(self(tokens), targets, self.cfg)[0]

    def loss_and_grads(
        self,
        tokens: Array,
        targets: Array,
        balance_alpha: float = 0.0,
        watch: Watch | None = None,
    ) -> tuple[float, dict[str, Array]]:
        """The loss and its gradient for every trained tensor of the checkpoint, by its name.

        tokens, targets: (B, T) whole numbers; targets are already shifted, -100 where none counts.
        An expert's gradients are views of its layer's stack, zero if no token chose it; the
        correction bias has none. balance_alpha > 0 adds the sequence-wise balance loss of every
        layer with experts (`balance.forward`) to the loss returned. watch takes the heads' largest
        logits and the experts' loads. Raises what `loss` raises.
        """
        logits, saved = self.forward(tokens, watch)
        total, saved_loss = loss.forward(logits, targets, self.cfg)
        dlogits = loss.backward(1.0, saved_loss)

        final = saved.pop()
        dx, dhead = products.product_backward(dlogits, final["head"], self.head)
        dx, norms = norm.backward(dx, final["norm"])
        grads = {"model.norm.weight": norms["weight"]}
        layers: list[dict[str, Any]] = []
        while saved:
            # Each layer's arrays are let go as soon as its gradient is known.
            layer_saved, dscores = saved.pop(), None
            router = layer_saved["mlp"].get("router")
            if balance_alpha and router is not None:
                price, dscores = self._balance(router, dx.shape, balance_alpha)
                total += price
            dx, layer = self._layer_backward(dx, layer_saved, dscores)
            layers.insert(0, layer)
        dembedding = embedding.backward(dx, final["embedding"])["weight"]
        if self.cfg.tie_word_embeddings:
            dembedding += dhead
        else:
            grads["lm_head.weight"] = dhead
        grads["model.embed_tokens.weight"] = dembedding
        trained = (name for name in self.weights if not name.endswith("e_score_correction_bias"))
        return total, {n: grads[n] if n in grads else _view(layers, n) for n in trained}

    def _balance(
        self, router: dict[str, Any], shape: tuple[int, ...], alpha: float
    ) -> tuple[float, Array]:
        scores = router["scores"].reshape(*shape[:2], -1)
        price, saved = balance.forward(scores, self.cfg.num_experts_per_tok, alpha)
        return price, balance.backward(1.0, saved).reshape(router["scores"].shape)

    def _layer_backward(
        self, dy: Array, saved: dict[str, Any], dscores: Array | None
    ) -> tuple[Array, dict[str, Any]]:
        """`_layer` from its end to its start: a sum hands its gradient to both of its terms."""
        grads: dict[str, Any] = {}
        if "router" in saved["mlp"]:
            dx, grads["mlp"] = moe.backward(dy, saved["mlp"], dscores)
        else:
            dx, grads["mlp"] = ffn.backward(dy, saved["mlp"])
        dx, norms = norm.backward(dx, saved["post_attention_layernorm"])
        grads["post_attention_layernorm.weight"] = norms["weight"]
        dx += dy
        dy, grads["self_attn"] = mla.backward(dx, saved["self_attn"])
        dy, norms = norm.backward(dy, saved["input_layernorm"])
        grads["input_layernorm.weight"] = norms["weight"]
        dx += dy
        return dx, grads

    def generate(
        self,
        tokens: Array,
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        seed: int = 0,
        top_k: int | None = None,
        top_p: float = 1.0,
        stop: Iterable[int] = (),
        counts: Any = None,
        on_token: sampling.OnToken | None = None,
    ) -> Array:
        """Continue every row of tokens (B, T): returns (B, T + max_new_tokens) int64.

        temperature, seed, top_k, top_p: see `sampling.Settings`; 0 is greedy. counts (B,): row b is
        a prompt of its first counts[b] tokens, and the rest of it is padding, which is returned as
        it came: the new tokens are the last max_new_tokens columns. A row ends with the first token
        of `stop` that it takes, which then fills what is left of it. on_token is given the new
        tokens (B,), a NumPy array, at every step; of a row that has ended, its last.
        """
        settings = sampling.Settings(temperature, seed, top_k, top_p)
        return generate.generate(self, tokens, max_new_tokens, settings, stop, counts, on_token)


def home(layers: list[dict[str, Any]], name: str) -> tuple[dict[str, Any], str]:
    """The dict of a layer in which the tensor called `name` lies, and the rest of its name."""
    _, _, layer, *path = name.split(".")
    place = layers[int(layer)]
    while path[0] in ("self_attn", "mlp", "shared_experts"):
        place = place[path.pop(0)]
    return place, ".".join(path)


def _view(layers: list[dict[str, Any]], name: str) -> Array:
    """The array called `name` in the checkpoint; of an expert, its part of the stack."""
    place, key = home(layers, name)
    if ".experts." not in name:
        return place[key]
    _, expert, matrix, _ = key.split(".")
    if matrix == "down_proj":
        return place["experts.down_proj"][int(expert)]
    gate, up = np.split(place["experts.gate_up_proj"][int(expert)], 2)
    return gate if matrix == "gate_proj" else up
