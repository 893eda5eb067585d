"""A model in float32 that is trained, and its twin in 16 bits that computes.

Unusual here: the twin's gradients never stay in 16 bits. As soon as one is complete it is added to
the float32 gradient of the weight that it belongs to, so that small gradients of many micro-batches
are not lost, and its memory is free. Source: arXiv 2507.20534 §2.4 (bfloat16 parameters, float32
gradient accumulation); arXiv 1710.03740 §3.1 (master weights).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minik2.pytorch.model import Model
from minik2.pytorch.moe import MoE
from minik2.pytorch.watch import Watch


class Mixed:
    """`twin`, in `dtype`, of `model`, which an optimizer updates; call `refresh` after each update.

    The routers are shared and stay float32, with their correction bias. Raises ValueError for a
    model whose head is its embedding.
    """

    def __init__(self, model: Model, dtype: torch.dtype = torch.bfloat16) -> None:
        if model.cfg.tie_word_embeddings:
            raise ValueError(
                "A model whose head is its embedding (tie_word_embeddings) has one gradient from "
                "two places and gets no twin; train it in float32."
            )
        self.model, self.twin = model, Model.empty(model.cfg, model.device, dtype)
        for ours, theirs in zip(self.twin.model.layers, model.model.layers, strict=True):
            if isinstance(ours.mlp, MoE) and isinstance(theirs.mlp, MoE):
                ours.mlp.gate = theirs.mlp.gate
        masters = dict(model.named_parameters())
        self.pairs = [(p, masters[name]) for name, p in self.twin.named_parameters()
                      if p is not masters[name]]  # fmt: skip
        for p, master in self.pairs:
            p.register_post_accumulate_grad_hook(_hand_over(master))
        self.refresh()

    @property
    def recompute(self) -> bool:
        """As `Model.recompute`, of the twin."""
        return self.twin.recompute

    @recompute.setter
    def recompute(self, value: bool) -> None:
        self.twin.recompute = value

    @torch.no_grad()
    def refresh(self) -> None:
        """Round the weights anew, after the optimizer has changed them."""
        torch._foreach_copy_([p for p, _ in self.pairs], [m for _, m in self.pairs])

    def loss(
        self, tokens: Any, targets: Any, balance_alpha: float = 0.0, watch: Watch | None = None
    ) -> Tensor:
        """`Model.loss` of the twin; its `backward` leaves gradients at the float32 model."""
        return self.twin.loss(tokens, targets, balance_alpha, watch)


def _hand_over(master: Tensor) -> Any:
    def hook(p: Tensor) -> None:
        assert p.grad is not None
        if master.grad is None:
            master.grad = p.grad.to(master.dtype)
        else:
            master.grad.add_(p.grad)
        p.grad = None

    return hook
