"""Numbers that tell how a training step is doing, from arrays that the step leaves behind.

Unusual here: weights are put together by kind, layer and expert numbers struck out of their names,
because a thousand experts' root mean squares tell nobody anything.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minik2.training.ranks import ALONE, Ranks

Array = np.ndarray[Any, np.dtype[Any]]


def kind_of(name: str) -> str:
    """The checkpoint's name without its numbers and its `model.`, `layers.` and `.weight`.

    >>> kind_of("model.layers.3.mlp.experts.17.down_proj.weight")
    'mlp.experts.down_proj'
    """
    parts = [p for p in name.split(".") if not p.isdigit()]
    return ".".join(p for p in parts if p not in ("model", "layers", "weight"))


def rms_by_kind(arrays: Mapping[str, Array], group: Ranks = ALONE) -> dict[str, float]:
    """Root mean square over all tensors of a kind, of which each rank of the group has its part."""
    own = [(kind_of(name), float(np.square(array, dtype=np.float64).sum()), array.size)
           for name, array in arrays.items()]  # fmt: skip
    squares: dict[str, float] = {}
    counts: dict[str, int] = {}
    for kind, square, count in itertools.chain(*map(json.loads, group.texts(json.dumps(own)))):
        squares[kind] = squares.get(kind, 0.0) + square
        counts[kind] = counts.get(kind, 0) + count
    return {kind: math.sqrt(squares[kind] / counts[kind]) for kind in squares}


def violation(loads: Array) -> float:
    """How far the busiest expert is above the mean: max / mean - 1, 0 for equal loads.

    loads: (E,) counts, not all 0. Source: MaxVio in arXiv 2408.15664.
    """
    return float(loads.max() / loads.mean() - 1)


def clipped(gammas: Array) -> list[Sequence[float]]:
    """[layer, head, γ] of every head that QK-Clip shrank; gammas (layers, H), 1 for the others."""
    places = np.argwhere(gammas < 1).tolist()
    return [[layer, head, float(gammas[layer, head])] for layer, head in places]
