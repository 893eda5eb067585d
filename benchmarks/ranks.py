"""What sharing a step among processes costs on one machine: `minik2 train` alone and by torchrun.

    python -m benchmarks.ranks              print it
    python -m benchmarks.ranks --record     and write results/ranks.json

One process on all cores beside as many processes as there are cores, on one thread each, and those
once more with the experts shared out; the same batches, in turn, each run anew. Seconds are the
medians of the later half of the steps, as the run's own metrics have them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import records
from minik2.doctor import machine

PRESETS = ("small", "bench")
STEPS, ROUNDS = 12, 3


def seconds(preset: str, ranks: int, expert_ranks: int, cores: int) -> float:
    """One run's median step."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "run")
        options = ["--preset", preset, "--steps", str(STEPS), "--batch", "8", "--window", "256",
                   "--warmup", "1", "--evaluate-every", str(STEPS), "--out", str(out),
                   "--device", "cpu"]  # fmt: skip
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone",
                    "--local-addr=127.0.0.1", f"--nproc-per-node={ranks}"] if ranks > 1 else [
                    sys.executable]  # fmt: skip
        shared = ["--expert-ranks", str(expert_ranks)] if ranks > 1 else []
        threads = str(cores if ranks == 1 else 1)
        subprocess.run(
            [*launcher, "-m", "minik2.training", *options, *shared, "--threads", threads],
            check=True, cwd=records.ROOT, env=os.environ | {"OMP_NUM_THREADS": threads},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    taken = [line["seconds"] for line in lines if line["kind"] == "step"]
    return statistics.median(taken[len(taken) // 2 :])


def measure(cores: int) -> dict[str, dict[str, Any]]:
    """Seconds of a step by preset and layout, and how many times one process's they are."""
    layouts = {"one process": (1, 1), "data": (cores, 1), "experts": (cores, cores)}
    found = {}
    for preset in PRESETS:
        taken: dict[str, list[float]] = {name: [] for name in layouts}
        for _ in range(ROUNDS):
            for name, (ranks, expert) in layouts.items():
                taken[name].append(seconds(preset, ranks, expert, cores))
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
    chosen = parser.parse_args(arguments)
    cores = min(os.cpu_count() or 1, 4)
    if cores < 2:
        print("One core cannot be shared by two processes.", file=sys.stderr)
        return 1
    found = measure(cores)
    print(table(found, cores))
    if chosen.record:
        record = {**machine.stamp(), "steps": STEPS, "rounds": ROUNDS, "cores": cores,
                  "layouts": found}  # fmt: skip
        records.write_json(records.RESULTS / "ranks.json", record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
