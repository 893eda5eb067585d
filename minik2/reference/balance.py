"""The sequence-wise balance loss: a small price for experts that one sequence uses too much.

Unusual here: it is the product of a count and a mean. Counts of choices have no gradient; the mean
score of an expert has one, and it is the larger the more often that expert was among the best.
"""

import math
from typing import Any

import numpy as np

from minik2.reference import kernels

Array = np.ndarray[Any, np.dtype[Any]]


def forward(scores: Array, chosen: int, alpha: float) -> tuple[float, dict[str, Any]]:
    """alpha Σ_e f_e P_e of each sequence, averaged over the sequences.

    scores: (B, T, E), unbiased, above 0; chosen: K. f_e = E / (K T) times how often e is among the
    K best unbiased scores of a token; P_e = the mean over tokens of score_e / Σ scores. Alike
    experts give alpha, the least there is. Source: arXiv 2412.19437 eq. 17-20, alpha 0.0001 in its
    §4.2; the average over sequences as in DeepSeek-V2's released code. Raises ValueError for an
    alpha that is negative or not finite.
    """
    if not 0 <= alpha < math.inf:
        raise ValueError(f"The balance loss's alpha is a finite number, 0 or more, not {alpha}.")
    batch, tokens, experts = scores.shape
    best = np.empty((batch * tokens, chosen), np.int64)
    kernels.top_k(scores.reshape(-1, experts), best)
    sequence = np.repeat(np.arange(batch), tokens * chosen)
    counts = np.zeros((batch, experts))
    np.add.at(counts, (sequence, best.reshape(-1)), experts / (chosen * tokens))
    # 1e-20 as in the router: scores that all underflow give zeros, not NaN.
    total = scores.sum(axis=2, keepdims=True) + 1e-20
    shares = scores / total
    loss = alpha * (counts * shares.mean(axis=1, dtype=np.float64)).sum() / batch
    return float(loss), {"counts": counts, "shares": shares, "total": total, "alpha": alpha}


def backward(dloss: float, saved: dict[str, Any]) -> Array:
    """Gradient of the scores, (B, T, E)."""
    shares = saved["shares"]
    batch, tokens, _ = shares.shape
    d = (dloss * saved["alpha"] / (batch * tokens) * saved["counts"][:, None]).astype(shares.dtype)
    return (d - (d * shares).sum(axis=2, keepdims=True)) / saved["total"]
