"""What sharing a training step among processes costs on one machine.

    python -m benchmarks.ranks              print it
    python -m benchmarks.ranks --record     and write results/ranks.json

One process on all cores beside as many processes as there are cores, on one thread each, and those
once more with the experts shared out. Each round starts both anew, alone and by torchrun, in turn,
and every layout makes the same steps, without looks at the held-out text and without saving.
Seconds are the median of a round's steps, the first left out; then the median of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import records
from minik2.config import ModelConfig
from minik2.doctor import machine
from minik2.training import engines, ranks
from minik2.training.settings import Settings

PRESETS = ("small", "bench")
STEPS, ROUNDS = 3, 3
SETTINGS = Settings(batch=8, window=128)
Seconds = dict[str, dict[str, float]]


def step(engine: engines.Engine, rng: np.random.Generator) -> float:
    """Seconds of one step on random bytes, with all that the trainer asks of an engine."""
    tokens = rng.integers(0, 256, (SETTINGS.batch, SETTINGS.window + 1))
    start = time.perf_counter()
    engine.gradients([(tokens[:, :-1], tokens[:, 1:])])
    engine.norm()
    engine.seen()
    engine.update(1.0)
    engine.balance()
    return time.perf_counter() - start


def of_this_process(presets: Sequence[str], threads: int) -> Seconds:
    """Median steps by preset and layout, as one process or one of the ranks; all ranks call it."""
    found: Seconds = {}
    with ranks.joined("cpu") as group, engines.threads("pytorch", threads):
        layouts = {"data": 1, "experts": group.count} if group.count > 1 else {"one process": 1}
        for preset in presets:
            cfg, found[preset] = ModelConfig.preset(preset), {}
            for name, expert in layouts.items():
                engine = engines.make(cfg, SETTINGS, "cpu", None, group, expert)
                rng = np.random.default_rng(0)
                taken = [step(engine, rng) for _ in range(STEPS)]
                found[preset][name] = statistics.median(taken[1:])
    return found


def launched(count: int, threads: int, presets: Sequence[str]) -> Seconds:
    """What `of_this_process` finds in so many new processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1",
                f"--nproc-per-node={count}"] if count > 1 else []  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "seconds.json")
        done = subprocess.run(
            [sys.executable, *launcher, "-m", "benchmarks.ranks", "--presets", *presets,
             "--threads", str(threads), "--into", str(out)],
            cwd=records.ROOT, env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            capture_output=True, text=True)  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{count} processes ended with an error:\n{done.stderr[-2000:]}")
        found: Seconds = json.loads(out.read_text(encoding="utf-8"))
        return found


def measure(
    cores: int, presets: Sequence[str] = PRESETS, count: int = ROUNDS
) -> dict[str, dict[str, Any]]:
    """Seconds of a step by preset and layout, and how many times one process's they are."""
    rounds = []
    for _ in range(count):
        alone, together = launched(1, cores, presets), launched(cores, 1, presets)
        rounds.append({preset: alone[preset] | together[preset] for preset in presets})
    found: dict[str, dict[str, Any]] = {}
    for preset in presets:
        taken = {name: [one[preset][name] for one in rounds] for name in rounds[0][preset]}
        found[preset] = {
            name: {"seconds": statistics.median(each), "rounds": each,
                   "times": records.times(each, taken["one process"])}
            for name, each in taken.items()
        }  # fmt: skip
    return found


def table(found: dict[str, dict[str, Any]], cores: int) -> str:
    """Seconds of a step, and how many times one process's."""
    lines = [f"a step on {cores} cores    one process    {cores} by data        {cores} by experts"]
    for preset, layouts in found.items():
        cells = [f"{layouts['one process']['seconds']:7.3f} s"]
        cells += [f"{layouts[n]['seconds']:7.3f} s ({layouts[n]['times']['median']:.2f} times)"
                  for n in ("data", "experts")]  # fmt: skip
        lines.append(f"{preset:<20}" + "   ".join(cells))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write results/ranks.json")
    parser.add_argument("--presets", nargs="+", default=PRESETS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)  # one of the processes
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.into:
        own = of_this_process(chosen.presets, chosen.threads)
        if not ranks.follows():
            chosen.into.write_text(json.dumps(own), encoding="utf-8")
        return 0
    cores = min(os.cpu_count() or 1, 4)
    if cores < 2:
        print("One core cannot be shared by two processes.", file=sys.stderr)
        return 1
    found = measure(cores, chosen.presets)
    print(table(found, cores))
    if chosen.record:
        record = {**machine.stamp(), "steps": STEPS, "rounds": ROUNDS, "cores": cores,
                  "layouts": found}  # fmt: skip
        records.write_json(records.RESULTS / "ranks.json", record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
