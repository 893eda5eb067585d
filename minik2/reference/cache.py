"""The latent cache: one row of C + R numbers a token and layer, for all heads together.

Unusual here: there is one array, made once, and nothing grows. A row is a token's latent (after its
norm) and its rotary key (turned to its position) side by side, so that the absorbed form takes all
of it as the key and its first C numbers as the value. Rows at or after a sequence's length mean
nothing, so shortening is a matter of the lengths.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minik2 import tokens as token_ids
from minik2.config import ModelConfig

Array = np.ndarray[Any, np.dtype[Any]]


class Cache:
    """Room for max_tokens tokens of each of `batch` sequences; made by `Model.new_cache`.

    rows: (layers, batch, max_tokens, C + R) in the model's dtype; lengths: (batch,) int64, how many
    tokens each sequence holds; nbytes: of the rows, `sizing.kv_cache_bytes` to the byte.
    """

    def __init__(self, cfg: ModelConfig, batch: int, max_tokens: int, dtype: Any) -> None:
        token_ids.check_room(batch, max_tokens, cfg)
        self.cfg, self.max_tokens = cfg, int(max_tokens)
        width = cfg.kv_lora_rank + cfg.qk_rope_head_dim
        self.rows = np.empty((cfg.num_hidden_layers, batch, max_tokens, width), dtype)
        # Written once, so that the memory is there before the first token and not in its time.
        self.rows.fill(0)
        self.lengths = np.zeros(batch, np.int64)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return self.rows.nbytes

    def truncate(self, lengths: Any) -> None:
        """Go back to earlier lengths: one whole number for all sequences, or (batch,) of them.

        Raises TypeError for anything but whole numbers, ValueError for a length that is negative or
        more than the sequence holds.
        """
        self.lengths[...] = token_ids.check_lengths(lengths, self.lengths)

    def check(self, cfg: ModelConfig, dtype: Any, shape: tuple[int, ...], counts: Any) -> Array:
        """How many tokens of (B, T) = shape each sequence takes, (B,) int64, or one sentence.

        Raises ValueError for the cache of another model or batch, and where the room is too small.
        """
        if self.cfg != cfg or self.rows.dtype != dtype:
            raise ValueError(
                f"The cache was made for another model: one of {self.rows.dtype} and "
                f"{self.cfg.num_hidden_layers} layers of {self.rows.shape[-1]} numbers a token, or "
                "of other settings; make it with this model's new_cache."
            )
        return token_ids.check_counts(counts, shape, self.lengths, self.max_tokens)

    def spans(self, counts: Array) -> list[tuple[int, slice, slice]]:
        """Of each sequence that takes tokens: its number, which of all new tokens, what positions.

        counts: (batch,), how many each takes; the tokens of all lie one after the other.
        """
        ends, lengths = counts.cumsum().tolist(), self.lengths.tolist()
        return [(b, slice(end - n, end), slice(held, held + n))
                for b, (n, end, held) in enumerate(zip(counts.tolist(), ends, lengths, strict=True))
                if n]  # fmt: skip
