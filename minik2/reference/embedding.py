"""The embedding: a row of a table for each token. Backward: each row's gradients summed."""

from typing import Any

import numpy as np

from minik2.reference import kernels_backward

Array = np.ndarray[Any, np.dtype[Any]]


def forward(tokens: Array, weight: Array) -> tuple[Array, dict[str, Any]]:
    """y = weight[tokens]: tokens (B, T) int64, weight (vocab, D) -> (B, T, D)."""
    return weight[tokens], {"tokens": tokens, "vocabulary": len(weight)}


def backward(dy: Array, saved: dict[str, Any]) -> dict[str, Array]:
    """{"weight": (vocab, D)}: row v is the sum of dy over the places of token v.

    Places are sorted by token first, so that every sum belongs to one thread.
    """
    tokens = saved["tokens"].reshape(-1)
    order = np.argsort(tokens, kind="stable")
    counts = np.bincount(tokens, minlength=saved["vocabulary"])
    offsets = np.concatenate([[0], counts.cumsum()])
    rows = np.ascontiguousarray(dy).reshape(len(tokens), -1)
    weight = np.empty((len(counts), rows.shape[1]), dy.dtype)
    kernels_backward.sum_rows(rows, order, offsets, weight)
    return {"weight": weight}
