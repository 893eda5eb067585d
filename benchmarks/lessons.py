"""How long each lesson runs from top to bottom here: what the doctor's estimates start from.

    python -m benchmarks.lessons              print it
    python -m benchmarks.lessons --record     and write minik2/doctor/lessons.json

Steps are never shortened: MINIK2_SHORT is taken out of the environment. Fails where a lesson takes
longer than the project promises on two quiet cores.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence

from tqdm import tqdm

from benchmarks import records
from lessons import build, execute
from minik2.doctor import machine, measure, report

LIMITS = {"00": 150.0} | {f"{number:02}": 90.0 for number in range(1, 13)}
# Seconds after which a notebook is stopped.
STOP = 1800


def seconds() -> dict[str, float]:
    """Wall time of every notebook by its lesson's number, a fresh kernel's start included."""
    os.environ.pop("MINIK2_SHORT", None)
    out = {}
    for path in tqdm(sorted((records.ROOT / "notebooks").glob("*.ipynb")), desc="lessons",
                     disable=None):  # fmt: skip
        notebook = build.load(path)
        begin = time.perf_counter()
        execute.run(notebook, path.parent, STOP)
        out[path.name[:2]] = time.perf_counter() - begin
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write minik2/doctor/lessons.json")
    chosen = parser.parse_args(arguments)
    took = seconds()
    for number, time_taken in took.items():
        limit = f"  (at most {LIMITS[number]:.0f} s is promised)" if number in LIMITS else ""
        print(f"lesson {number}: {time_taken:6.1f} s{limit}")
    if chosen.record:
        gflops = {f"{library} {dtype}": measure.gflops(library, dtype)
                  for library, dtype in report.PRODUCTS}  # fmt: skip
        records.write_json(report.TIMES, {**machine.stamp(), "gflops": gflops, "seconds": took})
    slow = [number for number in LIMITS if took.get(number, 0.0) > LIMITS[number]]
    for number in slow:
        print(f"Lesson {number} takes longer than is promised; was the machine quiet?",
              file=sys.stderr)  # fmt: skip
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
