"""Plain generation: predict, pick, append, repeat. Every step reads the whole sequence again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minik2 import tokens as token_ids

if TYPE_CHECKING:
    from minik2.pytorch.model import Model


def pick(logits: Tensor, temperature: float, rng: torch.Generator) -> Tensor:
    """The next token of each row: logits (B, vocab) -> (B,) int64.

    Temperature 0 takes the largest logit; otherwise a draw from softmax(logits / temperature).
    """
    if temperature == 0:
        return logits.argmax(-1)
    # The best logit stands at 0, so that a tiny temperature sends the others to -inf, none to +inf.
    below = logits.double() - logits.double().amax(-1, keepdim=True)
    chances = (below / temperature).softmax(-1)
    return torch.multinomial(chances, 1, generator=rng)[:, 0]


@torch.inference_mode()
def generate(
    model: Model, tokens: Any, max_new_tokens: int, temperature: float, seed: int
) -> Tensor:
    """The prompt and its continuation, (B, T + max_new_tokens). See `Model.generate`."""
    cpu = tokens.cpu() if isinstance(tokens, Tensor) else tokens
    prompt = token_ids.check(cpu, model.cfg)
    token_ids.check_request(prompt.shape[1], max_new_tokens, temperature, model.cfg)
    rng = torch.Generator(model.device).manual_seed(seed)
    out = torch.from_numpy(prompt).to(model.device)
    for _ in range(max_new_tokens):
        logits = model(out)[:, -1]
        token_ids.check_finite(bool(logits.isfinite().all()), out.shape[1])
        chosen = pick(logits, temperature, rng)
        out = torch.cat([out, chosen[:, None]], 1)
    return out
