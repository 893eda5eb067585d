"""A model whose matrices stay in their files, so that it may be larger than the memory.

Unusual here: opening it reads the headers and the norms. A step reads the matrices that it meets,
as they are stored, and of the experts those that the router has picked; nothing is kept. How fast
that is depends on the disk, and on how much of the files the system has in its cache.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from minik2 import checkpoint
from minik2.config import ModelConfig
from minik2.reference import kernels, moe, router
from minik2.reference.model import Model, home
from minik2.reference.stored import Matrix

Array = np.ndarray[Any, np.dtype[Any]]


class MappedModel(Model):
    """A checkpoint that is run from its files: logits, caches and text as of `Model`.

    Any format that `checkpoint` reads; it cannot be trained or changed. Made by `from_pretrained`.
    """

    decodes = False

    def __init__(self, cfg: ModelConfig, source: checkpoint.Checkpoint, dtype: str) -> None:
        self.cfg, self.dtype = cfg, np.dtype(dtype)
        self.layers = [{"self_attn": {}, "mlp": {"shared_experts": {}}}
                       for _ in range(cfg.num_hidden_layers)]  # fmt: skip
        self.weights: dict[str, Any] = {}
        for name, tensor in source.tensors.items():
            small = len(tensor.shape) == 1
            weight = tensor.read().astype(dtype) if small else Matrix(tensor, dtype)
            self.weights[name] = weight
            if name.startswith("model.layers."):
                place, key = home(self.layers, name)
                place[key] = weight
        tied = cfg.tie_word_embeddings
        self.head = self.weights["model.embed_tokens.weight" if tied else "lm_head.weight"]

    @classmethod
    def from_pretrained(cls, directory: str | Path, dtype: str = "float32") -> MappedModel:
        """Open config.json and *.safetensors of a directory; raises what `Model`'s does."""
        cfg = ModelConfig.from_json(Path(directory))
        return cls(cfg, checkpoint.open_checkpoint(directory, cfg), dtype)

    def _mlp(self, x: Array, weights: dict[str, Any]) -> tuple[Array, dict[str, Any]]:
        rows = x.reshape(-1, x.shape[-1])
        if "gate.weight" not in weights:
            return _ffn(rows, weights).reshape(x.shape), {}
        bias = weights.get("gate.e_score_correction_bias")
        gate = np.asarray(weights["gate.weight"])
        (indices, shares), saved = router.forward(rows, gate, bias, self.cfg)
        y = _ffn(rows, weights["shared_experts"])
        token, position, offsets = moe.dispatch(indices, self.cfg.n_routed_experts)
        out = np.empty((len(token), rows.shape[1]), x.dtype)
        for e in moe.busy_experts(offsets):
            own = slice(*offsets[e : e + 2])
            out[own] = _ffn(rows[token[own]], weights, f"experts.{e}.")
        kernels.combine(out, position, shares, y)
        return y.reshape(x.shape), {"router": saved}

    def loss_and_grads(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: weights in files cannot be trained."""
        raise TypeError("A mapped model runs and does not train; open it with Model instead.")

    def save_pretrained(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: `checkpoint.save` takes an open checkpoint's items, one after the other."""
        raise TypeError("A mapped model is saved already; checkpoint.save writes another format.")

    @classmethod
    def init(cls, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: there must be files."""
        raise TypeError("A mapped model comes from files; make a new one with Model.init.")


def _ffn(x: Array, weights: dict[str, Any], base: str = "") -> Array:
    gate, up, down = (weights[f"{base}{name}_proj.weight"] for name in ("gate", "up", "down"))
    gate_up = np.concatenate([gate.product(x), up.product(x)], axis=1)
    hidden = np.empty((len(x), len(up)), x.dtype)
    kernels.swiglu(gate_up, hidden)
    return down.product(hidden)
