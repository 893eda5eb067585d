"""The head and its cross-entropy in one, for vocabularies whose logits would not fit.

Unusual here: where there are too many logits to hold, tokens are taken in blocks, and each block's
gradients are made while its logits are there. At K2's vocabulary the logits of 32,768 tokens would
take 21 GB in float32, and their softmax and gradient as much again.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from minik2.tokens import IGNORED

# Logits held at a time: 1 GiB in float32.
AT_ONCE = 2**28


def forward(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean over targets other than -100 of -log softmax(x weightᵀ)[target], in nats.

    x: (n, D); weight: (V, D); targets: (n,) int64; softmax and mean are float32 at least.
    """
    if len(x) * len(weight) > AT_ONCE:
        return _Blocks.apply(x, weight, targets)
    return F.cross_entropy(_logits(x, weight), targets, ignore_index=IGNORED)


def _logits(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x, weight).to(torch.promote_types(x.dtype, torch.float32))


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """dlogits = softmax - (1 at the target), so dx = dlogits W and dW = dlogitsᵀ x."""
        exact = torch.promote_types(x.dtype, torch.float32)
        learns = any(ctx.needs_input_grad)
        total = torch.zeros((), dtype=exact, device=x.device)
        if learns:
            dx, dweight = torch.empty_like(x), torch.zeros_like(weight, dtype=exact)
        size = max(1, AT_ONCE // len(weight))
        for own, row, target in zip(
            x.split(size), range(0, len(x), size), targets.split(size), strict=True
        ):
            logits = _logits(own, weight)
            total += F.cross_entropy(logits, target, ignore_index=IGNORED, reduction="sum")
            if learns:
                counted = target != IGNORED
                dlogits = logits.softmax(-1)
                dlogits.scatter_add_(1, target.clamp(min=0)[:, None], -counted.to(exact)[:, None])
                dlogits.mul_(counted[:, None])
                rounded = dlogits.to(x.dtype)
                torch.mm(rounded, weight, out=dx[row : row + size])
                dweight += rounded.T @ own
        # The share of one token: known on the device, which the host need not wait for.
        share = (targets != IGNORED).sum().to(exact).reciprocal()
        if learns:
            ctx.save_for_backward(dx, dweight, share)
        return total * share

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor, Tensor, None]:
        dx, dweight, share = ctx.saved_tensors
        factor = dloss * share
        return dx * factor.to(dx.dtype), (dweight * factor).to(dx.dtype), None
