"""More experts, the same number of them active; and twice the heads.

Claimed: with 8 experts of fixed width active, the loss falls with every doubling of their number;
at equal loss, sparsity 48 needs 1.69 times less compute than sparsity 8. Twice the attention heads
lower the loss by 0.5% to 1.2%, which K2 found not worth 83% more FLOPs at long context
(arXiv 2507.20534 §2.3, figures 5 and 6).

Done: the base run with the experts at 1 to 16 times the number active, and with twice the heads.
Same text in the same order, same rates: what is best for the base is not tuned again for others,
and here, unlike there, all runs have the same length rather than the same loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from minik2 import sizing
from minik2.config import ModelConfig
from minik2.experiments import results, statistics
from minik2.experiments.runs import Run, Tell, finish
from minik2.experiments.scales import Scale

NAME = "sparsity"
SPARSITIES = (1, 2, 4, 8, 16)
HEADS = 2


def plan(scale: Scale) -> dict[str, Any]:
    """What is varied."""
    return {"sparsities": list(SPARSITIES), "heads": HEADS}


def models(cfg: ModelConfig) -> dict[str, ModelConfig]:
    """The configurations by name: the sparsity as a number, and "heads"."""
    wider = {str(s): cfg.replace(n_routed_experts=s * cfg.num_experts_per_tok) for s in SPARSITIES}
    return {**wider, "heads": cfg.replace(num_attention_heads=HEADS * cfg.num_attention_heads)}


def run(scale: Scale, seeds: Sequence[int], tell: Tell) -> dict[str, Any]:
    """Train and compare; returns the record. Six runs a seed."""
    steps, cfgs = scale.settings.steps, models(scale.model)
    runs = {name: [Run(cfg, replace(scale.settings, seed=seed)) for seed in seeds]
            for name, cfg in cfgs.items()}  # fmt: skip
    found = iter(finish(scale, [r for own in runs.values() for r in own], NAME, tell))
    lines = {name: [next(found) for _ in seeds] for name in cfgs}
    final = {name: [statistics.last(own, steps) for own in lines[name]] for name in cfgs}
    base = final[str(scale.model.n_routed_experts // scale.model.num_experts_per_tok)]
    least = final[str(SPARSITIES[0])]
    sizes = {name: sizing.parameters(cfg) for name, cfg in cfgs.items()}
    return results.record(NAME, scale, plan(scale), seeds, {
        "parameters": {name: size.total for name, size in sizes.items()},
        "active": {name: size.active for name, size in sizes.items()},
        "final": final,
        "minus_densest": {str(s): statistics.differences(final[str(s)], least)
                          for s in SPARSITIES},
        "heads_minus_base": statistics.differences(final["heads"], base),
        "heads_relative": statistics.band(
            [twice / once - 1 for twice, once in zip(final["heads"], base, strict=True)]),
        "curves": {name: [statistics.held_out(own) for own in lines[name]] for name in cfgs},
        "violation": {name: [max(own[-2]["violation"]) for own in lines[name]] for name in cfgs},
    }, [one for own in lines.values() for one in own])  # fmt: skip
