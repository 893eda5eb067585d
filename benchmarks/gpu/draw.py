"""Random configurations for a GPU: every branch of ModelConfig, and widths that kernels take.

Unusual here: every second one has widths that are multiples of 8. PyTorch's fast kernels (grouped
products, fused attention) want 16 bytes, and turn to slower ones where they do not get them; both
ways are to be compared.
"""

from __future__ import annotations

import numpy as np

from benchmarks.question import Case
from minik2.config import ModelConfig, RopeScaling

# Sequences a case has at most, and tokens in each.
BATCH, TOKENS = 3, 40


def cases(count: int, seed: int) -> list[Case]:
    """`count` configurations with shapes (B, T) and seeds, the same for the same seed."""
    rng = np.random.default_rng(seed)
    out = []
    for number in range(count):
        cfg = config(rng, 8 if number % 2 else 1)
        shape = int(rng.integers(1, BATCH + 1)), int(rng.integers(2, TOKENS + 1))
        out.append(Case(cfg, shape, int(rng.integers(2**31))))
    return out


def config(rng: np.random.Generator, multiple: int) -> ModelConfig:
    """A ModelConfig of some thousand weights whose widths are multiples of `multiple`."""

    def one_to(most: int) -> int:
        return int(rng.integers(1, most + 1))

    def one_of(*values: object) -> object:
        return values[rng.integers(len(values))]

    def width(least: int, most: int) -> int:
        return multiple * int(rng.integers(-(-least // multiple), -(-most // multiple) + 1))

    sigmoid, groups, layers = bool(rng.integers(2)), int([1, 2, 4][rng.integers(3)]), one_to(3)
    each, kept, heads = one_to(3) + 1, one_to(groups), one_to(4)
    grouped = "greedy" if groups == 1 else "group_limited_greedy"
    scaling = RopeScaling(
        factor=one_of(1.0, 4.0, 32.0), original_max_position_embeddings=one_of(32, 512, 4096),
        beta_fast=one_of(1.0, 32.0), beta_slow=1.0, mscale=one_of(0.0, 0.707, 1.0),
        mscale_all_dim=one_of(0.0, 0.707, 1.0),
    )  # fmt: skip
    return ModelConfig(
        vocab_size=width(5, 40), hidden_size=width(6, 48), num_hidden_layers=layers,
        num_attention_heads=heads, q_lora_rank=one_of(None, width(2, 12)),
        kv_lora_rank=width(2, 16), qk_nope_head_dim=width(1, 9), qk_rope_head_dim=2 * width(1, 5),
        v_head_dim=width(1, 9), first_k_dense_replace=int(rng.integers(layers)),
        intermediate_size=width(1, 24), moe_intermediate_size=width(1, 12),
        n_routed_experts=groups * each, n_shared_experts=one_to(2),
        num_experts_per_tok=one_to(kept * each), n_group=groups, topk_group=kept,
        scoring_func="sigmoid" if sigmoid else "softmax",
        topk_method="noaux_tc" if sigmoid else grouped,
        norm_topk_prob=sigmoid and bool(rng.integers(2)),
        routed_scaling_factor=one_of(1.0, 2.827), max_position_embeddings=4096,
        rope_theta=one_of(100.0, 50000.0), rope_scaling=one_of(None, scaling),
        rms_norm_eps=1e-6, tie_word_embeddings=bool(rng.integers(2)),
    )  # fmt: skip
