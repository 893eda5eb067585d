"""The same engine in PyTorch, file by file: CPU and GPU, autograd, bfloat16.

Parameters carry the checkpoint's names (experts stacked, as transformers holds them), so a file
here and its twin in `minik2.reference` can be read side by side.
"""

from minik2.pytorch import attention, balance, ffn, mla, moe, muon, norm, qk_clip, rope, router
from minik2.pytorch.mixed import Mixed
from minik2.pytorch.model import Model
from minik2.pytorch.muon import Muon, MuonClip
from minik2.pytorch.watch import Watch

__all__ = [
    "Mixed", "Model", "Muon", "MuonClip", "Watch", "attention", "balance", "ffn", "mla", "moe",
    "muon", "norm", "qk_clip", "rope", "router",
]  # fmt: skip
