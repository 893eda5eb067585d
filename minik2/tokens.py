"""Token ids, targets, requests to generate, room in a cache: what both engines check first."""

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


def check_room(batch: int, max_tokens: int, cfg: ModelConfig) -> None:
    """Refuse a cache without room, or with room for more positions than the model has."""
    for name, value in (("batch", batch), ("max_tokens", max_tokens)):
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
            raise TypeError(f"{name} must be a whole number, but it is {value!r}.")
        if value < 1:
            raise ValueError(f"A cache needs {name} of 1 or more, but it is {value}.")
    if max_tokens > cfg.max_position_embeddings:
        raise ValueError(
            f"A cache for {max_tokens} tokens exceeds the model's {cfg.max_position_embeddings} "
            "positions (max_position_embeddings); ask for fewer."
        )


def check_lengths(lengths: Any, held: Ids) -> Ids:
    """Lengths (B,) to shorten sequences to, from one whole number or (B,); held: (B,) of today."""
    array = _array(lengths, "Lengths")
    _must_be_whole(array, "Lengths")
    if array.shape not in ((), held.shape):
        raise ValueError(
            f"Lengths must be one number or {len(held)}, one a sequence, but their shape is "
            f"{array.shape}."
        )
    if (array < 0).any() or (array > held).any():
        raise ValueError(
            f"A cache is truncated to lengths from 0 to what it holds, {held.tolist()}, "
            f"not to {array.tolist()}."
        )
    return np.broadcast_to(array, held.shape).astype(np.int64)


def check_counts(counts: Any, shape: tuple[int, ...], held: Ids, max_tokens: int) -> Ids:
    """How many of (B, T) = shape new tokens each sequence takes: (B,) int64, all if not given.

    held: (B,) tokens in the cache so far, max_tokens: its room. Raises TypeError for anything but
    whole numbers, ValueError for another batch, counts outside 0 to T, and too little room.
    """
    batch, new = shape
    if batch != len(held):
        raise ValueError(
            f"The cache holds {len(held)} sequences, but the tokens are of {batch}; make one with "
            f"new_cache(batch={batch})."
        )
    array = np.full(batch, new) if counts is None else _array(counts, "Counts")
    _must_be_whole(array, "Counts")
    if array.shape != (batch,):
        raise ValueError(
            f"Counts must be ({batch},), one a sequence, but their shape is {array.shape}."
        )
    if (array < 0).any() or (array > new).any():
        raise ValueError(
            f"Counts must be from 0 to {new}, the tokens given, but they are {array.tolist()}."
        )
    over = held + array.astype(np.int64) > max_tokens
    if over.any():
        row = int(over.argmax())
        raise ValueError(
            f"{array[row]} new tokens after {held[row]} exceed the cache's room for {max_tokens} "
            f"(sequence {row}); make a larger one (new_cache(max_tokens=…)) or truncate it."
        )
    return array.astype(np.int64)


def check_finite(finite: bool, tokens: int) -> None:
    """Refuse to pick a token from logits that are not all finite; tokens: how many were read."""
    if not finite:
        raise ValueError(
            f"The logits after {tokens} tokens are not all finite, so no next token can be picked; "
            "the weights hold or make NaN or infinity: load a sound checkpoint, or use a wider "
            "dtype."
        )
