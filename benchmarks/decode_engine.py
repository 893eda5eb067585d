"""One engine in its own process, told to read prompts and make tokens; benchmarks.decode drives it.

    python -m benchmarks.decode_engine ENGINE CHECKPOINT TOKENS.npy

Unusual here: as in benchmarks.engine, a process runs only when it is told to. Each context has a
cache of its own, filled once; after its steps are timed it goes back to where it was.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import engine

# Room after the longest context for the steps that are timed.
ROOM = 64


class Ours:
    """Either engine of minik2; step: what makes one token, if not the model itself."""

    def __init__(self, model: Any, step: Callable[..., Any] | None = None) -> None:
        self.model, self.make = model, step or (lambda tokens, cache: model(tokens, cache=cache))

    def new(self, room: int) -> Any:
        return self.model.new_cache(1, room)

    def read(self, tokens: Any, cache: Any) -> Any:
        return np.asarray(self.model(tokens, cache=cache))[0, -1]

    def step(self, token: Any, cache: Any) -> Any:
        return np.asarray(self.make(token, cache))[0, -1]

    def back(self, cache: Any, length: int) -> None:
        cache.truncate(length)


class Theirs:
    """transformers with its own cache, which grows."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def new(self, room: int) -> Any:
        from transformers import DynamicCache

        return DynamicCache(config=self.model.config)

    def read(self, tokens: Any, cache: Any) -> Any:
        import torch

        out = self.model(torch.from_numpy(tokens), past_key_values=cache, use_cache=True)
        return out.logits[0, -1].numpy()

    step = read

    def back(self, cache: Any, length: int) -> None:
        cache.crop(length - cache.get_seq_length())  # below zero: how many to take away


def reference(directory: Path) -> Any:
    from minik2 import reference

    return Ours(reference.Model.from_pretrained(directory))


def bfloat16(directory: Path) -> Any:
    """The reference, its decoding step with weights of 16 bits."""
    from minik2 import reference

    model = reference.Model.from_pretrained(directory)
    return Ours(model, reference.Decoder(model, weights="bfloat16"))


def pytorch(directory: Path) -> Any:
    from minik2 import pytorch

    return Ours(pytorch.Model.from_pretrained(directory))


def transformers(directory: Path) -> Any:
    """transformers, with the way to run experts that makes one token fastest."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    own, tried = Theirs(model), {}
    for way in ("eager", "batched_mm", "grouped_mm"):
        model.set_experts_implementation(way)
        cache = own.new(0)
        own.read(np.zeros((1, 256), np.int64), cache)
        tried[way] = min(steps(own, cache, np.zeros((1, 272), np.int64), 256, 8))
    model.set_experts_implementation(min(tried, key=tried.__getitem__))
    return own


ENGINES = {"reference": reference, "reference bfloat16": bfloat16, "pytorch": pytorch,
           "transformers": transformers}  # fmt: skip


def steps(own: Any, cache: Any, tokens: Any, context: int, count: int) -> list[float]:
    """Seconds of each of `count` tokens after `context`; the cache is left as it was."""
    seconds = []
    for place in range(context, context + count + 1):
        start = time.perf_counter()
        own.step(tokens[:, place : place + 1], cache)
        seconds.append(time.perf_counter() - start)
    own.back(cache, context)
    return seconds[1:]  # the first wakes the threads


def serve(name: str, directory: Path, tokens: Any, answer: Callable[[Any], None]) -> None:
    """Answer the orders on stdin, line by line."""
    own, caches = ENGINES[name](directory), {}
    answer({"threads": engine.threads(library(name))})
    for line in sys.stdin:
        order = json.loads(line)
        if order == "peak":
            answer(engine.peak(library(name)))
        elif "fill" in order:
            context = order["fill"]
            cache = caches[context] = own.new(context + ROOM)
            for start in range(0, context, 512):
                last = own.read(tokens[:, start : min(start + 512, context)], cache)
            after = own.step(tokens[:, context : context + 1], cache)
            np.save(order["logits"], np.stack([last, after]))
            own.back(cache, context)
            answer(None)
        elif "steps" in order:
            context = order["context"]
            answer(steps(own, caches[context], tokens, context, order["steps"]))
        else:
            seconds = []
            for _ in range(2):  # threads awake, weights in the cache
                cache, start = own.new(order["prefill"]), time.perf_counter()
                own.read(tokens[:, : order["prefill"]], cache)
                seconds.append(time.perf_counter() - start)
            answer(seconds[1])


def library(name: str) -> str:
    """The engine of benchmarks.engine that multiplies with the same library."""
    return "reference" if name.startswith("reference") else name


def main() -> None:
    name, directory, tokens = sys.argv[1], Path(sys.argv[2]), np.load(sys.argv[3])
    answer = engine.answering()
    if library(name) == "reference":
        return serve(name, directory, tokens, answer)
    import torch

    with torch.inference_mode():
        serve(name, directory, tokens, answer)


if __name__ == "__main__":
    main()
