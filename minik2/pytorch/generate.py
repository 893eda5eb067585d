"""Generation: read the prompt, then pick a token, append it to the cache, and look again.

Unusual here: what a GPU hands back for a greedy step is one number a row, which also says whether
the logits were sound; a draw is made on the host, by the function that both engines share.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from minik2 import sampling
from minik2 import tokens as token_ids

if TYPE_CHECKING:
    from minik2.pytorch.model import Model

# Prompt tokens read at a time, so that a long prompt's logits need not all be there at once.
CHUNK = 1024


@torch.inference_mode()
def generate(
    model: Model,
    tokens: Any,
    max_new_tokens: int,
    settings: sampling.Settings,
    stop: Iterable[int],
    counts: Any,
    on_token: sampling.OnToken | None,
) -> Tensor:
    """The prompt and its continuation, (B, T + max_new_tokens) int64. See `Model.generate`."""
    cpu = tokens.cpu() if isinstance(tokens, Tensor) else tokens
    asked = sampling.request(cpu, model.cfg, max_new_tokens, settings, stop, counts)
    batch, width = asked.prompt.shape
    out = np.empty((batch, width + max_new_tokens), np.int64)
    out[:, :width] = asked.prompt
    if max_new_tokens:
        cache = model.new_cache(batch, width + max_new_tokens)
        sampler, ended = sampling.Sampler(settings, batch), np.zeros(batch, bool)
        logits = _read(model, asked, cache)
    for place in range(width, out.shape[1]):
        chosen = _pick(logits, sampler, cache.lengths)
        # A row that has ended goes on with its last token; the others are not to wait for it.
        out[:, place] = np.where(ended, out[:, place - 1], chosen)
        if on_token is not None:
            on_token(out[:, place].copy())
        ended |= np.isin(out[:, place], asked.stop)
        if ended.all():
            out[:, place:] = out[:, place, None]
            break
        if place + 1 < out.shape[1]:
            logits = model(out[:, place, None], cache=cache)[:, 0]
    return torch.from_numpy(out).to(model.device)


def _read(model: Model, asked: sampling.Request, cache: Any) -> Tensor:
    """The prompts into the cache; the logits (B, vocab) after the last token of each."""
    last = model.lm_head.weight.new_empty(len(asked.prompt), model.cfg.vocab_size)
    for start in range(0, int(asked.counts.max()), CHUNK):
        new = asked.prompt[:, start : start + CHUNK]
        counts = (asked.counts - start).clip(0, new.shape[1])
        logits = model(new, cache=cache, counts=counts)
        for row in np.flatnonzero((counts > 0) & (start + counts == asked.counts)):
            last[row] = logits[row, counts[row] - 1]
    return last


def _pick(logits: Tensor, sampler: sampling.Sampler, lengths: Any) -> Any:
    """The next token of each row, (B,) int64 in NumPy."""
    finite = logits.isfinite().all(-1)
    if sampler.settings.temperature == 0:
        # argmax, as NumPy's, takes the first of equals.
        best = torch.where(finite, logits.argmax(-1), -1).cpu().numpy()
        sound = best >= 0
    else:
        sound = finite.cpu().numpy()
    token_ids.check_finite(bool(sound.all()), int(lengths[sound.argmin()]))
    return best if sampler.settings.temperature == 0 else sampler(logits.double().cpu().numpy())
