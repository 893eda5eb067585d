"""Reference models with the weights of the slow specification."""

from minik2 import reference
from minik2.config import ModelConfig
from tests.reference import plain


def model(cfg: ModelConfig, seed: int, dtype: str = "float64") -> reference.Model:
    built = reference.Model(cfg, dtype)
    weights = plain.random_weights(cfg, seed)
    assert list(built.weights) == list(weights)
    for name, array in built.weights.items():
        array[...] = weights[name]
    return built
