"""What training wants to know of its forward passes: heads' largest logits, experts' loads.

Unusual here: the maxima cost next to nothing, because the softmax looks for every query's largest
score anyway and attention keeps them. In torch, whose fused attention tells none, they take a pass
of their own.
"""

import time
from typing import Any

import numpy as np

from minik2.config import ModelConfig

Array = np.ndarray[Any, np.dtype[Any]]


class Watch:
    """Joins what forward passes show until `reset`; give it to `Model.loss_and_grads`.

    max_logits (layers, H) float64: each head's largest logit, signed, after softmax scaling and
    before the softmax, over every query and the keys it sees, of all passes; -inf before the first.
    NaN where a logit was NaN. loads (layers, E) int64: how many (token, choice) pairs each expert
    got in all passes, zeros for dense layers. seconds: what taking the maxima has cost.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        self.max_logits = np.empty((cfg.num_hidden_layers, cfg.num_attention_heads))
        self.loads = np.empty((cfg.num_hidden_layers, cfg.n_routed_experts), np.int64)
        self.reset()

    def reset(self) -> None:
        """Forget all passes."""
        self.max_logits.fill(-np.inf)
        self.loads.fill(0)
        self.seconds = 0.0

    def take(self, layer: int, saved: dict[str, Any]) -> None:
        """Join what one layer's forward pass saved."""
        start, attention = time.perf_counter(), saved["self_attn"]["attention"]
        tops = attention["tops"].max(axis=(0, 2)).astype(np.float64) * attention["scale"]
        np.maximum(self.max_logits[layer], tops, out=self.max_logits[layer])
        self.seconds += time.perf_counter() - start
        if "router" in saved["mlp"]:
            indices = saved["mlp"]["router"]["indices"]
            self.loads[layer] += np.bincount(indices.reshape(-1), minlength=self.loads.shape[1])

    def maximum_violation(self) -> Array:
        """(max load - mean load) / mean load of each layer: 0 is balance, E / K - 1 collapse.

        Returns (layers,) float64, NaN for layers without experts and before the first pass.
        Source: arXiv 2408.15664, MaxVio.
        """
        mean = self.loads.mean(axis=1)
        mean[mean == 0] = np.nan
        return self.loads.max(axis=1) / mean - 1
