"""The whole model: embedding, layers, norm, head.

Unusual here: there is no module system. A layer is a dict of arrays under the checkpoint's names;
`Model.weights` shows every tensor of the checkpoint as a view of what the layers compute with, so
loading, saving and training all go through those names. Only the experts are stored otherwise
than named: stacked, one tensor a layer for gate and up, one for down.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from minik2 import checkpoint, initial
from minik2 import tokens as token_ids
from minik2.config import ModelConfig
from minik2.reference import ffn, generate, mla, moe, norm, rope

Array = np.ndarray[Any, np.dtype[Any]]


class Model:
    """A decoder-only transformer of the DeepSeek-V3 / Kimi K2 family in NumPy.

    dtype: "float32" or "float64". The constructor leaves the weights unset; use `init` or
    `from_pretrained`.
    """

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

    def _allocate(self, name: str, shape: tuple[int, ...]) -> Array:
        """Memory for one checkpoint tensor, filed where its layer looks for it."""
        if not name.startswith("model.layers."):
            return np.empty(shape, self.dtype)
        _, _, layer, *path = name.split(".")
        place = self.layers[int(layer)]
        while path[0] in ("self_attn", "mlp", "shared_experts"):
            place = place[path.pop(0)]
        if path[0] == "experts":
            return self._expert_view(place, int(path[1]), path[2])
        return place.setdefault(".".join(path), np.empty(shape, self.dtype))

    def _expert_view(self, mlp: dict[str, Any], expert: int, matrix: str) -> Array:
        count, width = self.cfg.n_routed_experts, self.cfg.moe_intermediate_size
        hidden = self.cfg.hidden_size
        if "experts.down_proj" not in mlp:
            mlp["experts.gate_up_proj"] = np.empty((count, 2 * width, hidden), self.dtype)
            mlp["experts.down_proj"] = np.empty((count, hidden, width), self.dtype)
        if matrix == "down_proj":
            return mlp["experts.down_proj"][expert]
        half = slice(0, width) if matrix == "gate_proj" else slice(width, None)
        return mlp["experts.gate_up_proj"][expert, half]

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

    def save_pretrained(self, directory: str | Path) -> None:
        """Write config.json and safetensors that `from_pretrained` and transformers load."""
        checkpoint.save(directory, self.cfg, self.weights)

    def forward(self, tokens: Array) -> tuple[Array, list[dict[str, Any]]]:
        """Logits and what every layer saved (attention, router choices, …), layer by layer."""
        saved: list[dict[str, Any]] = []
        return self._run(tokens, saved), saved

    def __call__(self, tokens: Array) -> Array:
        """Next-token logits: int array (B, T) -> (B, T, vocab) in the model's dtype."""
        return self._run(tokens, None)

    def _run(self, tokens: Array, saved: list[dict[str, Any]] | None) -> Array:
        cfg = self.cfg
        tokens = token_ids.check(tokens, cfg)
        cos, sin = rope.table(cfg, np.arange(tokens.shape[1]), self.dtype)
        x = self.weights["model.embed_tokens.weight"][tokens]
        for weights in self.layers:
            x, layer_saved = self._layer(x, weights, cos, sin)
            if saved is not None:
                saved.append(layer_saved)
        x, final = norm.forward(x, self.weights["model.norm.weight"], cfg.rms_norm_eps)
        if saved is not None:
            saved.append({"norm": final})
        return x @ self.head.T

    def _layer(
        self, x: Array, weights: dict[str, Any], cos: Array, sin: Array
    ) -> tuple[Array, dict[str, Any]]:
        """One layer: x + attention(norm(x)), then x + mlp(norm(x))."""
        cfg, saved, eps = self.cfg, {}, self.cfg.rms_norm_eps
        y, saved["input_layernorm"] = norm.forward(x, weights["input_layernorm.weight"], eps)
        y, saved["self_attn"] = mla.forward(y, weights["self_attn"], cfg, cos, sin)
        x = x + y
        gain = weights["post_attention_layernorm.weight"]
        y, saved["post_attention_layernorm"] = norm.forward(x, gain, eps)
        if "gate.weight" in weights["mlp"]:
            y, saved["mlp"] = moe.forward(y, weights["mlp"], cfg)
        else:
            y, saved["mlp"] = ffn.forward(y, weights["mlp"])
        return x + y, saved

    def generate(
        self, tokens: Array, max_new_tokens: int = 32, temperature: float = 0.0, seed: int = 0
    ) -> Array:
        """Continue every row of tokens (B, T): returns (B, T + max_new_tokens) int64.

        temperature 0 is greedy; above it, tokens are drawn from softmax(logits / temperature)
        with a generator started at `seed`.
        """
        return generate.generate(self, tokens, max_new_tokens, temperature, seed)
