"""Token ids, targets and requests to generate: what both engines check before any work."""

from __future__ import annotations

from typing import Any

import numpy as np

from minik2.config import ModelConfig

Ids = np.ndarray[Any, np.dtype[np.int64]]

# A target with this value is left out of the loss, as in PyTorch.
IGNORED = -100


def check(tokens: Any, cfg: ModelConfig) -> Ids:
    """tokens as a fresh int64 array (B, T), or one sentence that says what is wrong with them.

    Raises TypeError for anything but whole numbers, ValueError for a shape other than (B, T), an
    empty or too long sequence, or ids outside the vocabulary.
    """
    array = _array(tokens, "Tokens")
    check_shape(array.shape, cfg)
    _must_be_whole(array, "Tokens")
    _must_be_in_vocabulary(array, cfg, "Token id")
    # A copy even of int64: an array that is read-only, reversed or of foreign byte order will do.
    return np.array(array, np.int64, order="C")


def check_shape(shape: tuple[int, ...], cfg: ModelConfig) -> None:
    """Refuse a shape other than (B, T) with 1 to max_position_embeddings tokens a row."""
    if len(shape) != 2 or 0 in shape:
        raise ValueError(
            "Tokens must be a (batch, tokens) array with at least one of each, but their shape is "
            f"{tuple(shape)}; one sequence goes in as tokens[None]."
        )
    if shape[1] > cfg.max_position_embeddings:
        raise ValueError(
            f"{shape[1]} tokens exceed the model's {cfg.max_position_embeddings} positions "
            "(max_position_embeddings); shorten the sequence."
        )


def check_targets(targets: Any, shape: tuple[int, ...], cfg: ModelConfig) -> Ids:
    """targets as a fresh int64 array of the tokens' shape: each an id or IGNORED, not all of them.

    Raises TypeError for anything but whole numbers, ValueError for the rest.
    """
    array = _array(targets, "Targets")
    if array.shape != tuple(shape):
        raise ValueError(
            f"Targets must have the tokens' shape {tuple(shape)}, but theirs is {array.shape}."
        )
    _must_be_whole(array, "Targets")
    counted = array[array != IGNORED]
    if counted.size == 0:
        raise ValueError(
            f"Every target is {IGNORED}, which leaves nothing to take the loss of; give at least "
            "one token id."
        )
    _must_be_in_vocabulary(counted, cfg, "Target")
    return np.array(array, np.int64, order="C")


def _array(values: Any, what: str) -> np.ndarray[Any, np.dtype[Any]]:
    try:
        return np.asarray(values)
    except ValueError:
        raise ValueError(
            f"{what} must be a (batch, tokens) array, but the rows given differ in length; give "
            "rows of one length, or one row at a time."
        ) from None


def _must_be_whole(array: np.ndarray[Any, np.dtype[Any]], what: str) -> None:
    if array.dtype.kind not in "iu":
        raise TypeError(f"{what} must be whole numbers, but they are of dtype {array.dtype}.")


def _must_be_in_vocabulary(
    ids: np.ndarray[Any, np.dtype[Any]], cfg: ModelConfig, what: str
) -> None:
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= cfg.vocab_size:
        wrong = low if low < 0 else high
        raise ValueError(
            f"{what} {wrong} is outside the vocabulary of {cfg.vocab_size} ids "
            f"(0 to {cfg.vocab_size - 1}); was the text encoded for another model?"
        )


def check_request(prompt: int, max_new_tokens: int, temperature: float, cfg: ModelConfig) -> None:
    """Refuse a generation that cannot end well: prompt and max_new_tokens are counts of tokens."""
    if not isinstance(max_new_tokens, (int, np.integer)) or isinstance(max_new_tokens, bool):
        raise TypeError(f"max_new_tokens must be a whole number, but it is {max_new_tokens!r}.")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must be 0 or more, but it is {max_new_tokens}.")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be 0 (greedy) or positive, but it is {temperature}.")
    if prompt + max_new_tokens > cfg.max_position_embeddings:
        raise ValueError(
            f"A prompt of {prompt} tokens and {max_new_tokens} new ones exceed the model's "
            f"{cfg.max_position_embeddings} positions (max_position_embeddings); ask for fewer."
        )


def check_finite(finite: bool, tokens: int) -> None:
    """Refuse to pick a token from logits that are not all finite; tokens: how many were read."""
    if not finite:
        raise ValueError(
            f"The logits after {tokens} tokens are not all finite, so no next token can be picked; "
            "the weights hold or make NaN or infinity: load a sound checkpoint, or use a wider "
            "dtype."
        )
