"""Which token comes next: greedy, temperature, top-k, top-p. One draw for both engines.

Unusual here: the draw is NumPy in float64 for both engines, so that the same logits give the same
text whoever computed them; and every row has a random stream of its own, so that what a row draws
does not depend on who else is in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from minik2 import tokens as token_ids
from minik2.config import ModelConfig

Array = np.ndarray[Any, np.dtype[Any]]

# Called with the tokens (B,) int64 of every step, as soon as they are known.
OnToken = Callable[[Array], object]


@dataclass(frozen=True)
class Settings:
    """How tokens are chosen. Raises ValueError or TypeError, one sentence, for what cannot be.

    temperature: 0 takes the likeliest, above it draws from softmax(logits / temperature); of these,
    top_k keeps the k likeliest (None: all), and top_p of what is left the fewest whose share
    reaches it (arXiv 1904.09751 §3.1). Row b of a batch draws from the stream (seed, b).
    """

    temperature: float = 0.0
    seed: int = 0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(
                f"temperature must be 0 (greedy) or positive, but it is {self.temperature}."
            )
        if self.top_k is not None and _whole("top_k", self.top_k) < 1:
            raise ValueError(
                f"top_k must be 1 or more, but it is {self.top_k}; leave it out to keep all tokens."
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(
                f"top_p must be above 0 and at most 1, but it is {self.top_p}; 1 keeps all tokens, "
                "temperature 0 takes the likeliest."
            )
        if _whole("seed", self.seed) < 0:
            raise ValueError(f"seed must be 0 or more, but it is {self.seed}.")


class Sampler:
    """Picks the next token of each of `rows` sequences, again and again."""

    def __init__(self, settings: Settings, rows: int) -> None:
        self.settings = settings
        self.streams = [np.random.default_rng([settings.seed, row]) for row in range(rows)]

    def __call__(self, logits: Array) -> Array:
        """Finite logits (B, vocab) of any precision -> (B,) int64; a tie goes to the lower id."""
        if self.settings.temperature == 0:
            return logits.argmax(axis=-1).astype(np.int64)
        return np.array([draw(row, self.settings, stream.random())
                         for row, stream in zip(logits, self.streams, strict=True)])  # fmt: skip


def draw(logits: Array, settings: Settings, u: float) -> int:
    """The token at share u, 0 <= u < 1, of those kept, which stand side by side, likeliest first.

    logits: (vocab,) finite. A token's share is softmax(logits / temperature), over those kept.
    """
    order = np.argsort(-logits.astype(np.float64), kind="stable")[: settings.top_k]
    # The best logit stands at 0, so that a tiny temperature sends the others to -inf, none to +inf.
    below = logits[order].astype(np.float64) - float(logits[order[0]])
    with np.errstate(over="ignore"):
        ends = np.exp(below / settings.temperature).cumsum()
    # The first whose end reaches top_p is kept as well: it is the one that crosses it.
    kept = int(np.searchsorted(ends, settings.top_p * ends[-1])) + 1
    ends = ends[:kept]
    # Rounding may lift the product to the very end, which belongs to the last one.
    return int(order[: len(ends)][min(np.searchsorted(ends, u * ends[-1], "right"), len(ends) - 1)])


@dataclass(frozen=True)
class Request:
    """What a generation is to do, checked: see `Model.generate` for the fields."""

    prompt: Array
    counts: Array
    max_new_tokens: int
    settings: Settings
    stop: Array


def request(
    tokens: Any,
    cfg: ModelConfig,
    max_new_tokens: int,
    settings: Settings,
    stop: Iterable[int],
    counts: Any,
) -> Request:
    """A generation's arguments, or one sentence that says what is wrong, before any work.

    Raises TypeError for other than whole numbers, ValueError for the rest: what `tokens.check` and
    `tokens.check_request` refuse, counts outside 1 to T, stop tokens outside the vocabulary.
    """
    prompt = token_ids.check(tokens, cfg)
    batch, width = prompt.shape
    counts = np.full(batch, width) if counts is None else np.asarray(counts)
    if counts.dtype.kind not in "iu":
        raise TypeError(f"Counts must be whole numbers, but they are of dtype {counts.dtype}.")
    if counts.shape != (batch,) or (counts < 1).any() or (counts > width).any():
        raise ValueError(
            f"Counts must be {batch} whole numbers from 1 to {width}, the tokens of each prompt, "
            f"but they are {counts.tolist()}."
        )
    token_ids.check_request(width, max_new_tokens, settings.temperature, cfg)
    ends = np.array(sorted({_whole("A stop token", token) for token in stop}), np.int64)
    if ends.size and (ends[0] < 0 or ends[-1] >= cfg.vocab_size):
        raise ValueError(
            f"Stop tokens must be ids from 0 to {cfg.vocab_size - 1}, but they are {ends.tolist()}."
        )
    return Request(prompt, counts.astype(np.int64), int(max_new_tokens), settings, ends)


def _whole(name: str, value: Any) -> int:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, but it is {value!r}.")
    return int(value)
