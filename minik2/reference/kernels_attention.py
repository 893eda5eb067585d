"""Causal attention, head by head and a few dozen queries at a time, each on one thread.

Unusual here: queries lie across and keys down, so that the scores come out of the product as the
next one wants to read them, and the softmax of all queries of a block goes on side by side.
"""

import numpy as np
from numba import njit, prange, types

from minik2.reference.gemm import MARGIN, compiled, gemm, in_lines, move, panel
from minik2.reference.instructions import VECTOR, WIDEST, take
from minik2.reference.kernels import FAST, _exp, larger


@njit(fastmath=FAST, error_model="numpy")
def _chances(keys, queries, earlier, scale, packed, beside, scores, tops, totals):
    """scores[s, j] = e^(scale (k_s · q_j - tops[j])), 0 where s > earlier + j; totals: their sums.

    keys (S, W), rows without gaps; queries (n, W); scores (S, whole vectors), whose columns from n
    on belong to nobody; packed and beside: room for `panel`.
    """
    count, seen = len(queries), len(keys)
    packed[:, count:] = 0
    move(queries.T, packed[:, :count])
    panel(keys, packed, scores, beside)
    lanes = scores.shape[1]
    for j in range(lanes):
        tops[j], totals[j] = scores[0, j], 0
    for s in range(1, seen):
        first = np.int32(s - earlier)
        for j in range(lanes):
            top = larger(tops[j], scores[s, j])
            tops[j] = top if np.int32(j) >= first else tops[j]
    # Two short loops a key, and numbers as narrow as the scores: so they become vectors.
    for s in range(seen):
        first = np.int32(s - earlier)
        for j in range(lanes):
            chance = _exp((scores[s, j] - tops[j]) * scale)
            scores[s, j] = chance if np.int32(j) >= first else scale * 0
        for j in range(lanes):
            totals[j] += scores[s, j]


def _attention(read, written, line):
    heads, tops = read.copy(ndim=4), written.copy(ndim=3)
    return types.void(heads, heads, heads, read.dtype, written.copy(ndim=4), tops, types.intp,
                      types.int64[::1])  # fmt: skip


@compiled(_attention, parallel=True, fastmath=FAST)
def attention(q, k, v, scale, y, tops, threads, counter):
    """y = softmax(scale q kᵀ + causal mask) v, and tops (B, H, T), each query's largest q · k.

    q (B, T, H, W); k (B, S, H, W); v (B, S, H, V); y (B, T, H, V). counter: (1,) int64, zero.
    """
    batch, tokens, heads, width = q.shape
    earlier = k.shape[1] - tokens
    lanes = WIDEST * VECTOR // q.itemsize
    blocks = -(-tokens // lanes)
    for _ in prange(threads):
        packed = np.empty((width, lanes), q.dtype)
        memory = np.empty((k.shape[1], lanes), q.dtype)
        beside = np.empty((max(k.shape[1], width, v.shape[3]) + MARGIN) * lanes, q.dtype)
        found = np.empty((v.shape[3], lanes), q.dtype)
        highest, totals = np.empty(lanes, q.dtype), np.empty(lanes, q.dtype)
        head, keys, values = -1, in_lines(k[0, :, 0]), in_lines(v[0, :, 0].T)
        n = take(counter)
        while n < batch * heads * blocks:
            # Of each head the last block, which sees the most, first.
            b, h, start = n // blocks // heads, n // blocks % heads, (-n - 1) % blocks * lanes
            if head != n // blocks:
                head, keys, values = n // blocks, in_lines(k[b, :, h]), in_lines(v[b, :, h].T)
            stop = min(start + lanes, tokens)
            seen, own = earlier + stop, stop - start
            scores = memory[:seen]
            _chances(keys[:seen], q[b, start:stop, h], earlier + start, scale, packed, beside,
                     scores, highest, totals)  # fmt: skip
            panel(values[:, :seen], scores, found, beside)
            for i in range(found.shape[0]):
                for j in range(lanes):
                    found[i, j] /= totals[j]
            move(found[:, :own], y[b, start:stop, h].T)
            tops[b, h, start:stop] = highest[:own]
            n = take(counter)


def _attention_backward(read, written, line):
    heads, gradient = read.copy(ndim=4), written.copy(ndim=4)
    return types.void(heads, heads, heads, heads, read.dtype, gradient, gradient, gradient,
                      types.intp, types.int64[::1])  # fmt: skip


@compiled(_attention_backward, parallel=True, fastmath=FAST)
def attention_backward(q, k, v, dy, scale, dq, dk, dv, threads, counter):
    """dq, dk, dv from dy, all laid out as their arrays; a head is one thread's from start to end.

    With P a block's chances: dv = Pᵀ dy, dP = dy vᵀ, dS = scale P (dP - Σ P dP), dq = dS k,
    dk = dSᵀ q.
    """
    batch, tokens, heads, width = q.shape
    earlier = k.shape[1] - tokens
    lanes = WIDEST * VECTOR // q.itemsize
    for _ in prange(threads):
        packed = np.empty((max(width, v.shape[3]), lanes), q.dtype)
        memory = np.empty((2, k.shape[1], lanes), q.dtype)
        beside = np.empty((max(k.shape[1], width, v.shape[3]) + MARGIN) * lanes, q.dtype)
        found = np.empty((width, lanes), q.dtype)
        more = np.empty((k.shape[1], max(width, v.shape[3])), q.dtype)
        tops, totals = np.empty(lanes, q.dtype), np.empty(lanes, q.dtype)
        means = np.empty(lanes, q.dtype)
        n = take(counter)
        while n < batch * heads:
            b, h = n % batch, n // batch
            keys, values = in_lines(k[b, :, h]), in_lines(v[b, :, h])
            turned = in_lines(k[b, :, h].T)
            dkeys, dvalues = np.zeros_like(keys), np.zeros_like(values)
            for start in range(0, tokens, lanes):
                stop = min(start + lanes, tokens)
                seen, own = earlier + stop, stop - start
                queries, given = q[b, start:stop, h], dy[b, start:stop, h]
                chances, d = memory[0, :seen], memory[1, :seen]
                _chances(keys[:seen], queries, earlier + start, scale, packed[:width], beside,
                         chances, tops, totals)  # fmt: skip
                packed[: v.shape[3], own:] = 0
                move(given.T, packed[: v.shape[3], :own])
                panel(values[:seen], packed[: v.shape[3]], d, beside)
                means[:] = 0
                for s in range(seen):
                    for j in range(lanes):
                        chances[s, j] /= totals[j]
                        means[j] += chances[s, j] * d[s, j]
                for s in range(seen):
                    for j in range(lanes):
                        d[s, j] = scale * chances[s, j] * (d[s, j] - means[j])
                _add(chances[:, :own], given, more, dvalues)
                _add(d[:, :own], queries, more, dkeys)
                panel(turned[:, :seen], d, found, beside)
                move(found[:, :own], dq[b, start:stop, h].T)
            move(dkeys, dk[b, :, h])
            move(dvalues, dv[b, :, h])
            n = take(counter)


@njit(error_model="numpy")
def _add(a, b, more, c):
    """c[: rows of a] += a b; more: room for the product."""
    product = more[: len(a), : b.shape[1]]
    gemm(a, b, product)
    for r in range(len(a)):
        for i in range(b.shape[1]):
            c[r, i] += product[r, i]
