"""Small runs for the trainer's tests: a model, a text, and what must be equal to the bit."""

import hashlib
import json
from pathlib import Path
from typing import Any

from minik2 import ModelConfig
from minik2.training import Corpus, Settings, metrics, store

CFG = ModelConfig.preset("tiny").replace(max_position_embeddings=64)
FILES = {
    f"file{n}.py": f"def f{n}(x, y):\n    return x * {n} + y - {n * n}\n".encode() * 30
    for n in range(12)
}
# What depends on the clock and on the machine.
PASSING = ("seconds", "maxima_seconds", "trained", "tokens_per_second", "memory")


def text() -> Corpus:
    return Corpus(FILES.items())


def settings(**changes: Any) -> Settings:
    """A recipe in which everything is on: two batches to a step, clipping, QK-Clip, biases."""
    given = {"steps": 6, "batch": 2, "window": 12, "accumulate": 2, "rate": 0.01, "warmup": 2,
             "clip_norm": 0.5, "tau": 0.02, "bias_speed": 0.01, "balance_alpha": 0.01,
             "bias_until": 0.9, "seed": 3}  # fmt: skip
    return Settings(**given | changes)


def bits(run: Path) -> dict[str, Any]:
    """Everything of the newest checkpoint, apart from the time that it took."""
    saved, warnings = store.newest(run)
    assert saved is not None and not warnings
    found: dict[str, Any] = tree(saved.path)
    del found[store.STATE], found[store.SUMS]
    assert len(found) == 4  # the model's directory and its two files, the optimizer's file
    state = json.loads((saved.path / store.STATE).read_text())
    del state["trained"], state["made_with"]
    return found | state


def seen(run: Path) -> list[dict[str, Any]]:
    """Every line of the metrics but those that say where a run went on."""
    lines = [entry for entry in metrics.read(run) if entry["kind"] != "resumed"]
    return [{k: v for k, v in entry.items() if k not in PASSING} for entry in lines]


def tree(folder: Path) -> dict[str, str]:
    """Every file below a directory, by a hash of its content, the lock's aside."""
    return {path.relative_to(folder).as_posix():
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "directory"
            for path in folder.rglob("*") if path.name != ".lock"}  # fmt: skip
