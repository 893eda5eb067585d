"""An experiment's results file: what was measured, with which settings, on which machine.

Unusual here: the file holds its own plan, so that a test can say whether the results in the
repository are those of the code beside them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from minik2 import __version__
from minik2.doctor import machine
from minik2.experiments.scales import ROOT, Scale
from minik2.files import write_whole

FOLDER = Path(__file__).with_name("results")
FIGURES = ROOT / "figures" / "experiments"
DIGITS = 5  # of every number that is stored


def record(
    name: str, scale: Scale, plan: dict[str, Any], seeds: Sequence[int], found: dict[str, Any],
    runs: Iterable[Sequence[dict[str, Any]]],
) -> dict[str, Any]:
    """What an experiment returns: its plan and findings, and what they should be read with.

    runs: the lines of all runs, whose training seconds are added up.
    """
    seconds = sum(line["seconds"] for lines in runs for line in lines if line["kind"] == "step")
    return {
        "experiment": name, "scale": scale.name, **machine.stamp(), "minik2": __version__,
        "device": scale.device,
        "threads": scale.threads, "at_once": scale.at_once, "training_seconds": seconds,
        "seeds": list(seeds), **setup(scale), "plan": plan, "found": _short(found),
    }  # fmt: skip


def setup(scale: Scale) -> dict[str, Any]:
    """Model and base settings, as they stand in a results file."""
    return {"model": scale.model.to_json(), "settings": scale.settings.to_json()}


def path_of(name: str, scale: str) -> Path:
    """Where an experiment's results lie."""
    return FOLDER / (f"{name}.json" if scale == "cpu" else f"{name}-{scale}.json")


def write(kept: dict[str, Any], path: Path) -> None:
    """Store a record, an entry a line."""
    entries = []
    for key, value in kept.items():
        if key == "found":
            inner = ",\n".join(f"  {_line(k)}: {_line(v)}" for k, v in value.items())
            entries.append(f' "found": {{\n{inner}\n }}')
        else:
            entries.append(f" {_line(key)}: {_line(value)}")
    write_whole(path, "{\n" + ",\n".join(entries) + "\n}\n")


def read(path: Path) -> dict[str, Any]:
    """A stored record. Raises OSError for one that is not there, ValueError for a spoiled one."""
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no {path.name} yet: the experiment has not been run at this scale. Run it "
            "without --redraw first."
        )
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        held["experiment"], held["plan"], held["found"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no results file of an experiment ({error!r}).") from None
    return dict(held)


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _short(value: Any) -> Any:
    """The same with numbers of DIGITS digits, and None for those that JSON cannot hold."""
    if isinstance(value, dict):
        return {str(key): _short(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_short(entry) for entry in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if abs(value) < float("inf") else None
    return value
