"""Mixture of experts: tokens sorted by expert, one pair of products an expert, sums put back.

Unusual here: there is no loop over tokens and none over the experts nobody chose. The experts'
gate and up matrices are stacked into one tensor, so that each expert's first step is one product.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from minik2.config import ModelConfig
from minik2.reference import ffn, kernels, router

Array = np.ndarray[Any, np.dtype[Any]]


def forward(
    x: Array, weights: Mapping[str, Any], cfg: ModelConfig
) -> tuple[Array, dict[str, Any]]:
    """y = Σ_k weight_k expert_k(x) + shared(x).

    x: (B, T, D); weights: gate.weight (E, D), gate.e_score_correction_bias (E,),
    experts.gate_up_proj (E, 2I, D), experts.down_proj (E, D, I), and shared_experts, a dict as
    `ffn.forward` takes it; y as x. Source: arXiv 2412.19437 eq. 12.
    """
    rows = x.reshape(-1, x.shape[-1])
    (indices, expert_weights), saved_router = router.forward(
        rows, weights["gate.weight"], weights.get("gate.e_score_correction_bias"), cfg
    )
    y, saved_shared = ffn.forward(rows, weights["shared_experts"])
    saved_experts = add_experts(
        y, rows, indices, expert_weights, weights["experts.gate_up_proj"],
        weights["experts.down_proj"],
    )  # fmt: skip
    saved = {"router": saved_router, "shared_experts": saved_shared, "experts": saved_experts}
    return y.reshape(x.shape), saved


def dispatch(indices: Array, experts: int) -> tuple[Array, Array, Array]:
    """Sort the (token, choice) pairs by expert, keeping tokens in order within an expert.

    indices: (tokens, K). Returns token (tokens K,): whose row stands at each sorted place;
    position (tokens, K): the sorted place of each pair; offsets (E + 1,): expert e owns places
    offsets[e] to offsets[e + 1].
    """
    flat = indices.reshape(-1)
    order = np.argsort(flat, kind="stable")
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    offsets = np.concatenate([[0], np.bincount(flat, minlength=experts).cumsum()])
    return order // indices.shape[1], position.reshape(indices.shape), offsets


def add_experts(
    y: Array, x: Array, indices: Array, weights: Array, gate_up_proj: Array, down_proj: Array
) -> dict[str, Any]:
    """Add the chosen experts' weighted outputs to y in place. y, x: (tokens, D)."""
    experts, double, _ = gate_up_proj.shape
    width = double // 2
    token, position, offsets = dispatch(indices, experts)
    rows = x[token]
    gate_up = np.empty((len(rows), double), x.dtype)
    hidden = np.empty((len(rows), width), x.dtype)
    out = np.empty_like(rows)
    busy = [(e, slice(offsets[e], offsets[e + 1])) for e in np.flatnonzero(np.diff(offsets))]
    for e, own in busy:
        np.matmul(rows[own], gate_up_proj[e].T, out=gate_up[own])
    kernels.swiglu(gate_up, hidden)
    for e, own in busy:
        np.matmul(hidden[own], down_proj[e].T, out=out[own])
    kernels.combine(out, position, weights, y)
    return {"rows": rows, "gate_up": gate_up, "hidden": hidden, "out": out, "offsets": offsets,
            "token": token, "position": position}  # fmt: skip
