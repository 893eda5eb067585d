"""Causal softmax attention, a block of queries at a time, so that no T x T matrix is ever held.

Unusual here: the forward pass keeps no chances for the backward pass, which computes each block's
anew. That costs one product more, and saves a T x T matrix a head and layer.
"""

from typing import Any

import numba
import numpy as np

from minik2.reference import kernels, kernels_attention, parallel

Array = np.ndarray[Any, np.dtype[Any]]

# Numbers of one block's scores: 4 MB in float32, which a cache can hold.
SCORES = 2**20
# Fewer pairs of tokens than this are done before another thread has woken up.
ALONE = 2**13


def forward(q: Array, k: Array, v: Array, scale: float) -> tuple[Array, dict[str, Any]]:
    """softmax(scale q kᵀ + causal mask) v, head by head.

    q: (B, T, H, N + R); k: (B, S, H, N + R); v: (B, S, H, V); y: (B, T, H, V), all of one dtype.
    The queries are those of the last T of S tokens, and each sees the keys up to its own: a block
    of queries needs only the keys up to its end, which halves the work where T = S.
    saved["tops"] (B, H, T): each query's largest q · k, which softmax needs and QK-Clip asks for.
    Source: arXiv 1706.03762 eq. 1.
    """
    batch, tokens, heads, _ = q.shape
    y = np.empty((batch, tokens, heads, v.shape[-1]), q.dtype)
    tops = np.empty((batch, heads, tokens), q.dtype)

    threads, counter = numba.get_num_threads(), np.zeros(1, np.int64)
    kernels_attention.attention(q, k, v, q.dtype.type(scale), y, tops, threads, counter)
    return y, {"q": q, "k": k, "v": v, "scale": scale, "tops": tops}


def absorbed(q: Array, rows: Array, up: Array, y: Array, scale: float) -> None:
    """What `forward` makes of one sequence, without its keys and values: into y, (T, H, V).

    q: (T, H, N + R), of the last T of S tokens; rows: (S, C + R), a latent and a rotary key each;
    up: kv_b_proj (H (N + V), C). With a head's W_UK (N, C) and W_UV (V, C), the two parts of `up`:
    q_nope · (W_UK latent) = (q_nope W_UK) · latent, and Σ p (W_UV latent) = W_UV (Σ p latent).
    So all heads look at the same rows, and a share of the heads is one product with them.
    """
    tokens, heads, width = q.shape
    latents, value = up.shape[1], y.shape[2]
    nope, earlier = width - (rows.shape[1] - latents), len(rows) - tokens
    w_uk, w_uv = np.split(up.reshape(heads, nope + value, latents), [nope], axis=1)
    block = max(1, SCORES // (heads * len(rows)))

    def some(own: slice) -> None:
        for start in range(0, tokens, block):
            stop = min(start + block, tokens)
            part, seen = q[start:stop, own].transpose(1, 0, 2), rows[: earlier + stop]
            moved = np.empty((*part.shape[:2], rows.shape[1]), q.dtype)
            np.matmul(part[..., :nope], w_uk[own], out=moved[..., :latents])
            moved[..., latents:] = part[..., nope:]
            scores = (moved.reshape(-1, rows.shape[1]) @ seen.T).reshape(*part.shape[:2], -1)
            tops = np.empty(part.shape[:2], q.dtype)
            kernels.causal_softmax(scores, tops, earlier + start, q.dtype.type(scale))
            context = scores.reshape(-1, len(seen)) @ seen[:, :latents]
            context = context.reshape(*part.shape[:2], latents)
            y[start:stop, own] = (context @ w_uv[own].transpose(0, 2, 1)).transpose(1, 0, 2)

    if tokens * len(rows) < ALONE:
        parallel.each(some, [slice(heads)])
    else:
        parallel.each_rows(some, heads)


def backward(dy: Array, saved: dict[str, Any]) -> tuple[Array, Array, Array]:
    """dq, dk, dv, each as its array.

    With P the chances of a block of queries: dv = Pᵀ dy, dP = dy vᵀ, dS = scale P (dP - Σ P dP),
    dq = dS k, dk = dSᵀ q.
    """
    q, k, v, scale = (saved[name] for name in ("q", "k", "v", "scale"))
    dq, dk, dv = np.empty_like(q), np.empty_like(k), np.empty(v.shape, v.dtype)
    threads, counter = numba.get_num_threads(), np.zeros(1, np.int64)
    kernels_attention.attention_backward(
        q, k, v, dy, q.dtype.type(scale), dq, dk, dv, threads, counter
    )
    return dq, dk, dv
