"""The arithmetic of model sizes: pure functions of ModelConfig, exact where that is possible."""

from minik2.sizing.parameters import Parameters, parameters

__all__ = ["Parameters", "parameters"]
