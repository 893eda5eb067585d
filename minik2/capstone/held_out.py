"""The fixed question: bytes of files that no entry trains on, and what a model makes of them.

Unusual here: the judge computes the loss itself, from the model's logits, in float64. An entry's
own idea of a loss, labels that it smooths or a balance term that it adds, cannot reach its score.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from minik2.training.corpus import VOCABULARY, Corpus

Array = np.ndarray[Any, np.dtype[Any]]

# Every held-out byte is predicted from the bytes of its window before it: from none up to 255.
WINDOW = 256
# Windows of an evaluation: a quarter of a million bytes, where the text has as many.
WINDOWS = 1024
# Windows that a model gets at once.
AT_ONCE = 16


def windows(corpus: Corpus, most: int = WINDOWS) -> tuple[Array, Array]:
    """The windows that every entry is asked about: (tokens, targets), int64 (B, 256) each.

    They are cut one behind the other from the held-out files, so that no byte is asked for twice,
    and of these at most `most` are taken, evenly spread. Raises ValueError where the held-out text
    is shorter than a window.
    """
    text = corpus.bytes["validation"].astype(np.int64)
    count = (len(text) - 1) // WINDOW
    if count < 1:
        raise ValueError(
            f"The held-out text has {len(text)} bytes, fewer than the {WINDOW + 1} that one "
            "question takes; give a longer text."
        )
    rows = np.arange(min(count, most)) * count // min(count, most)
    places = rows[:, None] * WINDOW + np.arange(WINDOW)
    return text[places], text[places + 1]


def digest(corpus: Corpus) -> dict[str, str]:
    """What tells one text from another: {split: 16 hexadecimal digits of its SHA-256}."""
    return {split: hashlib.sha256(text.tobytes()).hexdigest()[:16]
            for split, text in corpus.bytes.items()}  # fmt: skip


def nats_a_byte(
    model: Any, tokens: Array, targets: Array, tell: Callable[[int, int], None] | None = None
) -> float:
    """The mean of -log p(target), in nats, over all targets; a byte is a token.

    model: of either engine, tokens (B, T) -> logits (B, T, vocab). tell(windows done, of all).
    A vocabulary beyond the 256 bytes is allowed: what is given to it is lost.
    Raises ValueError for logits of another shape and for a model that answers with no number.
    """
    total = 0.0
    for start in range(0, len(tokens), AT_ONCE):
        own = slice(start, start + AT_ONCE)
        logits = _logits(model, tokens[own])
        wanted = (*tokens[own].shape, logits.shape[-1])
        if logits.shape != wanted or wanted[-1] < VOCABULARY:
            raise ValueError(
                f"The model answers {tokens[own].shape} tokens with logits of the shape "
                f"{logits.shape}; a logit for each of {VOCABULARY} bytes at each place is wanted."
            )
        top = logits.max(axis=-1, keepdims=True)
        norm = np.log(np.exp(logits - top).sum(axis=-1)) + top[..., 0]
        right = np.take_along_axis(logits, targets[own][..., None], axis=-1)[..., 0]
        total += float((norm - right).sum())
        if tell is not None:
            tell(min(start + AT_ONCE, len(tokens)), len(tokens))
    if not np.isfinite(total):
        raise ValueError(
            "The model's held-out loss is no finite number: training went astray. A lower rate, or "
            "gradients shortened to a length, help as a rule."
        )
    return total / targets.size


def _logits(model: Any, tokens: Array) -> Array:
    """The model's logits as float64; of a torch model without anything kept for a gradient."""
    if not hasattr(model, "parameters"):
        return np.asarray(model(tokens), np.float64)
    import torch

    with torch.inference_mode():
        return np.asarray(model(tokens).double().cpu())
