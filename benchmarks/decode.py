"""Prompts and tokens of the `bench` preset: both engines beside transformers, and the limit.

    python -m benchmarks.decode              print it
    python -m benchmarks.decode --record     and write results/decode.json

The same checkpoint and tokens, the same number of threads, one process an engine, in turns; ratios
are taken within a round. The limit of a token: for weights and for the cache, the longer of their
bytes over the measured bandwidth and their operations over the measured peak. Weights that stay in
the last-level cache can beat it: its size is printed. Fails where an engine is slower than
promised.
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
from benchmarks.decode_engine import ENGINES, ROOM
from minik2 import ModelConfig, reference, sizing
from minik2.doctor import machine, measure
from minik2.plots import decode as picture
from minik2.sizing.flops import pair_costs
from minik2.sizing.formats import read_bytes

PROMPT, CONTEXTS = 512, (256, 2048, 8192)
# Times transformers' speed that are promised, by engine: the prompt, then each context.
PROMISED = {"reference": (1.6, 5, 14, 45), "pytorch": (1.3, 3, 8, 20)}
# Of the float32 reference's speed at the shortest context.
PROMISED_BFLOAT16 = 1.4
STEPS = {"transformers": 5}
MANY_STEPS = 30


def limit(cfg: ModelConfig, context: int, bandwidth: float, peak: float, size: int) -> float:
    """The least seconds of a token after `context` others, absorbed; size: bytes of a weight."""
    work = sizing.flops(cfg, context + 1).decode_absorbed
    weights = read_bytes(cfg, {4: "float32", 2: "bfloat16"}[size])
    cache = sizing.kv_cache_bytes(cfg, context + 1, bytes_per_number=4)
    return (max(weights / bandwidth, work.weights / peak)
            + max(cache / bandwidth, work.attention / peak))  # fmt: skip


def measured(cfg: ModelConfig, rounds: int, threads: int) -> dict[str, Any]:
    """Seconds a prompt and a token by engine, round by round, with the machine's two limits."""
    engines: list[forward.Engine] = []
    with tempfile.TemporaryDirectory() as folder:
        directory, given = Path(folder, "checkpoint"), Path(folder, "tokens.npy")
        reference.Model.init(cfg, seed=0).save_pretrained(directory)
        tokens = np.random.default_rng(0).integers(0, cfg.vocab_size, (1, max(CONTEXTS) + ROOM))
        np.save(given, tokens)
        try:
            for name in ENGINES:
                engines.append(forward.Engine(name, directory, given, threads, "decode_engine"))
            for context in tqdm(CONTEXTS, desc="contexts read", disable=None):
                for engine in engines:
                    engine.ask({"fill": context, "logits": f"{folder}/{engine.name}.npy"})
                _agree([engine.name for engine in engines], Path(folder))
            peaks = [engine.ask("peak") for engine in engines]
            bandwidth = measure.bandwidth(1.0)
            seconds: dict[str, Any] = {
                e.name: {key: [] for key in ("prompt", *map(str, CONTEXTS))} for e in engines}
            orders = [("prompt", 0), *((str(context), context) for context in CONTEXTS)]
            for _ in tqdm(range(rounds), desc="rounds", disable=None):
                for key, context in orders:
                    for engine in engines:
                        time.sleep(forward.PAUSE)
                        count = STEPS.get(engine.name, MANY_STEPS)
                        took = engine.ask({"steps": count, "context": context} if context
                                          else {"prefill": PROMPT})  # fmt: skip
                        seconds[engine.name][key].append(
                            statistics.median(took) if context else took)
        finally:
            for engine in engines:
                engine.close()
    return {"bandwidth": bandwidth, "engines": {
        e.name: {"seconds": seconds[e.name], "peak_gflops": peak, **e.facts}
        for e, peak in zip(engines, peaks, strict=True)}}  # fmt: skip


def _agree(names: Sequence[str], folder: Path) -> None:
    """Refuse to compare engines that do not compute the same.

    Rounded weights send some tokens to other experts: what bfloat16 computes is a test's affair.
    """
    logits = {n: np.load(folder / f"{n}.npy") for n in names if "bfloat16" not in n}
    for name, own in logits.items():
        error = np.abs(own - logits["reference"]).max() / np.abs(logits["reference"]).max()
        if not error < 1e-4:
            raise RuntimeError(f"{name} and the reference differ by {error:.1e} in the logits; "
                               "find out why before measuring.")  # fmt: skip


def summary(found: dict[str, Any], cfg: ModelConfig) -> dict[str, Any]:
    """Tokens a second, shares of the limit, ratios within a round, and the line by context."""
    out, theirs = {}, found["engines"]["transformers"]["seconds"]
    bandwidth = found["bandwidth"]["gigabytes_per_second"] * 1e9
    peak = max(e["peak_gflops"] for e in found["engines"].values()) * 1e9
    pair = pair_costs(cfg)["absorbed"]
    for name, engine in found["engines"].items():
        own = engine["seconds"]
        median = {key: statistics.median(values) for key, values in own.items()}
        ratio = {key: statistics.median(them / us for them, us in zip(theirs[key], own[key],
                                                                      strict=True))
                 for key in own}  # fmt: skip
        size = 2 if "bfloat16" in name else 4
        share = {str(c): limit(cfg, c, bandwidth, peak, size) / median[str(c)] for c in CONTEXTS}
        line = np.polyfit(CONTEXTS, [median[str(c)] for c in CONTEXTS], 1)
        off = [median[str(c)] / np.polyval(line, c) - 1 for c in CONTEXTS]
        out[name] = engine | {
            "tokens_per_second": {key: (PROMPT if key == "prompt" else 1) / value
                                  for key, value in median.items()},
            "times_transformers": ratio, "share_of_limit": share,
            "nanoseconds_a_cached_token": float(line[0]) * 1e9,
            "largest_departure_from_the_line": float(max(map(abs, off))),
        }  # fmt: skip
    return {
        "bandwidth": found["bandwidth"], "peak_gflops": peak / 1e9, "engines": out,
        "cache_nanoseconds_a_token": sizing.kv_cache_bytes(cfg, 1, bytes_per_number=4)
        / bandwidth * 1e9,
        "attention_nanoseconds_a_token": pair / peak * 1e9,
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """Tokens a second, times transformers and share of the limit, by engine."""
    keys = ["prompt", *map(str, CONTEXTS)]
    heads = [f"prompt {PROMPT}", *(f"at {context}" for context in CONTEXTS)]
    lines = [f"{'tokens/s':<19}" + "".join(f"{head:>22}" for head in heads)]
    for name, e in result["engines"].items():
        cells = [f"{e['tokens_per_second'][key]:,.0f} {e['times_transformers'][key]:.2f}x "
                 + (f"{e['share_of_limit'][key]:.0%}" if key in e["share_of_limit"] else "")
                 for key in keys]  # fmt: skip
        lines.append(f"{name:<19}" + "".join(f"{cell:>22}" for cell in cells))
    lines.append("")
    lines += [f"{name}: {e['nanoseconds_a_cached_token']:.0f} ns more a cached token, at most "
              f"{e['largest_departure_from_the_line']:.0%} off a straight line"
              for name, e in result["engines"].items()]  # fmt: skip
    lines.append(
        f"limits: the cache's bytes {result['cache_nanoseconds_a_token']:.0f} ns a token at "
        f"{result['bandwidth']['gigabytes_per_second']:.1f} GB/s, attention's operations "
        f"{result['attention_nanoseconds_a_token']:.0f} ns at {result['peak_gflops']:.0f} GFLOP/s"
    )
    return "\n".join(lines)


def short(result: dict[str, Any]) -> list[str]:
    """One sentence for every promise that was not kept."""
    engines, out = result["engines"], []
    for name, least in PROMISED.items():
        ratios = engines[name]["times_transformers"].items()
        for (key, ratio), promise in zip(ratios, least, strict=True):
            if ratio < promise:
                out.append(f"{name} is {ratio:.2f} times as fast as transformers ({key}), short of "
                           f"{promise}.")  # fmt: skip
    at = str(min(CONTEXTS))
    narrow, wide = (engines[name]["tokens_per_second"][at]
                    for name in ("reference bfloat16", "reference"))  # fmt: skip
    if narrow < PROMISED_BFLOAT16 * wide:
        out.append(f"bfloat16 weights give {narrow / wide:.2f} times float32's speed at {at}, "
                   f"short of {PROMISED_BFLOAT16}.")  # fmt: skip
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", default="bench")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--record", action="store_true", help="write and draw results/decode.json")
    chosen = parser.parse_args(arguments)
    if chosen.record and machine.numba_layer() == "workqueue":
        print("Nothing is recorded: Numba's threads start through its own workqueue here; install "
              "libgomp1 or tbb.", file=sys.stderr)  # fmt: skip
        return 2
    cfg, load = ModelConfig.preset(chosen.preset), psutil.getloadavg()[0]
    result = summary(measured(cfg, chosen.rounds, chosen.threads), cfg)
    held = (machine.cache() or 0) / 2**20
    print(f"{chosen.preset}, {chosen.threads} threads, medians of {chosen.rounds} rounds, load "
          f"{load:.2f} before, last-level cache {held:.0f} MiB\n\n{table(result)}")  # fmt: skip
    if chosen.record:
        record = {**machine.stamp(), "preset": chosen.preset, "threads": chosen.threads,
                  "rounds": chosen.rounds, "load_before": load, **result}  # fmt: skip
        records.write_json(records.RESULTS / "decode.json", record)
        picture.decode(record).write(records.ROOT / "figures" / "decode.png")
    for sentence in (failures := short(result)):
        print(f"\n{sentence}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
