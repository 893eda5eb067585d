"""Parts, gradients and cached decoding on the device against the reference, random configurations.

Bounds are the proof sheet's: roundings counted from the shapes, times how far the answer moves
(`benchmarks/rounding.py`). In bfloat16 the reference is float64 on the same, rounded numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks import rounding
from benchmarks.comparison import Comparison, Row, compare
from benchmarks.gpu.check import Check
from benchmarks.parts import PARTS, Inputs, Part, whole
from benchmarks.question import Case, Question, Side, ask
from minik2 import cost, pytorch, reference

PRECISIONS = ("float64", "float32", "bfloat16")


def cached(absorbed: bool) -> Callable[[Any, Inputs], Any]:
    """Logits (B, T, vocab) by way of the cache: prompts of unlike lengths, then token by token."""

    def run(model: pytorch.Model, inputs: Any) -> Any:
        batch, tokens = inputs.tokens.shape
        cache, logits = model.new_cache(batch, tokens), []
        # Unlike lengths, so that a prompt is padded and rows end at different steps.
        first = 1 + np.arange(batch) * (tokens - 1) // batch
        out = [[] for _ in range(batch)]
        with mock.patch.object(cost, "absorb", lambda *_: absorbed):
            while (cache.lengths < tokens).any():
                counts = np.minimum(1, tokens - cache.lengths) if cache.lengths.any() else first
                new = torch.zeros(batch, int(counts.max()), dtype=torch.int64, device=model.device)
                for row, (held, n) in enumerate(zip(cache.lengths, counts, strict=True)):
                    new[row, :n] = inputs.tokens[row, held : held + n]
                logits = model(new, cache=cache, counts=counts)
                for row, n in enumerate(counts):
                    out[row].append(logits[row, :n])
        return torch.stack([torch.cat(rows) for rows in out])

    return run


def reference_tops(model: reference.Model, inputs: Inputs) -> Any:
    watch = reference.Watch(model.cfg)
    model.forward(inputs.tokens, watch)
    return watch.max_logits


def pytorch_tops(model: pytorch.Model, inputs: Any) -> Any:
    watch = pytorch.Watch(model.cfg, model.device)
    model(inputs.tokens, watch)
    return watch.max_logits


DECODING = [
    Part(f"cached decode, {name}", {"reference": whole, "pytorch": cached(absorbed)},
         rounding.decoding, chooses=True)
    for name, absorbed in (("absorbed", True), ("expanded", False))
] + [
    Part("heads' largest logits", {"reference": reference_tops, "pytorch": pytorch_tops},
         rounding.model, chooses=True)
]  # fmt: skip
FORWARD = [part for part in PARTS if part.name != "all gradients"]
GRADIENTS = [part for part in PARTS if part.name == "all gradients"]


def comparison(precision: str, device: str) -> Comparison:
    """The device in a precision against the reference, exact where that is bfloat16."""
    right = Side("reference", "float64" if precision == "bfloat16" else precision)
    return Comparison("device, reference", precision, Side("pytorch", precision, device), right)


def run(
    section: str, cases: Sequence[Case], device: str, parts: Sequence[Part] = FORWARD
) -> Iterator[Check]:
    """A check for each part and precision."""
    rows = {(part.name, precision): Row(part.name, section, precision)
            for precision in PRECISIONS for part in parts}  # fmt: skip
    for case in cases:
        for precision in PRECISIONS:
            with ask(case, precision) as question:
                _compare(question, parts, comparison(precision, device), rows, case)
    for row in rows.values():
        yield Check(section, row.part, row.precision, row.configurations, row.left_out, row.error,
                    row.bound, broken_by=row.broken_by)  # fmt: skip


def _compare(
    question: Question, parts: Sequence[Part], sides: Comparison,
    rows: dict[tuple[str, str], Row], case: Case,
) -> None:  # fmt: skip
    for part in filter(question.has, parts):
        compare(question, part, sides, rows[part.name, sides.precision], case)
