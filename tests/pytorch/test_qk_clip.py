"""QK-Clip in torch: maxima against the whole matrix, the edit against the reference's."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minik2 import reference
from minik2.config import ModelConfig
from minik2.pytorch import qk_clip
from tests.oracle.configs import configs
from tests.pytorch import build
from tests.reference.bounds import FLOAT64, relative_error

SEEDS = st.integers(0, 2**31)
TINY = ModelConfig.preset("tiny")


@pytest.mark.parametrize("tokens", [1, 5, 16, 17, 40])
def test_max_logits_are_those_of_the_whole_matrix(tokens, monkeypatch):
    monkeypatch.setattr(qk_clip, "BLOCK", 16)
    rng = np.random.default_rng(tokens)
    q, k = rng.standard_normal((2, 2, tokens, 3, 5))
    q[:, :, 2] = -np.abs(q[:, :, 2])
    k[:, :, 2] = np.abs(k[:, :, 2])  # one head of negative logits: the maximum is signed
    logits = np.einsum("bthd,bshd->bhts", q, k)
    want = np.where(np.triu(np.ones((tokens, tokens), bool), 1), -np.inf, logits)
    want = 0.3 * want.max(axis=(0, 2, 3))
    got = qk_clip.max_logits(torch.from_numpy(q), torch.from_numpy(k), 0.3)
    assert got.shape == (3,) and got[2] < 0
    assert relative_error(got, want) < FLOAT64
    assert relative_error(got, reference.qk_clip.max_logits(q, k, 0.3)) < FLOAT64


def test_a_sequence_longer_than_a_block_of_the_real_size():
    q, k = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 1, 1100, 2, 4)))
    want = reference.qk_clip.max_logits(q.numpy(), k.numpy(), 0.5)
    assert relative_error(qk_clip.max_logits(q, k, 0.5), want) < FLOAT64


@pytest.mark.parametrize("block, logits", [(512, 2**26), (16, 2**26), (512, 1)])
def test_a_key_that_no_query_sees_does_not_count(block, logits, monkeypatch):
    """Large only where a key meets a query before it; blocks of 200, of 16, and of the least 16."""
    monkeypatch.setattr(qk_clip, "BLOCK", block)
    monkeypatch.setattr(qk_clip, "LOGITS", logits)
    q, k = torch.ones(1, 200, 1, 2), torch.ones(1, 200, 1, 2)
    q[0, 150:], k[0, 150:] = -1.0, 50.0
    assert qk_clip.max_logits(q, k, 1.0) == 2.0
    assert qk_clip.max_logits(q[:, 150:], k[:, 150:], 1.0) == -100.0
    one = torch.arange(50.0)[None, :, None, None]
    assert qk_clip.max_logits(one.flip(1), one, 1.0) == 24 * 25


def test_no_gradient_is_recorded_and_nan_is_carried():
    q, k = torch.ones(1, 3, 2, 4, requires_grad=True), torch.ones(1, 3, 2, 4)
    assert not qk_clip.max_logits(q, k, 1.0).requires_grad
    k[0, 1, 1] = torch.nan
    assert qk_clip.max_logits(q, k, 1.0).isnan().tolist() == [False, True]


def test_in_bfloat16_the_maximum_is_the_true_one_rounded():
    """Products of bfloat16 are exact in float32 and summed there; one rounding remains."""
    q, k = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 2, 60, 3, 8))).bfloat16()
    got = qk_clip.max_logits(q, k, 0.5)
    want = qk_clip.max_logits(q.double(), k.double(), 0.5)
    assert got.dtype == torch.float32
    # A unit roundoff of bfloat16, and of the sum's eight terms in float32, which may cancel.
    terms = (q.abs().amax().double() * k.abs().amax().double()) * 8 * 0.5
    assert ((got - want).abs() <= 2.0**-8 * want.abs() + 8 * 2.0**-24 * terms).all()


@given(cfg=configs(), share=st.floats(0.05, 0.95), seed=SEEDS)
@settings(max_examples=40, deadline=None)
def test_the_edit_is_the_references(cfg, share, seed):
    ours, theirs = build.engine("pytorch", cfg, seed), build.engine("reference", cfg, seed)
    tops = 100 * np.random.default_rng(seed).standard_normal(cfg.num_attention_heads)
    tau = max(share * tops.max(), 1e-3)
    before = {name: tensor.detach().clone() for name, tensor in ours.weights.items()}
    want = reference.qk_clip.clip(theirs.layers[0]["self_attn"], tops, cfg, tau)
    attention = dict(ours.model.layers[0].self_attn.named_parameters())
    gamma = qk_clip.clip(attention, torch.from_numpy(tops), cfg, tau)
    assert relative_error(gamma, want) < FLOAT64
    edited = {f"model.layers.0.self_attn.{name}.weight"
              for name in ("q_proj", "q_b_proj", "kv_b_proj")}
    for name, tensor in ours.weights.items():
        assert relative_error(tensor.detach(), theirs.weights[name]) < FLOAT64, name
        assert name in edited or (tensor == before[name]).all(), name
    for name in edited & before.keys():
        # Every head's rows, and those of heads that stay, bit for bit.
        new, old = (t.unflatten(0, (cfg.num_attention_heads, -1)).detach()
                    for t in (ours.weights[name], before[name]))
        assert (new == old)[torch.from_numpy(want == 1)].all()


@pytest.mark.parametrize("weights", [torch.float32, torch.float64])
@pytest.mark.parametrize("maxima", [torch.bfloat16, torch.float32, torch.float64])
def test_a_head_at_tau_is_left_alone_whatever_tau_is(maxima, weights):
    """49 times a 49th is not 1, so a head within tau may not come near a reciprocal."""
    attention = build.model(TINY, 0, weights).model.layers[0].self_attn
    named = {name: p.detach() for name, p in attention.named_parameters()}
    before = {name: p.clone() for name, p in named.items()}
    for tau in range(1, 257):  # whole numbers that bfloat16 has
        gamma = qk_clip.clip(named, torch.tensor([-tau, tau], dtype=maxima), TINY, tau)
        assert (gamma == 1).all() and gamma.dtype == torch.promote_types(maxima, torch.float32)
    assert all((named[name] == before[name]).all() for name in named)


def test_a_clipped_heads_logits_shrink_by_gamma_in_the_models_own_attention():
    model = build.engine("pytorch", TINY, 0)
    attention = model.model.layers[0].self_attn
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((2, 9, TINY.hidden_size)))
    kept = {}

    def look(q, k, v, scale):
        kept.update(q=q, k=k, scale=scale)
        return v

    def tops():
        with pytest.MonkeyPatch.context() as patch, torch.no_grad():
            patch.setattr("minik2.pytorch.attention.forward", look)
            table = reference.rope.table(TINY, np.arange(9), np.float64)
            attention(x, *map(torch.from_numpy, table))
        return qk_clip.max_logits(kept["q"], kept["k"], kept["scale"])

    before = tops()
    tau = before.min().item() * 1.0001 if before.min() > 0 else before.max().item() / 2
    gamma = qk_clip.clip(dict(attention.named_parameters()), before, TINY, tau)
    after = tops()
    assert (gamma < 1).any()
    assert relative_error(after, gamma * before) < FLOAT64
    assert (after <= tau * (1 + FLOAT64)).all()


def test_sixteen_bit_weights_are_scaled_in_float32():
    weights = {name: p.detach().bfloat16() for name, p in
               build.engine("pytorch", TINY, 0).model.layers[0].self_attn.named_parameters()}
    old = weights["q_b_proj.weight"].clone()
    gamma = qk_clip.clip(weights, torch.tensor([101.0, 99.0]), TINY)
    rotary = slice(TINY.qk_nope_head_dim, TINY.qk_head_dim)
    want = (old[rotary].float() * (100 / 101)).bfloat16()
    assert gamma.dtype == torch.float32
    assert weights["q_b_proj.weight"].dtype == torch.bfloat16
    assert (weights["q_b_proj.weight"][rotary] == want).all()
    assert (weights["q_b_proj.weight"][TINY.qk_head_dim :] == old[TINY.qk_head_dim :]).all()


def test_what_cannot_be_clipped_gets_a_sentence_and_leaves_the_weights():
    model = build.engine("pytorch", TINY, 0)
    weights = dict(model.model.layers[0].self_attn.named_parameters())
    kept = {name: p.detach().clone() for name, p in weights.items()}
    with pytest.raises(ValueError, match=r"each of 2 heads, shape \(2,\), not \(3,\)"):
        qk_clip.clip(weights, torch.full((3,), 200.0), TINY)
    with pytest.raises(ValueError, match="tau is the largest logit allowed, above 0, not 0"):
        qk_clip.clip(weights, torch.full((2,), 200.0), TINY, tau=0.0)
    with pytest.raises(ValueError, match=r"heads \[1\] are not finite"):
        qk_clip.clip(weights, torch.tensor([200.0, torch.inf]), TINY)
    assert all((weights[name] == kept[name]).all() for name in weights)
