"""Bytes that one decoding step reads of weights and cache, counted operation by operation.

Unusual here: nothing is timed. Every operation that PyTorch runs is looked at, and of the memory
that belongs to the model or its cache the parts that it is given are joined, so that bytes read
twice count once. Of a table, the rows that are looked up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minik2 import ModelConfig, pytorch


class Reads(TorchDispatchMode):
    """Inside `with`, which bytes of the memory behind `tensors` operations read."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self.owned = {t.untyped_storage().data_ptr() for t in tensors}
        self.spans: list[tuple[int, int]] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if not func.is_view:  # a view reads nothing
            written = [a for a, said in zip(args, func._schema.arguments, strict=False)
                       if said.alias_info is not None and said.alias_info.is_write]  # fmt: skip
            for a in tree_leaves((args, kwargs)):
                own = isinstance(a, Tensor) and a.untyped_storage().data_ptr() in self.owned
                if own and a.numel() and not any(a is w for w in written):
                    self._read(func, a, args)
        return func(*args, **(kwargs or {}))

    def _read(self, func: Callable[..., Any], tensor: Tensor, args: tuple[Any, ...]) -> None:
        start, size = tensor.data_ptr(), tensor.element_size()
        if func is torch.ops.aten.embedding.default:
            row = tensor.shape[1] * size
            self.spans += [(start + n * row, start + (n + 1) * row) for n in args[1].tolist()]
            return
        last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        self.spans.append((start, start + (last + 1) * size))

    @property
    def bytes(self) -> int:
        """Each byte once."""
        total = end = 0
        for start, stop in sorted(self.spans):
            start = max(start, end)
            total, end = total + max(0, stop - start), max(end, stop)
        return total


def decoding(cfg: ModelConfig, context: int) -> tuple[int, int]:
    """Bytes of weights and of cache that token number `context` of a sequence reads, in float32."""
    model, rng = pytorch.Model.init(cfg), np.random.default_rng(0)
    cache = model.new_cache(1, 2 * context)  # room that is not to be read
    model(rng.integers(0, cfg.vocab_size, (1, context - 1)), cache=cache)
    weights, rows = Reads([*model.parameters(), *model.buffers()]), Reads(cache.rows)
    with weights, rows:
        model(rng.integers(0, cfg.vocab_size, (1, 1)), cache=cache)
    return weights.bytes, rows.bytes
