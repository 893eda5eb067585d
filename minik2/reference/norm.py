"""RMSNorm: a vector divided by its root mean square, times a learned gain."""

from typing import Any

import numpy as np

from minik2.reference import kernels

Array = np.ndarray[Any, np.dtype[Any]]


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
