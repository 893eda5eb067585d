"""What training wants to know of its forward passes: heads' largest logits, experts' loads.

Unusual here: nothing waits for the device. A GPU's time for the maxima, a pass of its own because
fused attention tells none, is kept as pairs of events and read when somebody asks for it.
"""

import time
from typing import Any

import torch
from torch import Tensor

from minik2.config import ModelConfig
from minik2.pytorch import qk_clip


class Notes(dict[str, Any]):
    """What a layer notes on its way. FSDP hands it on as it is; of a plain dict, a copy."""


class Watch:
    """Joins what forward passes show until `reset`; give it to `Model.loss`.

    On `device`, where the model is: max_logits (layers, H) float64: each head's largest logit,
    signed, after softmax scaling and before the softmax, over every query and the keys it sees, of
    all passes; -inf before the first, NaN where a logit was NaN; of a model in 16 bits, as exact as
    `qk_clip.max_logits`. loads (layers, E) int64: how many (token, choice) pairs each expert got in
    all passes, zeros for dense layers.
    """

    def __init__(self, cfg: ModelConfig, device: str | torch.device = "cpu") -> None:
        heads = cfg.num_hidden_layers, cfg.num_attention_heads
        experts = cfg.num_hidden_layers, cfg.n_routed_experts
        self.max_logits = torch.empty(heads, dtype=torch.float64, device=device)
        self.loads = torch.empty(experts, dtype=torch.int64, device=device)
        self.reset()

    def reset(self) -> None:
        """Forget all passes."""
        self.max_logits.fill_(-torch.inf)
        self.loads.zero_()
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @property
    def seconds(self) -> float:
        """What taking the maxima has cost. On a GPU, waits until it has been done."""
        for start, stop in self._events:
            stop.synchronize()
            self._seconds += start.elapsed_time(stop) / 1e3
        self._events.clear()
        return self._seconds

    @torch.no_grad()
    def take(self, layer: int, saved: dict[str, Any]) -> None:
        """Join what one layer's forward pass saved."""
        on_cpu = self.max_logits.device.type == "cpu"
        before, started = None if on_cpu else _event(), time.perf_counter()
        tops = qk_clip.max_logits(**saved["attention"]).to(self.max_logits.dtype)
        self.max_logits[layer] = torch.maximum(self.max_logits[layer], tops)
        if before is None:
            self._seconds += time.perf_counter() - started
        else:
            self._events.append((before, _event()))
        if "router" in saved:
            # Not bincount, which makes the host wait for a GPU.
            chosen = saved["router"]["indices"].flatten()
            self.loads[layer].scatter_add_(0, chosen, torch.ones_like(chosen))

    def maximum_violation(self) -> Tensor:
        """(max load - mean load) / mean load of each layer: 0 is balance, E / K - 1 collapse.

        Returns (layers,) float64, NaN for layers without experts and before the first pass.
        Source: arXiv 2408.15664, MaxVio.
        """
        mean = self.loads.double().mean(1)
        return self.loads.amax(1) / mean.masked_fill(mean == 0, torch.nan) - 1


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
