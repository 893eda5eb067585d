"""Causal softmax attention, a block of queries at a time, so that no T x T matrix is ever held."""

from typing import Any

import numpy as np

from minik2.reference import kernels

Array = np.ndarray[Any, np.dtype[Any]]

# Numbers of one block's scores, all heads together: 4 MB in float32, which a cache can hold.
SCORES = 2**20


def forward(q: Array, k: Array, v: Array, scale: float) -> tuple[Array, dict[str, Any]]:
    """softmax(scale q kᵀ + causal mask) v, head by head.

    q, k: (B, T, H, N + R); v: (B, T, H, V); y: (B, T, H, V), all of one dtype. Query t sees keys
    0 to t. A block of queries needs only the keys up to its end, which halves the work.
    Source: arXiv 1706.03762 eq. 1.
    """
    batch, tokens, heads, _ = q.shape
    y = np.empty((batch, tokens, heads, v.shape[-1]), q.dtype)
    block = min(128, max(16, SCORES // (batch * heads * tokens)))
    keys, values = k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)
    for start in range(0, tokens, block):
        stop = min(start + block, tokens)
        scores = np.matmul(q[:, start:stop].transpose(0, 2, 1, 3), keys[..., :stop])
        rows = scores.reshape(batch * heads, stop - start, stop)
        kernels.causal_softmax(rows, start, q.dtype.type(scale))
        np.matmul(scores, values[:, :, :stop], out=y[:, start:stop].transpose(0, 2, 1, 3))
    return y, {"q": q, "k": k, "v": v, "scale": scale}
