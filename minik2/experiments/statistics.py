"""The few numbers that the experiments compare runs by.

Unusual here: a handful of seeds has no distribution worth a test. What is told is the mean and the
least and the most, and, where runs share seed and text, the differences pair by pair.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any

Lines = Sequence[dict[str, Any]]
Curve = list[tuple[int, float]]


def held_out(lines: Lines) -> Curve:
    """(step, held-out loss in nats a token) of every evaluation of a run."""
    return [(line["step"], line["held_out"]) for line in lines if line["kind"] == "evaluation"]


def last(lines: Lines, steps: int) -> float:
    """The held-out loss after all `steps`; infinite for a run that diverged before."""
    step, loss = held_out(lines)[-1]
    return loss if step == steps else math.inf


def step_seconds(lines: Lines, with_maxima: bool) -> float:
    """The median seconds of a step; without the pass for the logits' maxima where nobody needs it.

    The first fifth is left out, in which a library still finds its memory and its threads.
    """
    steps = [line for line in lines if line["kind"] == "step"]
    kept = steps[len(steps) // 5 :]
    return statistics.median(
        line["seconds"] - (0 if with_maxima else line["maxima_seconds"]) for line in kept
    )


def reached(curve: Curve, target: float) -> float | None:
    """The step at which a curve first comes down to `target`; None where it never does.

    Between two points the curve is straight.

    >>> reached([(0, 5.0), (100, 3.0), (200, 2.0)], 2.5)
    150.0
    """
    for (before, high), (after, low) in itertools.pairwise(curve):
        if low <= target:
            part = 0.0 if high <= target else (high - target) / (high - low)
            return before + part * (after - before)
    return None


def crossing(shares: Sequence[float], losses: Sequence[float], target: float) -> float | None:
    """The share of the steps at which runs of their own length come down to `target`.

    shares ascend; losses are those of runs of these shares. Straight in the logarithm of the share
    between two of them; None where no run or every run reaches the target, so that it lies outside.

    >>> round(crossing([0.25, 0.5, 1.0], [2.0, 1.8, 1.7], 1.9), 3)
    0.354
    """
    if losses[0] <= target:
        return None
    logs = [math.log(share) for share in shares]
    for n in range(1, len(shares)):
        high, low = losses[n - 1], losses[n]
        if low <= target:
            return math.exp(logs[n - 1] + (high - target) / (high - low) * (logs[n] - logs[n - 1]))
    return None


def band(values: Sequence[float]) -> dict[str, float]:
    """Mean, least and most of a few seeds.

    >>> band([1.0, 2.0, 6.0])
    {'mean': 3.0, 'least': 1.0, 'most': 6.0}
    """
    return {"mean": statistics.fmean(values), "least": min(values), "most": max(values)}


def differences(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """The band of ours minus theirs, seed by seed."""
    return band([a - b for a, b in zip(ours, theirs, strict=True)])
