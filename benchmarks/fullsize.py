"""Tokens through every layer of a real-size model: what was predicted, and what it took.

    python -m benchmarks.fullsize              print it
    python -m benchmarks.fullsize --record     and write results/fullsize.json

Each pass has a process of its own, so that the peak of its memory is its own; of several rounds the
median of the seconds counts. Fails where one token of K2 takes more time or memory than promised,
or where a count differs from the one that minik2.sizing predicts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import psutil
from tqdm import tqdm

from benchmarks import records
from minik2.doctor import machine
from minik2.sizing import units

# Preset and tokens of each pass.
PASSES = (("kimi-k2", 1), ("kimi-k2", 8), ("deepseek-v3", 1), ("moonlight-16b-a3b", 1))
# One token of K2 on two cores: seconds, and bytes of the process.
SECONDS, RESIDENT = 12.0, 2 * 2**30
# Counts that one token's prediction meets exactly, and several tokens', who share experts.
EXACT, SHARED = ("parameters", "experts", "cache", "flops"), ("cache", "flops")

ONE = """
import json, sys
from minik2 import ModelConfig, fullsize
made = fullsize.run(ModelConfig.preset(sys.argv[1]), int(sys.argv[2])).to_dict()
del made["chosen"]
print(json.dumps(made))
"""


def one_pass(preset: str, tokens: int) -> dict[str, Any]:
    """A report as a dict, of a pass in a new process."""
    command = [sys.executable, "-c", ONE, preset, str(tokens)]
    done = subprocess.run(command, cwd=records.ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def median(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The round whose seconds are the (lower) median of all, with the seconds of each."""
    seconds = [made["measured"]["seconds"] for made in found]
    middle = found[seconds.index(statistics.median_low(seconds))]
    return middle | {"seconds_by_round": seconds}


def table(results: Sequence[dict[str, Any]]) -> str:
    rows = [[f"{r['preset']}, {r['tokens']}", units.amount(r["measured"]["parameters"]),
             f"{r['measured']['experts']:.0f} ({r['predicted']['experts']:.0f})",
             units.amount(r["measured"]["flops"]), units.gib(r["measured"]["resident"]),
             f"{r['measured']['seconds']:.2f} ({r['predicted']['seconds']:.2f})"]
            for r in results]  # fmt: skip
    heads = ["tokens", "parameters", "experts (predicted)", "FLOP", "resident", "s (predicted)"]
    return units.table(heads, rows)


def short(results: Sequence[dict[str, Any]]) -> list[str]:
    """One sentence for every promise that was not kept."""
    out = []
    for r in results:
        said, found, tokens = r["predicted"], r["measured"], r["tokens"]
        what = f"{r['preset']} with {tokens} token{'s' * (tokens > 1)}"
        out += [f"{what}: {name} measured {found[name]:,}, predicted {said[name]:,}."
                for name in (EXACT if tokens == 1 else SHARED) if found[name] != said[name]]
        if (r["preset"], tokens) == ("kimi-k2", 1):
            if found["seconds"] > SECONDS:
                out.append(f"{what} took {found['seconds']:.1f} s, more than {SECONDS:.0f}.")
            if found["resident"] > RESIDENT:
                out.append(f"{what} took {units.gib(found['resident'])}, more than "
                           f"{units.gib(RESIDENT)}.")  # fmt: skip
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", action="store_true", help="write results/fullsize.json")
    chosen = parser.parse_args(arguments)
    if chosen.record and machine.numba_layer() == "workqueue":
        print("Nothing is recorded: Numba's threads start through its own workqueue here; install "
              "libgomp1 or tbb.", file=sys.stderr)  # fmt: skip
        return 2
    load, results = psutil.getloadavg()[0], []
    for preset, tokens in tqdm(PASSES, desc="passes", disable=None):
        found = [one_pass(preset, tokens) for _ in range(chosen.rounds)]
        results.append({"preset": preset, **median(found)})
    print(f"medians of {chosen.rounds} rounds, {results[0]['threads']} threads, load {load:.2f} "
          f"before\n\n{table(results)}")  # fmt: skip
    if chosen.record:
        records.write_json(records.RESULTS / "fullsize.json", {
            **machine.stamp(), "rounds": chosen.rounds, "load_before": load, "passes": results})
    for sentence in (failures := short(results)):
        print(f"\n{sentence}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
