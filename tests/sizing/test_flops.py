"""Operations, against PyTorch's own counter run on transformers' model and on MLA's other forms."""

import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from minik2 import sizing
from minik2.config import ModelConfig
from minik2.sizing.flops import mtp_training, pair_costs
from tests.oracle import twin
from tests.oracle.configs import configs


def counted(run) -> int:
    """Operations of the matrix products in a call, two a multiply-add, by PyTorch's count."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@given(cfg=configs(), tokens=st.integers(2, 9), batch=st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_transformers_does_as_many(cfg, tokens, batch):
    """Forward and backward; their plain attention forms all T x T pairs, of which a causal kernel
    needs T (T + 1) / 2, and their rotary angles are a product too."""
    model = twin.build(cfg, 0)
    ids = torch.zeros(batch, tokens, dtype=torch.long)
    angles = counted(lambda: model.model.rotary_emb(torch.zeros(1), torch.arange(tokens)[None]))

    def step():
        logits = model(ids).logits
        F.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()

    training = sizing.flops(cfg, tokens, batch).training
    square = Fraction(tokens**2, tokens * (tokens + 1) // 2)
    assert counted(step) - angles == training.weights + training.attention * square


@given(cfg=configs(), tokens=st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_the_forms_of_decoding(cfg, tokens):
    """Each written out for one layer and counted; what a token meets elsewhere is the same."""
    heads, latent, rope = cfg.num_attention_heads, cfg.kv_lora_rank, cfg.qk_rope_head_dim
    nope, value = cfg.qk_nope_head_dim, cfg.v_head_dim
    q, q_rope, p = (torch.zeros(heads, n) for n in (nope, rope, tokens))
    c, k_rope = torch.zeros(tokens, latent), torch.zeros(tokens, rope)
    up_k, up_v = torch.zeros(heads, nope, latent), torch.zeros(heads, value, latent)

    def absorbed():
        folded = torch.bmm(q[:, None], up_k)[:, 0]
        folded @ c.T, q_rope @ k_rope.T
        torch.bmm((p @ c)[:, None], up_v.transpose(1, 2))

    def rebuilt():
        k, v = c @ up_k.flatten(0, 1).T, c @ up_v.flatten(0, 1).T
        k, v = k.view(tokens, heads, nope), v.view(tokens, heads, value)
        torch.bmm(k.transpose(0, 1), q[..., None]), q_rope @ k_rope.T
        torch.bmm(p[:, None], v.transpose(0, 1))

    def expanded():
        k, v = torch.zeros(heads, tokens, nope + rope), torch.zeros(heads, tokens, value)
        torch.bmm(k, torch.cat([q, q_rope], 1)[..., None]), torch.bmm(p[:, None], v)

    work, layers = sizing.flops(cfg, tokens), cfg.num_hidden_layers
    up = 2 * layers * heads * latent * (nope + value)
    elsewhere = work.decode_absorbed.weights - up
    assert layers * counted(absorbed) == up + work.decode_absorbed.attention
    assert layers * counted(expanded) == work.decode_expanded.attention
    assert layers * counted(rebuilt) == work.decode_rebuilt.attention
    assert work.decode_rebuilt.weights == elsewhere
    assert work.decode_expanded.weights == work.decode_absorbed.weights
    assert elsewhere == 2 * (sizing.parameters(cfg).computed - up // 2)


def test_k2s_multiply_adds_a_pair():
    """1,088 absorbed against 320 expanded for a head and a cached token."""
    cfg = ModelConfig.preset("kimi-k2")
    pair = pair_costs(cfg)
    assert pair["absorbed"] == 2 * 61 * 64 * 1088
    assert pair["expanded"] == 2 * 61 * 64 * 320


@given(cfg=configs(), tokens=st.integers(1, 50), batch=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_counts_of_random_models(cfg, tokens, batch):
    work, more = sizing.flops(cfg, tokens, batch), sizing.flops(cfg, tokens + 1, batch)
    one = sizing.flops(cfg, tokens)
    for name in ("decode_absorbed", "decode_expanded", "prefill_expanded", "prefill_absorbed",
                 "decode_rebuilt", "training"):  # fmt: skip
        now, then, single = (getattr(w, name) for w in (work, more, one))
        assert now.total == now.weights + now.attention == batch * single.total
        assert 0 <= now.weights <= then.weights and 0 < now.attention < then.attention
    # A prompt is the sum of its tokens, less the head for all but the last.
    head = 2 * cfg.vocab_size * cfg.hidden_size
    steps = sum(sizing.flops(cfg, n).decode_expanded.total for n in range(1, tokens + 1))
    assert one.prefill_expanded.total == steps - head * (tokens - 1)
    assert one.training.total == 3 * steps


def test_128_heads_cost_83_per_cent_more_in_one_convention():
    """The others: 86, 94 to 95.5, and 71 to 77 over a prompt."""
    cost = sizing.heads_cost(ModelConfig.preset("kimi-k2"))
    assert (cost.heads_before, cost.heads_after, cost.tokens) == (64, 128, 131072)
    got = {name: tuple(round(100 * float(r - 1), 1) for r in pair)
           for name, pair in cost.ratios.items()}  # fmt: skip
    assert got == {
        "decode, expanded, weights fixed": (83.3, 83.8),
        "decode, expanded, weights grown": (86.0, 86.5),
        "decode, absorbed, weights fixed": (94.4, 94.6),
        "decode, absorbed, weights grown": (95.3, 95.5),
        "prefill, expanded, weights fixed": (71.4, 72.1),
        "prefill, expanded, weights grown": (75.9, 76.7),
    }
    # By hand: 2 x 32.86 G and 2 x 61 x heads x 320 x 131,072.
    one = 2 * 61 * 64 * 320 * 131072
    by_hand = (2 * 32_861_500_928 + 2 * one) / (2 * 32_861_500_928 + one)
    assert math.isclose(cost.ratios["decode, expanded, weights fixed"][0], by_hand)


@given(cfg=configs(), tokens=st.integers(1, 10**6))
@settings(max_examples=60, deadline=None)
def test_twice_the_heads_never_cost_more_than_twice(cfg, tokens):
    for pair in sizing.heads_cost(cfg, tokens=tokens).ratios.values():
        assert all(1 < ratio < 2 for ratio in pair)


def test_a_prediction_layer_is_what_one_more_layer_head_and_product_cost():
    cfg = ModelConfig.preset("deepseek-v3")
    deeper = cfg.replace(num_hidden_layers=62)
    layer = sizing.flops(deeper, 64).training.total - sizing.flops(cfg, 64).training.total
    joins = 3 * 2 * 64 * (2 * 7168**2 + 7168 * 129280)
    assert mtp_training(cfg, 64) == layer + joins
    assert mtp_training(ModelConfig.preset("kimi-k2"), 64) == 0


def test_counts_below_one():
    with pytest.raises(ValueError, match="tokens must be a whole number of at least 1, "):
        sizing.flops(ModelConfig.preset("tiny"), 0)
    with pytest.raises(ValueError, match="num_attention_heads must be"):
        sizing.heads_cost(ModelConfig.preset("tiny"), heads=0)
