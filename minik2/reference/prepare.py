"""Compile the reference's loops, so that nobody waits for them later: once on a machine.

    python -m minik2.reference.prepare

Unusual here: Numba compiles a loop when it first sees its arguments, and keeps the result beside
the source. Compiled one after the other, as a first training step meets them, the loops take a
minute and a half; here float32 and float64, which share nothing but the threads, have a process
each.
"""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from minik2 import ModelConfig, reference
from minik2.reference.muon import MuonClip

# What one process does after the other: of about the same length.
SHARES = ("float32",), ("float64", "bfloat16")


def compile_for(dtype: str) -> None:
    """Run everything that has a loop on the preset `tiny`: train, read prompts, decode.

    Of bfloat16, which is what a decoder's weights may be, the decoding alone.
    """
    cfg, tokens = ModelConfig.preset("tiny"), np.arange(24).reshape(2, 12)
    if dtype == "bfloat16":
        model = reference.Model.init(cfg)
        reference.Decoder(model, dtype)(tokens[:1, :1], model.new_cache(1, 1))
        return
    model, watch = reference.Model.init(cfg, dtype=dtype), reference.Watch(cfg)
    for own in (tokens, tokens[:1]):  # a single sequence's arrays lie otherwise
        _, grads = model.loss_and_grads(own, own, balance_alpha=0.01, watch=watch)
        model.generate(own, 2)
    MuonClip(model, 1e-3, tau=100.0).step(grads, watch.max_logits)


def main(dtypes: list[str]) -> int:
    """Compile for these, or for all, two side by side; 0 if that worked."""
    for dtype in dtypes:
        compile_for(dtype)
    if dtypes:
        return 0
    command = [sys.executable, "-m", "minik2.reference.prepare"]
    children = [subprocess.Popen([*command, *share]) for share in SHARES]
    return max([child.wait() for child in children])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
