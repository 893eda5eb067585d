"""The small trained model that the lessons open: trained once on this machine, then kept.

Unusual here: it is an ordinary run (`minik2 train` draws it, and goes on with it if it was cut
off). Lessons want weights that have seen text, since random ones have no habits to look at, and
nobody should wait for them twice.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import filelock
from tqdm import tqdm

from minik2 import reference
from minik2.config import ModelConfig
from minik2.training import store
from minik2.training.corpus import Corpus
from minik2.training.settings import Settings
from minik2.training.trainer import Habits, train

ROOT = Path(__file__).resolve().parents[2]
STEPS, SHORT_STEPS = 300, 60


def lesson_model(dtype: str = "float64") -> reference.Model:
    """The preset `small`, trained by K2's recipe on the source of Python's standard library.

    300 steps of 8 × 128 bytes (60 where MINIK2_SHORT is set): a minute the first time, under a bar,
    then read from runs/lessons/ in the course's folder. dtype: float64 for proofs, or float32; the
    weights were trained in float32. Norms are not 1 and correction biases not 0, as in any model
    that has learned. Raises OSError where the folder cannot be written.
    """
    steps = SHORT_STEPS if os.environ.get("MINIK2_SHORT") else STEPS
    home = (ROOT if (ROOT / "lessons").is_dir() else Path.cwd()) / "runs" / "lessons"
    run = home / f"small-{steps}"
    home.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(home / f".{run.name}.lock"):  # two lessons at once: the second waits
        saved, _ = store.newest(run)
        if saved is None or saved.step < steps:
            _train(steps, run)
            saved, _ = store.newest(run)
    assert saved is not None
    return reference.Model.from_pretrained(saved.model, dtype=dtype)


def _train(steps: int, run: Path) -> None:
    print("Training the small model of the lessons, once; later it is read from the disk.")
    # Products this small gain little from a second core (see lesson 00).
    habits = Habits(threads=1, evaluate_every=steps, save_every=100)
    with tqdm(total=steps, file=sys.stdout, ncols=76, unit="step") as bar:

        def tell(kind: str, facts: dict[str, Any]) -> None:
            if kind == "step":
                bar.update(facts["step"] - bar.n)
                bar.set_postfix(loss=f"{facts['loss']:.2f}")

        train(ModelConfig.preset("small"), Settings(steps=steps), Corpus.standard_library(), run,
              habits, tell)  # fmt: skip
