"""The gated feed-forward block: down(silu(gate x) · up x). Dense layers, shared experts."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from minik2.reference import kernels, kernels_backward, products

Array = np.ndarray[Any, np.dtype[Any]]


def forward(x: Array, weights: Mapping[str, Array]) -> tuple[Array, dict[str, Any]]:
    """y = (silu(x gate_projᵀ) · x up_projᵀ) down_projᵀ.

    x: (..., D); weights: gate_proj.weight and up_proj.weight (I, D), down_proj.weight (D, I);
    y as x. Source: arXiv 2002.05202 (SwiGLU).
    """
    rows = x.reshape(-1, x.shape[-1])
    width = len(weights["gate_proj.weight"])
    gate_up = np.empty((len(rows), 2 * width), x.dtype)
    hidden = np.empty((len(rows), width), x.dtype)
    y = np.empty_like(rows)
    products.multiply(rows, weights["gate_proj.weight"].T, gate_up[:, :width])
    products.multiply(rows, weights["up_proj.weight"].T, gate_up[:, width:])
    kernels.swiglu(gate_up, hidden)
    products.multiply(hidden, weights["down_proj.weight"].T, y)
    saved = {"x": rows, "gate_up": gate_up, "hidden": hidden, "weights": weights}
    return y.reshape(x.shape), saved


def backward(dy: Array, saved: dict[str, Any]) -> tuple[Array, dict[str, Array]]:
    """dx as dy, and the gradients of the three matrices by their names."""
    x, gate_up, weights = saved["x"], saved["gate_up"], saved["weights"]
    dhidden, ddown = products.product_backward(
        dy.reshape(x.shape), saved["hidden"], weights["down_proj.weight"]
    )
    d = np.empty_like(gate_up)
    kernels_backward.swiglu_backward(dhidden, gate_up, d)
    dgate, dup = np.split(d, 2, axis=1)
    dx, dgate_proj = products.product_backward(dgate, x, weights["gate_proj.weight"])
    dx_up, dup_proj = products.product_backward(dup, x, weights["up_proj.weight"])
    dx += dx_up
    grads = {"gate_proj.weight": dgate_proj, "up_proj.weight": dup_proj, "down_proj.weight": ddown}
    return dx.reshape(dy.shape), grads
