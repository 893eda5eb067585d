"""What a run saw, one JSON line a step, in the run's metrics.jsonl.

Unusual here: a killed run leaves lines of steps that it will make again. Resuming cuts them off, so
that every step stands there once.

Every line has `kind` and `step`.
    "step"        loss (nats a token), rate (the highest of the optimizer's at this step), norm (of
                  the gradient, before clipping), max_logit (a number a layer), clipped ([layer,
                  head, γ] each), loads (a list of E counts a layer, empty for dense ones),
                  violation (max over mean of the loads, minus 1, a number a layer with experts),
                  seconds (of this step), maxima_seconds (of them, the logits' maxima's pass),
                  trained (seconds of all steps so far), tokens (targets so far), memory (bytes)
    "evaluation"  held_out (nats a token), weight_rms and update_rms (root mean squares by kind of
                  tensor; the update is that of this one step), sample (text, where asked for)
    "resumed"     threads, device: where the steps after it were made
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from minik2.files import write_whole

NAME = "metrics.jsonl"


class Metrics:
    """The file, open for the next lines; those after `step` are cut off first."""

    def __init__(self, run: Path, step: int) -> None:
        self.path = run / NAME
        kept = [line for line in read(run) if line["step"] <= step] if step else []
        write_whole(self.path, "".join(_line(entry) for entry in kept))
        self.file = self.path.open("a", encoding="utf-8")

    def add(self, kind: str, step: int, **facts: Any) -> None:
        """Write one line at once, so that a reader beside the run sees it."""
        self.file.write(_line({"kind": kind, "step": step, **facts}))
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def read(run: str | Path) -> list[dict[str, Any]]:
    """Every whole line of a run; the last may be cut off where a run was killed.

    Raises FileNotFoundError where there is no such file, ValueError for lines that are not ours.
    """
    path = Path(run) / NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"{run} has no {NAME}; give the directory that `minik2 train` was given as --out."
        )
    found = []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            entry = json.loads(line)
            entry["kind"], entry["step"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"Line {number} of {path} is not one that a run writes.") from None
        found.append(entry)
    return found


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry, allow_nan=False) + "\n"
