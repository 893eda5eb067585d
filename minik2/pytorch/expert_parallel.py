"""The routed experts spread over ranks: rows travel to their experts, and results travel back.

Unusual here: nothing is padded and nothing dropped. A rank tells every other how many rows come for
each of its experts, then the rows follow, as many as there are; a rank to which nobody sends
anything computes on no rows and takes part all the same, because its neighbours wait for it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from minik2.config import ModelConfig
from minik2.pytorch import grouped


class _Exchange(torch.autograd.Function):
    """Rows (n, D) to the ranks of a group, send[r] of them to rank r; gradients go the way back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, send: list[int], receive: list[int], group: Any) -> Tensor:
        ctx.splits, ctx.group = (send, receive), group
        return _exchange(rows, send, receive, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        send, receive = ctx.splits
        return _exchange(dy, receive, send, ctx.group), None, None, None


def _exchange(rows: Tensor, send: list[int], receive: list[int], group: Any) -> Tensor:
    out = rows.new_empty(sum(receive), rows.shape[1])
    dist.all_to_all_single(out, rows.contiguous(), receive, send, group=group)
    return out


class _Averaged(torch.autograd.Function):
    """A weight as it is, its gradient over `ranks`: it holds the tokens of all of them, and every
    other weight's gradient is a mean over ranks.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ranks: int) -> Tensor:
        ctx.ranks = ranks
        return weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient / ctx.ranks, None


class ParallelExperts(nn.Module):
    """`moe.Experts` over the ranks of `group`, each with E / ranks experts, in the ranks' order.

    gate_up_proj (E / ranks, 2I, D) and down_proj (E / ranks, D, I) hold this rank's own. Raises
    ValueError where the ranks do not divide the experts. Source: arXiv 2412.19437 §3.2.
    """

    def __init__(self, cfg: ModelConfig, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.group, self.ranks, self.experts = group, group.size(), cfg.n_routed_experts
        if self.experts % self.ranks:
            raise ValueError(
                f"{self.experts} experts cannot be shared evenly among {self.ranks} ranks; choose "
                f"a number of ranks that divides {self.experts}."
            )
        own, width, hidden = self.experts // self.ranks, cfg.moe_intermediate_size, cfg.hidden_size
        self.gate_up_proj = nn.Parameter(torch.empty(own, 2 * width, hidden))
        self.down_proj = nn.Parameter(torch.empty(own, hidden, width))

    def forward(self, x: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        """As `moe.Experts.forward`; every rank of the group calls it, with tokens of its own."""
        token, position, counts = grouped.dispatch(indices, self.experts)
        arriving = torch.empty_like(counts)
        dist.all_to_all_single(arriving, counts, group=self.group)
        # The host has to know both before rows can travel.
        send = counts.view(self.ranks, -1).sum(1).tolist()
        receive = arriving.view(self.ranks, -1).sum(1).tolist()
        rows = _Exchange.apply(x[token], send, receive, self.group)
        # From each rank in turn, and in the order of this rank's experts.
        own = torch.arange(self.experts // self.ranks, device=x.device).repeat(self.ranks)
        expert = own.repeat_interleave(arriving)[:, None]
        weighed = rows.new_ones(expert.shape)
        out = grouped.experts(
            rows, expert, weighed,
            _Averaged.apply(self.gate_up_proj, self.ranks),
            _Averaged.apply(self.down_proj, self.ranks),
        )  # fmt: skip
        back = _Exchange.apply(out, receive, send, self.group)
        return F.embedding_bag(position, back, mode="sum", per_sample_weights=weights)
