"""Attention logits that explode under Muon, and QK-Clip, which holds them.

Claimed: with plain Muon the largest logits of a mixture with 9 billion active parameters soon
passed 1000; QK-Clip with tau 100 held K2's, and with tau 30 changed the loss of a smaller model
by next to nothing; 12.7% of K2's heads were clipped in its first 70,000 steps and none after them
(arXiv 2507.20534 §2.1, §2.5, appendix D).

Done: hot, at a rate far above Muon's best, which makes in minutes what takes K2 days, with and
without QK-Clip (AdamW's part keeps the base rate); and calm, the base run, with a tau so low that
it is clipped as well, and with one that it never meets. Of every hot run each head's largest logit
of a step is known, and of every run when each head was clipped for the last time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from minik2.experiments import results, statistics
from minik2.experiments.runs import Lines, Run, Tell, finish, forget_without
from minik2.experiments.scales import Scale

NAME = "logit_explosion"
RATE, TAU = 0.08, 30.0
OPTIMIZERS = ("muon", "muonclip")
CALM_TAU = 10.0
PARTS = 10  # the share of heads clipped is told for so many parts of the run
# Of the heads' logits every so many steps are stored, with so many digits.
EVERY, DIGITS = 5, 3


def plan(scale: Scale) -> dict[str, Any]:
    """What is varied."""
    return {"rate": RATE, "adamw_rate": scale.settings.rate, "tau": TAU,
            "optimizers": list(OPTIMIZERS), "calm_tau": CALM_TAU}  # fmt: skip


def run(scale: Scale, seeds: Sequence[int], tell: Tell) -> dict[str, Any]:
    """Train and compare; returns the record. Four runs a seed."""
    base, heads = scale.settings, scale.model.num_hidden_layers * scale.model.num_attention_heads
    hot = replace(base, rate=RATE, adamw_rate=base.rate, tau=TAU)
    arms = {**{o: replace(hot, optimizer=o) for o in OPTIMIZERS},
            "calm": base, "calm_clipped": replace(base, tau=CALM_TAU)}  # fmt: skip
    runs = {arm: [Run(scale.model, replace(own, seed=seed)) for seed in seeds]
            for arm, own in arms.items()}  # fmt: skip
    for one in runs["muon"] + runs["muonclip"]:
        forget_without(scale, one, "head_logits")
    found = iter(finish(scale, [one for own in runs.values() for one in own], NAME, tell))
    lines = {arm: [next(found) for _ in seeds] for arm in arms}
    final = {arm: [statistics.last(own, base.steps) for own in lines[arm]] for arm in arms}
    return results.record(NAME, scale, plan(scale), seeds, {
        "final": final,
        "clipped_minus_plain": statistics.differences(final["muonclip"], final["muon"]),
        "calm_clipped_minus_plain": statistics.differences(final["calm_clipped"], final["calm"]),
        "curves": {arm: [statistics.held_out(own) for own in lines[arm]] for arm in arms},
        "largest": {arm: [max(max(e["max_logit"]) for e in _steps(own)) for own in lines[arm]]
                    for arm in arms},
        "clipped_ever": {arm: [len(_heads(own)) / heads for own in lines[arm]] for arm in arms},
        "clipped_by_part": {
            arm: [_by_part(own, base.steps, heads) for own in lines[arm]] for arm in arms},
        "last_clipped": {arm: [_last_clipped(own, heads) for own in lines[arm]] for arm in arms},
        "peaks": {o: [_peaks(own) for own in lines[o]] for o in OPTIMIZERS},
        # Step by step for the first seed alone.
        "every": EVERY, "head_logits": {o: _head_logits(lines[o][0]) for o in OPTIMIZERS},
        "clipped": [[e["step"], *head] for e in _steps(lines["muonclip"][0])
                    for head in e["clipped"]],
    }, [one for own in lines.values() for one in own])  # fmt: skip


def _steps(lines: Lines) -> Lines:
    return [line for line in lines if line["kind"] == "step"]


def _heads(lines: Lines) -> set[tuple[int, int]]:
    """(layer, head) of every head that was clipped at least once."""
    return {(layer, head) for e in _steps(lines) for layer, head, _ in e["clipped"]}


def _last_clipped(lines: Lines, heads: int) -> list[int]:
    """The last step that clipped each head that was ever clipped, ascending; 0 for the others."""
    last = {(layer, head): e["step"] for e in _steps(lines) for layer, head, _ in e["clipped"]}
    return [0] * (heads - len(last)) + sorted(last.values())


def _peaks(lines: Lines) -> list[list[float]]:
    """Each head's largest logit of all steps, a list of H a layer."""
    peaks: list[list[float]] = np.max([e["head_logits"] for e in _steps(lines)], axis=0).tolist()
    return peaks


def _head_logits(lines: Lines) -> list[list[list[float]]]:
    """Each head's largest logit at steps 1, 1 + EVERY, …: of each step L lists of H numbers."""
    return [[[float(f"{logit:.{DIGITS}g}") for logit in layer] for layer in e["head_logits"]]
            for e in _steps(lines)[::EVERY]]  # fmt: skip


def _by_part(lines: Lines, steps: int, heads: int) -> list[float]:
    """In each of PARTS parts of the run, the mean share of heads that a step clips."""
    sums, counts = [0.0] * PARTS, [0] * PARTS
    for entry in _steps(lines):
        part = (entry["step"] - 1) * PARTS // steps
        sums[part] += len(entry["clipped"]) / heads
        counts[part] += 1
    return [total / max(count, 1) for total, count in zip(sums, counts, strict=True)]
