"""The results file: one line a trial, and beside it the source of every entry that ran.

Unusual here: nothing in it is ever changed or dropped, bad luck included. A trial that was killed
is not in it, and the file is replaced whole, so that it always holds trials that came to an end.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from minik2.files import write_whole

if TYPE_CHECKING:
    from minik2.capstone.entry import Entry

DEFAULT = Path("runs", "capstone", "results.json")

# What every trial holds: the kinds of value that are taken.
FIELDS: dict[str, type | tuple[type, ...]] = {
    "entry": str, "title": str, "source": str, "seed": int, "minutes": (int, float),
    "threads": int, "device": str, "nats": (int, float), "steps": int, "tokens": int,
    "seconds": (int, float), "cpu_seconds": (int, float), "parameters": int, "active": int,
    "text": dict, "date": str, "machine": dict,
}  # fmt: skip


def read(path: Path) -> list[dict[str, Any]]:
    """All trials of a file, in the order in which they were added; none where there is no file.

    Raises ValueError, one sentence, for a file that `add` has not written, OSError for one that
    cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except UnicodeDecodeError:
        raise ValueError(_spoiled(path, "it is no text")) from None
    except OSError as error:
        raise OSError(f"{path} cannot be read: {error.strerror or error}.") from None
    try:
        trials = json.loads(text)["trials"]
        assert isinstance(trials, list)
    except (ValueError, KeyError, TypeError, AssertionError):
        raise ValueError(_spoiled(path, "it holds no list of trials")) from None
    for number, trial in enumerate(trials, 1):
        for name, kind in FIELDS.items():
            value = trial.get(name) if isinstance(trial, dict) else None
            fits = isinstance(value, kind) and not isinstance(value, bool)
            if not fits or (isinstance(value, float) and not math.isfinite(value)):
                what = f"trial {number} has {value!r} as its {name}"
                raise ValueError(_spoiled(path, what))
    return list(trials)


def add(path: Path, trials: Sequence[dict[str, Any]]) -> None:
    """Write trials behind those that the file holds. Raises as `read`, and OSError.

    Several processes may add to one file: each waits for the others.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.with_name(f".{path.name}.lock")):
            lines = [json.dumps(trial, ensure_ascii=False, allow_nan=False)
                     for trial in [*read(path), *trials]]  # fmt: skip
            write_whole(path, '{"trials": [\n ' + ",\n ".join(lines) + "\n]}\n")
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror or error}.") from error


def keep_source(path: Path, entry: Entry) -> Path:
    """Keep the text of an entry that ran beside the results, by name and digest; gives its path."""
    kept = path.parent / "sources" / f"{entry.name}-{entry.digest}.py"
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_whole(kept, entry.text)
    except OSError as error:
        raise OSError(f"{kept} cannot be written: {error.strerror or error}.") from error
    return kept


def _spoiled(path: Path, what: str) -> str:
    return (f"{path} is not a file of results as `minik2 capstone` writes it: {what}. It was left "
            "as it is; move it away, or name another one with --results.")  # fmt: skip
