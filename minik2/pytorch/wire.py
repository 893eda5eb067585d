"""Bytes that this rank sends, counted while it computes, operation by operation.

Unusual here: what is counted is what PyTorch is asked for, not what a network card sees. An
all-gather is taken to send a rank's part to every other rank once, and a reduce-scatter every other
rank's part to it, as rings do; what stays on the rank is not sent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Operations that FSDP, DTensor and this package call.
KINDS = {
    "_allgather_base_": "gather", "all_gather_into_tensor": "gather",
    "_reduce_scatter_base_": "scatter",
    "allreduce_": "reduce",
    "alltoall_base_": "exchange",
    "gather_": "collect",
}  # fmt: skip


class Wire(TorchDispatchMode):
    """Counts inside `with`; sent: bytes by kind, "gather", "scatter", "exchange", "reduce" and
    "collect", which is a gather to one rank.

    An all-reduce is a reduce-scatter and an all-gather: twice what each of them sends.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sent: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        space, _, name = str(func).partition(".")
        kind = KINDS.get(name.partition(".")[0])
        if space in ("c10d", "_c10d_functional") and kind:
            self.sent[kind] += _sent(kind, args)
        return func(*args, **(kwargs or {}))


def _sent(kind: str, args: tuple[Any, ...]) -> int:
    """Bytes that leave this rank for one collective with these arguments."""
    if kind == "exchange":
        _, rows, group, _, counts = args[:5]
        group = dist.ProcessGroup.unbox(group)
        own, each = group.rank(), _bytes(rows) // max(1, len(rows))
        counts = counts or [len(rows) // group.size()] * group.size()
        return each * (sum(counts) - counts[own])
    if kind == "collect":
        _, (own,), group, to = args[:4]
        return _bytes(own) * (dist.ProcessGroup.unbox(group).rank() != to)
    size = _group_size(args)
    tensors = [t for a in args for t in (a if isinstance(a, (list, tuple)) else [a])
               if isinstance(t, Tensor)]  # fmt: skip
    if kind == "reduce":
        return 2 * sum(map(_bytes, tensors)) * (size - 1) // size
    # Of the whole and a part of it, the part; every rank but this one gets or gives one.
    return min(map(_bytes, tensors)) * (size - 1)


def _group_size(args: tuple[Any, ...]) -> int:
    name = next((a for a in args if isinstance(a, str)), None)
    if name is not None:
        return dist.distributed_c10d._resolve_process_group(name).size()  # type: ignore[arg-type]
    # Of the objects among the arguments the group comes first.
    group = next(a for a in args if isinstance(a, torch.ScriptObject))
    return dist.ProcessGroup.unbox(group).size()


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
