"""How long `minik2 train` takes to teach the preset `small` Python, with either engine.

    python -m benchmarks.small              print it
    python -m benchmarks.small --record     and write results/small.json

The trainer's own settings, the standard library as text, each engine in a process of its own, one
after the other. Seconds are of wall clock: evaluations, checkpoints, and what Numba still has to
compile are in them. Fails where the held-out loss is not below what the project promises in time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import records
from minik2 import ModelConfig
from minik2.doctor import machine
from minik2.training import Corpus, Habits, Settings, train
from minik2.training.settings import ENGINES

NATS, SECONDS = 1.9, 60.0
EVERY = 25


def run(engine: str, steps: int, threads: int) -> dict[str, Any]:
    """Train once in this process: held-out loss (nats a byte) by seconds since the start."""
    start = time.perf_counter()
    curve: list[tuple[float, float]] = []
    steps_alone = []

    def tell(kind: str, facts: dict[str, Any]) -> None:
        if kind == "evaluation":
            curve.append((time.perf_counter() - start, facts["held_out"]))
        elif kind == "step":
            steps_alone.append(facts["seconds"])

    settings = Settings(engine=engine, steps=steps)
    habits = Habits(threads=threads, evaluate_every=EVERY)
    with tempfile.TemporaryDirectory() as folder:
        cfg, text = ModelConfig.preset("small"), Corpus.standard_library()
        train(cfg, settings, text, Path(folder, "run"), habits, tell)
    return {
        "settings": settings.to_json(), "threads": threads, "curve": curve,
        "seconds": time.perf_counter() - start, "held_out": curve[-1][1],
        "seconds_below": next((at for at, nats in curve if nats < NATS), None),
        "tokens_per_second": steps * settings.tokens_a_step / sum(steps_alone),
    }  # fmt: skip


def in_a_process(engine: str, steps: int, threads: int) -> dict[str, Any]:
    """`run` where no other engine has left its threads."""
    command = [sys.executable, "-m", "benchmarks.small", "--engine", engine,
               "--steps", str(steps), "--threads", str(threads)]  # fmt: skip
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=records.ROOT)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def table(found: dict[str, dict[str, Any]]) -> str:
    lines = ["engine       tokens/s   held out, nats   below 1.9 after   all of it"]
    for engine, got in found.items():
        below = got["seconds_below"]
        lines.append(
            f"{engine:<11}{got['tokens_per_second']:10,.0f}   "
            f"{got['curve'][0][1]:5.2f} -> {got['held_out']:5.3f}"
            f"{'never' if below is None else f'{below:.0f} s':>18}{got['seconds']:10.0f} s"
        )
    return "\n".join(lines)


def shortfalls(found: dict[str, dict[str, Any]]) -> list[str]:
    """A sentence for every engine that is not below NATS within SECONDS."""
    return [
        f"{engine} is at {got['held_out']:.2f} nats a byte after {got['seconds']:.0f} s, where "
        f"{NATS} in {SECONDS:.0f} s are promised; was the machine quiet?"
        for engine, got in found.items()
        if got["seconds_below"] is None or got["seconds_below"] > SECONDS
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engine", choices=ENGINES, help="this one only, as one line of JSON")
    parser.add_argument("--steps", type=int, default=Settings().steps)
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--record", action="store_true", help="write results/small.json")
    chosen = parser.parse_args(arguments)
    if chosen.engine:
        print(json.dumps(run(chosen.engine, chosen.steps, chosen.threads)))
        return 0
    found = {engine: in_a_process(engine, chosen.steps, chosen.threads) for engine in ENGINES}
    print(table(found))
    if chosen.record:
        records.write_json(records.RESULTS / "small.json", {**machine.stamp(), "engines": found})
    short = shortfalls(found)
    for sentence in short:
        print(sentence, file=sys.stderr)
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
