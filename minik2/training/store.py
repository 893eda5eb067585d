"""Where a run lies: its checkpoints, each whole and checked or not there at all.

Unusual here: nothing is trusted because it exists. A checkpoint is written into a hidden directory,
flushed, and renamed; SHA256SUMS (as the command `sha256sum -c` reads it) says what every byte must
be, and one that does not agree is set aside for the one before. So a run survives being killed at
any moment, and a disk that lies.

    RUN/run.json                    config, settings, text: what the run is
    RUN/metrics.jsonl               what it saw, a line a step
    RUN/checkpoints/step-00000400/  model/: config.json, *.safetensors, as `from_pretrained` reads
                                    optimizer.safetensors, state.json, SHA256SUMS
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from minik2 import checkpoint
from minik2.config import ModelConfig

Array = np.ndarray[Any, np.dtype[Any]]

KEPT = 2
SUMS = "SHA256SUMS"
MODEL, OPTIMIZER, STATE = "model", "optimizer.safetensors", "state.json"


class RunError(ValueError):
    """A run's directory that cannot be used; the message is one sentence for its owner."""


@dataclass(frozen=True)
class Saved:
    """One checkpoint: where it lies, its step, and what it holds beside the model."""

    path: Path
    step: int
    state: dict[str, Any]
    optimizer: dict[str, Array]

    @property
    def model(self) -> Path:
        """The directory for `from_pretrained`."""
        return self.path / MODEL


def save(
    run: Path,
    step: int,
    cfg: ModelConfig,
    weights: Mapping[str, Array],
    optimizer: Mapping[str, Array],
    state: Mapping[str, Any],
) -> Path:
    """Write the checkpoint of `step` and drop all but the KEPT newest; returns where it lies.

    weights, optimizer: NumPy arrays by name; state: what JSON can hold. Raises OSError, one
    sentence, where the disk refuses; the older checkpoints are then untouched.
    """
    folder = run / "checkpoints"
    target = folder / f"step-{step:08}"
    beside = folder / f".{target.name}.{secrets.token_hex(4)}"
    try:
        checkpoint.save(beside / MODEL, cfg, weights)
        safetensors.numpy.save_file(dict(optimizer), beside / OPTIMIZER)
        (beside / STATE).write_text(json.dumps({"step": step, **state}, indent=2) + "\n")
        files = sorted(path for path in beside.rglob("*") if path.is_file())
        lines = [f"{_sha256(path)}  {path.relative_to(beside).as_posix()}\n" for path in files]
        (beside / SUMS).write_text("".join(lines))
        for path in (*beside.rglob("*"), beside):
            _flush(path)
        if target.exists():  # what a damaged one, or another run's end, left there
            _set_aside(target)
        beside.rename(target)
        _flush(folder)
        _flush(run)
    except (OSError, SafetensorError) as error:
        cause = error.__cause__ or error
        reason = getattr(cause, "strerror", None) or cause
        raise OSError(
            f"The checkpoint of step {step} could not be written to {folder} ({reason}); "
            f"{_last(folder)}. Make room there, and give the same command again."
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    for old in _steps(folder)[:-KEPT]:
        _drop(old)
    return target


def newest(run: Path) -> tuple[Saved | None, list[str]]:
    """The newest whole checkpoint (None before the first) and a warning for each passed over.

    Damaged ones are renamed to `….damaged`, so that they are neither lost nor looked at again.
    Raises RunError where there are checkpoints and none of them is whole, or ever was since.
    """
    warnings: list[str] = []
    for path in reversed(_steps(run / "checkpoints")):
        try:
            return _read(path), warnings
        except PermissionError:
            raise  # nothing is wrong with it
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            warnings.append(f"{path.name} is damaged ({error}) and is passed over.")
            _set_aside(path)
    damaged = sorted(path.name for path in (run / "checkpoints").glob("step-*.damaged"))
    if damaged:
        why = " ".join(warnings) or f"there are {', '.join(damaged)}."
        raise RunError(
            f"None of the checkpoints in {run / 'checkpoints'} is whole: {why} Name another --out "
            "to begin anew."
        )
    return None, warnings


def tidy(run: Path) -> None:
    """Remove what a save or a removal that was cut off left behind."""
    for path in (run / "checkpoints").glob(".*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in (*run.glob(".run.json.*"), *run.glob(".metrics.jsonl.*")):
        path.unlink(missing_ok=True)


def _read(path: Path) -> Saved:
    sums = {}
    for line in (path / SUMS).read_text(encoding="utf-8").splitlines():
        value, _, name = line.partition("  ")
        sums[name] = value
    missing = {OPTIMIZER, STATE, f"{MODEL}/config.json"} - set(sums)
    if missing:
        raise ValueError(f"{SUMS} does not name {', '.join(sorted(missing))}")
    for name, value in sums.items():
        if not (path / name).is_file():
            raise ValueError(f"{name} is missing")
        if _sha256(path / name) != value:
            raise ValueError(f"{name} is not what was written")
    state = json.loads((path / STATE).read_text(encoding="utf-8"))
    return Saved(path, state["step"], state, safetensors.numpy.load_file(path / OPTIMIZER))


def _steps(folder: Path) -> list[Path]:
    """The checkpoints by step, oldest first."""
    named = [p for p in folder.glob("step-*") if p.is_dir() and p.name[5:].isdigit()]
    return sorted(named, key=lambda path: int(path.name[5:]))


def _last(folder: Path) -> str:
    steps = _steps(folder)
    return f"the last one is of step {int(steps[-1].name[5:])}" if steps else "there is none yet"


def _set_aside(path: Path) -> None:
    aside = path.with_name(f"{path.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)


def _drop(path: Path) -> None:
    # Hidden first: cut off half way, what is left must not look like a checkpoint.
    hidden = path.with_name(f".{path.name}.old")
    with contextlib.suppress(OSError):  # in use elsewhere, on Windows: it goes with the next one
        path.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Make the disk hold what was written; of a directory, its names."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no directories
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
