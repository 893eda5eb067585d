"""The gated feed-forward block: down(silu(gate x) · up x). Dense layers, shared experts."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from minik2.reference import kernels

Array = np.ndarray[Any, np.dtype[Any]]


def forward(x: Array, weights: Mapping[str, Array]) -> tuple[Array, dict[str, Array]]:
    """y = (silu(x gate_projᵀ) · x up_projᵀ) down_projᵀ.

    x: (..., D); weights: gate_proj.weight and up_proj.weight (I, D), down_proj.weight (D, I);
    y as x. Source: arXiv 2002.05202 (SwiGLU).
    """
    rows = x.reshape(-1, x.shape[-1])
    width = len(weights["gate_proj.weight"])
    gate_up = np.empty((len(rows), 2 * width), x.dtype)
    np.matmul(rows, weights["gate_proj.weight"].T, out=gate_up[:, :width])
    np.matmul(rows, weights["up_proj.weight"].T, out=gate_up[:, width:])
    hidden = np.empty((len(rows), width), x.dtype)
    kernels.swiglu(gate_up, hidden)
    y = hidden @ weights["down_proj.weight"].T
    return y.reshape(x.shape), {"x": rows, "gate_up": gate_up, "hidden": hidden}
