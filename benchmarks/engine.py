"""One engine in its own process, which runs only when it is told to; benchmarks.forward drives it.

    python -m benchmarks.engine reference|pytorch|transformers CHECKPOINT TOKENS.npy

Unusual here: each engine has a process to itself, with the environment that it would have anyway,
and waits for the next line on stdin while another is timed. In one process the threads of OpenBLAS,
OpenMP and Numba would spin on the cores that the next engine wants. Nor is the doctor imported at
the top: it brings the reference along, which asks OpenMP for a short spin, and PyTorch, if loaded
after that, is a fifth slower. Orders and answers are lines of JSON; whatever a library prints goes
to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[[], Any]


def reference(directory: Path, tokens: Any) -> tuple[Run, dict[str, Any]]:
    from minik2 import reference
    from minik2.doctor import machine

    model = reference.Model.from_pretrained(directory)
    return lambda: model(tokens), {"numba_layer": machine.numba_layer()}


def pytorch(directory: Path, tokens: Any) -> tuple[Run, dict[str, Any]]:
    import torch

    from minik2 import pytorch

    model = pytorch.Model.from_pretrained(directory)
    return torch.inference_mode()(lambda: model(tokens).numpy()), {}


def transformers(directory: Path, tokens: Any) -> tuple[Run, dict[str, Any]]:
    """transformers at its best: of its ways to run experts, the fastest here."""
    import torch
    import transformers

    from minik2.doctor import measure

    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    given = torch.from_numpy(tokens)
    run = torch.inference_mode()(lambda: model(given, use_cache=False).logits.numpy())
    tried = {}
    for way in ("eager", "batched_mm", "grouped_mm"):
        model.set_experts_implementation(way)
        tried[way] = measure.best(run, seconds=1.0)
    fastest = min(tried, key=tried.__getitem__)
    model.set_experts_implementation(fastest)
    return run, {"experts": fastest, "attention": model.config._attn_implementation,
                 "seconds_by_way_of_experts": tried}  # fmt: skip


ENGINES = {"reference": reference, "pytorch": pytorch, "transformers": transformers}


def threads(engine: str) -> int:
    """How many threads multiply here."""
    if engine == "reference":
        from minik2.doctor import machine

        return max(pool["threads"] for pool in machine.blas())
    import torch

    return torch.get_num_threads()


def peak(engine: str) -> float:
    """GFLOP/s of one large product in the engine's library."""
    from minik2.doctor import measure

    return measure.gflops("numpy" if engine == "reference" else "torch", "float32")


def answering() -> Callable[[Any], None]:
    """What writes answers for the driver; all else that is printed from here on goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value: Any) -> None:
        print(json.dumps(value), file=answers, flush=True)

    return answer


def main() -> None:
    engine, directory, tokens = sys.argv[1], Path(sys.argv[2]), np.load(sys.argv[3])
    answer = answering()
    run, facts = ENGINES[engine](directory, tokens)
    answer(facts | {"threads": threads(engine)})
    for line in sys.stdin:
        order = json.loads(line)
        if order == "time":
            run()  # its threads awake, its weights in the cache
            start = time.perf_counter()
            run()
            answer(time.perf_counter() - start)
        elif order == "peak":
            answer(peak(engine))
        else:
            np.save(order["logits"], run())
            answer(None)


if __name__ == "__main__":
    main()
