"""The cache of keys and values: what one token leaves behind in every layer.

Unusual here: MLA keeps one latent and one rotary key for all heads, so the number of heads is in
no formula of its cache; it stands beside what the same heads would keep without the latent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from minik2.config import ModelConfig
from minik2.sizing import units


@dataclass(frozen=True)
class KVCache:
    """A cache's size beside other kinds of attention with the same heads.

    tokens: in each sequence; batch: sequences; dtype: of a cached number.
    numbers: cached numbers a token a layer, C + R. bytes_per_token: over all layers, for one
    sequence. bytes: of all. others: numbers a token a layer by kind of attention (MHA, GQA with
    `groups` key heads, MQA), with keys as wide as MLA's (N + R) and with keys of N.
    """

    tokens: int
    batch: int
    dtype: str
    groups: int
    numbers: int
    bytes_per_token: int
    bytes: int
    others: dict[str, tuple[int, int]]
    formula = "layers x (kv_lora_rank + qk_rope_head_dim) x tokens x batch x bytes a number"

    def __str__(self) -> str:
        rows = [[f"{self.numbers / n:.3g}x", kind, f"{n:,}", f"{n / self.numbers:.1f}",
                 f"{short:,}", f"{short / self.numbers:.1f}"]
                for kind, (n, short) in self.others.items()]  # fmt: skip
        listed = units.table(
            ["numbers a token a layer", "keys N+R", "x MLA", "keys N", "x MLA"],
            [["MLA", f"{self.numbers:,}", "1.0", "", ""], *(row[1:] for row in rows)])
        whole = (f"{self.batch} x {self.tokens:,} tokens in {self.dtype}: "
                 f"{self.bytes_per_token:,} B a token, {units.gib(self.bytes)} in all")
        return f"{listed}\n{whole}\n= {self.formula}"


def kv_cache_bytes(
    cfg: ModelConfig, tokens: int, batch: int = 1, bytes_per_number: float | Fraction = 2
) -> int:
    """Bytes of MLA's cache: layers x (C + R) x tokens x batch x bytes_per_number, rounded up.

    bytes_per_number: 2 for bfloat16, 0.75 for six bits. Raises ValueError for negative counts and
    for sizes that are no positive number. Source: arXiv 2412.19437 §2.1.1.

    >>> kv_cache_bytes(ModelConfig.preset("kimi-k2"), tokens=131072)
    9210691584
    """
    units.whole("tokens", tokens, 0)
    units.whole("batch", batch)
    numbers = cfg.num_hidden_layers * _numbers(cfg) * tokens * batch
    return math.ceil(numbers * _positive(bytes_per_number))


def cache(
    cfg: ModelConfig, tokens: int, batch: int = 1, dtype: str = "bfloat16",
    groups: int | None = None,
) -> KVCache:
    """The cache's size beside MHA, GQA and MQA. Raises ValueError for values that fit no cache.

    groups: key heads of GQA; as many of 8 as divide the heads if not given.
    """
    heads, nope, value = cfg.num_attention_heads, cfg.qk_nope_head_dim, cfg.v_head_dim
    groups = math.gcd(8, heads) if groups is None else units.whole("groups", groups)
    if heads % groups:
        raise ValueError(f"GQA shares a key head among equally many query heads, but {groups} "
                         f"groups do not divide {heads} heads; choose a divisor.")
    size = Fraction(units.bits(dtype), 8)
    kinds = {"MHA": heads, f"GQA ({groups} groups)": groups, "MQA": 1}
    others = {kind: (n * (cfg.qk_head_dim + value), n * (nope + value))
              for kind, n in kinds.items()}
    return KVCache(
        tokens, batch, dtype, groups, _numbers(cfg), kv_cache_bytes(cfg, 1, 1, size),
        kv_cache_bytes(cfg, tokens, batch, size), others)  # fmt: skip


def _numbers(cfg: ModelConfig) -> int:
    return cfg.kv_lora_rank + cfg.qk_rope_head_dim


def _positive(value: Any) -> Fraction:
    known = isinstance(value, int | float | Fraction) and not isinstance(value, bool)
    if not known or not math.isfinite(value) or value <= 0:
        raise ValueError(f"bytes_per_number must be a positive number, such as 2 for bfloat16, "
                         f"not {value!r}.")
    return Fraction(value)
