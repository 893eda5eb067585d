"""Balance without a loss: the correction bias on and off, and a collapse caused on purpose.

Claimed: adding a bias to the scores that choose, moved against the load, balances experts at less
cost than a loss term (arXiv 2408.15664; DeepSeek-V3, arXiv 2412.19437 §2.1.2, whose settings K2
takes over).

Done: the base run with its bias and its faint balance loss; each alone; a balance loss of the
strength that models without the bias need; and neither, which collapses: an expert that is chosen
is trained, and one that is trained is chosen.
"""

from __future__ import annotations

import statistics as means
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from minik2.experiments import results, statistics
from minik2.experiments.runs import Lines, Run, Tell, finish
from minik2.experiments.scales import Scale

NAME = "balance"
# What differs from the base settings.
ARMS: dict[str, dict[str, Any]] = {
    "bias and faint loss": {},
    "bias alone": {"balance_alpha": 0.0},
    "faint loss alone": {"bias_speed": 0.0},
    "strong loss alone": {"bias_speed": 0.0, "balance_alpha": 0.01},
    "neither": {"bias_speed": 0.0, "balance_alpha": 0.0},
}
EVERY = 5  # steps between two columns of the heat map
LAST = 25  # steps at the end whose loads are added up


def plan(scale: Scale) -> dict[str, Any]:
    """What is varied."""
    return {"arms": ARMS}


def run(scale: Scale, seeds: Sequence[int], tell: Tell) -> dict[str, Any]:
    """Train and compare; returns the record. Five runs a seed."""
    steps = scale.settings.steps
    runs = {arm: [Run(scale.model, replace(scale.settings, seed=seed, **changes)) for seed in seeds]
            for arm, changes in ARMS.items()}  # fmt: skip
    found = iter(finish(scale, [r for own in runs.values() for r in own], NAME, tell))
    lines = {arm: [next(found) for _ in seeds] for arm in ARMS}
    final = {arm: [statistics.last(own, steps) for own in lines[arm]] for arm in ARMS}
    base = next(iter(ARMS))
    return results.record(NAME, scale, plan(scale), seeds, {
        "final": final,
        "minus_base": {arm: statistics.differences(final[arm], final[base]) for arm in ARMS},
        # The worst layer of a step: its busiest expert, in shares of an even load, minus 1.
        "violation": {arm: [[max(e["violation"]) for e in _steps(own)] for own in lines[arm]]
                      for arm in ARMS},
        "last_violation": {arm: [means.fmean(max(e["violation"]) for e in _steps(own)[-LAST:])
                                 for own in lines[arm]] for arm in ARMS},
        "idle": {arm: [_idle(own) for own in lines[arm]] for arm in ARMS},
        # The first layer with experts and the first seed: shares of an even load.
        "loads": {arm: [_shares(e) for e in _steps(lines[arm][0])[::EVERY]] for arm in ARMS},
        "every": EVERY,
    }, [one for own in lines.values() for one in own])  # fmt: skip


def _steps(lines: Lines) -> Lines:
    return [line for line in lines if line["kind"] == "step"]


def _shares(entry: dict[str, Any]) -> list[float]:
    layer = next(loads for loads in entry["loads"] if loads)
    return [load * len(layer) / sum(layer) for load in layer]


def _idle(lines: Lines) -> float:
    """The share of all layers' experts that get less than a tenth of an even load at the end."""
    last = _steps(lines)[-LAST:]
    sums = [[sum(column) for column in zip(*layers, strict=True)]
            for layers in zip(*(e["loads"] for e in last), strict=True) if layers[0]]  # fmt: skip
    shares = [load * len(layer) / sum(layer) for layer in sums for load in layer]
    return sum(share < 0.1 for share in shares) / len(shares)
