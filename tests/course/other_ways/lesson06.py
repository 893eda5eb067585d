"""Right answers to lesson 06, written another way."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numba
import numpy as np
import torch
import torch.nn.functional as F


def sort_lists(indices, experts):
    pairs = [int(e) for row in indices for e in row]
    own = [[p for p, e in enumerate(pairs) if e == expert] for expert in range(experts)]
    offsets = [0]
    for mine in own:
        offsets.append(offsets[-1] + len(mine))
    return [p for mine in own for p in mine], offsets


def sort_counting(indices, experts):
    """Counting sort: count, add up, and let every pair take the next place of its expert."""
    flat = indices.ravel()
    offsets = np.zeros(experts + 1, np.int32)
    np.add.at(offsets, flat + 1, 1)
    offsets = np.cumsum(offsets, dtype=np.int32)
    order, free = np.empty(flat.size, np.int32), offsets.copy()
    for p, e in enumerate(flat):
        order[free[e]] = p
        free[e] += 1
    return order, offsets


def sort_in_torch(indices, experts):
    flat = torch.tensor(indices).flatten()
    counts = torch.zeros(experts + 1, dtype=torch.int64)
    counts[1:] = flat.bincount(minlength=experts)
    return flat.argsort(stable=True), counts.cumsum(0)


def sort_keys(indices, experts):
    """One number for each pair, expert first: no two are equal, so any sort will do."""
    keys = np.sort(indices.reshape(-1) * indices.size + np.arange(indices.size))
    return keys % indices.size, np.searchsorted(keys // indices.size, np.arange(experts + 1))


def sort_lexsort(indices, experts):
    flat = indices.flatten()
    order = np.lexsort((np.arange(flat.size), flat))
    return order, np.array([(flat < e).sum() for e in range(experts + 1)])


@numba.njit
def sort_numba(indices, experts):
    flat = indices.reshape(-1)
    offsets = np.zeros(experts + 1, np.int64)
    for e in flat:
        offsets[e + 1] += 1
    offsets = offsets.cumsum()
    order, free = np.empty(flat.size, np.int64), offsets.copy()
    for p in range(flat.size):
        order[free[flat[p]]] = p
        free[flat[p]] += 1
    return order, offsets


def grouped_rows(rows, offsets, gate_up_proj, down_proj):
    """A row at a time, each looking for its expert."""
    out = []
    for r, row in enumerate(rows):
        e = np.searchsorted(offsets, r, side="right") - 1
        gate, up = np.split(gate_up_proj[e] @ row, 2)
        out.append(down_proj[e] @ (gate * up / (1 + np.exp(-gate))))
    return np.array(out)


def grouped_einsum(rows, offsets, gate_up_proj, down_proj):
    expert = np.repeat(np.arange(len(gate_up_proj)), np.diff(offsets))
    gate, up = np.split(np.einsum("pd,pid->pi", rows, gate_up_proj[expert]), 2, axis=1)
    return np.einsum("pi,pdi->pd", gate * up * 0.5 * (1 + np.tanh(gate / 2)), down_proj[expert])


def grouped_in_torch(rows, offsets, gate_up_proj, down_proj):
    rows, gate_up_proj, down_proj = (
        torch.tensor(a, dtype=torch.float32) for a in (rows, gate_up_proj, down_proj))
    parts = rows.split(np.diff(offsets).tolist())
    outs = []
    for e, part in enumerate(parts):
        gate, up = F.linear(part, gate_up_proj[e]).chunk(2, -1)
        outs.append(F.linear(F.silu(gate) * up, down_proj[e]))
    return torch.cat(outs)


def grouped_float32(rows, offsets, gate_up_proj, down_proj):
    rows, gate_up_proj, down_proj = (
        a.astype(np.float32) for a in (rows, gate_up_proj, down_proj))
    return grouped_einsum(rows, offsets, gate_up_proj, down_proj).astype(np.float32)


@numba.njit
def grouped_numba(rows, offsets, gate_up_proj, down_proj):
    """Rows last in the loops, sums from the end."""
    width = down_proj.shape[2]
    out = np.zeros(rows.shape)
    for e in range(down_proj.shape[0]):
        for i in range(width - 1, -1, -1):
            for r in range(offsets[e], offsets[e + 1]):
                gate = np.sum(gate_up_proj[e, i] * rows[r])
                up = np.sum(gate_up_proj[e, width + i] * rows[r])
                out[r] += down_proj[e, :, i] * (gate / (1 + math.exp(-gate)) * up)
    return out


@numba.njit(fastmath=True)
def grouped_numba_float32(rows, offsets, gate_up_proj, down_proj):
    width = down_proj.shape[2]
    out = np.zeros(rows.shape, np.float32)
    for e in range(down_proj.shape[0]):
        for r in range(offsets[e], offsets[e + 1]):
            for i in range(width):
                gate = up = np.float32(0)
                for d in range(rows.shape[1]):
                    gate += np.float32(gate_up_proj[e, i, d] * rows[r, d])
                    up += np.float32(gate_up_proj[e, width + i, d] * rows[r, d])
                hidden = gate / (1 + math.exp(-gate)) * up
                for d in range(rows.shape[1]):
                    out[r, d] += down_proj[e, d, i] * hidden
    return out


def combine_loops(out, order, weights):
    tokens, chosen = weights.shape
    y = [[0.0] * out.shape[1] for _ in range(tokens)]
    for place, pair in enumerate(order):
        t, k = divmod(int(pair), chosen)
        for d, number in enumerate(out[place]):
            y[t][d] += weights[t, k] * number
    return y


def combine_add_at(out, order, weights):
    y = np.zeros((len(weights), out.shape[1]))
    np.add.at(y, order // weights.shape[1], weights.flat[order][:, None] * out)
    return y


def combine_einsum(out, order, weights):
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    return np.einsum("tk,tkd->td", weights, out[position.reshape(weights.shape)])


def combine_one_product(out, order, weights):
    """The weights as one sparse matrix, written out in full."""
    matrix = np.zeros((len(weights), len(out)))
    matrix[order // weights.shape[1], np.arange(len(out))] = weights.reshape(-1)[order]
    return matrix @ out


def combine_in_torch(out, order, weights):
    out, weights = (torch.tensor(a, dtype=torch.float32) for a in (out, weights))
    order = torch.tensor(order)
    rows = out * weights.flatten()[order, None]
    y = torch.zeros(len(weights), out.shape[1])
    return y.index_add(0, order // weights.shape[1], rows)


def combine_float32(out, order, weights):
    rows = np.empty(out.shape, np.float32)
    rows[order] = out
    rows = rows.reshape(*weights.shape, -1)
    return sum(weights[:, k, None].astype(np.float32) * rows[:, k]
               for k in reversed(range(weights.shape[1])))


def violation_exact(loads):
    loads = [int(n) for n in loads]
    return float(Fraction(max(loads) * len(loads), sum(loads)) - 1)


def violation_of_each(loads):
    return max((n - sum(loads) / len(loads)) / (sum(loads) / len(loads)) for n in loads)


def violation_shares(loads):
    return (loads / loads.sum()).max() * loads.size - 1


def violation_in_torch(loads):
    loads = torch.tensor(loads, dtype=torch.float32)
    return (loads.max() - loads.mean()) / loads.mean()


@numba.njit
def violation_numba(loads):
    return (loads.max() - loads.mean()) / loads.mean()


OTHER_WAYS: dict[str, list[Callable[..., Any]]] = {
    "moe.sort_by_expert": [sort_lists, sort_counting, sort_in_torch, sort_keys, sort_lexsort,
                           sort_numba],
    "moe.grouped_swiglu": [grouped_rows, grouped_einsum, grouped_in_torch, grouped_float32,
                           grouped_numba, grouped_numba_float32],
    "moe.combine": [combine_loops, combine_add_at, combine_einsum, combine_one_product,
                    combine_in_torch, combine_float32],
    "moe.maximum_violation": [violation_exact, violation_of_each, violation_shares,
                              violation_in_torch, violation_numba],
}
