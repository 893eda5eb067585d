"""The engine by hand: NumPy for the products, Numba for the loops between them.

Pure functions over arrays: `forward(...)` returns `(y, saved)`, where `saved` holds what a
backward pass or a curious reader wants to see. float64 is for proofs, float32 for work.
"""

from minik2.reference import adamw, attention, ffn, mla, moe, muon, norm, qk_clip, rope, router
from minik2.reference.model import Model

__all__ = [
    "Model", "adamw", "attention", "ffn", "mla", "moe", "muon", "norm", "qk_clip", "rope", "router",
]  # fmt: skip
