"""Results on disk: JSON files with their machine and date, and tables in the README.

Unusual here: nothing is written in place. A file is written beside, flushed and renamed, so that a
run that is stopped leaves the old record whole.
"""

from __future__ import annotations

import datetime
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from minik2.doctor import machine

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def stamp() -> dict[str, Any]:
    """What every record carries: the date and the machine, without what changes by the minute."""
    described = machine.describe()
    del described["memory_free"], described["load"]
    return {"date": datetime.date.today().isoformat(), "machine": described}


def replace_file(path: Path, text: str) -> None:
    """Write `text` to `path`, or leave what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(beside, 0o644)  # mkstemp's files are their owner's alone
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write a record as readable JSON, whole or not at all."""
    replace_file(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


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
    replace_file(path, f"{before}{begin}\n{text.strip()}\n{end}{after}")
