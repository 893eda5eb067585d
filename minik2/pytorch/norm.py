"""RMSNorm: a vector divided by its root mean square, times a learned gain."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
