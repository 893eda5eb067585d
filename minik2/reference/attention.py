"""Causal softmax attention, a block of queries at a time, so that no T x T matrix is ever held.

Unusual here: the forward pass keeps no chances for the backward pass, which computes each block's
anew. That costs one product more, and saves a T x T matrix a head and layer.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from minik2.reference import kernels, kernels_backward, parallel

Array = np.ndarray[Any, np.dtype[Any]]

# Numbers of one block's scores: 4 MB in float32, which a cache can hold.
SCORES = 2**20


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

    def some(item: tuple[int, slice]) -> None:
        b, own = item
        value, out = (a[b, :, own].transpose(1, 0, 2) for a in (v, y))
        queries, keys = _heads(item, q, k)
        for start, stop, chances in _blocks(queries, keys, scale, tops[item]):
            out[:, start:stop] = chances @ value[:, : earlier + stop]

    earlier = k.shape[1] - tokens
    parallel.each(some, _shares(batch, heads))
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

    parallel.each_rows(some, heads, few=1)


def backward(dy: Array, saved: dict[str, Any]) -> tuple[Array, Array, Array]:
    """dq, dk, dv, each as its array.

    With P the chances of a block of queries: dv = Pᵀ dy, dP = dy vᵀ, dS = scale P (dP - Σ P dP),
    dq = dS k, dk = dSᵀ q.
    """
    q, k, v, scale, tops = (saved[name] for name in ("q", "k", "v", "scale", "tops"))
    dq, dk, dv = np.empty_like(q), np.empty_like(k), np.empty(v.shape, v.dtype)

    def some(item: tuple[int, slice]) -> None:
        queries, keys, values, given = _heads(item, q, k, v, dy)
        dqueries, dkeys, dvalues = (
            np.empty_like(queries),
            np.zeros_like(keys),
            np.zeros_like(values),
        )
        # The scores are made anew, and with them the same tops.
        for start, stop, chances in _blocks(queries, keys, scale, tops[item]):
            own = given[:, start:stop]
            dvalues[:, :stop] += chances.transpose(0, 2, 1) @ own
            d = own @ values[:, :stop].transpose(0, 2, 1)
            kernels_backward.causal_softmax_backward(chances, d, start, q.dtype.type(scale))
            np.matmul(d, keys[:, :stop], out=dqueries[:, start:stop])
            dkeys[:, :stop] += d.transpose(0, 2, 1) @ queries[:, start:stop]
        for whole, part in ((dq, dqueries), (dk, dkeys), (dv, dvalues)):
            whole[item[0], :, item[1]] = part.transpose(1, 0, 2)

    parallel.each(some, _shares(len(q), q.shape[2]))
    return dq, dk, dv


def _shares(batch: int, heads: int) -> list[tuple[int, slice]]:
    """(sequence, heads) pairs: the heads of a sequence in one call where there are sequences enough
    for the threads, because between two calls a thread may have to wait for the interpreter."""
    parts = min(heads, -(-parallel.thread_count() // batch))
    ends = [heads * n // parts for n in range(parts + 1)]
    return [(b, slice(*own)) for b in range(batch) for own in itertools.pairwise(ends)]


def _heads(item: tuple[int, slice], *arrays: Array) -> list[Array]:
    """Of each array (B, T, H, …) an item's heads, (heads, T, …), side by side in memory."""
    b, own = item
    return [np.ascontiguousarray(a[b, :, own].transpose(1, 0, 2)) for a in arrays]


def _blocks(q: Array, k: Array, scale: float, tops: Array) -> Iterator[tuple[int, int, Array]]:
    """Start, stop and chances (heads, stop - start, keys seen) of each block of queries.

    q: (heads, T, N + R), of the last T tokens of k (heads, S, N + R); tops (heads, T) takes each
    query's largest score.
    """
    heads, tokens, _ = q.shape
    earlier, block = k.shape[1] - tokens, min(128, max(16, SCORES // (heads * k.shape[1])))
    for start in range(0, tokens, block):
        stop = min(start + block, tokens)
        scores = q[:, start:stop] @ k[:, : earlier + stop].transpose(0, 2, 1)
        kernels.causal_softmax(scores, tops[:, start:stop], earlier + start, q.dtype.type(scale))
        yield start, stop, scores
