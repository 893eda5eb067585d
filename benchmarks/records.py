"""Results on disk: JSON files with their machine and date, and tables in the README.

Unusual here: nothing is written in place. A file is written beside, flushed and renamed, so that a
run that is stopped leaves the old record whole.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minik2.files import write_whole

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def times(theirs: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """How many times as fast as theirs ours is, round by round."""
    ratios = [them / us for them, us in zip(theirs, ours, strict=True)]
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write a record as readable JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def fill(path: Path, marker: str, text: str) -> None:
    """Replace what stands between <!-- marker:begin --> and <!-- marker:end --> in a document.

    Raises ValueError where the two marks are not there exactly once, in this order.
    """
    document = path.read_text(encoding="utf-8")
    begin, end = f"<!-- {marker}:begin -->", f"<!-- {marker}:end -->"
    before, found, rest = document.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed or begin in rest or end in before + after:
        raise ValueError(f"{path} must have one {begin} and after it one {end}; put them back.")
    write_whole(path, f"{before}{begin}\n{text.strip()}\n{end}{after}")
