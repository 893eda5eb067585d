"""The board: entries in order of their loss, each set of equal conditions for itself.

Unusual here: an entry is a name and a digest, so that each version of a script that is being edited
has a line of its own. And no line stands alone: beside the loss stand how far its seeds lie apart,
and its distance from the baseline seed by seed, since both had the same first weights and text.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minik2.sizing import units

Trial = dict[str, Any]

BASELINE = "baseline"
# Seconds of computing for a second of training, below which other programs had the processor.
ALONE = 0.95


@dataclass(frozen=True)
class Row:
    """One version of an entry under one set of conditions.

    by_seed: its losses, seeds ascending; nats: their mean; against: its losses minus the
    baseline's, seed by seed, for the seeds that both have; steps, tokens: means; shared: whether
    other programs had the processor in some trial, which costs an entry its time.
    """

    entry: str
    source: str
    title: str
    by_seed: dict[int, float]
    nats: float
    against: tuple[float, ...]
    steps: float
    tokens: float
    parameters: int
    shared: bool

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(self.by_seed)

    @property
    def least(self) -> float:
        return min(self.by_seed.values())

    @property
    def most(self) -> float:
        return max(self.by_seed.values())


def boards(trials: Sequence[Trial]) -> dict[str, list[Row]]:
    """{conditions: rows, the lowest loss first}; the conditions of the newest trial come last.

    Several trials of one entry with one seed count as one, their mean.
    """
    found: dict[str, list[Trial]] = {}
    for trial in trials:
        said = conditions(trial)
        found[said] = [*found.pop(said, []), trial]
    return {said: _rows(own) for said, own in found.items()}


def conditions(trial: Trial) -> str:
    """What has to be equal for two losses to be compared, in words."""
    made = trial["machine"]
    threads = f"{trial['threads']} thread{'s' if trial['threads'] != 1 else ''}"
    where = trial["device"]
    if where != "cpu":
        where += f" ({', '.join(made.get('gpus', []))})"
    return (
        f"{trial['minutes']:g} minutes, {threads}, {where}, {made.get('processor')} "
        f"({made.get('cores')} cores), Python {made.get('python')}, torch {made.get('torch')}, "
        f"NumPy {made.get('numpy')}, text {trial['text'].get('train')}, held out "
        f"{trial['text'].get('validation')}")  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    """The board of one set of conditions as aligned text."""
    heads = ["entry", "source", "nats a byte", "least to most", "seeds", "minus baseline",
             "lower in", "steps", "bytes", "parameters"]  # fmt: skip
    lines = []
    for row in rows:
        many, compared = len(row.seeds) > 1, row.against and row.entry != BASELINE
        lower = sum(difference < 0 for difference in row.against)
        lines.append([
            row.entry + ("*" if row.shared else ""), row.source[:7], f"{row.nats:.4f}",
            f"{row.least:.4f} to {row.most:.4f}" if many else "-", str(len(row.seeds)),
            f"{statistics.fmean(row.against):+.4f}" if compared else "-",
            f"{lower} of {len(row.against)}" if compared else "-",
            f"{row.steps:,.0f}", units.amount(row.tokens), units.amount(row.parameters),
        ])  # fmt: skip
    said = [units.table(heads, lines)]
    if any(row.shared for row in rows):
        said.append("* Other programs had the processor meanwhile, so that it had less than its "
                    "time; run it again on a quiet machine.")  # fmt: skip
    if any(len(row.seeds) == 1 for row in rows):
        said.append("One seed is one draw: before you believe a small difference, run the same "
                    "file with --seed 1 and --seed 2.")  # fmt: skip
    return "\n".join(said)


def _rows(trials: Sequence[Trial]) -> list[Row]:
    versions: dict[tuple[str, str], list[Trial]] = {}
    for trial in trials:
        versions.setdefault((trial["entry"], trial["source"]), []).append(trial)
    # The newest baseline, should it have been edited.
    base = next((own for (name, _), own in reversed(versions.items()) if name == BASELINE), [])
    compared = _by_seed(base)
    rows = [_row(own, compared) for own in versions.values()]
    return sorted(rows, key=lambda row: row.nats)


def _row(trials: Sequence[Trial], base: dict[int, float]) -> Row:
    last, own = trials[-1], _by_seed(trials)
    return Row(
        last["entry"], last["source"], last["title"], own, statistics.fmean(own.values()),
        tuple(own[seed] - base[seed] for seed in own if seed in base),
        statistics.fmean(trial["steps"] for trial in trials),
        statistics.fmean(trial["tokens"] for trial in trials), last["parameters"],
        any(_shared(trial) for trial in trials),
    )  # fmt: skip


def _by_seed(trials: Sequence[Trial]) -> dict[int, float]:
    """{seed: mean loss}, seeds ascending."""
    return {seed: statistics.fmean(t["nats"] for t in trials if t["seed"] == seed)
            for seed in sorted({t["seed"] for t in trials})}  # fmt: skip


def _shared(trial: Trial) -> bool:
    return trial["device"] == "cpu" and trial["cpu_seconds"] < ALONE * trial["seconds"]
