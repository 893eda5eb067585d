"""One token more for every sequence of a cache, on a GPU: recorded once, then replayed.

Unusual here: launching some hundred small kernels takes the host longer than the GPU needs to read
the weights. A CUDA graph is one launch for all of them. What changes from token to token, the
tokens and their positions, lies in memory that the graph reads; how long each sequence is, the
kernels find there too, so that one recording serves all lengths.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from minik2.pytorch import grouped
from minik2.pytorch.accelerated import kernels
from minik2.pytorch.cache import Cache, Group, Plan

if TYPE_CHECKING:
    from minik2.pytorch.model import Model

# Before a graph is recorded, libraries set themselves up and kernels are compiled.
REHEARSALS = 2


def step(model: Model, cache: Cache) -> Step | None:
    """The cache's step of this model, made if need be; None where none can be recorded."""
    if cache.step is None or not cache.step.is_for(model):
        cache.step = Step(model, cache) if takes(model, cache) else None
    return cache.step


def takes(model: Model, cache: Cache) -> bool:
    """Whether a step of this model can be recorded: nothing in it may make the host wait."""
    cfg, weight = model.cfg, model.lm_head.weight
    if kernels is None or weight.device.type != "cuda":
        return False
    batch = len(cache.lengths)
    like = weight.new_empty(batch, 1, 1, cfg.kv_lora_rank + cfg.qk_rope_head_dim)
    if not kernels.takes_attention(like, cache.rows[0], cfg.kv_lora_rank):
        return False
    x = weight.new_empty(batch, cfg.hidden_size)
    stacks = [p for name, p in model.named_parameters() if name.endswith("experts.down_proj")]
    return all(kernels.takes_experts(x, s) or grouped.fits_the_kernel(x, s) for s in stacks)


class Step:
    """A recorded step over one cache; kept by the cache, made by `Model`.

    Called with tokens (B,) int64, a tensor or NumPy, it appends them and gives logits (B, vocab);
    counting the cache's lengths up is left to who calls.
    """

    @torch.inference_mode(False)
    def __init__(self, model: Model, cache: Cache) -> None:
        batch, device = len(cache.lengths), cache.rows.device
        self.model, self.cache = model, cache
        self.places = torch.zeros(batch, dtype=torch.int64, device=device)
        self.starts = torch.arange(batch, device=device) * cache.max_tokens
        # Tokens, then positions: what the host hands over.
        self.given = torch.zeros(2, batch, dtype=torch.int64, device=device)
        everything = Group(slice(0, batch), slice(0, batch), cache.max_tokens)
        self.plan = Plan(self.places, self.given[1], [everything], absorbed=True, ragged=True)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.place = model.lm_head.weight.data_ptr()

    def is_for(self, model: Model) -> bool:
        """False once the model's weights have been moved, of which the graph knows nothing."""
        return self.model is model and self.place == model.lm_head.weight.data_ptr()

    @torch.no_grad()
    def _run(self) -> Tensor:
        torch.add(self.starts, self.given[1], out=self.places)
        return self.model.appended(self.given[0], self.cache.rows, self.plan)

    @torch.inference_mode(False)
    def _record(self) -> None:
        # What a rehearsal writes into the cache is what the step itself writes.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(REHEARSALS):
                self._run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.logits = self._run()
        self.graph = graph

    def __call__(self, tokens: Any) -> Tensor:
        self.given[1].copy_(torch.from_numpy(np.ascontiguousarray(self.cache.lengths)))
        self.given[0].copy_(torch.as_tensor(tokens))
        if self.graph is None:
            self._record()
        assert self.graph is not None
        self.graph.replay()
        return self.logits.clone()
