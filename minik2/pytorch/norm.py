"""RMSNorm: a vector divided by its root mean square, times a learned gain.

Unusual here: on a CPU both passes are written out. PyTorch's own has no kernel there: forward it
goes over memory once more than it must, backward it takes twice as long, and it keeps a normalised
copy of every input until then.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class RMSNorm(nn.Module):
    """y = weight x / sqrt(mean(x²) + eps) over the last axis; x (..., size), y as x.

    Statistics are float32 for 16-bit inputs (PyTorch's own kernel sees to it) and in x's dtype
    otherwise. Source: arXiv 1910.07467 eq. 4.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return (_OnCPU.apply if torch.is_grad_enabled() else _on_cpu)(x, self.weight, self.eps)


def _on_cpu(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    inverse = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (wide * inverse).mul_(weight).to(x.dtype)


class _OnCPU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return _on_cpu(x, weight, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        """With x̂ = x / rms: dweight = Σ dy x̂, dx = (dy weight - x̂ mean(dy weight x̂)) / rms."""
        x, weight = ctx.saved_tensors
        exact = torch.promote_types(x.dtype, torch.float32)
        wide, dy, gain = x.to(exact), dy.to(exact), weight.to(exact)
        size = x.shape[-1]
        mean = torch.linalg.vecdot(wide, wide)[..., None] / size
        inverse = (mean + ctx.eps).rsqrt()
        normal = wide * inverse
        product = dy * normal
        dweight = product.flatten(0, -2).sum(0)
        share = (product @ gain)[..., None] / size
        dx = torch.mul(dy, gain, out=product).addcmul_(normal, share, value=-1).mul_(inverse)
        return dx.to(x.dtype), dweight.to(weight.dtype), None
