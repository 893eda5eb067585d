"""The engine by hand: NumPy for the products, Numba for the loops between them.

Pure functions over arrays: `forward(...)` returns `(y, saved)`, and `backward(dy, saved)` the
gradients of what came in and of the weights by name; `saved` shows a curious reader what happened.
float64 is for proofs, float32 for work.
"""

import os

# OpenMP's idle threads spin for milliseconds by default, on the cores that the next matrix product
# wants: alternating kernels and products then ran 40 times slower than either. With a spin of 1,000
# rounds they slept between the regions of a decoding step, and woke up too late: it took twice as
# long. OpenMP reads this once, when Numba loads it, so it must stand before the kernels; a value
# set by the user wins.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

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
from minik2.reference.cache import Cache
from minik2.reference.decode import Decoder
from minik2.reference.mapped import MappedModel
from minik2.reference.model import Model
from minik2.reference.watch import Watch

__all__ = [
    "Cache", "Decoder", "MappedModel", "Model", "Watch", "adamw", "attention", "balance",
    "embedding", "ffn", "loss", "mla", "moe", "muon", "norm", "qk_clip", "rope", "router",
]  # fmt: skip
