"""Plain generation: predict, pick, append, repeat. Every step reads the whole sequence again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from minik2 import tokens as token_ids

if TYPE_CHECKING:
    from minik2.reference.model import Model

Array = np.ndarray[Any, np.dtype[Any]]


def pick(logits: Array, temperature: float, rng: np.random.Generator) -> Array:
    """The next token of each row: logits (B, vocab) -> (B,) int64.

    Temperature 0 takes the largest logit; otherwise a draw from softmax(logits / temperature).
    """
    if temperature == 0:
        return logits.argmax(axis=-1)
    # The largest of logits + Gumbel noise is distributed as softmax(logits). The best logit stands
    # at 0, so that a tiny temperature sends the others to -inf and none of them to +inf.
    below = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    with np.errstate(over="ignore"):
        below /= temperature
    return (below + rng.gumbel(size=logits.shape)).argmax(axis=-1)


def generate(
    model: Model, tokens: Array, max_new_tokens: int, temperature: float, seed: int
) -> Array:
    """The prompt and its continuation, (B, T + max_new_tokens) int64. See `Model.generate`."""
    out = token_ids.check(tokens, model.cfg)
    token_ids.check_request(out.shape[1], max_new_tokens, temperature, model.cfg)
    rng = np.random.default_rng(seed)
    for _ in range(max_new_tokens):
        logits = model(out)[:, -1]
        token_ids.check_finite(bool(np.isfinite(logits).all()), out.shape[1])
        out = np.concatenate([out, pick(logits, temperature, rng)[:, None]], axis=1)
    return out
