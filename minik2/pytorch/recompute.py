"""A layer that keeps its input alone for the backward pass, and computes the rest a second time.

Unusual here: what a layer notes for a Watch and for the balance loss, it notes the first time only.
So nothing is counted twice, and queries and keys are not held on account of the notes.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from minik2.pytorch.watch import Notes


def twice(layer: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`layer`, called as it is, for training in less memory: (x, cos, sin, saved) -> y like x.

    Between forward and backward it holds x (B, T, D), and of what `saved` takes the scores that a
    balance loss is made from, instead of all that `sizing.activations` lists; the price is a second
    forward pass. Losses and gradients are the same to the bit where kernels give the same bits
    twice, as a CPU's do. Where no gradient is recorded, it is `layer`. Source: arXiv 1604.06174.
    """

    def run(x: Tensor, cos: Tensor, sin: Tensor, saved: Notes | None = None) -> Tensor:
        first = [saved]

        def body(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            return layer(x, cos, sin, first.pop() if first else None)

        # Nothing here is random, so there is no state of a generator to restore.
        return checkpoint(body, x, cos, sin, use_reentrant=False, preserve_rng_state=False)

    return run
