"""Forward pass of the `bench` preset: both engines beside transformers, and the arithmetic limit.

    python -m benchmarks.forward              print it
    python -m benchmarks.forward --record     and write results/forward.json

The same checkpoint, the same tokens, the same number of threads. Rounds A B C A B C …, one engine
at a time; ratios are taken within a round, so that a slow minute of the machine hits both sides.
Fails where an engine is slower than the project promises.
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
import psutil
from tqdm import tqdm

from benchmarks import records
from benchmarks.engine import ENGINES
from minik2 import ModelConfig, reference, sizing
from minik2.doctor import machine

PROMISED = {"reference": 1.5, "pytorch": 1.2}
# Seconds in which threads that spun after the last product go to sleep.
PAUSE = 0.2
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS",
           "VECLIB_MAXIMUM_THREADS")  # fmt: skip


class Engine:
    """A process of benchmarks.engine, or of another module that takes the same orders."""

    def __init__(
        self, name: str, directory: Path, tokens: Path, threads: int, module: str = "engine"
    ) -> None:
        self.name = name
        # Not a pipe: one that nobody reads fills up, and its writer stops.
        self.complaints = tempfile.TemporaryFile("w+")  # noqa: SIM115
        environment = os.environ | dict.fromkeys(THREADS, str(threads))
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.{module}", name, directory, tokens],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.complaints, text=True,
            env=environment, cwd=records.ROOT)  # fmt: skip
        self.facts = self._answer()

    def ask(self, order: Any) -> Any:
        print(json.dumps(order), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.complaints.seek(0)
            raise RuntimeError(f"{self.name} stopped:\n{self.complaints.read()[-2000:]}")
        return json.loads(line)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.complaints.close()


def flops(cfg: ModelConfig, tokens: int) -> int:
    """Floating-point operations of the products in one forward pass of one sequence, exactly.

    Two for each weight that a token is multiplied with, and for each pair of a query and a visible
    key two for each number of the key and of the value. Nothing else is a product.
    """
    # A third of training's: `prefill_expanded` has the head for the last token only.
    return sizing.flops(cfg, tokens).training.total // 3


def measure(cfg: ModelConfig, tokens: int, rounds: int, threads: int) -> dict[str, Any]:
    """Time every engine `rounds` times; seconds, peaks and facts by engine."""
    engines: list[Engine] = []
    with tempfile.TemporaryDirectory() as folder:
        directory, given = Path(folder, "checkpoint"), Path(folder, "tokens.npy")
        reference.Model.init(cfg, seed=0).save_pretrained(directory)
        np.save(given, np.random.default_rng(0).integers(0, cfg.vocab_size, (1, tokens)))
        try:
            for name in ENGINES:
                engines.append(Engine(name, directory, given, threads))
            agree(engines, Path(folder))
            seconds: dict[str, list[float]] = {engine.name: [] for engine in engines}
            peaks = [[engine.ask("peak") for engine in engines]]
            for _ in tqdm(range(rounds), desc="rounds", disable=None):
                for engine in engines:
                    time.sleep(PAUSE)
                    seconds[engine.name].append(engine.ask("time"))
            peaks.append([engine.ask("peak") for engine in engines])
        finally:
            for engine in engines:
                engine.close()
    best = [max(pair) for pair in zip(*peaks, strict=True)]
    return {engine.name: {"seconds": seconds[engine.name], "peak_gflops": peak, **engine.facts}
            for engine, peak in zip(engines, best, strict=True)}  # fmt: skip


def agree(engines: Sequence[Engine], folder: Path) -> None:
    """Refuse to compare the speed of engines that do not compute the same."""
    logits = []
    for engine in engines:
        path = folder / f"{engine.name}.npy"
        engine.ask({"logits": str(path)})
        logits.append(np.load(path))
    for engine, own in zip(engines, logits, strict=True):
        error = np.abs(own - logits[0]).max() / np.abs(logits[0]).max()
        if not error < 1e-4:
            raise RuntimeError(f"{engine.name} and {engines[0].name} differ by {error:.1e} in the "
                               "logits; find out why before measuring.")  # fmt: skip


def summary(found: dict[str, Any], cfg: ModelConfig, tokens: int) -> dict[str, Any]:
    """Medians, tokens a second, shares of the arithmetic limit, ratios to transformers."""
    work, theirs, out = flops(cfg, tokens), found["transformers"]["seconds"], {}
    for name, engine in found.items():
        median = statistics.median(engine["seconds"])
        limit = engine["peak_gflops"] * 1e9 / work * tokens
        out[name] = engine | {
            "tokens_per_second": tokens / median, "limit_tokens_per_second": limit,
            "share_of_limit": tokens / median / limit,
            "times_transformers": records.times(theirs, engine["seconds"]),
        }  # fmt: skip
    return out


def table(engines: dict[str, Any]) -> str:
    lines = ["engine        tokens/s   of the limit   times transformers   (least to most)"]
    for name, e in engines.items():
        times = e["times_transformers"]
        spread = f"{times['least']:.2f} to {times['most']:.2f}"
        lines.append(
            f"{name:<13}{e['tokens_per_second']:8,.0f}   {e['share_of_limit']:4.0%} of "
            f"{e['limit_tokens_per_second']:6,.0f}{times['median']:19.2f}   {spread:>15}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", default="bench")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--record", action="store_true", help="write results/forward.json")
    chosen = parser.parse_args(arguments)
    layer = machine.numba_layer()
    if chosen.record and layer == "workqueue":
        print("Nothing is recorded: Numba's threads start through its own workqueue here, many "
              "times slower than through OpenMP, so the figures would not be the engine's. Install "
              "libgomp1 (apt-get install libgomp1) or tbb (pip install tbb).", file=sys.stderr)
        return 2  # fmt: skip
    cfg, load = ModelConfig.preset(chosen.preset), psutil.getloadavg()[0]
    found = measure(cfg, chosen.tokens, chosen.rounds, chosen.threads)
    engines = summary(found, cfg, chosen.tokens)
    work = flops(cfg, chosen.tokens)
    print(f"{chosen.preset}, {chosen.tokens} tokens, {work / 1e9:.2f} GFLOP, {chosen.threads} "
          f"threads, medians of {chosen.rounds}, load {load:.2f} before\n\n{table(engines)}")
    if chosen.record:
        records.write_json(records.RESULTS / "forward.json", {
            **machine.stamp(), "preset": chosen.preset, "tokens": chosen.tokens, "flops": work,
            "threads": chosen.threads, "rounds": chosen.rounds, "load_before": load,
            "engines": engines})  # fmt: skip
    short = [name for name, least in PROMISED.items()
             if engines[name]["times_transformers"]["median"] < least]  # fmt: skip
    for name in short:
        print(f"\n{name} is short of the {PROMISED[name]} times transformers' tokens a second that "
              "are promised; was the machine quiet?", file=sys.stderr)  # fmt: skip
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
