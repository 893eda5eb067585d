"""Token ids and requests to generate: the checks that both engines make before any work."""

from __future__ import annotations

from typing import Any

import numpy as np

from minik2.config import ModelConfig


def check(tokens: Any, cfg: ModelConfig) -> np.ndarray[Any, np.dtype[np.int64]]:
    """tokens as an int64 array (B, T), or one sentence that says what is wrong with them.

    Raises TypeError for anything but whole numbers, ValueError for a shape other than (B, T), an
    empty or too long sequence, or ids outside the vocabulary.
    """
    array = np.asarray(tokens)
    if array.dtype.kind not in "iu":
        raise TypeError(f"Tokens must be whole numbers, but they are of dtype {array.dtype}.")
    if array.ndim != 2 or array.size == 0:
        raise ValueError(
            f"Tokens must be a (batch, tokens) array with at least one of each, but their shape "
            f"is {array.shape}; one sequence goes in as tokens[None]."
        )
    if array.shape[1] > cfg.max_position_embeddings:
        raise ValueError(
            f"{array.shape[1]} tokens exceed the model's {cfg.max_position_embeddings} positions "
            "(max_position_embeddings); shorten the sequence."
        )
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= cfg.vocab_size:
        wrong = low if low < 0 else high
        raise ValueError(
            f"Token id {wrong} is outside the vocabulary of {cfg.vocab_size} ids "
            f"(0 to {cfg.vocab_size - 1}); was the text encoded for another model?"
        )
    return array.astype(np.int64, copy=False)


def check_request(prompt: int, max_new_tokens: int, temperature: float, cfg: ModelConfig) -> None:
    """Refuse a generation that cannot end well: prompt and max_new_tokens are counts of tokens."""
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must be 0 or more, but it is {max_new_tokens}.")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be 0 (greedy) or positive, but it is {temperature}.")
    if prompt + max_new_tokens > cfg.max_position_embeddings:
        raise ValueError(
            f"A prompt of {prompt} tokens and {max_new_tokens} new ones exceed the model's "
            f"{cfg.max_position_embeddings} positions (max_position_embeddings); ask for fewer."
        )
