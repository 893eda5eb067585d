"""Which of MLA's two forms is the cheaper one for some new tokens after some that are cached.

Unusual here: the answer is arithmetic, not a flag, and both engines ask this one function. A cached
token costs the expanded form its key and value in every head, formed anew from the latent: 2 H C
(N + V) operations, however few look at it. The absorbed form looks at the latent itself, which is
longer than a key and a value: 2 H (2 C + R) operations a pair instead of 2 H (N + R + V). So few
new tokens are absorbed and many are expanded. By operations alone they change places, after a long
context, at C (N + V) / (2 C - N - V) new tokens: 128 for `bench`, 171 for Kimi K2. But what is
expanded is also written and read again, which moves this module's border up: to 228 and 204.

It is an estimate. Expanded products make better use of a processor, which the rule does not see and
which moves the border down: on two cores (benchmarks.absorption) `bench` changes sides between 64
and 128 new tokens after 1,024 to 4,096 others, and between 128 and 256 after 8,192.
"""

from __future__ import annotations

from dataclasses import dataclass

from minik2.config import ModelConfig

# Operations that take as long as moving one byte. 200 of an H200 in bfloat16 by its data sheet; of
# two CPU cores 10 for memory in use, and some 100 for memory that the system has to hand out first.
# On the grid of benchmarks.absorption 20 errs by 1.24 times at the most, 100 by 1.55.
FLOPS_A_BYTE = 20.0


@dataclass(frozen=True)
class Cost:
    """What the attention of one layer costs in one form, its projections from and to D left out.

    flops: floating-point operations, two a multiply-add. bytes: read and written at the least.
    """

    flops: int
    bytes: int

    def seconds(self, peak: float, bandwidth: float) -> float:
        """Operations at `peak` a second, then bytes at `bandwidth` a second: forming keys and
        values is a pass of its own, which hides behind nothing."""
        return self.flops / peak + self.bytes / bandwidth


def absorbed(cfg: ModelConfig, new: int, cached: int, batch: int = 1, size: int = 4) -> Cost:
    """Queries and contexts moved between heads and latents, and every pair in the latents.

    new: tokens appended to each of `batch` sequences, cached: those before; size: bytes a number.
    """
    row, pairs = cfg.kv_lora_rank + cfg.qk_rope_head_dim, _pairs(new, cached)
    flops = 2 * _up(cfg) * new + 2 * cfg.num_attention_heads * (row + cfg.kv_lora_rank) * pairs
    numbers = (cached + new) * row + 2 * cfg.num_attention_heads * new * row
    return Cost(batch * flops, size * (batch * numbers + _up(cfg)))


def expanded(cfg: ModelConfig, new: int, cached: int, batch: int = 1, size: int = 4) -> Cost:
    """Keys and values of all tokens formed, written and read, and every pair in the heads.

    new: tokens appended to each of `batch` sequences, cached: those before; size: bytes a number.
    """
    wide, pairs = cfg.qk_head_dim + cfg.v_head_dim, _pairs(new, cached)
    flops = 2 * _up(cfg) * (cached + new) + 2 * cfg.num_attention_heads * wide * pairs
    row = cfg.kv_lora_rank + cfg.qk_rope_head_dim
    numbers = (cached + new) * (row + 2 * cfg.num_attention_heads * wide)
    return Cost(batch * flops, size * (batch * numbers + _up(cfg)))


def absorb(cfg: ModelConfig, new: int, cached: int) -> bool:
    """Whether `new` tokens after `cached` are to be absorbed rather than expanded."""
    few, many = absorbed(cfg, new, cached), expanded(cfg, new, cached)
    return few.seconds(FLOPS_A_BYTE, 1) <= many.seconds(FLOPS_A_BYTE, 1)


def _pairs(new: int, cached: int) -> int:
    """Pairs of a new token and one that it looks at."""
    return new * cached + new * (new + 1) // 2


def _up(cfg: ModelConfig) -> int:
    """Numbers of kv_b_proj, which one latent is multiplied with."""
    wide = cfg.qk_nope_head_dim + cfg.v_head_dim
    return cfg.num_attention_heads * cfg.kv_lora_rank * wide
