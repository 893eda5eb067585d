"""What a run saw, one JSON line a step, in the run's metrics.jsonl.

Unusual here: a killed run leaves lines of steps that it will make again. Resuming cuts them off, so
that every step stands there once.

Every line has `kind` and `step`.
    "step"        loss (nats a token), rate (the highest of the optimizer's at this step), norm (of
                  the gradient, before clipping), max_logit (a number a layer), head_logits (every
                  head's largest, before it is clipped: a list of H numbers a layer), clipped
                  ([layer, head, γ] each), loads (a list of E counts a layer, empty for dense ones),
                  violation (max over mean of the loads, minus 1, a number a layer with experts),
                  seconds (of this step), maxima_seconds (of them, the logits' maxima's pass),
                  trained (seconds of all steps so far), tokens (targets so far),
                  tokens_per_second (of this step), memory (bytes)
    "evaluation"  held_out (nats a token), weight_rms and update_rms (root mean squares by kind of
                  tensor; the update is that of this one step), sample (text, where asked for)
    "resumed"     threads, device, versions: what the steps after it were made with
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minik2.files import write_whole

NAME = "metrics.jsonl"


class Metrics:
    """The file, open for the next lines; those after `step` are cut off first.

    warnings: a sentence where the file was not as the run left it, which ends no run. Every method
    raises OSError, one sentence, where the disk refuses.
    """

    def __init__(self, run: Path, step: int) -> None:
        self.path, self.warnings = run / NAME, list[str]()
        with self._disk():
            kept = [line for line in self._found() if line["step"] <= step] if step else []
            write_whole(self.path, "".join(_line(entry) for entry in kept))
            self.file = self.path.open("a", encoding="utf-8")

    def _found(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            self.warnings.append(f"{NAME} is gone; what the run saw up to here is lost.")
            return []
        entries, bad = _parse(self.path)
        if bad:
            aside = self.path.with_name(f"{NAME}.damaged")
            shutil.copyfile(self.path, aside)
            self.warnings.append(
                f"{NAME} is damaged (line {bad[0]} is not one that a run writes, {len(bad)} such "
                f"in all) and kept as {aside.name}; its whole lines go on."
            )
        return entries

    def add(self, kind: str, step: int, **facts: Any) -> None:
        """Write one line at once, so that a reader beside the run sees it."""
        with self._disk():
            self.file.write(_line({"kind": kind, "step": step, **facts}))
            self.file.flush()

    def flush(self) -> None:
        """Make the disk hold every line so far, so that none before a checkpoint can be missing."""
        with self._disk():
            os.fsync(self.file.fileno())

    def close(self) -> None:
        with contextlib.suppress(OSError):  # `add` has raised it, with the sentence
            self.file.close()

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(
                f"{self.path} could not be written ({error.strerror or error}); the checkpoints "
                "are untouched. Make room there, and give the same command again."
            ) from error


def read(run: str | Path) -> list[dict[str, Any]]:
    """Every whole line of a run; the last may be cut off where a run was killed.

    Raises FileNotFoundError where there is no such file, ValueError for lines that are not ours.
    """
    path = Path(run) / NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"{run} has no {NAME}; give the directory that `minik2 train` was given as --out."
        )
    entries, bad = _parse(path)
    if bad:
        raise ValueError(f"Line {bad[0]} of {path} is not one that a run writes.")
    return entries


def _parse(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The entries, and the numbers of the lines that are none."""
    found, bad = [], []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            entry = json.loads(line)
            if not isinstance(entry["kind"], str) or not isinstance(entry["step"], int):
                raise ValueError
            found.append(entry)
        except (ValueError, KeyError, TypeError):
            bad.append(number)
    return found, bad


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry, allow_nan=False) + "\n"
