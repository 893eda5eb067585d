"""The gated feed-forward block: down(silu(gate x) · up x). Dense layers, shared experts."""

import torch.nn.functional as F
from torch import Tensor, nn


class FFN(nn.Module):
    """x (..., D) -> (..., D) through `width` hidden numbers. Source: arXiv 2002.05202."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, width, bias=False)
        self.up_proj = nn.Linear(hidden, width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
