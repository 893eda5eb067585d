"""Decoding on a GPU: Moonlight's real shapes, bfloat16, beside transformers and the limit.

    python3 -m benchmarks.gpu_decode                      print it
    python3 -m benchmarks.gpu_decode --record             and write results/gpu_decode.json

One sequence after 8,192 tokens. The limit is every weight that a token meets and its cache, each
read once, at the rate at which this GPU copies. Compiling takes a minute, transformers another.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from benchmarks import gpu_clock, gpu_models, records
from minik2 import ModelConfig, sizing
from minik2.sizing.formats import read_bytes

CONTEXT, ROUNDS, TOKENS = 8192, 5, 32
PROMISED = {"of the limit": 0.5, "times transformers": 8.0}
Run = Callable[[], Any]


def rounds(tokens: Run) -> list[float]:
    """Seconds a token: the mean of TOKENS tokens, ROUNDS times, after one that warms up."""
    tokens()
    return [gpu_clock.seconds(tokens) / TOKENS for _ in range(ROUNDS)]


def ours(cfg: ModelConfig) -> Iterator[tuple[str, list[float], float]]:
    """The engine launch by launch, recorded, and recorded with its small operations joined."""
    model = gpu_models.ours(cfg, torch.bfloat16)
    cache = model.new_cache(1, CONTEXT + 2 * TOKENS)
    cache.rows.normal_()
    token = torch.ones(1, 1, dtype=torch.int64, device="cuda")

    @torch.no_grad()
    def tokens() -> None:
        cache.lengths[:] = CONTEXT
        given = token
        for _ in range(TOKENS):
            given = model(given, cache=cache)[:, -1].argmax(-1, keepdim=True)

    def replay() -> None:
        for _ in range(TOKENS):
            cache.step.graph.replay()

    for way in ("recorded", "recorded and fused"):
        if way != "recorded":
            model.fuse()
            cache.step = None
        yield way, rounds(tokens), statistics.median(rounds(replay))


def theirs(cfg: ModelConfig) -> Iterator[tuple[str, list[float], float]]:
    """transformers with its own cache, by the ways that it has to run experts."""
    from transformers import DynamicCache

    model = gpu_models.theirs(cfg, "eager").eval()
    prompt = torch.ones(1, CONTEXT, dtype=torch.int64, device="cuda")

    @torch.no_grad()
    def tokens() -> None:
        cache.crop(CONTEXT)
        given = prompt[:, :1]
        for _ in range(TOKENS):
            out = model(given, past_key_values=cache, use_cache=True)
            given = out.logits[:, -1].argmax(-1, keepdim=True)

    for way in ("grouped_mm", "batched_mm"):
        model.set_experts_implementation(way)
        cache = DynamicCache()
        with torch.no_grad():
            for part in prompt.split(1024, 1):
                model(part, past_key_values=cache, use_cache=True, logits_to_keep=1)
        taken = rounds(tokens)
        yield f"transformers, {way}", taken, statistics.median(taken)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write the results file")
    parser.add_argument("--layers", type=int, help="only the model's first layers, for a trial")
    parser.add_argument("--alone", action="store_true", help="leave transformers out")
    asked = parser.parse_args(arguments)
    missing = gpu_clock.need_a_gpu()
    if missing:
        print(missing)
        return 1
    torch.manual_seed(0)
    cfg = gpu_models.config(asked.layers)
    stamp = gpu_clock.stamp()
    read = read_bytes(cfg, "bfloat16") + sizing.kv_cache_bytes(cfg, tokens=CONTEXT)
    limit = stamp["copy_bytes_a_second"] / read
    record = stamp | {
        "model": gpu_models.SHAPE, "layers": cfg.num_hidden_layers, "context": CONTEXT,
        "bytes_a_token": read, "limit_tokens_a_second": limit, "ways": {},
    }  # fmt: skip
    print(gpu_clock.rates(stamp))
    print(f"{read / 1e9:.2f} GB a token: {limit:.0f} tokens a second at the most", flush=True)
    sides = [ours] if asked.alone else [ours, theirs]
    for side in sides:
        for way, taken, device in side(cfg):
            each = 1 / statistics.median(taken)
            record["ways"][way] = {"seconds_a_token": taken, "tokens_a_second": each,
                                   "device_seconds_a_token": device,
                                   "of_the_limit": each / limit}  # fmt: skip
            print(f"{way:26} {each:7.1f} tokens a second, {each / limit:.0%} of the limit; the "
                  f"device alone {1 / device:.1f}", flush=True)  # fmt: skip
            if asked.record:
                records.write_json(records.RESULTS / "gpu_decode.json", record)
    return 0 if asked.alone else judge(record)


def judge(record: dict[str, Any]) -> int:
    """1 where less was reached than is promised, with a line on each."""
    speeds = {way: found["tokens_a_second"] for way, found in record["ways"].items()}
    best = max(speed for way, speed in speeds.items() if way.startswith("recorded"))
    them = max(speed for way, speed in speeds.items() if way.startswith("transformers"))
    reached = {"of the limit": best / record["limit_tokens_a_second"],
               "times transformers": best / them}  # fmt: skip
    for what, least in PROMISED.items():
        print(f"{what}: {reached[what]:.2f}, promised {least}")
    return int(any(reached[what] < least for what, least in PROMISED.items()))


if __name__ == "__main__":
    sys.exit(main())
