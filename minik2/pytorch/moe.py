"""Mixture of experts in torch: the router, the routed experts, the shared one."""

from typing import Any

import torch
from torch import Tensor, nn

from minik2.config import ModelConfig
from minik2.pytorch import grouped
from minik2.pytorch.ffn import FFN
from minik2.pytorch.router import Router


class Experts(nn.Module):
    """The routed experts as two stacks, gate_up_proj (E, 2I, D) and down_proj (E, D, I)."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        experts, width, hidden = cfg.n_routed_experts, cfg.moe_intermediate_size, cfg.hidden_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * width, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, width))

    def forward(self, x: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        """Σ_k weights[:, k] expert_indices[:, k](x): x (tokens, D), the others (tokens, K)."""
        return grouped.experts(x, indices, weights, self.gate_up_proj, self.down_proj)


class MoE(nn.Module):
    """y = routed(x) + shared(x): x (B, T, D) -> (B, T, D). Source: arXiv 2412.19437 eq. 12.

    saved, if given, takes "router": its scores and indices.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.gate = Router(cfg)
        self.experts = Experts(cfg)
        self.shared_experts = FFN(cfg.hidden_size, cfg.n_shared_experts * cfg.moe_intermediate_size)

    def forward(self, x: Tensor, saved: dict[str, Any] | None = None) -> Tensor:
        rows = x.flatten(0, -2)
        indices, weights = self.gate(rows, saved)
        return self.experts(rows, indices, weights).view_as(x) + self.shared_experts(x)
