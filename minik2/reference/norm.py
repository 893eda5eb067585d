"""RMSNorm: a vector divided by its root mean square, times a learned gain."""

from typing import Any

import numpy as np

from minik2.reference import kernels, kernels_backward

Array = np.ndarray[Any, np.dtype[Any]]

# Into how many partial sums the weight's gradient is cut: enough for many cores, few beside rows.
PARTS = 64


def forward(x: Array, weight: Array, eps: float) -> tuple[Array, dict[str, Array]]:
    """y = weight x / sqrt(mean(x²) + eps), over the last axis.

    x: (..., D) float32 or float64; weight: (D,); y as x. Statistics are taken in x's dtype.
    Source: Zhang and Sennrich, arXiv 1910.07467, eq. 4.
    """
    rows = np.ascontiguousarray(x).reshape(-1, x.shape[-1])
    y = np.empty_like(rows)
    scale = np.empty(len(rows), x.dtype)
    kernels.rms_norm(rows, weight, x.dtype.type(eps), y, scale)
    return y.reshape(x.shape), {"x": x, "weight": weight, "scale": scale}


def backward(dy: Array, saved: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
    """dx as x, and {"weight": (D,)}.

    With g = weight dy and n = x / rms(x): dx = (g - n mean(g n)) / rms(x), since x along itself
    changes nothing but its length, which is divided out; dweight = Σ dy n over the rows.
    """
    x, weight, scale = saved["x"], saved["weight"], saved["scale"]
    rows = np.ascontiguousarray(x).reshape(-1, x.shape[-1])
    dx = np.empty_like(rows)
    parts = np.empty((min(PARTS, len(rows)), rows.shape[1]), rows.dtype)
    drows = np.ascontiguousarray(dy).reshape(rows.shape)
    kernels_backward.rms_norm_backward(drows, rows, weight, scale, dx, parts)
    return dx.reshape(x.shape), {"weight": parts.sum(axis=0)}
