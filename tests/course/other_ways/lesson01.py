"""Right answers to lesson 01, written another way."""

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
import torch.nn.functional as F


def causal_loops(q, k, v):
    y = np.zeros((len(q), v.shape[1]))
    for m in range(len(q)):
        scores = [sum(a * b for a, b in zip(q[m], k[n], strict=True)) / math.sqrt(len(q[m]))
                  for n in range(m + 1)]
        powers = [math.exp(s - max(scores)) for s in scores]
        for n in reversed(range(m + 1)):
            y[m] += powers[n] / math.fsum(powers) * v[n]
    return y


def causal_einsum(q, k, v):
    scores = np.einsum("td,sd->ts", q, k) * len(q[0]) ** -0.5
    scores += np.triu(np.full(scores.shape, -np.inf), 1)
    weights = np.exp(scores - np.logaddexp.reduce(scores, axis=1, keepdims=True))
    return np.einsum("ts,sv->tv", weights, v)


def causal_in_torch(q, k, v):
    q, k, v = (torch.tensor(a, dtype=torch.float32)[None] for a in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)[0]


def causal_float32(q, k, v):
    q, k, v = (a.astype(np.float32) for a in (q, k, v))
    return causal_einsum(q, k, v)


def causal_one_pass(q, k, v):
    """A running maximum and a running sum, later tokens first: FlashAttention's order."""
    y = np.zeros((len(q), v.shape[1]))
    for m, query in enumerate(q):
        top, total = -np.inf, 0.0
        for n in range(m, -1, -1):
            score = query @ k[n] / np.sqrt(len(query))
            new = max(top, score)
            shrink, power = np.exp(top - new), np.exp(score - new)
            y[m] = y[m] * shrink + power * v[n]
            top, total = new, total * shrink + power
        y[m] /= total
    return y


@numba.njit
def causal_numba(q, k, v):
    y = np.zeros((q.shape[0], v.shape[1]))
    for m in range(q.shape[0]):
        scores = np.empty(m + 1)
        for n in range(m + 1):
            scores[n] = np.sum(q[m] * k[n]) / np.sqrt(q.shape[1])
        powers = np.exp(scores - scores.max())
        for n in range(m + 1):
            y[m] += powers[n] / powers.sum() * v[n]
    return y


def rotate_loops(x, positions, theta):
    y = np.array(x)
    for t, m in enumerate(positions):
        for i in range(x.shape[1] // 2):
            angle = m / theta ** (2 * i / x.shape[1])
            turn = np.array([[math.cos(angle), -math.sin(angle)],
                             [math.sin(angle), math.cos(angle)]])
            y[t, 2 * i:2 * i + 2] = turn @ x[t, 2 * i:2 * i + 2]
    return y


def rotate_complex(x, positions, theta):
    frequencies = np.exp(-np.arange(0, x.shape[1], 2) / x.shape[1] * np.log(theta))
    pairs = np.ascontiguousarray(x).view(np.complex128)
    return (pairs * np.exp(1j * positions[:, None] * frequencies)).view(np.float64)


def rotate_einsum(x, positions, theta):
    size = x.shape[1]
    angles = np.einsum("t,i->ti", positions, theta ** (-2 * np.arange(size // 2) / size))
    turns = np.array([[np.cos(angles), -np.sin(angles)], [np.sin(angles), np.cos(angles)]])
    return np.einsum("abti,tib->tia", turns, x.reshape(len(x), -1, 2)).reshape(x.shape)


def rotate_as_transformers(x, positions, theta):
    """To halves, the formula with rotate_half, and back again."""
    size = x.shape[1]
    p = np.arange(size).reshape(-1, 2).T.flatten()
    angles = np.tile(np.outer(positions, theta ** (-np.arange(0, size, 2) / size)), 2)
    first, second = np.split(x[:, p], 2, axis=1)
    y = np.empty_like(x)
    y[:, p] = x[:, p] * np.cos(angles) + np.hstack([-second, first]) * np.sin(angles)
    return y


def rotate_in_torch(x, positions, theta):
    x, positions = torch.tensor(x, dtype=torch.float32), torch.tensor(positions)
    frequencies = theta ** (-torch.arange(0, x.shape[1], 2) / x.shape[1])
    pairs = torch.view_as_complex(x.unflatten(1, (-1, 2)))
    angles = torch.outer(positions.float(), frequencies)
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(1)


def rotate_float32(x, positions, theta):
    return rotate_einsum(x.astype(np.float32), positions, theta).astype(np.float32)


def to_halves_lists(size):
    return [*range(0, size, 2), *range(1, size, 2)]


def to_halves_reshaped(size):
    return np.arange(size, dtype=np.int32).reshape(-1, 2).T.ravel()


def to_halves_in_torch(size):
    return torch.arange(size).unflatten(0, (-1, 2)).T.flatten()


def to_halves_sorted(size):
    return tuple(sorted(range(size), key=lambda index: index % 2))


def to_halves_by_place(size):
    index = np.zeros(size, np.uint8)
    for place in range(size):
        index[place] = 2 * place if place < size // 2 else 2 * (place - size // 2) + 1
    return index


def one_head_loops(x, q_proj, k_proj, v_proj, o_proj, positions, theta):
    def project(weight, vector):
        return np.array([sum(w * n for w, n in zip(row, vector, strict=True)) for row in weight])

    q, k, v = (np.array([project(w, token) for token in x]) for w in (q_proj, k_proj, v_proj))
    y = causal_loops(rotate_loops(q, positions, theta), rotate_loops(k, positions, theta), v)
    return np.array([project(o_proj, token) for token in y])


def one_head_einsum(x, q_proj, k_proj, v_proj, o_proj, positions, theta):
    q, k, v = (np.einsum("td,hd->th", x, w) for w in (q_proj, k_proj, v_proj))
    q, k = (rotate_complex(a, positions, theta) for a in (q, k))
    return np.einsum("tv,dv->td", causal_einsum(q, k, v), o_proj)


def one_head_output_first(x, q_proj, k_proj, v_proj, o_proj, positions, theta):
    """o_proj v_proj as one matrix: the products are taken in another order."""
    q, k = (rotate_einsum(x @ w.T, positions, theta) for w in (q_proj, k_proj))
    return causal_one_pass(q, k, x @ (o_proj @ v_proj).T)


def one_head_in_torch(x, q_proj, k_proj, v_proj, o_proj, positions, theta):
    x, q_proj, k_proj, v_proj, o_proj = (
        torch.tensor(a, dtype=torch.float32) for a in (x, q_proj, k_proj, v_proj, o_proj))
    q, k = (rotate_in_torch(F.linear(x, w).numpy(), positions, theta) for w in (q_proj, k_proj))
    return F.linear(causal_in_torch(q.numpy(), k.numpy(), F.linear(x, v_proj).numpy()), o_proj)


OTHER_WAYS: dict[str, list[Callable[..., Any]]] = {
    "attention.causal": [causal_loops, causal_einsum, causal_in_torch, causal_float32,
                         causal_one_pass, causal_numba],
    "rope.rotate": [rotate_loops, rotate_complex, rotate_einsum, rotate_as_transformers,
                    rotate_in_torch, rotate_float32],
    "rope.to_halves": [to_halves_lists, to_halves_reshaped, to_halves_in_torch, to_halves_sorted,
                       to_halves_by_place],
    "attention.one_head": [one_head_loops, one_head_einsum, one_head_output_first,
                           one_head_in_torch],
}
