"""torch models with the weights of the slow specification, and both engines behind one call."""

from __future__ import annotations

import numpy as np
import torch

from minik2 import pytorch
from minik2.config import ModelConfig
from tests.reference import build as reference_build
from tests.reference import plain

ENGINES = ["reference", "pytorch"]


def model(
    cfg: ModelConfig, seed: int, dtype: torch.dtype = torch.float64, device: str = "cpu"
) -> pytorch.Model:
    built = pytorch.Model.empty(cfg, device, dtype)
    load(built, plain.random_weights(cfg, seed))
    return built


def load(built, weights: dict[str, np.ndarray]) -> None:
    """Write every tensor of the checkpoint into a model of either engine."""
    assert list(built.weights) == list(weights)
    with torch.no_grad():
        for name, tensor in built.weights.items():
            value = weights[name]
            tensor[...] = torch.from_numpy(value) if torch.is_tensor(tensor) else value


def engine(name: str, cfg: ModelConfig, seed: int = 0):
    """A float64 model of the engine called `name`; both hold the same weights."""
    return reference_build.model(cfg, seed) if name == "reference" else model(cfg, seed)


def logits(built, tokens) -> np.ndarray:
    """The engine's answer as an array, without a graph."""
    with torch.no_grad():
        return np.asarray(built(tokens))
