"""The sequence-wise balance loss in torch: counts without a gradient times means with one."""

import math

import torch
from torch import Tensor


def forward(scores: Tensor, chosen: int, alpha: float) -> Tensor:
    """alpha Σ_e f_e P_e of each sequence, averaged over the sequences; a number.

    scores: (B, T, E), unbiased, above 0; chosen: K. f_e = E / (K T) times how often e is among the
    K best unbiased scores of a token; P_e = the mean over tokens of score_e / Σ scores. Alike
    experts give alpha, the least there is. Source: arXiv 2412.19437 eq. 17-20, alpha 0.0001 in its
    §4.2; the average over sequences as in DeepSeek-V2's released code. Raises ValueError for an
    alpha that is negative or not finite.
    """
    if not 0 <= alpha < math.inf:
        raise ValueError(f"The balance loss's alpha is a finite number, 0 or more, not {alpha}.")
    batch, tokens, experts = scores.shape
    best = scores.detach().topk(chosen, dim=-1).indices.flatten(1)
    counts = scores.new_zeros(batch, experts)
    counts.scatter_add_(1, best, torch.ones_like(best, dtype=scores.dtype))
    # 1e-20 as in the router: scores that all underflow give zeros, not NaN.
    shares = scores / (scores.sum(-1, keepdim=True) + 1e-20)
    return alpha * experts / (chosen * tokens) * (counts * shares.mean(1)).sum() / batch
