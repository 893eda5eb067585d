"""Generation: read the prompt, then pick a token, append it to the cache, and look again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from minik2 import sampling
from minik2 import tokens as token_ids

if TYPE_CHECKING:
    from minik2.reference.model import Model

Array = np.ndarray[Any, np.dtype[Any]]

# Prompt tokens read at a time, so that a long prompt's logits need not all be there at once.
CHUNK = 1024


def generate(
    model: Model,
    tokens: Array,
    max_new_tokens: int,
    settings: sampling.Settings,
    stop: Iterable[int],
    counts: Any,
    on_token: sampling.OnToken | None,
) -> Array:
    """The prompt and its continuation, (B, T + max_new_tokens) int64. See `Model.generate`."""
    asked = sampling.request(tokens, model.cfg, max_new_tokens, settings, stop, counts)
    batch, width = asked.prompt.shape
    out = np.empty((batch, width + max_new_tokens), np.int64)
    out[:, :width] = asked.prompt
    if max_new_tokens:
        cache = model.new_cache(batch, width + max_new_tokens)
        sampler, ended = sampling.Sampler(settings, batch), np.zeros(batch, bool)
        logits = _read(model, asked, cache)
    for place in range(width, out.shape[1]):
        sound = np.isfinite(logits).all(axis=-1)
        token_ids.check_finite(bool(sound.all()), int(cache.lengths[sound.argmin()]))
        # A row that has ended goes on with its last token; the others are not to wait for it.
        out[:, place] = np.where(ended, out[:, place - 1], sampler(logits))
        if on_token is not None:
            on_token(out[:, place].copy())
        ended |= np.isin(out[:, place], asked.stop)
        if ended.all():
            out[:, place:] = out[:, place, None]
            break
        if place + 1 < out.shape[1]:
            logits = model(out[:, place, None], cache=cache)[:, 0]
    return out


def _read(model: Model, asked: sampling.Request, cache: Any) -> Array:
    """The prompts into the cache; the logits (B, vocab) after the last token of each."""
    last = np.empty((len(asked.prompt), model.cfg.vocab_size), model.dtype)
    for start in range(0, int(asked.counts.max()), CHUNK):
        new = asked.prompt[:, start : start + CHUNK]
        counts = (asked.counts - start).clip(0, new.shape[1])
        logits = model(new, cache=cache, counts=counts)
        rows = np.flatnonzero((counts > 0) & (start + counts == asked.counts))
        last[rows] = logits[rows, counts[rows] - 1]
    return last
