"""Loss and gradients of one engine in its own process; benchmarks.training drives it.

    python -m benchmarks.training_engine ENGINE CHECKPOINT TOKENS.npy

Like benchmarks.engine, and with memory: the most that the process holds during a step, above what
it held with its model loaded and all code run once on a few tokens. At the end of a step every
engine holds one gradient for each weight. Both engines of minik2 keep freed memory, as in `minik2
train`; transformers is there as it comes and in the same way. After the model was loaded, lest what
loading took and freed make a step look small.
"""

from __future__ import annotations

import gc
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.engine import answering, peak, threads
from minik2 import heap

# tokens (B, T) -> the loss and the embedding's gradient, the last that is known.
Step = Callable[[Any], tuple[float, Any]]
# tokens (B, T): gradients and an update of every weight by torch.optim.AdamW.
Update = Callable[[Any], None]
EMBEDDING = "model.embed_tokens.weight"


def reference(directory: Path) -> tuple[Step, None, dict[str, Any]]:
    from minik2 import reference
    from minik2.doctor import machine  # not above: see benchmarks.engine

    model = reference.Model.from_pretrained(directory)

    def step(tokens: Any) -> tuple[float, Any]:
        loss, grads = model.loss_and_grads(tokens, np.roll(tokens, -1, axis=1))
        return loss, grads[EMBEDDING]

    return step, None, {"numba_layer": machine.numba_layer()}


def pytorch(directory: Path) -> tuple[Step, Update, dict[str, Any]]:
    from minik2 import pytorch

    model = pytorch.Model.from_pretrained(directory)

    def step(tokens: Any) -> tuple[float, Any]:
        loss, grads = model.loss_and_grads(tokens, np.roll(tokens, -1, axis=1))
        return loss.item(), grads[EMBEDDING].numpy()

    def backward(tokens: Any) -> None:
        model.loss(tokens, np.roll(tokens, -1, axis=1)).backward()

    return step, _updating(model, backward), {}


def transformers(directory: Path) -> tuple[Step, Update, dict[str, Any]]:
    """transformers at its best: of its ways to run experts, the faster one here.

    Its third way, batched_mm, copies an expert's matrices for every token: gigabytes here.
    """
    import torch
    import torch.nn.functional as F
    import transformers

    from minik2.doctor import measure

    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)

    def step(tokens: Any) -> tuple[float, Any]:
        model.zero_grad(set_to_none=True)
        logits = model(torch.from_numpy(tokens), use_cache=False).logits
        targets = torch.from_numpy(np.roll(tokens, -1, axis=1))
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        return loss.item(), model.model.embed_tokens.weight.grad.numpy()

    tried = {}
    for way in ("eager", "grouped_mm"):
        model.set_experts_implementation(way)
        tried[way] = measure.best(lambda: step(np.arange(256).reshape(2, 128)), seconds=2.0)
    fastest = min(tried, key=tried.__getitem__)
    model.set_experts_implementation(fastest)
    model.zero_grad(set_to_none=True)
    return step, _updating(model, step), {
        "experts": fastest, "attention": model.config._attn_implementation,
        "seconds_by_way_of_experts": tried}  # fmt: skip


def _updating(model: Any, backward: Callable[[Any], Any]) -> Update:
    """A whole step. The optimizer's state takes no memory before the first."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def update(tokens: Any) -> None:
        optimizer.zero_grad()
        backward(tokens)
        optimizer.step()

    return update


KEEPING = "transformers, keeping memory"
ENGINES = {"reference": reference, "pytorch": pytorch, "transformers": transformers,
           KEEPING: transformers}  # fmt: skip


def most_memory(run: Callable[[], Any]) -> int:
    """The largest resident size, in bytes, seen every two milliseconds while `run` runs."""
    process, done = psutil.Process(), threading.Event()
    seen = [process.memory_info().rss]

    def watch() -> None:
        while not done.wait(0.002):
            seen[0] = max(seen[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    return seen[0]


def _seconds(run: Callable[[Any], Any], tokens: Any) -> float:
    run(tokens)  # its threads awake; a run makes one step after the other
    start = time.perf_counter()
    run(tokens)
    return time.perf_counter() - start


def main() -> None:
    engine, directory, tokens = sys.argv[1], Path(sys.argv[2]), np.load(sys.argv[3])
    answer = answering()
    step, update, facts = ENGINES[engine](directory)
    step(tokens[:1, :8])
    gc.collect()
    loaded = psutil.Process().memory_info().rss
    keeps = engine != "transformers" and heap.keep()
    answer(facts | {"threads": threads(engine), "loaded_bytes": loaded, "keeps_memory": keeps})
    for line in sys.stdin:
        order = json.loads(line)
        if order == "time":
            answer(_seconds(step, tokens))
        elif order == "update":
            answer(_seconds(update, tokens) if update else None)
        elif order == "memory":
            answer(most_memory(lambda: step(tokens)) - loaded)
        elif order == "peak":
            answer(peak(engine))
        else:
            loss, grad = step(tokens)
            np.save(order["logits"], np.append(grad.ravel(), loss))
            answer(None)


if __name__ == "__main__":
    main()
