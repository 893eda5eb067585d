"""Right answers to lesson 10, written another way."""

import math
import statistics
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch


def wsd_loop(steps, warmup, falling, final):
    out = []
    for step in range(1, steps + 1):
        if step <= warmup:
            out.append(step / warmup)
        elif step <= steps - falling:
            out.append(1.0)
        else:
            gone = (step - (steps - falling)) / falling
            out.append(final + (1 - final) * 0.5 * (1 + math.cos(math.pi * gone)))
    return np.array(out)


def wsd_in_three_pieces(steps, warmup, falling, final):
    rise = np.linspace(1 / warmup, 1, warmup)
    fall = np.cos(np.linspace(0, np.pi, falling + 1))[1:]
    return np.concatenate([rise, np.ones(steps - warmup - falling),
                           (1 + final) / 2 + (1 - final) / 2 * fall])


def wsd_in_torch(steps, warmup, falling, final):
    step = torch.arange(1, steps + 1, dtype=torch.float32)
    gone = ((step - steps + falling) / falling).clamp(min=0)
    fall = 1 - (1 - final) * torch.sin(torch.pi / 2 * gone) ** 2
    return torch.minimum((step / warmup).clamp(max=1), fall)


@numba.njit
def wsd_numba(steps, warmup, falling, final):
    out = np.ones(steps)
    for n in range(warmup):
        out[n] = (n + 1) / warmup
    for n in range(1, falling + 1):
        share = math.cos(math.pi * n / falling / 2) ** 2
        out[steps - falling - 1 + n] = share + (1 - share) * final
    return out


def groups_by_sets(shapes):
    left = {n for n in shapes if not n.endswith("bias")}
    tables = {n for n in left if n.startswith(("model.embed_tokens", "lm_head"))}
    vectors = {n for n in left if len(shapes[n]) == 1}
    sizes = {n: int(np.prod(shapes[n], dtype=np.int64)) for n in left}
    adamw = sum(sizes[n] for n in tables | vectors)
    return {"adamw": adamw, "muon": sum(sizes.values()) - adamw}


def groups_by_names(shapes):
    def kind(name):
        if name.endswith("e_score_correction_bias"):
            return None
        outside = ("norm.weight", "embed_tokens.weight", "lm_head.weight")
        return "adamw" if name.endswith(outside) else "muon"
    out = {"muon": 0, "adamw": 0}
    for name, shape in shapes.items():
        if kind(name):
            out[kind(name)] += math.prod(shape)
    return out


def groups_in_torch(shapes):
    out = {"muon": 0, "adamw": 0}
    for name, shape in shapes.items():
        tensor = torch.empty(shape, device="meta")
        if "correction" in name:
            continue
        table = name in ("model.embed_tokens.weight", "lm_head.weight")
        out["adamw" if table or tensor.dim() < 2 else "muon"] += tensor.numel()
    return out


def share_loop(tokens, ours, theirs, width):
    goal = statistics.fmean(theirs[-width:])
    before = None
    for n in range(width - 1, len(ours)):
        mean = statistics.fmean(ours[n - width + 1 : n + 1])
        if mean <= goal:
            place, high = before
            part = (high - goal) / (high - mean)
            return (place + part * (tokens[n] - place)) / tokens[-1]
        before = tokens[n], mean
    return math.inf


def share_by_sums(tokens, ours, theirs, width):
    """Means as differences of running sums; the lowest so far in place of the first below."""
    ours, theirs = (np.diff(np.cumsum([0.0, *x])[np.add.outer([0, width], np.arange(
        len(x) - width + 1))], axis=0)[0] / width for x in (ours, theirs))
    n = int((np.minimum.accumulate(ours) > theirs[-1]).sum())
    if n == len(ours):
        return np.inf
    at = np.interp(-theirs[-1], [-ours[n - 1], -ours[n]], tokens[width + n - 2 : width + n])
    return at / tokens[-1]


def share_in_torch(tokens, ours, theirs, width):
    mean = torch.nn.functional.avg_pool1d
    ours, theirs = (mean(torch.tensor(x)[None], width, 1)[0] for x in (ours, theirs))
    reached = (ours <= theirs[-1]).nonzero()
    if not len(reached):
        return torch.tensor(torch.inf)
    n = int(reached[0])
    part = (ours[n - 1] - theirs[-1]) / (ours[n - 1] - ours[n])
    at = torch.tensor(tokens)[width - 1 :]
    return torch.lerp(at[n - 1], at[n], part) / at[-1]


def spikes_windows(losses, before, times):
    past = np.lib.stride_tricks.sliding_window_view(losses, before)[:-1]
    middle = np.median(past, axis=1, keepdims=True)
    spread = np.median(np.abs(past - middle), axis=1)
    return np.append(np.zeros(before, bool), losses[before:] - middle[:, 0] > times * spread)


def spikes_list(losses, before, times):
    out = [False] * before
    for t in range(before, len(losses)):
        past = losses[t - before : t].tolist()
        middle = statistics.median(past)
        out.append(losses[t] - middle > times * statistics.median(abs(x - middle) for x in past))
    return out


def spikes_sorted(losses, before, times):
    """The median of an odd number is the middle one."""
    out = np.full(len(losses), False)
    for t in range(before, len(losses)):
        past = np.sort(losses[t - before : t])
        far = np.sort(np.abs(past - past[before // 2]))
        out[t] = losses[t] > past[before // 2] + times * far[before // 2]
    return out


def spikes_in_torch(losses, before, times):
    losses = torch.tensor(losses)
    past = losses.unfold(0, before, 1)[:-1]
    middle = past.median(1, keepdim=True).values
    spread = (past - middle).abs().median(1).values
    marked = losses[before:] > middle[:, 0] + times * spread
    return torch.cat([torch.zeros(before, dtype=torch.bool), marked])


OTHER_WAYS: dict[str, list[Callable[..., Any]]] = {
    "training.wsd": [wsd_loop, wsd_in_three_pieces, wsd_in_torch, wsd_numba],
    "training.groups": [groups_by_sets, groups_by_names, groups_in_torch],
    "training.token_share": [share_loop, share_by_sums, share_in_torch],
    "training.spikes": [spikes_windows, spikes_list, spikes_sorted, spikes_in_torch],
}
