"""minik2: Kimi K2's architecture and optimizer, small enough to read and right enough to trust.

`import minik2` is cheap: PyTorch, Numba and Matplotlib are loaded only by the parts that need
them, when they are first touched.

>>> import minik2
>>> minik2.ModelConfig.preset("kimi-k2").n_routed_experts
384
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minik2.config import ModelConfig, RopeScaling

__version__ = "0.1.0"
__all__ = ["ModelConfig", "RopeScaling", "__version__"]

_CLASSES = ("ModelConfig", "RopeScaling")
_PARTS = ("checkpoint", "checks", "fullsize", "plots", "pytorch", "reference", "sizing", "training")


def __getattr__(name: str) -> Any:
    if name in _CLASSES:
        return getattr(importlib.import_module("minik2.config"), name)
    if name in _PARTS:
        return importlib.import_module(f"minik2.{name}")
    raise AttributeError(f"minik2 has no part named {name!r}; it has {', '.join(_PARTS)}.")


def __dir__() -> list[str]:
    return sorted([*__all__, *_PARTS])
