"""Mixture of experts: tokens sorted by expert, one pair of products an expert, sums put back.

Unusual here: there is no loop over tokens and none over the experts nobody chose. The experts'
gate and up matrices are stacked into one tensor, so that each expert's first step is one product.
Inside an expert a token is a column: for the few dozen that one gets, W xᵀ with the large matrix
first takes up to a third less time here than x Wᵀ. What the backward pass can make again cheaply is
not kept: a token's row for each of its experts, and the experts' outputs.
"""

from collections.abc import Mapping
from typing import Any

import numba
import numpy as np

from minik2.config import ModelConfig
from minik2.reference import ffn, kernels, kernels_experts, router

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


def backward(
    dy: Array, saved: dict[str, Any], dscores: Array | None = None
) -> tuple[Array, dict[str, Any]]:
    """dx as dy, and the gradients by the names of `forward`'s weights, the bias left out.

    dscores (tokens, E): what another loss says about the router's scores.
    """
    rows = np.ascontiguousarray(dy).reshape(-1, dy.shape[-1])
    drows, dweights, stacks = experts_backward(rows, saved["experts"])
    dx, gate = router.backward(dweights, saved["router"], dscores)
    dx_shared, shared = ffn.backward(rows, saved["shared_experts"])
    dx += dx_shared
    position = saved["experts"]["position"]
    kernels.combine(drows, position, np.ones_like(dweights), dx)
    grads = {"gate.weight": gate["weight"], "shared_experts": shared}
    grads |= {f"experts.{name}": stack for name, stack in stacks.items()}
    return dx.reshape(dy.shape), grads


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
    """Add the chosen experts' weighted outputs to y in place. y, x: (tokens, D).

    saved["gate_up"] holds for each busy expert what its first product gave: (2I, its tokens).
    """
    token, position, offsets = dispatch(indices, len(gate_up_proj))
    out = np.empty((len(token), x.shape[1]), x.dtype)
    gate_up = np.empty(len(token) * gate_up_proj.shape[1], x.dtype)
    busy = busy_experts(offsets)
    kernels_experts.experts(
        x, token, busy, offsets, gate_up_proj, down_proj, gate_up, out,
        numba.get_num_threads(), np.zeros(1, np.int64),
    )  # fmt: skip
    kernels.combine(out, position, weights, y)
    return {"x": x, "weights": weights, "gate_up_proj": gate_up_proj, "down_proj": down_proj,
            "gate_up": gate_up, "busy": busy, "offsets": offsets, "token": token,
            "position": position}  # fmt: skip


def experts_backward(dy: Array, saved: dict[str, Any]) -> tuple[Array, Array, dict[str, Array]]:
    """drows, what each (token, choice) pair says of its token's row, sorted by expert, (tokens K,
    D); dweights (tokens, K); and the gradients of the two stacks.

    dy: (tokens, D). A weight's gradient is dy · out = (dy down_proj) · hidden, so that the experts'
    outputs are not needed.
    """
    x, token, position = (saved[name] for name in ("x", "token", "position"))
    gate_up_proj, down_proj = saved["gate_up_proj"], saved["down_proj"]
    weights, dweights = np.empty((2, len(token)), dy.dtype)
    weights[position.reshape(-1)] = saved["weights"].reshape(-1)
    # The system's own zeros, which np.zeros_like would write once more: most are written over.
    dgate_up_proj = np.zeros(gate_up_proj.shape, dy.dtype)
    ddown_proj = np.zeros(down_proj.shape, dy.dtype)
    drows = np.empty((len(token), dy.shape[1]), dy.dtype)
    kernels_experts.experts_backward(
        dy, x, weights, token, saved["busy"], saved["offsets"], gate_up_proj, down_proj,
        saved["gate_up"], dweights, dgate_up_proj, ddown_proj, drows,
        numba.get_num_threads(), np.zeros(1, np.int64),
    )  # fmt: skip
    grads = {"gate_up_proj": dgate_up_proj, "down_proj": ddown_proj}
    return drows, dweights[position], grads


def busy_experts(offsets: Array) -> Array:
    """The numbers of the experts that have tokens.

    The busiest first: taken up last, it would keep the others waiting at the end.
    """
    counts = np.diff(offsets)
    return np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
