"""Right answers to lesson 09, written another way."""

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch


def maxima_loops(q, k, scale):
    tokens, heads, _ = q.shape
    top = [-math.inf] * heads
    for h in range(heads):
        for t in range(tokens):
            for s in range(t + 1):
                top[h] = max(top[h], scale * math.sumprod(q[t, h], k[s, h])
                             if hasattr(math, "sumprod") else scale * float(q[t, h] @ k[s, h]))
    return np.array(top)


def maxima_query_by_query(q, k, scale):
    """One query at a time, so that no T x T matrix is ever held."""
    rows = [(q[t] * k[: t + 1]).sum(-1).max(0) for t in range(len(q))]
    return scale * np.max(rows, axis=0)


def maxima_head_by_head(q, k, scale):
    lower = np.tril_indices(len(q))
    return np.array([(scale * q[:, h] @ k[:, h].T)[lower].max() for h in range(q.shape[1])])


def maxima_in_torch(q, k, scale):
    q, k = (torch.tensor(a, dtype=torch.float32).transpose(0, 1) for a in (q, k))
    unseen = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool).triu(1)
    return (scale * q @ k.mT).masked_fill(unseen, -torch.inf).amax((1, 2))


@numba.njit
def maxima_numba(q, k, scale):
    tokens, heads, size = q.shape
    top = np.full(heads, -np.inf)
    for t in range(tokens):
        for s in range(t + 1):
            for h in range(heads):
                logit = 0.0
                for d in range(size):
                    logit += q[t, h, d] * k[s, h, d]
                top[h] = max(top[h], scale * logit)
    return top


def gamma_loop(max_logits, tau):
    return np.array([1.0 if m <= tau else tau / m for m in max_logits])


def gamma_masked(max_logits, tau):
    out, high = np.ones_like(max_logits), max_logits > tau
    out[high] = tau / max_logits[high]
    return out


def gamma_inverse(max_logits, tau):
    return 1 / np.clip(max_logits / tau, 1, None)


def gamma_in_torch(max_logits, tau):
    return tau / torch.tensor(max_logits, dtype=torch.float32).clamp(min=tau)


def rows_loop(gamma, nope, rope, value):
    query, key = [], []
    for g in gamma:
        query += [g ** 0.5] * nope + [g] * rope
        key += [math.sqrt(g)] * nope + [1.0] * value
    return np.array(query), np.array(key)


def rows_in_place(gamma, nope, rope, value):
    query = np.ones((len(gamma), nope + rope))
    key = np.ones((len(gamma), nope + value))
    query[:, :nope] *= gamma[:, None] ** 0.5
    query[:, nope:] *= gamma[:, None]
    key[:, :nope] *= gamma[:, None] ** 0.5
    return query.reshape(-1), key.reshape(-1)


def rows_as_powers(gamma, nope, rope, value):
    """gamma to the power of 1/2, 1 or 0."""
    query = np.repeat([0.5, 1.0], [nope, rope])
    key = np.repeat([0.5, 0.0], [nope, value])
    return tuple((gamma[:, None] ** power).ravel() for power in (query, key))


def rows_in_torch(gamma, nope, rope, value):
    return tuple(torch.tensor(a, dtype=torch.float32) for a in rows_in_place(
        gamma, nope, rope, value))


def block_loops(q_b_proj, kv_b_proj, max_logits, tau, nope, rope):
    query, key = q_b_proj.copy(), kv_b_proj.copy()
    width = len(kv_b_proj) // len(max_logits)
    for h, top in enumerate(max_logits):
        if top > tau:
            g = tau / top
            start = h * (nope + rope)
            query[start : start + nope] *= math.sqrt(g)
            query[start + nope : start + nope + rope] *= g
            key[h * width : h * width + nope] *= math.sqrt(g)
    return query, key


def block_einsum(q_b_proj, kv_b_proj, max_logits, tau, nope, rope):
    width = len(kv_b_proj) // len(max_logits)
    factors = rows_as_powers(gamma_inverse(max_logits, tau), nope, rope, width - nope)
    return tuple(np.einsum("r,rc->rc", f, w)
                 for f, w in zip(factors, (q_b_proj, kv_b_proj), strict=True))


def block_diagonal(q_b_proj, kv_b_proj, max_logits, tau, nope, rope):
    """Scaling rows is a product with a diagonal matrix from the left."""
    width = len(kv_b_proj) // len(max_logits)
    query, key = rows_loop(gamma_loop(max_logits, tau), nope, rope, width - nope)
    return np.diag(query) @ q_b_proj, np.diag(key) @ kv_b_proj


def block_in_torch(q_b_proj, kv_b_proj, max_logits, tau, nope, rope):
    g = torch.tensor(gamma_masked(max_logits, tau), dtype=torch.float32)[:, None, None]
    query = torch.tensor(q_b_proj, dtype=torch.float32).unflatten(0, (len(g), -1))
    key = torch.tensor(kv_b_proj, dtype=torch.float32).unflatten(0, (len(g), -1))
    query = torch.cat([query[:, :nope] * g.sqrt(), query[:, nope:] * g], 1)
    key = torch.cat([key[:, :nope] * g.sqrt(), key[:, nope:]], 1)
    return query.flatten(0, 1), key.flatten(0, 1)


OTHER_WAYS: dict[str, list[Callable[..., Any]]] = {
    "muonclip.max_logits": [maxima_loops, maxima_query_by_query, maxima_head_by_head,
                            maxima_in_torch, maxima_numba],
    "muonclip.gamma": [gamma_loop, gamma_masked, gamma_inverse, gamma_in_torch],
    "muonclip.row_factors": [rows_loop, rows_in_place, rows_as_powers, rows_in_torch],
    "muonclip.clip_block": [block_loops, block_einsum, block_diagonal, block_in_torch],
}
