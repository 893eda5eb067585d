"""Right answers to lesson 05, written another way."""

import heapq
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
import torch.nn.functional as F


def choose_and_weigh_loops(x, weight, bias, k, scale):
    gates = np.zeros((len(x), len(weight)))
    for t, token in enumerate(x):
        scores = [1 / (1 + math.exp(-math.fsum(token * row))) for row in weight]
        chosen = heapq.nlargest(k, range(len(scores)), key=lambda e: scores[e] + bias[e])
        for e in chosen:
            gates[t, e] = scale * scores[e] / sum(scores[c] for c in chosen)
    return gates


def choose_and_weigh_threshold(x, weight, bias, k, scale):
    """All that reach the k-th best; no two tie."""
    scores = 0.5 * (1 + np.tanh(np.einsum("td,ed->te", x, weight) / 2))
    least = np.partition(scores + bias, -k, axis=1)[:, -k]
    gates = scores * (scores + bias >= least[:, None])
    return gates * (scale / gates.sum(1, keepdims=True))


def choose_and_weigh_in_torch(x, weight, bias, k, scale):
    x, weight, bias = (torch.tensor(a, dtype=torch.float32) for a in (x, weight, bias))
    scores = F.linear(x, weight).sigmoid()
    chosen = (scores + bias).topk(k, sorted=False).indices
    weights = scores.gather(1, chosen)
    weights = weights / weights.sum(1, keepdim=True) * scale
    return torch.zeros_like(scores).scatter(1, chosen, weights)


def choose_and_weigh_float32(x, weight, bias, k, scale):
    x, weight, bias = (a.astype(np.float32) for a in (x, weight, bias))
    scores = 1 / (1 + np.exp(-x @ weight.T))
    chosen = np.argpartition(-scores - bias, k - 1, axis=1)[:, :k]
    shares = np.take_along_axis(scores, chosen, 1) * np.float32(scale)
    shares /= np.take_along_axis(scores, chosen, 1).sum(1, keepdims=True)
    return np.einsum("tk,tke->te", shares, np.eye(len(weight), dtype=np.float32)[chosen])


def group_limited_loops(choice, groups, kept, k):
    size = choice.shape[1] // groups
    chosen = np.zeros(choice.shape, bool)
    for t, row in enumerate(choice):
        worth = {g: sum(sorted(row[g * size:(g + 1) * size])[-2:]) for g in range(groups)}
        stay = heapq.nlargest(kept, worth, key=worth.get)
        left = [e for e in range(len(row)) if e // size in stay]
        chosen[t, sorted(left, key=lambda e: -row[e])[:k]] = True
    return chosen


def group_limited_in_torch(choice, groups, kept, k):
    choice = torch.tensor(choice, dtype=torch.float32)
    worth = choice.unflatten(1, (groups, -1)).topk(2).values.sum(-1)
    stay = F.one_hot(worth.topk(kept).indices, groups).sum(1).bool()
    stay = stay.repeat_interleave(choice.shape[1] // groups, 1)
    best = choice.masked_fill(~stay, -torch.inf).topk(k).indices
    return torch.zeros_like(stay).scatter(1, best, True)


def group_limited_a_large_number(choice, groups, kept, k):
    """Not infinity, but more than any score; groups ranked instead of picked."""
    grouped = np.array(np.split(choice, groups, axis=1))
    worth = np.partition(grouped, -2, axis=2)[..., -2:].mean(2)
    rank = (worth[:, None] < worth[None]).sum(1)
    lowered = np.concatenate(list(grouped - 1e6 * (rank >= kept)[..., None]), axis=1)
    return lowered >= np.sort(lowered, axis=1)[:, [-k]]


@numba.njit
def group_limited_numba(choice, groups, kept, k):
    tokens, experts = choice.shape
    size = experts // groups
    chosen = np.zeros((tokens, experts), np.bool_)
    for t in range(tokens):
        worth = np.empty(groups)
        for g in range(groups):
            worth[g] = np.sort(choice[t, g * size:(g + 1) * size])[-2:].sum()
        masked = np.full(experts, -np.inf)
        for g in np.argsort(-worth)[:kept]:
            masked[g * size:(g + 1) * size] = choice[t, g * size:(g + 1) * size]
        for e in np.argsort(-masked)[:k]:
            chosen[t, e] = True
    return chosen


def bias_update_loops(bias, gates, speed):
    counted = Counter(int(e) for row in gates for e in np.flatnonzero(row))
    even = sum(counted.values()) / len(bias)
    return np.array([b + speed * ((counted[e] < even) - (counted[e] > even))
                     for e, b in enumerate(bias)])


def bias_update_shares(bias, gates, speed):
    """Loads as shares of all choices, against 1/E."""
    shares = np.count_nonzero(gates, axis=0) / np.count_nonzero(gates)
    new = bias.copy()
    new[shares < 1 / len(bias)] += speed
    new[shares > 1 / len(bias)] -= speed
    return new


def bias_update_in_torch(bias, gates, speed):
    loads = torch.tensor(gates).bool().sum(0).float()
    return torch.tensor(bias, dtype=torch.float32) - speed * torch.sign(loads - loads.mean())


def bias_update_whole_numbers(bias, gates, speed):
    loads = np.bincount(np.nonzero(gates)[1], minlength=len(bias))
    return (bias + speed * np.sign(loads.sum() - len(bias) * loads)).astype(np.float32)


def with_shared_loops(x, gates, gate_up, down, shared_gate_up, shared_down):
    def one(vector, gate_up, down):
        half = len(gate_up) // 2
        gate, up = gate_up[:half] @ vector, gate_up[half:] @ vector
        return down @ np.array([g / (1 + math.exp(-g)) * u for g, u in zip(gate, up, strict=True)])

    y = []
    for token, row in zip(x, gates, strict=True):
        total = one(token, shared_gate_up, shared_down)
        for e in np.flatnonzero(row):
            total = total + row[e] * one(token, gate_up[e], down[e])
        y.append(total)
    return np.array(y)


def with_shared_einsum(x, gates, gate_up, down, shared_gate_up, shared_down):
    """Gates on the hidden numbers, which `down` is linear in; the shared one last."""
    gate, up = np.split(np.einsum("td,eid->tei", x, gate_up), 2, axis=-1)
    hidden = gate / (1 + np.exp(-gate)) * up * gates[..., None]
    y = np.einsum("tei,edi->td", hidden, down)
    gate, up = np.split(x @ shared_gate_up.T, 2, axis=-1)
    return y + gate / (1 + np.exp(-gate)) * up @ shared_down.T


def with_shared_in_torch(x, gates, gate_up, down, shared_gate_up, shared_down):
    x, gates, gate_up, down, shared_gate_up, shared_down = (
        torch.tensor(a, dtype=torch.float32)
        for a in (x, gates, gate_up, down, shared_gate_up, shared_down))

    def one(x, gate_up, down):
        gate, up = F.linear(x, gate_up).chunk(2, -1)
        return F.linear(F.silu(gate) * up, down)

    y = one(x, shared_gate_up, shared_down)
    for e in range(len(gate_up)):
        tokens = gates[:, e].nonzero()[:, 0]
        y.index_add_(0, tokens, gates[tokens, e, None] * one(x[tokens], gate_up[e], down[e]))
    return y


def with_shared_one_more_expert(x, gates, gate_up, down, shared_gate_up, shared_down):
    """The shared expert beside the others, with a gate of 1, in float32."""
    outputs = []
    for first, last in zip([*gate_up, shared_gate_up], [*down, shared_down], strict=True):
        gate, up = np.split(x.astype(np.float32) @ first.astype(np.float32).T, 2, axis=1)
        outputs.append(gate / (1 + np.exp(-gate)) * up @ last.astype(np.float32).T)
    weights = np.concatenate([gates, np.ones((len(x), 1))], axis=1).astype(np.float32)
    return np.einsum("te,etd->td", weights, np.array(outputs))


OTHER_WAYS: dict[str, list[Callable[..., Any]]] = {
    "router.choose_and_weigh": [choose_and_weigh_loops, choose_and_weigh_threshold,
                                choose_and_weigh_in_torch, choose_and_weigh_float32],
    "router.group_limited": [group_limited_loops, group_limited_in_torch,
                             group_limited_a_large_number, group_limited_numba],
    "router.bias_update": [bias_update_loops, bias_update_shares, bias_update_in_torch,
                           bias_update_whole_numbers],
    "router.with_shared_expert": [with_shared_loops, with_shared_einsum, with_shared_in_torch,
                                  with_shared_one_more_expert],
}
