"""Where a run lies: its checkpoints, each whole and checked or not there at all.

Unusual here: nothing is trusted because it exists. A checkpoint is written into a hidden directory,
flushed, and renamed; SHA256SUMS (as the command `sha256sum -c` reads it) says what every byte must
be, and one that does not agree is set aside for the one before. So a run survives being killed at
any moment, and a disk that lies.

    RUN/run.json                    config, settings, text: what the run is
    RUN/metrics.jsonl               what it saw, a line a step
    RUN/checkpoints/step-00000400/  model/: config.json, *.safetensors, as `from_pretrained` reads
                                    optimizer.safetensors, state.json, SHA256SUMS

Of several ranks each writes files of its own, model-00002-of-00004.safetensors and
optimizer-00002-of-00004.safetensors, and all of them appear by the one renaming.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from minik2 import checkpoint
from minik2.config import ModelConfig
from minik2.training.pieces import Pieces
from minik2.training.ranks import ALONE, Ranks

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
    optimizer: Pieces

    @property
    def model(self) -> Path:
        """The directory for `from_pretrained`."""
        return self.path / MODEL


def save(
    run: Path,
    step: int,
    write: Callable[[Path], Iterable[Path]],
    state: Mapping[str, Any],
    group: Ranks = ALONE,
) -> Path:
    """Write the checkpoint of `step` and drop all but the KEPT newest; returns where it lies.

    All ranks of the group call it, for a directory that all of them see. write: puts what this rank
    has to say into a new folder and gives the files that it wrote (`Engine.write`); state: what
    JSON can hold. Raises OSError, one sentence, where the disk refuses, on the rank that it
    refuses, and RankError on the others; the older checkpoints are then untouched.
    """
    folder = run / "checkpoints"
    target = folder / f"step-{step:08}"
    name = group.together(lambda: f".{target.name}.{secrets.token_hex(4)}")
    beside = folder / name

    def put_in_place(lines: list[str]) -> None:
        (beside / STATE).write_text(json.dumps({"step": step, **state}, indent=2) + "\n")
        (beside / SUMS).write_text("".join([*lines, _sums(beside, [beside / STATE])]))
        for path in (beside / SUMS, beside / MODEL, beside):
            _flush(path)
        if target.exists():  # what a damaged one, or another run's end, left there
            _set_aside(target)
        beside.rename(target)
        _flush(folder)
        _flush(run)

    try:
        lines = group.each(lambda: _sums(beside, write(beside)))
        group.together(lambda: put_in_place(lines))
    except OSError as error:
        cause = error.__cause__ or error
        reason = getattr(cause, "strerror", None) or cause
        raise OSError(
            f"The checkpoint of step {step} could not be written to {folder} ({reason}); "
            f"{_last(folder)}. Make room there, and give the same command again."
        ) from error
    finally:
        if group.leads:
            shutil.rmtree(beside, ignore_errors=True)
    if group.leads:
        for old in _steps(folder)[:-KEPT]:
            _drop(old)
    return target


def write_whole(
    folder: Path, cfg: ModelConfig, weights: Mapping[str, Array], optimizer: Mapping[str, Array]
) -> list[Path]:
    """What one process, which has all of it, writes into a new folder. Raises OSError."""
    checkpoint.save(folder / MODEL, cfg, weights)
    try:
        safetensors.numpy.save_file(dict(optimizer), folder / optimizer_file(0, 1))
    except SafetensorError as error:
        raise OSError(str(error)) from error
    return [path for path in folder.rglob("*") if path.is_file()]


def optimizer_file(rank: int, count: int) -> str:
    """Where a rank of several has its rows of what the optimizer keeps, or one process all."""
    return OPTIMIZER if count == 1 else f"optimizer-{rank + 1:05}-of-{count:05}.safetensors"


def newest(run: Path, check: bool = True) -> tuple[Saved | None, list[str]]:
    """The newest whole checkpoint (None before the first) and a warning for each passed over.

    check: read every byte; False where another rank has just done so.
    Damaged ones are renamed to `….damaged`, so that they are neither lost nor looked at again.
    Raises RunError where there are checkpoints and none of them is whole, or ever was since.
    """
    warnings: list[str] = []
    for path in reversed(_steps(run / "checkpoints")):
        try:
            return _read(path, check), warnings
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


def _read(path: Path, check: bool) -> Saved:
    sums = {}
    for line in (path / SUMS).read_text(encoding="utf-8").splitlines():
        value, _, name = line.partition("  ")
        sums[name] = value
    rows = sorted(name for name in sums if name.startswith("optimizer"))
    wanted = [optimizer_file(rank, len(rows)) for rank in range(len(rows))] or [OPTIMIZER]
    missing = {*wanted, STATE, f"{MODEL}/config.json"} - set(sums)
    if missing:
        raise ValueError(f"{SUMS} does not name {', '.join(sorted(missing))}")
    for name, value in sums.items():
        if not (path / name).is_file():
            raise ValueError(f"{name} is missing")
        if check and _sha256(path / name) != value:
            raise ValueError(f"{name} is not what was written")
    state = json.loads((path / STATE).read_text(encoding="utf-8"))
    return Saved(path, state["step"], state, Pieces(path / name for name in wanted))


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


def _sums(folder: Path, paths: Iterable[Path]) -> str:
    """A line of SUMS for each file, once the disk holds it."""
    lines = []
    for path in paths:
        _flush(path)
        lines.append(f"{_sha256(path)}  {path.relative_to(folder).as_posix()}\n")
    return "".join(lines)


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
