"""One pass of a few tokens through a model of real size, predicted, then measured.

Unusual here: the loops are compiled and tried before the clock starts, on a tiny model and on one
product, so that what is measured is the pass alone. The trial is where predicted seconds are from.
"""

from __future__ import annotations

import contextlib
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numba
import numpy as np
import psutil

from minik2.config import ModelConfig
from minik2.fullsize.model import Model
from minik2.fullsize.report import Amounts, Report, predict
from minik2.fullsize.weights import Weights
from minik2.sizing import units

Tell = Callable[[str, int], None]

# Weights that a trial makes, and how many tokens meet them in the second one.
TRIAL, TRIAL_TOKENS = 40_000_000, 8


class _Stopped(Exception):
    """The pass was asked to end."""


def run(
    cfg: ModelConfig, tokens: int = 1, layers: int | None = None, seed: int = 0,
    tell: Tell = lambda step, done: None, stop: Callable[[], bool] = lambda: False,
) -> Report:
    """Push `tokens` tokens, drawn from the vocabulary, through the first `layers` layers and the
    head, in float32.

    layers: all of them if None. seed: of weights and tokens. tell is given what begins and how many
    layers are done; stop is asked before each layer, and ends the pass there. Raises ValueError for
    counts below 1, more layers than the model has, or more tokens than positions.
    """
    cfg = cut(cfg, layers)
    if units.whole("tokens", tokens) > cfg.max_position_embeddings:
        raise ValueError(f"The model has {cfg.max_position_embeddings} positions, fewer than "
                         f"{tokens} tokens; ask for fewer tokens.")  # fmt: skip
    model = Model(cfg, seed)
    ids = np.random.default_rng(seed).integers(0, cfg.vocab_size, tokens)
    tell("compiling, the first time", 0)
    _once_through_tiny(tokens)
    tell("trying how fast weights are made", 0)
    costs = _trial(cfg)

    count, times = cfg.num_hidden_layers, []

    def begin(layer: int) -> None:
        times.append(time.perf_counter())
        if layer == count:
            tell("the head", layer)
        elif stop():
            raise _Stopped
        else:
            tell(f"layer {layer} of 0 to {count - 1}", layer)

    _forget_peak()
    before = psutil.Process().memory_info().rss
    with _traced():
        held, start = tracemalloc.get_traced_memory()[0], time.perf_counter()
        cache = model.new_cache(tokens)
        with contextlib.suppress(_Stopped):
            model(ids, cache, begin)
        took, arrays = time.perf_counter() - start, tracemalloc.get_traced_memory()[1] - held
    experts = sum(len(np.unique(chosen)) for chosen in model.chosen)
    return Report(
        count, len(times) - 1, tokens, seed, numba.get_num_threads(),
        predict(cfg, tokens, before, *costs),
        Amounts(model.weights.made, experts, cache.rows.nbytes,
                model.weights.flops + model.attention_flops, arrays, _peak(), took),
        before, np.diff(times).tolist(), [chosen.tolist() for chosen in model.chosen],
    )  # fmt: skip


def cut(cfg: ModelConfig, layers: int | None) -> ModelConfig:
    """The model's first `layers` layers as a model, all of them if None."""
    if layers is None:
        return cfg
    if units.whole("layers", layers) > cfg.num_hidden_layers:
        raise ValueError(f"The model has {cfg.num_hidden_layers} layers, fewer than the {layers} "
                         "asked for; ask for fewer.")  # fmt: skip
    return cfg.replace(num_hidden_layers=layers)


def _once_through_tiny(tokens: int) -> None:
    """Every loop compiled, or read from where it was kept, for as many tokens as matters."""
    model, some = Model(ModelConfig.preset("tiny")), min(tokens, 2)
    model(np.arange(some), model.new_cache(some))


def _trial(cfg: ModelConfig) -> tuple[float, float]:
    """Seconds for making one weight, and for one token's use of it, in products of this width."""
    weights, rows = Weights(cfg), min(-(-TRIAL // cfg.hidden_size), cfg.vocab_size)
    least = []
    for tokens in (1, TRIAL_TOKENS):
        x, times = np.ones((tokens, cfg.hidden_size), np.float32), []
        for _ in range(4):
            start = time.perf_counter()
            weights.product("trial", x, rows)
            times.append(time.perf_counter() - start)
        least.append(min(times) / (rows * cfg.hidden_size))
    use = max(0.0, (least[1] - least[0]) / (TRIAL_TOKENS - 1))
    return max(0.0, least[0] - use), use


@contextlib.contextmanager
def _traced() -> Iterator[None]:
    """Python counts the bytes that it hands out, NumPy's arrays among them, and their peak."""
    tracing = tracemalloc.is_tracing()
    if not tracing:
        tracemalloc.start()
    tracemalloc.reset_peak()
    try:
        yield
    finally:
        if not tracing:
            tracemalloc.stop()


def _forget_peak() -> None:
    """On Linux the peak of resident memory counts from here; elsewhere there is no such switch."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak() -> int:
    """Bytes of this process in memory at the most; on macOS, which does not tell, now."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
        for line in lines:
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    info = psutil.Process().memory_info()
    return int(getattr(info, "peak_wset", info.rss))
