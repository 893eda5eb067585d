"""Products of sorted rows with their own expert's matrix.

Unusual here: PyTorch has this as one kernel, and on a GPU in bfloat16 it is used. That kernel
refuses float64 and rows that are no multiple of 16 bytes, is missing from older versions, and on a
CPU its backward pass is slower than a loop; so there is one other way, a loop over the experts
that have rows, with a backward pass that fills one gradient tensor.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def product(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """y[r] = weight[e(r)] x[r], rows sorted by expert e.

    x: (rows, in); weight: (E, out, in); counts: (E,) int64, how many rows each expert has;
    y: (rows, out).
    """
    if fits_the_kernel(x, weight):
        ends = counts.cumsum(0).to(torch.int32)
        return F.grouped_mm(x, weight.transpose(1, 2), offs=ends)
    return _Loop.apply(x, weight, counts.tolist())


def fits_the_kernel(x: Tensor, weight: Tensor) -> bool:
    """True where PyTorch's grouped product takes these operands and is the faster way."""
    aligned = all(n * x.element_size() % 16 == 0 for n in weight.shape[1:])
    return (
        hasattr(F, "grouped_mm")
        and x.device.type == "cuda"
        and x.dtype == weight.dtype == torch.bfloat16
        and aligned
    )


class _Loop(torch.autograd.Function):
    """The loop over experts, written as one operation.

    Autograd's own record of such a loop would make a zero tensor of the whole stack's size for
    every expert's slice.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, counts: list[int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.counts = counts
        y = x.new_empty(len(x), weight.shape[1])
        for expert, own in _segments(counts):
            torch.mm(x[own], weight[expert].T, out=y[own])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        dx, dweight = torch.empty_like(x), torch.zeros_like(weight)
        for expert, own in _segments(ctx.counts):
            torch.mm(dy[own], weight[expert], out=dx[own])
            torch.mm(dy[own].T, x[own], out=dweight[expert])
        return dx, dweight, None


def _segments(counts: list[int]) -> list[tuple[int, slice]]:
    out, start = [], 0
    for expert, count in enumerate(counts):
        if count:
            out.append((expert, slice(start, start + count)))
        start += count
    return out
