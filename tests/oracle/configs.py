"""Random small configurations, every branch of ModelConfig among them, as hypothesis strategies."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from minik2.config import ModelConfig, RopeScaling

# transformers' latent norms use this value whatever the config says (its issue 44261).
THEIR_EPS = 1e-6

SMALL = st.integers(1, 5)


@st.composite
def rope_scalings(draw: Any) -> RopeScaling | None:
    if draw(st.booleans()):
        return None
    slow = draw(st.sampled_from([1.0, 2.0]))
    return RopeScaling(
        factor=draw(st.sampled_from([1.0, 4.0, 32.0])),
        original_max_position_embeddings=draw(st.sampled_from([32, 512, 4096])),
        beta_fast=slow * draw(st.sampled_from([1.0, 4.0, 32.0])),
        beta_slow=slow,
        mscale=draw(st.sampled_from([0.0, 0.707, 1.0])),
        mscale_all_dim=draw(st.sampled_from([0.0, 0.707, 1.0])),
    )


@st.composite
def configs(draw: Any, scoring: str | None = None, halves: bool = False) -> ModelConfig:
    """A ModelConfig of a few thousand weights that transformers can also build.

    halves: let the rotation turn the vector's halves too, which transformers' V2 does not know.
    """
    scoring = scoring or draw(st.sampled_from(["sigmoid", "softmax"]))
    layers, heads = draw(st.integers(1, 3)), draw(SMALL)
    groups = draw(st.sampled_from([1, 2, 4]))
    if scoring == "sigmoid":
        method = "noaux_tc"
    else:
        method = "greedy" if groups == 1 else "group_limited_greedy"
    experts = groups * draw(st.integers(2, 4))
    kept = draw(st.integers(1, groups))
    # transformers' V2 rotation views pairs as complex numbers where they lie: even offsets only.
    offset = 1 if scoring == "sigmoid" else 2
    return ModelConfig(
        vocab_size=draw(st.integers(5, 40)),
        # transformers wants a multiple of the heads, though nothing in MLA does.
        # Not two numbers: their norm can be so small that a backward pass enlarges every rounding.
        hidden_size=draw(st.integers(3, 7)) * heads * 2,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        q_lora_rank=draw(st.none() | st.integers(2, 9)),
        kv_lora_rank=offset * draw(st.integers(2, 9)),
        qk_nope_head_dim=offset * draw(st.integers(1, 7)),
        qk_rope_head_dim=2 * draw(SMALL),
        v_head_dim=draw(st.integers(1, 7)),
        first_k_dense_replace=draw(st.integers(0, layers)),
        intermediate_size=draw(st.integers(1, 20)),
        moe_intermediate_size=draw(st.integers(1, 9)),
        n_routed_experts=experts,
        n_shared_experts=draw(st.integers(1, 2)),
        num_experts_per_tok=draw(st.integers(1, kept * (experts // groups))),
        n_group=groups,
        topk_group=kept,
        scoring_func=scoring,
        topk_method=method,
        # transformers' V2 router never renormalises.
        norm_topk_prob=scoring == "sigmoid" and draw(st.booleans()),
        routed_scaling_factor=draw(st.sampled_from([1.0, 2.446, 2.827])),
        max_position_embeddings=4096,
        rope_theta=draw(st.sampled_from([100.0, 10000.0, 50000.0])),
        rope_scaling=draw(rope_scalings()),
        rope_interleave=not halves or scoring == "softmax" or draw(st.booleans()),
        rms_norm_eps=THEIR_EPS,
        tie_word_embeddings=draw(st.booleans()),
    )
