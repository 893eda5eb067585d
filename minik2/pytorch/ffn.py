"""The gated feed-forward block: down(silu(gate x) · up x). Dense layers, shared experts.

Unusual here: on a CPU, as with the routed experts, the backward pass is written out and keeps gate
and up alone. Autograd's own keeps silu(gate) and the product too, for no gain: making them again
takes no longer than new memory for them does.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class FFN(nn.Module):
    """x (..., D) -> (..., D) through `width` hidden numbers. Source: arXiv 2002.05202."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, width, bias=False)
        self.up_proj = nn.Linear(hidden, width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and torch.is_grad_enabled():
            weights = self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight
            return _OnCPU.apply(x.flatten(0, -2), *weights).view_as(x)
        gate, up = self.gate_proj(x), self.up_proj(x)
        if torch.is_grad_enabled():
            return self.down_proj(F.silu(gate) * up)
        return self.down_proj(F.silu(gate, inplace=True).mul_(up))


class _OnCPU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gate_proj: Tensor, up_proj: Tensor, down_proj: Tensor
    ) -> Tensor:
        gate, up = x @ gate_proj.T, x @ up_proj.T
        ctx.save_for_backward(x, gate_proj, up_proj, down_proj, gate, up)
        return F.silu(gate).mul_(up) @ down_proj.T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
        x, gate_proj, up_proj, down_proj, gate, up = ctx.saved_tensors
        silu = F.silu(gate)
        ddown_proj = dy.T @ (silu * up)
        dhidden = dy @ down_proj
        dup = silu.mul_(dhidden)
        dgate = torch.ops.aten.silu_backward(dhidden.mul_(up), gate)
        dx = torch.addmm(dgate @ gate_proj, dup, up_proj)
        return dx, dgate.T @ x, dup.T @ x, ddown_proj
