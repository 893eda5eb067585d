"""What a learner waits for: `import minik2`, and the answer of every exercise's check.

    python -m benchmarks.imports              print it
    python -m benchmarks.imports --record     and write results/imports.json

The import is timed in fresh interpreters, in turn with one that imports nothing. A check is given
the right answer, which makes it climb the whole ladder; its first call, which may compile, is
shown apart. Fails where the project's limits are exceeded.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from benchmarks import records
from minik2 import checks
from minik2.doctor import machine

IMPORT_LIMIT, CHECK_LIMIT = 0.3, 1.0


def start(code: str) -> float:
    """Seconds from starting a fresh interpreter to its end."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, cwd=records.ROOT)
    return time.perf_counter() - begin


def import_seconds(rounds: int) -> dict[str, float]:
    """Medians: bare Python, Python that imports minik2, and the difference round by round."""
    bare, ours = [], []
    for _ in tqdm(range(rounds), desc="imports", disable=None):
        bare.append(start("pass"))
        ours.append(start("import minik2"))
    over = [us - it for us, it in zip(ours, bare, strict=True)]
    return {"bare": statistics.median(bare), "minik2": statistics.median(ours),
            "over_bare": statistics.median(over)}  # fmt: skip


def check_seconds(rounds: int) -> dict[str, dict[str, float]]:
    """By exercise: seconds of the first check of the right answer, and the median of later ones."""
    out = {}
    for exercise in tqdm(checks.exercises(), desc="checks", disable=None):
        times = []
        for seed in range(1 + rounds):
            begin = time.perf_counter()
            result = checks.check(exercise.id, exercise.reference, seed=seed)
            times.append(time.perf_counter() - begin)
            if not result.passed:
                raise RuntimeError(f"{exercise.id} refuses its own right answer: {result.message}")
        out[exercise.id] = {"first": times[0], "median": statistics.median(times[1:])}
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--record", action="store_true", help="write results/imports.json")
    chosen = parser.parse_args(arguments)
    imports, answers = import_seconds(chosen.rounds), check_seconds(chosen.rounds)
    print(f"import minik2: {imports['over_bare']:.3f} s over bare Python's "
          f"{imports['bare']:.3f} s, medians of {chosen.rounds}; at most {IMPORT_LIMIT} s is "
          "promised")  # fmt: skip
    width = max(map(len, answers))
    print(f"\n{'check':<{width}}   first   median  (at most {CHECK_LIMIT} s is promised)")
    for name, seconds in answers.items():
        print(f"{name:<{width}}  {seconds['first']:6.3f}   {seconds['median']:6.3f}")
    if chosen.record:
        record: dict[str, Any] = {**machine.stamp(), "rounds": chosen.rounds, "import": imports,
                                  "checks": answers}  # fmt: skip
        records.write_json(records.RESULTS / "imports.json", record)
    slow = [name for name, seconds in answers.items() if seconds["median"] > CHECK_LIMIT]
    if imports["over_bare"] > IMPORT_LIMIT:
        slow.insert(0, "import minik2")
    for name in slow:
        print(f"{name} takes longer than is promised; was the machine quiet?", file=sys.stderr)
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
