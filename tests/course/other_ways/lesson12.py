"""Right answers to lesson 12, written another way."""

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from minik2.reference import muon


def send_loop(indices, experts, ranks):
    each, counts = experts // ranks, [0] * ranks
    for row in indices:
        for expert in row:
            counts[expert // each] += 1
    return np.array(counts), np.array([0, *itertools.accumulate(counts)])


def send_searched(indices, experts, ranks):
    """Where the first expert of each rank would stand in the sorted list."""
    bounds = np.arange(ranks + 1) * (experts // ranks)
    offsets = np.searchsorted(np.sort(indices.ravel()), bounds)
    return np.diff(offsets), offsets


def send_by_expert_first(indices, experts, ranks):
    counts = np.bincount(indices.ravel(), minlength=experts).reshape(ranks, -1).sum(1)
    offsets = np.zeros(ranks + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    return counts, offsets


def send_in_torch(indices, experts, ranks):
    owner = torch.tensor(indices).flatten() // (experts // ranks)
    counts = owner.bincount(minlength=ranks)
    return counts, torch.nn.functional.pad(counts.cumsum(0), (1, 0))


def send_in_int32(indices, experts, ranks):
    return tuple(a.astype(np.int32) for a in send_searched(indices, experts, ranks))


def arriving_loop(arriving):
    out = []
    for sent in arriving:
        for expert, count in enumerate(sent):
            out += [expert] * int(count)
    return np.array(out)


def arriving_by_rank(arriving):
    own = np.arange(arriving.shape[1])
    return np.concatenate([own.repeat(sent) for sent in arriving])


def arriving_modulo(arriving):
    return np.repeat(np.arange(arriving.size), arriving.ravel()) % arriving.shape[1]


def arriving_in_torch(arriving):
    counts = torch.tensor(arriving)
    own = torch.arange(counts.shape[1]).repeat(len(counts))
    return own.repeat_interleave(counts.flatten())


def bytes_in_steps(moe_layers, chosen, hidden, number_bytes, ranks):
    row = hidden * number_bytes
    forward = 2 * chosen * row * (1 - 1 / ranks)
    return moe_layers * (forward + forward)


def bytes_exactly(moe_layers, chosen, hidden, number_bytes, ranks):
    return float(math.prod((4, moe_layers, chosen, hidden, number_bytes)) * Fraction(
        ranks - 1, ranks))


def bytes_less_what_stays(moe_layers, chosen, hidden, number_bytes, ranks):
    whole = 4 * moe_layers * chosen * hidden * number_bytes
    return whole - whole / ranks


def bytes_in_numpy(moe_layers, chosen, hidden, number_bytes, ranks):
    return np.prod([4.0, moe_layers, chosen, hidden, number_bytes]) * np.float64(ranks - 1) / ranks


def update_by_decomposition(pieces, rank):
    """The polynomial on singular values."""
    whole = np.vstack(pieces)
    left, values, right = np.linalg.svd(whole / np.linalg.norm(whole), full_matrices=False)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    update = 0.2 * max(whole.shape) ** 0.5 * (left * values) @ right
    start = sum(len(piece) for piece in pieces[:rank])
    return update[start : start + len(pieces[rank])]


def update_split_again(pieces, rank):
    whole = np.concatenate(pieces)
    update = muon.newton_schulz(whole, 5) * muon.scale(*whole.shape, "match_rms_adamw")
    return np.split(update, np.cumsum([len(p) for p in pieces])[:-1])[rank]


def update_into_a_buffer(pieces, rank):
    ends = [0, *itertools.accumulate(map(len, pieces))]
    whole = np.empty((ends[-1], pieces[0].shape[1]))
    for piece, (start, end) in zip(pieces, itertools.pairwise(ends), strict=True):
        whole[start:end] = piece
    update = 0.2 * math.sqrt(max(whole.shape)) * muon.plain(whole, 5)
    return update[ends[rank] : ends[rank + 1]]


def update_in_torch(pieces, rank):
    whole = torch.cat([torch.tensor(piece, dtype=torch.float32) for piece in pieces])
    X = whole / whole.norm()
    for _ in range(5):
        R = X @ X.T
        X = 3.4445 * X + (-4.7750 * R + 2.0315 * R @ R) @ X
    update = 0.2 * max(whole.shape) ** 0.5 * X
    return update.split([len(piece) for piece in pieces])[rank]


def joint_loop(maxima, tau):
    out = []
    for head in range(maxima.shape[1]):
        top = max(float(rank[head]) for rank in maxima)
        out.append(tau / top if top > tau else 1.0)
    return np.array(out)


def joint_smallest_factor(maxima, tau):
    """Each rank's factors, and of these the smallest."""
    return (tau / np.maximum(maxima, tau)).min(axis=0)


def joint_masked(maxima, tau):
    top = np.maximum.reduce(maxima)
    gamma = np.ones_like(top)
    gamma[top > tau] = tau / top[top > tau]
    return gamma


def joint_in_torch(maxima, tau):
    top = torch.tensor(maxima, dtype=torch.float32).amax(0)
    return (tau / top.clamp(min=tau)).clamp(max=1)


OTHER_WAYS: dict[str, list[Callable[..., Any]]] = {
    "ranks.send_counts": [send_loop, send_searched, send_by_expert_first, send_in_torch,
                          send_in_int32],
    "ranks.arriving_experts": [arriving_loop, arriving_by_rank, arriving_modulo,
                               arriving_in_torch],
    "ranks.all_to_all_bytes": [bytes_in_steps, bytes_exactly, bytes_less_what_stays,
                               bytes_in_numpy],
    "ranks.sharded_update": [update_by_decomposition, update_split_again, update_into_a_buffer,
                             update_in_torch],
    "ranks.joint_gamma": [joint_loop, joint_smallest_factor, joint_masked, joint_in_torch],
}
