"""Router decisions on the device against the reference: equal, or a tie that rounding may decide.

Unusual here: it is not asked whether two choices are equal, but of each choice, on both sides,
whether it is right for some scores within rounding of the exact ones. A token's score is exact to
b = s'(l) (D + 3) u |x|·|w| + 8 u (|s| + |bias|): a sum of D products, then the function, whose
slope is s' (1/4 at most for the sigmoid; softmax: 2 s times the largest error of any logit), the
bias, the comparison. An expert that is chosen may so score lower than one that is not by the sum
of both b, and no more; a group may be worth less than one that was dropped by the b of the experts
that make its worth. Differences beyond that are broken. On purpose there are near-ties (rows of
the gate that differ in the last bit) and exact ties (equal rows): the reference takes the lower
number, and torch.topk on a GPU promises no order, so both are right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.check import Check
from benchmarks.rounding import UNIT
from minik2 import reference
from minik2.config import ModelConfig
from minik2.pytorch.router import Router

Array = np.ndarray[Any, np.dtype[Any]]
TOKENS = 4096
# An odd number is chosen, so that where experts tie in pairs, one of a pair is left.
WIDE = ModelConfig.preset("tiny").replace(hidden_size=256, n_routed_experts=64,
                                          num_experts_per_tok=7)  # fmt: skip
CONFIGS = {
    "K2": WIDE,
    "V3, 8 groups": WIDE.replace(n_group=8, topk_group=4),
    "V2, softmax": WIDE.replace(scoring_func="softmax", topk_method="greedy", norm_topk_prob=False),
    "V2, softmax, 8 groups": WIDE.replace(
        scoring_func="softmax", topk_method="group_limited_greedy", norm_topk_prob=False,
        n_group=8, topk_group=3),
}  # fmt: skip


def run(section: str, cases: Sequence[Any], device: str) -> Iterator[Check]:
    """A check for each kind of router, kind of gate, and precision of what goes in."""
    for precision in ("float64", "float32", "bfloat16"):
        for name, cfg in CONFIGS.items():
            for kind in ("random", "near-ties", "exact ties"):
                yield decide(section, name, cfg, kind, precision, device)


def gate(cfg: ModelConfig, kind: str, precision: str) -> tuple[Array, Array]:
    """Rows (E, D) and biases (E,) of a router, numbers of the precision, as float64.

    With ties, each expert of the second half has the row and the bias of one of the first half;
    near-ties differ from it in the last bit of one number.
    """
    rng = np.random.default_rng(0)
    experts, hidden = cfg.n_routed_experts, cfg.hidden_size
    rows = (rng.standard_normal((experts, hidden)) / hidden**0.5).astype(precision)
    bias = (0.1 * rng.standard_normal(experts)).astype("float32")
    if kind != "random":
        half = experts // 2
        rows[half:], bias[half:] = rows[:half], bias[:half]
    if kind == "near-ties":
        bits = rows.view(f"u{rows.dtype.itemsize}")
        bits[half:, 0] ^= 1
    return rows.astype(np.float64), bias.astype(np.float64)


def decide(
    section: str, name: str, cfg: ModelConfig, kind: str, precision: str, device: str
) -> Check:
    """Both sides on TOKENS tokens; the error is the largest gap that a choice went against."""
    check = Check(section, f"{name}: {kind}", precision)
    rows, bias = gate(cfg, kind, precision)
    x = np.random.default_rng(1).standard_normal((TOKENS, cfg.hidden_size)).astype(precision)
    x = x.astype(np.float64)
    # Routers compute in float32 where their input is bfloat16.
    exact = "float64" if precision == "float64" else "float32"
    theirs = device_choice(cfg, rows, bias, x, precision, device)
    held = bias.astype(exact) if cfg.topk_method == "noaux_tc" else None
    (ours, _), _ = reference.router.forward(x.astype(exact), rows.astype(exact), held, cfg)
    scores, slack = allowed(cfg, rows, bias, x, UNIT[exact])
    for side, indices in (("the device", theirs), ("the reference", ours)):
        gaps = excess(cfg, scores, slack, indices)
        worst = int(gaps.argmax())
        check.add(float(gaps[worst]), 1.0, f"{side}'s choice {sorted(indices[worst].tolist())} "
                  f"for token {worst}", len(gaps))  # fmt: skip
    equal = int((np.sort(ours, axis=1) == np.sort(theirs, axis=1)).all(axis=1).sum())
    check.count = TOKENS
    check.note = f"{equal} of {TOKENS} choices equal; in units of what rounding may decide"
    return check


def device_choice(
    cfg: ModelConfig, rows: Array, bias: Array, x: Array, precision: str, device: str
) -> Array:
    """Which experts the torch router takes, (tokens, K)."""
    dtype = getattr(torch, precision)
    router = Router(cfg).to(device, dtype)
    with torch.no_grad():
        router.weight.copy_(torch.from_numpy(rows))
        if cfg.topk_method == "noaux_tc":
            router.e_score_correction_bias.copy_(torch.from_numpy(bias))
        return router(torch.from_numpy(x).to(device, dtype))[0].cpu().numpy()


def allowed(
    cfg: ModelConfig, rows: Array, bias: Array, x: Array, unit: float
) -> tuple[Array, Array]:
    """Exact scores, biased where choices are, and b: by how much each may be off; (tokens, E)."""
    logits = x @ rows.T
    off = (x.shape[1] + 3) * unit * (np.abs(x) @ np.abs(rows).T)
    if cfg.scoring_func == "sigmoid":
        scores = 1 / (1 + np.exp(-logits))
        # Its slope is nowhere more than a quarter; near the exact logit it is s (1 - s).
        off = off * np.minimum(0.25, scores * (1 - scores) + off)
    else:
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores = powers / powers.sum(axis=1, keepdims=True)
        off = 2 * scores * off.max(axis=1, keepdims=True)
        off = off + cfg.n_routed_experts * unit * scores
    added = bias if cfg.topk_method == "noaux_tc" else np.zeros_like(bias)
    return scores + added, off + 8 * unit * (np.abs(scores) + np.abs(added))


def excess(cfg: ModelConfig, scores: Array, slack: Array, indices: Array) -> Array:
    """By what multiple of its allowance each token's choice went against the scores; (tokens,).

    0: chosen by the exact scores; up to 1: a tie that rounding may decide so; above: wrong.
    A repeated expert or one from outside the groups that may be kept is infinitely wrong.
    """
    tokens, groups = len(scores), cfg.n_group
    chosen = np.zeros(scores.shape, bool)
    np.put_along_axis(chosen, indices, True, axis=1)
    wrong = np.where(chosen.sum(axis=1) == cfg.num_experts_per_tok, 0.0, np.inf)
    if groups > 1:
        each = scores.shape[1] // groups
        best = 2 if cfg.topk_method == "noaux_tc" else 1
        worth = np.sort(scores.reshape(tokens, groups, each), axis=2)[..., -best:].sum(axis=2)
        # The best few of slightly wrong scores are worth, at most, as many of the largest b more.
        spare = best * slack.reshape(tokens, groups, each).max(axis=2)
        used = chosen.reshape(tokens, groups, each).any(axis=2)
        wrong[used.sum(axis=1) > cfg.topk_group] = np.inf
        # Groups with a chosen expert were kept; of the others, the worthiest fill up what is left.
        order = np.argsort(np.where(used, -np.inf, -worth), axis=1, kind="stable")
        kept = np.zeros_like(used)
        np.put_along_axis(kept, order[:, : cfg.topk_group], True, axis=1)
        wrong = np.maximum(wrong, _against(worth, spare, used, ~kept))
        inside = np.repeat(kept, each, axis=1)
    else:
        inside = np.ones_like(chosen)
    return np.maximum(wrong, _against(scores, slack, chosen, inside & ~chosen))


def _against(scores: Array, slack: Array, taken: Array, left: Array) -> Array:
    """The largest (left - taken) score of a pair over the slack of both, at least 0; (tokens,)."""
    # No token takes more than `most`; the places that are left over compare with nothing.
    most = int(taken.sum(axis=1).max())
    places = np.argsort(~taken, axis=1, kind="stable")[:, :most]
    valid = np.take_along_axis(taken, places, axis=1)[:, None] & left[..., None]
    gap = scores[..., None] - np.take_along_axis(scores, places, axis=1)[:, None]
    both = slack[..., None] + np.take_along_axis(slack, places, axis=1)[:, None]
    return np.where(valid, gap / both, 0.0).max(axis=(1, 2), initial=0.0)
