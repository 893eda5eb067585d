"""The latent cache: one row of C + R numbers a token and layer, for all heads together.

Unusual here: there is one tensor, made once, and nothing grows. A row is a token's latent (after
its norm) and its rotary key (turned to its position) side by side, so that the absorbed form takes
all of it as the key and its first C numbers as the value. The lengths are the host's, in NumPy: it
gives the counts, so it knows them without waiting for a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from minik2 import tokens as token_ids
from minik2.config import ModelConfig

if TYPE_CHECKING:
    from minik2.pytorch.decode import Step

Array = np.ndarray[Any, np.dtype[Any]]


class Cache:
    """Room for max_tokens tokens of each of `batch` sequences; made by `Model.new_cache`.

    rows: (layers, batch, max_tokens, C + R) on the model's device and in its dtype; lengths:
    (batch,) int64 in NumPy, how many tokens each sequence holds; nbytes: of the rows,
    `sizing.kv_cache_bytes` to the byte.
    """

    def __init__(
        self, cfg: ModelConfig, batch: int, max_tokens: int, device: torch.device,
        dtype: torch.dtype,
    ) -> None:  # fmt: skip
        token_ids.check_room(batch, max_tokens, cfg)
        self.cfg, self.max_tokens = cfg, int(max_tokens)
        shape = (cfg.num_hidden_layers, batch, self.max_tokens,
                 cfg.kv_lora_rank + cfg.qk_rope_head_dim)  # fmt: skip
        # Made in inference mode it could not be written to outside.
        with torch.inference_mode(False):
            self.rows = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths = np.zeros(batch, np.int64)
        self.step: Step | None = None  # of a GPU, once one has been recorded

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

    def check(self, cfg: ModelConfig, like: Tensor, shape: tuple[int, ...], counts: Any) -> Array:
        """How many tokens of (B, T) = shape each sequence takes, (B,) int64, or one sentence.

        Raises ValueError for the cache of another model (like: a weight of this one) or batch, and
        where the room is too small.
        """
        own = self.rows.dtype, self.rows.device
        if self.cfg != cfg or own != (like.dtype, like.device):
            raise ValueError(
                f"The cache was made for another model: one of {self.rows.dtype} on "
                f"{self.rows.device} and {self.cfg.num_hidden_layers} layers of "
                f"{self.rows.shape[-1]} numbers a token, or of other settings; make it with this "
                "model's new_cache."
            )
        return token_ids.check_counts(counts, shape, self.lengths, self.max_tokens)

    def plan(self, counts: Array, absorbed: bool) -> Plan:
        """Where `counts` (batch,) new tokens go and what they see; those of all, one by one."""
        batch, lengths = len(counts), self.lengths
        owner = np.repeat(np.arange(batch), counts)
        nth = np.arange(len(owner)) - np.repeat(counts.cumsum() - counts, counts)
        position = lengths[owner] + nth
        table = torch.from_numpy(np.stack([owner * self.max_tokens + position, position]))
        places, positions = table.to(self.rows.device)
        # Sequences that are alike go through one product; the absorbed form can mask lengths that
        # differ, at the price of reading as many tokens of each as the longest has.
        alike = (counts == counts[0]).all() and (absorbed or (lengths == lengths[0]).all())
        if alike:
            groups = [Group(slice(0, batch), slice(0, len(owner)), int(lengths.max() + counts[0]))]
        else:
            ends, total = counts.cumsum().tolist(), (lengths + counts).tolist()
            groups = [Group(slice(b, b + 1), slice(ends[b] - n, ends[b]), total[b])
                      for b, n in enumerate(counts.tolist()) if n]  # fmt: skip
        ragged = bool((lengths != lengths[0]).any()) and alike
        return Plan(places, positions, groups, absorbed, ragged)


@dataclass(frozen=True)
class Group:
    """Sequences of equal counts: which, which of all new tokens are theirs, tokens they see."""

    sequences: slice
    new: slice
    held: int


@dataclass(frozen=True)
class Plan:
    """What is the same for every layer of one call, for n new tokens of all sequences.

    places: (n,) rows of a layer's cache, counted through all sequences; positions: (n,), both int64
    on the device. ragged: the sequences of the one group differ in length.
    """

    places: Tensor
    positions: Tensor
    groups: list[Group]
    absorbed: bool
    ragged: bool
