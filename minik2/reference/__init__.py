"""The engine by hand: NumPy for the products, Numba for the loops between them.

Pure functions over arrays: `forward(...)` returns `(y, saved)`, and `backward(dy, saved)` the
gradients of what came in and of the weights by name; `saved` shows a curious reader what happened.
float64 is for proofs, float32 for work.
"""

from minik2.reference import (
    adamw,
    attention,
    balance,
    embedding,
    ffn,
    loss,
    mla,
    moe,
    muon,
    norm,
    qk_clip,
    rope,
    router,
)
from minik2.reference.model import Model

__all__ = [
    "Model", "adamw", "attention", "balance", "embedding", "ffn", "loss", "mla", "moe", "muon",
    "norm", "qk_clip", "rope", "router",
]  # fmt: skip
