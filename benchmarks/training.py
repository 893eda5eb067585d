"""Loss and gradients of the `bench` preset: both engines beside transformers' model and autograd.

    python -m benchmarks.training              print it
    python -m benchmarks.training --record     and write results/training.json

The same checkpoint, the same 8 x 256 tokens, the same number of threads, one process an engine, in
turns; ratios are taken within a round. Memory is what a step takes above the loaded model. Both
engines run as in `minik2 train`, where a process keeps the memory that it has freed
(`minik2.heap`); transformers runs as it comes, which is what ratios are taken to, and once more in
a process that keeps memory too. At the end whole steps of the PyTorch models, with the same AdamW.
Fails where an engine is slower than the project promises, or takes more memory than transformers.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from tqdm import tqdm

from benchmarks import forward, records
from benchmarks.training_engine import ENGINES, KEEPING
from minik2 import ModelConfig, reference, sizing
from minik2.doctor import machine

PROMISED = {"reference": 1.3, "pytorch": 1.2}


def flops(cfg: ModelConfig, batch: int, tokens: int) -> int:
    """Operations of the products forward and backward, none of them twice.

    A product has two gradients, each a product of as many operations.
    """
    return sizing.flops(cfg, tokens, batch).training.total


def measure(
    cfg: ModelConfig, shape: tuple[int, int], rounds: int, threads: int
) -> dict[str, Any]:
    """Time every engine `rounds` times; seconds, memory, peaks and facts by engine."""
    engines: list[forward.Engine] = []
    with tempfile.TemporaryDirectory() as folder:
        directory, given = Path(folder, "checkpoint"), Path(folder, "tokens.npy")
        reference.Model.init(cfg, seed=0).save_pretrained(directory)
        np.save(given, np.random.default_rng(0).integers(0, cfg.vocab_size, shape))
        try:
            for name in ENGINES:
                engines.append(forward.Engine(name, directory, given, threads, "training_engine"))
            # The largest memory of a step, before others have made the process grow.
            memory = [engine.ask("memory") for engine in engines]
            forward.agree(engines, Path(folder))
            seconds: dict[str, list[float]] = {engine.name: [] for engine in engines}
            for _ in tqdm(range(rounds), desc="rounds", disable=None):
                for engine in engines:
                    time.sleep(forward.PAUSE)
                    seconds[engine.name].append(engine.ask("time"))
            memory = [max(m, e.ask("memory")) for m, e in zip(memory, engines, strict=True)]
            # Last, since an optimizer's state stays.
            updates: dict[str, list[float]] = {engine.name: [] for engine in engines}
            for _ in tqdm(range(rounds), desc="with AdamW", disable=None):
                for engine in engines:
                    time.sleep(forward.PAUSE)
                    updates[engine.name].append(engine.ask("update"))
            # The probe's matrices would stay as well, in a process that keeps memory.
            peaks = [engine.ask("peak") for engine in engines]
        finally:
            for engine in engines:
                engine.close()
    return {engine.name: {"seconds": seconds[engine.name], "memory_bytes": held,
                          "update_seconds": [u for u in updates[engine.name] if u is not None],
                          "peak_gflops": peak, **engine.facts}
            for engine, held, peak in zip(engines, memory, peaks, strict=True)}  # fmt: skip


def summary(found: dict[str, Any], work: int) -> dict[str, Any]:
    """Medians, GFLOP/s and their share of the peak, ratios to transformers."""
    theirs, out = found["transformers"], {}
    for name, engine in found.items():
        median = statistics.median(engine["seconds"])
        out[name] = engine | {
            "median_seconds": median, "gflops": work / median / 1e9,
            "share_of_peak": work / median / 1e9 / engine["peak_gflops"],
            "times_transformers": records.times(theirs["seconds"], engine["seconds"]),
            "times_transformers_keeping_memory":
                records.times(found[KEEPING]["seconds"], engine["seconds"]),
        }  # fmt: skip
        if updates := engine["update_seconds"]:
            out[name]["times_transformers_with_adamw"] = records.times(
                theirs["update_seconds"], updates)  # fmt: skip
    return out


def table(engines: dict[str, Any]) -> str:
    lines = [f"{'engine':<31} seconds   GFLOP/s   of the peak   memory, MB   times transformers   "
             "keeping memory   with AdamW"]
    for name, e in engines.items():
        times = e["times_transformers"]
        spread = f"({times['least']:.2f} to {times['most']:.2f})"
        same = e["times_transformers_keeping_memory"]["median"]
        whole = e.get("times_transformers_with_adamw", {}).get("median")
        lines.append(
            f"{name:<31}{e['median_seconds']:8.2f}{e['gflops']:10.0f}   {e['share_of_peak']:4.0%} "
            f"of {e['peak_gflops']:3.0f}{e['memory_bytes'] / 1e6:13,.0f}   "
            f"{times['median']:.2f} {spread}{same:17.2f}" + (f"{whole:13.2f}" if whole else "")
        )
    return "\n".join(lines)


def shortfalls(engines: dict[str, Any]) -> list[str]:
    """A sentence for everything that is promised and not kept."""
    out, allowed = [], engines["transformers"]["memory_bytes"]
    for name, least in PROMISED.items():
        got, held = engines[name]["times_transformers"]["median"], engines[name]["memory_bytes"]
        if got < least:
            out.append(f"{name} is {got:.2f} times as fast as transformers, where {least} times "
                       "are promised; was the machine quiet?")  # fmt: skip
        if held > allowed:
            out.append(f"{name} takes {held / 1e6:,.0f} MB above its model, transformers "
                       f"{allowed / 1e6:,.0f}; no more than that is promised.")  # fmt: skip
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", default="bench")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--record", action="store_true", help="write results/training.json")
    chosen = parser.parse_args(arguments)
    if chosen.record and machine.numba_layer() == "workqueue":
        print("Nothing is recorded: Numba's threads start through its own workqueue here, many "
              "times slower than through OpenMP. Install libgomp1 (apt-get install libgomp1) or "
              "tbb (pip install tbb).", file=sys.stderr)  # fmt: skip
        return 2
    cfg, load = ModelConfig.preset(chosen.preset), psutil.getloadavg()[0]
    work = flops(cfg, chosen.batch, chosen.tokens)
    found = measure(cfg, (chosen.batch, chosen.tokens), chosen.rounds, chosen.threads)
    engines = summary(found, work)
    print(f"{chosen.preset}, {chosen.batch} x {chosen.tokens} tokens, {work / 1e9:.0f} GFLOP, "
          f"{chosen.threads} threads, medians of {chosen.rounds}, load {load:.2f} before\n\n"
          f"{table(engines)}")  # fmt: skip
    if chosen.record:
        records.write_json(records.RESULTS / "training.json", {
            **machine.stamp(), "preset": chosen.preset, "batch": chosen.batch,
            "tokens": chosen.tokens, "flops": work, "threads": chosen.threads,
            "rounds": chosen.rounds, "load_before": load, "engines": engines})  # fmt: skip
    short = shortfalls(engines)
    for sentence in short:
        print(sentence, file=sys.stderr)
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
