"""The routed experts: every token's row through its own experts, and the results summed.

Unusual here: PyTorch has products of sorted rows with their own expert's matrix as one kernel, and
on a GPU in bfloat16 it is used, so that the host need not know how many rows an expert has. That
kernel refuses float64 and rows that are no multiple of 16 bytes, and is missing from older
versions; so there is one other way, a loop over the experts that have rows. Both have a backward
pass of their own. A single token, which is what decoding has, has nothing to sort: its experts are
read one by one.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from minik2.pytorch.accelerated import kernels


def experts(
    x: Tensor, indices: Tensor, weights: Tensor, gate_up_proj: Tensor, down_proj: Tensor
) -> Tensor:
    """Σ_k weights[:, k] expert_indices[:, k](x), each expert down(silu(gate x) · up x).

    x: (tokens, D); indices (int64), weights: (tokens, K); gate_up_proj: (E, 2I, D);
    down_proj: (E, D, I); y as x. Source: arXiv 2412.19437 eq. 12.
    """
    if kernels is not None and kernels.takes_experts(x, gate_up_proj):
        return kernels.experts(x, indices, weights, gate_up_proj, down_proj)
    if fits_the_kernel(x, gate_up_proj) and fits_the_kernel(x, down_proj):
        return _Kernel.apply(x, indices, weights, gate_up_proj, down_proj)
    if len(x) == 1 and not torch.is_grad_enabled():
        return _one(x, indices, weights, gate_up_proj, down_proj)
    return _Loop.apply(x, indices, weights, gate_up_proj, down_proj)


def fits_the_kernel(x: Tensor, weight: Tensor) -> bool:
    """True where PyTorch's grouped product takes these operands and is the faster way."""
    aligned = all(n * x.element_size() % 16 == 0 for n in weight.shape[1:])
    return (
        hasattr(F, "grouped_mm")
        and x.device.type == "cuda"
        and x.dtype == weight.dtype == torch.bfloat16
        and aligned
    )


def dispatch(indices: Tensor, experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sort the (token, choice) pairs by expert, keeping tokens in order within an expert.

    indices: (tokens, K). Returns token (tokens K,): whose row stands at each sorted place;
    position (tokens, K): the sorted place of each pair; counts (E,): how many rows each expert has.
    """
    experts_sorted, order = indices.flatten().sort(stable=True)
    position = torch.empty_like(order)
    position[order] = torch.arange(len(order), device=order.device)
    # Counting with bincount would make the host wait for a GPU.
    every = torch.arange(experts, device=order.device)
    ends = torch.searchsorted(experts_sorted, every, right=True)
    counts = ends.diff(prepend=ends.new_zeros(1))
    return order // indices.shape[1], position.view_as(indices), counts


class _Kernel(torch.autograd.Function):
    """PyTorch's grouped product, for bfloat16 on a GPU; nothing in it makes the host wait.

    As of the loop, only `gate_up` waits for the backward pass, and gradients are written out:
    autograd's own would add rows up by sorting them once more. Rows go back to their tokens by a
    gather and a sum, so that runs repeat bit for bit.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, indices: Tensor, weights: Tensor, gate_up_proj: Tensor,
        down_proj: Tensor,
    ) -> Tensor:  # fmt: skip
        token, position, counts = dispatch(indices, len(down_proj))
        ends = counts.cumsum(0, dtype=torch.int32)
        gate_up = F.grouped_mm(x[token], gate_up_proj.mT, offs=ends)
        gate, up = gate_up.chunk(2, -1)
        out = F.grouped_mm(F.silu(gate) * up, down_proj.mT, offs=ends)
        ctx.save_for_backward(x, weights, gate_up_proj, down_proj, gate_up, token, position, ends)
        return (out[position] * weights[..., None]).sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weights, gate_up_proj, down_proj, gate_up, token, position, ends = ctx.saved_tensors
        share = torch.empty_like(gate_up[:, :1])
        share[position.flatten()] = weights.reshape(-1, 1)
        gate, up = gate_up.chunk(2, -1)
        silu, dout = F.silu(gate), dy[token]
        dhidden = F.grouped_mm(dout, down_proj, offs=ends)
        hidden = silu * up
        # dy · out, without the experts' outputs: (dy down_proj) · hidden.
        dweights = torch.linalg.vecdot(dhidden, hidden)
        ddown_proj = F.grouped_mm(dout.T, hidden * share, offs=ends)
        dhidden = dhidden * share
        dgate = torch.ops.aten.silu_backward(dhidden * up, gate)
        dgate_up = torch.cat([dgate, dhidden * silu], -1)
        dgate_up_proj = F.grouped_mm(dgate_up.T, x[token], offs=ends)
        drows = F.grouped_mm(dgate_up, gate_up_proj, offs=ends)
        return drows[position].sum(1), None, dweights[position], dgate_up_proj, ddown_proj


def _one(
    x: Tensor, indices: Tensor, weights: Tensor, gate_up_proj: Tensor, down_proj: Tensor
) -> Tensor:
    """One token, x (1, D), through its K experts, without a gradient."""
    chosen = indices[0].tolist()
    gate_up = torch.cat([torch.mm(x, gate_up_proj[e].T) for e in chosen])
    gate, up = gate_up.chunk(2, -1)
    hidden = F.silu(gate).mul_(up).mul_(weights.T)
    y = torch.mm(hidden[:1], down_proj[chosen[0]].T)
    for k, e in enumerate(chosen[1:], 1):
        y = torch.addmm(y, hidden[k, None], down_proj[e].T)
    return y


class _Loop(torch.autograd.Function):
    """The loop over experts, written as one operation.

    Of what it makes only `gate_up` waits for the backward pass; the rest is made again there.
    Autograd's own record would keep every step, and make a zero tensor of the whole stack's size
    for every expert's slice. Only the products go expert by expert: threads meet at the end of
    every operation, and many small ones would cost more than memory saves.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, indices: Tensor, weights: Tensor, gate_up_proj: Tensor,
        down_proj: Tensor,
    ) -> Tensor:  # fmt: skip
        token, position, counts = dispatch(indices, len(down_proj))
        ctx.counts = own = counts.tolist()
        # Twice as fast on a CPU as x[token].
        rows = x.index_select(0, token)
        gate_up = x.new_empty(len(token), gate_up_proj.shape[1])
        _products(own, rows.split(own), gate_up_proj.mT, gate_up.split(own))
        gate, up = gate_up.chunk(2, -1)
        hidden, out = F.silu(gate).mul_(up), rows  # the rows' memory serves once more
        _products(own, hidden.split(own), down_proj.mT, out.split(own))
        ctx.save_for_backward(x, weights, gate_up_proj, down_proj, gate_up, token, position)
        return _sum(out, position, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weights, gate_up_proj, down_proj, gate_up, token, position = ctx.saved_tensors
        own = ctx.counts
        sorted_weights = x.new_empty(len(token), 1)
        sorted_weights[position.flatten(), 0] = weights.flatten()
        dgate_up_proj, ddown_proj = torch.empty_like(gate_up_proj), torch.empty_like(down_proj)
        for e, count in enumerate(own):
            if not count:
                dgate_up_proj[e].zero_()
                ddown_proj[e].zero_()

        gate, up = gate_up.chunk(2, -1)
        silu = F.silu(gate)
        hidden, dout = silu * up, dy.index_select(0, token)
        dhidden = torch.empty_like(hidden)
        _products(own, dout.split(own), down_proj, dhidden.split(own))
        # dy · out, without the experts' outputs: (dy down_proj) · hidden.
        dweights = torch.linalg.vecdot(dhidden, hidden)
        hidden *= sorted_weights
        dhidden *= sorted_weights
        _products(own, dout.T.split(own, 1), hidden.split(own), ddown_proj)

        dgate_up = torch.empty_like(gate_up)
        dgate, dup = dgate_up.chunk(2, -1)
        torch.mul(dhidden, silu, out=dup)
        dgate.copy_(torch.ops.aten.silu_backward(dhidden.mul_(up), gate))
        rows = torch.index_select(x, 0, token, out=dout)
        _products(own, dgate_up.T.split(own, 1), rows.split(own), dgate_up_proj)
        drows = rows  # which are not needed any more
        _products(own, dgate_up.split(own), gate_up_proj, drows.split(own))
        dx = _sum(drows, position, None)
        return dx, None, dweights[position], dgate_up_proj, ddown_proj


def _sum(rows: Tensor, position: Tensor, weights: Tensor | None) -> Tensor:
    """y[t] = Σ_k weights[t, k] rows[position[t, k]], without a copy of the rows in that order."""
    return F.embedding_bag(position, rows, mode="sum", per_sample_weights=weights)


def _products(counts: list[int], left: Any, right: Any, out: Any) -> None:
    """out = left @ right for every expert that has rows; a stack, or a matrix for each expert."""
    # Taken apart in one go: slices made one by one took 3% of a forward pass of few rows each.
    parts = (x.unbind() if isinstance(x, Tensor) else x for x in (left, right, out))
    for count, a, b, c in zip(counts, *parts, strict=True):
        if count:
            torch.mm(a, b, out=c)
