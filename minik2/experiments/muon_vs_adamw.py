"""Muon against AdamW at an equal budget of tuning, by token and by second.

Claimed: Muon reaches AdamW's loss with 52% of its training FLOPs (arXiv 2502.16982 §3.2, dense
models of 0.4 to 1.5 billion parameters, each at the length that its size is best trained for).

Done: MuonClip and AdamW on the same rates, the same decay, warm-up and gradient clipping; the grid
is made longer until neither's best lies on its edge; all seeds at each one's best rate. The share
of AdamW's tokens is told twice: where Muon's own curve passes AdamW's last loss, its rate still
high, and by shorter Muon runs whose rate falls to the end as AdamW's does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from minik2.experiments import results, statistics
from minik2.experiments.runs import Lines, Run, Tell, finish
from minik2.experiments.scales import Scale

NAME = "muon_vs_adamw"
OPTIMIZERS = ("muonclip", "adamw")
RATES = (2.5e-3, 5e-3, 1e-2, 2e-2)
LONGER = 3  # how often the grid may be made longer
SHARES = (0.55, 0.7, 0.85)


def plan(scale: Scale) -> dict[str, Any]:
    """What is varied."""
    return {"optimizers": list(OPTIMIZERS), "rates": list(RATES), "shares": list(SHARES)}


def run(scale: Scale, seeds: Sequence[int], tell: Tell) -> dict[str, Any]:
    """Train and compare; returns the record. About 30 runs at three seeds."""
    made: dict[Run, Lines] = {}

    def losses(runs: Sequence[Run], what: str) -> list[float]:
        made.update(zip(runs, finish(scale, runs, what, tell), strict=True))
        return [statistics.last(made[one], one.settings.steps) for one in runs]

    def one(optimizer: str, rate: float, seed: int, steps: int = scale.settings.steps) -> Run:
        return Run(scale.model, replace(scale.settings, optimizer=optimizer, rate=rate, seed=seed,
                                        steps=steps))  # fmt: skip

    rates = list(RATES)
    for _ in range(LONGER + 1):
        runs = [one(optimizer, rate, seeds[0]) for rate in rates for optimizer in OPTIMIZERS]
        found = dict(zip(runs, losses(runs, f"{NAME}: rates"), strict=True))
        grid = {o: [found[one(o, rate, seeds[0])] for rate in rates] for o in OPTIMIZERS}
        best = {o: rates[grid[o].index(min(grid[o]))] for o in OPTIMIZERS}
        searched = list(rates)
        if min(rates) in best.values():
            rates.insert(0, min(rates) / 2)
        if max(searched) in best.values():
            rates.append(max(searched) * 2)
        if rates == searched:
            break

    at_best = {o: [one(o, best[o], seed) for seed in seeds] for o in OPTIMIZERS}
    final = {o: losses(at_best[o], f"{NAME}: seeds of {o}") for o in OPTIMIZERS}
    curves = {o: [statistics.held_out(made[r]) for r in at_best[o]] for o in OPTIMIZERS}
    shorter = _shorter(scale, seeds, best["muonclip"], one, losses)
    shorter[1.0] = final["muonclip"]
    seconds = _seconds(scale, best, one, tell)
    steps = scale.settings.steps
    passed = [statistics.reached(curve, loss)
              for curve, loss in zip(curves["muonclip"], final["adamw"], strict=True)]  # fmt: skip
    own = [statistics.crossing(list(shorter), [by_seed[n] for by_seed in shorter.values()], loss)
           for n, loss in enumerate(final["adamw"])]  # fmt: skip
    return results.record(NAME, scale, plan(scale), seeds, {
        "rates": searched, "grid": grid, "best_rate": best,
        "final": final, "muon_minus_adamw": statistics.differences(*final.values()),
        "curves": curves, "shorter": {str(share): found for share, found in shorter.items()},
        "share_on_the_way": [p and p / steps for p in passed],
        "share_of_own_length": own,
        "step_seconds_alone": seconds,
    }, made.values())  # fmt: skip


def _shorter(
    scale: Scale, seeds: Sequence[int], rate: float, one: Any, losses: Any
) -> dict[float, list[float]]:
    """Last losses of Muon runs of a share of the steps, {share: one a seed}."""
    steps = {share: max(1, math.floor(share * scale.settings.steps)) for share in SHARES}
    runs = [one("muonclip", rate, seed, count) for count in steps.values() for seed in seeds]
    found = losses(runs, f"{NAME}: shorter runs")
    size = len(seeds)
    return {share: found[n * size : (n + 1) * size] for n, share in enumerate(SHARES)}


def _seconds(scale: Scale, best: dict[str, float], one: Any, tell: Tell) -> dict[str, float]:
    """Seconds of a step with nothing else at work; AdamW's without finding the logits' maxima."""
    alone = replace(scale, at_once=1)
    runs = [one(o, best[o], 0, scale.timed_steps) for o in OPTIMIZERS]
    found = finish(alone, runs, f"{NAME}: a step's time", tell)
    return {o: statistics.step_seconds(lines, with_maxima=o == "muonclip")
            for o, lines in zip(OPTIMIZERS, found, strict=True)}  # fmt: skip
