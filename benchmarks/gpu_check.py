"""The GPU check: the reference against the torch engine on a GPU, part by part, step by step.

    python3 -m benchmarks.gpu_check                      print it
    python3 -m benchmarks.gpu_check --record             and keep results/gpu_check.json, README.md
    python3 -m benchmarks.gpu_check --device cpu         rehearse on the CPU; nothing is kept
    python3 -m benchmarks.gpu_check --table              README.md from the file, without a GPU

Runs from a checkout, as it is. Fails where any bound is broken. Unusual here: the record is written
after every line, so a run that is cut off keeps what it measured.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (teaches NumPy the name bfloat16)
import torch

from benchmarks import records
from benchmarks.gpu import choices, draw, greedy, parts, products, steps, training
from benchmarks.gpu.check import Check
from benchmarks.gpu.table import table
from benchmarks.question import Case
from minik2.doctor import machine
from minik2.training import engines

Section = Callable[[str, Sequence[Case], str], Iterator[Check]]
# Small models: more threads would wait for each other longer than they work.
THREADS = 4


def decoding(section: str, cases: Sequence[Case], device: str) -> Iterator[Check]:
    """Token by token, which takes longest, on half of the configurations."""
    return parts.run(section, cases[: -(-len(cases) // 2)], device, parts.DECODING)


SECTIONS: dict[str, Section] = {
    "products": products.run,
    "parts": functools.partial(parts.run, parts=parts.FORWARD),
    "gradients": functools.partial(parts.run, parts=parts.GRADIENTS),
    "cached decode": decoding,
    "greedy text": greedy.run,
    "router choices": choices.run,
    "optimizers": steps.run,
    "training": training.run,
}


def results() -> Path:
    return records.RESULTS / "gpu_check.json"


def stamp(device: str) -> dict[str, Any]:
    """Date, machine, versions, the device, and how its products are set."""
    out = machine.stamp() | {"device": device}
    if device != "cpu":
        major, minor = torch.cuda.get_device_capability()
        out |= {"device": torch.cuda.get_device_name(), "capability": f"{major}.{minor}",
                "cudnn": torch.backends.cudnn.version()}  # fmt: skip
    return out | {"float32_matmul_precision": torch.get_float32_matmul_precision()}


def run(
    names: Sequence[str], device: str, count: int, seed: int, keep: Callable[[list[Check]], None]
) -> list[Check]:
    """Every check of the sections named, handed to `keep` each time that one is added."""
    products.set_up()
    done: dict[tuple[str, str, str], Check] = {}
    cases, began = draw.cases(count, seed), time.perf_counter()
    with engines.threads("reference", THREADS):
        for name in names:
            print(f"{name}:", flush=True)
            for check in SECTIONS[name](name, cases, device):
                done[name, check.name, check.precision] = check
                print(line(check, time.perf_counter() - began), flush=True)
                keep(list(done.values()))
    return list(done.values())


def line(check: Check, seconds: float) -> str:
    """A check as a line of the terminal."""
    text = (f"  {check.name:<44.44} {check.precision:<9} {check.state:<7}"
            f"{check.error:9.1e} of {check.bound:8.1e}  {check.count:>7} compared")  # fmt: skip
    if check.left_out:
        text += f", {check.left_out} left out"
    return f"{text}{'; ' if check.note else ''}{check.note}  [{seconds:.0f} s]"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--configurations", type=int, default=60, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--output", type=Path, help="a file for the record, besides")
    parser.add_argument("--record", action="store_true",
                        help="keep results/gpu_check.json and the table in README.md")  # fmt: skip
    parser.add_argument("--table", action="store_true", help="only README.md, from the file")
    chosen = parser.parse_args(arguments)
    if chosen.table:
        return fill()
    sentence = refused(chosen.device, chosen.record)
    if sentence:
        print(sentence, file=sys.stderr)
        return 2
    targets = [results()] if chosen.record else []
    targets += [chosen.output] if chosen.output else []
    about = stamp(chosen.device) | {"seed": chosen.seed, "configurations": chosen.configurations}

    def keep(checks: list[Check]) -> None:
        record = about | {"checks": [asdict(check) | {"state": check.state} for check in checks]}
        for target in targets:
            records.write_json(target, record)

    checks = run(chosen.sections, chosen.device, chosen.configurations, chosen.seed, keep)
    if chosen.record:
        fill()
    broken = [check for check in checks if check.state == "broken"]
    for check in broken:
        print(f"\nBroken: {check.name} in {check.precision}: {check.error:.2e} exceeds "
              f"{check.bound:.2e} with {check.broken_by}", file=sys.stderr)  # fmt: skip
    return 1 if broken else 0


def refused(device: str, record: bool) -> str:
    """Why this machine or these options will not do, one sentence; empty where they will."""
    if device == "cpu":
        return "" if not record else (
            "What is kept is a GPU's record; leave out --record, or --device cpu, or name a file "
            "of your own with --output.")  # fmt: skip
    if torch.cuda.is_available():
        return ""
    return ("PyTorch finds no GPU here, and the GPU check needs one; run it where there is one, or "
            "rehearse with --device cpu.")  # fmt: skip


def fill() -> int:
    """README.md's table from the record, or "open" where there is none."""
    record = json.loads(results().read_text("utf-8")) if results().exists() else None
    records.fill(records.ROOT / "README.md", "gpu-check", table(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
