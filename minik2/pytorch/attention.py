"""Causal softmax attention through PyTorch's own fused kernel."""

import torch.nn.functional as F
from torch import Tensor


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(scale q kᵀ + causal mask) v, head by head.

    q, k: (B, T, H, N + R); v: (B, T, H, V); y: (B, T, H, V). Source: arXiv 1706.03762 eq. 1.
    """
    # MLA's values are narrower than its keys. The CPU's fused kernel wants them alike: without
    # these zeros PyTorch falls back to a T x T matrix and takes twice as long.
    narrower = q.shape[-1] - v.shape[-1]
    padded = F.pad(v, (0, narrower)) if narrower > 0 and v.device.type == "cpu" else v
    q, k, padded = q.transpose(1, 2), k.transpose(1, 2), padded.transpose(1, 2)
    y = F.scaled_dot_product_attention(q, k, padded, is_causal=True, scale=scale)
    return y.transpose(1, 2)[..., : v.shape[-1]]
