"""The starting weights of a model: the same for both engines, tensor by tensor, from one seed."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from minik2.config import ModelConfig


def tensor(
    name: str, shape: tuple[int, ...], cfg: ModelConfig, seed: int
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The first value of the tensor called `name` in the checkpoint, float32.

    Matrices: normal with standard deviation initializer_range; norms: 1; correction bias: 0.
    Each tensor draws from its own stream, keyed by seed and name, so the order of creation does
    not matter and one tensor can be made without the others.
    """
    if name.endswith("norm.weight"):
        return np.ones(shape, np.float32)
    if name.endswith("e_score_correction_bias"):
        return np.zeros(shape, np.float32)
    stream = np.random.default_rng([seed, zlib.crc32(name.encode())])
    values = stream.standard_normal(shape, np.float32)
    values *= np.float32(cfg.initializer_range)
    return values
