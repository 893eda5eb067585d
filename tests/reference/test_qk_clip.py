"""QK-Clip in the reference: through the attention of a whole MLA block, head by head."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minik2.config import ModelConfig
from minik2.reference import mla, qk_clip, rope
from tests.oracle.configs import configs
from tests.reference.bounds import FLOAT64

SEEDS = st.integers(0, 2**31)
TINY = ModelConfig.preset("tiny")


def random_attention(cfg, seed):
    """The weights of one layer's attention, norms away from 1, logits of some size."""
    rng, prefix = np.random.default_rng(seed), "model.layers.0.self_attn."
    return {name.removeprefix(prefix): rng.standard_normal(shape)
            for name, shape in cfg.tensor_shapes().items() if name.startswith(prefix)}  # fmt: skip


def attention_of(x, weights, cfg):
    table = rope.table(cfg, np.arange(x.shape[1]), x.dtype)
    return mla.forward(x, weights, cfg, *table)[1]["attention"]


def all_logits(attention):
    """(B, H, T, T), every pair, the unseen ones too."""
    return attention["scale"] * np.einsum("bthd,bshd->bhts", attention["q"], attention["k"])


def plain_max_logits(attention):
    logits = all_logits(attention)
    unseen = np.triu(np.ones(logits.shape[2:], bool), 1)
    return np.where(unseen, -np.inf, logits).max(axis=(0, 2, 3))


@pytest.mark.parametrize("scores", [qk_clip.SCORES, 1])
@pytest.mark.parametrize("tokens", [1, 7, 127, 128, 129, 300])
def test_max_logits_are_those_of_the_whole_matrix(tokens, scores, monkeypatch):
    """In blocks of 128 queries, and in the least blocks there are, of 16."""
    monkeypatch.setattr(qk_clip, "SCORES", scores)
    rng = np.random.default_rng(tokens)
    q, k = rng.standard_normal((2, 2, tokens, 3, 5))
    q[:, :, 2] = -np.abs(q[:, :, 2])
    k[:, :, 2] = np.abs(k[:, :, 2])  # one head of negative logits: the maximum is signed
    got = qk_clip.max_logits(q, k, 0.3)
    want = plain_max_logits({"q": q, "k": k, "scale": 0.3})
    assert got.shape == (3,) and got[2] < 0
    assert np.abs(got - want).max() < FLOAT64 * np.abs(want).max()


def test_an_unseen_key_does_not_count_and_nan_is_carried():
    q, k = np.ones((1, 200, 1, 2)), np.ones((1, 200, 1, 2))
    q[0, :150], k[0, 150:] = 0.0, 50.0  # large only where key 150 … meets a query before it
    q[0, 150:] = -1.0
    assert qk_clip.max_logits(q, k, 1.0) == 0.0
    k[0, 3] = np.nan
    assert np.isnan(qk_clip.max_logits(q, k, 1.0)).all()


@given(cfg=configs(), tokens=st.integers(1, 12), share=st.floats(0.05, 0.95), seed=SEEDS)
@settings(max_examples=60, deadline=None)
def test_a_clipped_heads_logits_shrink_by_gamma_and_nothing_else_moves(cfg, tokens, share, seed):
    weights = random_attention(cfg, seed)
    x = np.random.default_rng(seed + 1).standard_normal((2, tokens, cfg.hidden_size))
    old = attention_of(x, weights, cfg)
    tops = qk_clip.max_logits(old["q"], old["k"], old["scale"])
    tau = max(share * tops.max(), 1e-3)
    kept = {name: array.copy() for name, array in weights.items()}

    gamma = qk_clip.clip(weights, tops, cfg, tau)

    assert (gamma == np.where(tops > tau, tau / tops, 1)).all()
    new, clipped = attention_of(x, weights, cfg), gamma < 1
    before, after = all_logits(old), all_logits(new)
    # Relative to the products that a logit is the sum of: they may cancel.
    size = np.einsum("bthd,bshd->bhts", np.abs(old["q"]), np.abs(old["k"])) * old["scale"]
    assert (np.abs(after - gamma[:, None, None] * before) <= FLOAT64 * size).all()
    assert (after[:, ~clipped] == before[:, ~clipped]).all()
    tops = qk_clip.max_logits(new["q"], new["k"], new["scale"])
    assert (tops <= tau + FLOAT64 * size.max()).all()
    assert (new["v"] == old["v"]).all()
    nope = cfg.qk_nope_head_dim
    assert (new["k"][..., nope:] == old["k"][..., nope:]).all(), "the rotary key is all heads'"

    query = "q_proj.weight" if cfg.q_lora_rank is None else "q_b_proj.weight"
    for name, array in weights.items():
        if name not in (query, "kv_b_proj.weight"):
            assert (array == kept[name]).all(), name
    for name, part in ((query, cfg.qk_head_dim), ("kv_b_proj.weight", nope + cfg.v_head_dim)):
        rows = (cfg.num_attention_heads, part, -1)
        new_rows, old_rows = weights[name].reshape(rows), kept[name].reshape(rows)
        assert (new_rows[~clipped] == old_rows[~clipped]).all()
        # What √γ takes from a query it takes from the key: neither side shrinks alone.
        root = np.sqrt(gamma)[:, None, None]
        assert np.allclose(new_rows[:, :nope], root * old_rows[:, :nope], rtol=1e-14, atol=0)


def test_logits_at_tau_and_below_zero_are_left_alone():
    weights = random_attention(TINY, 0)
    kept = {name: array.copy() for name, array in weights.items()}
    for tops in ([100.0, 3.0], [-500.0, 0.0]):
        assert (qk_clip.clip(weights, np.array(tops), TINY) == 1).all()
    assert all((weights[name] == kept[name]).all() for name in weights)


def test_what_cannot_be_clipped_gets_a_sentence_and_leaves_the_weights():
    weights = random_attention(TINY, 0)
    kept = {name: array.copy() for name, array in weights.items()}
    with pytest.raises(ValueError, match=r"each of 2 heads, shape \(2,\), not \(3,\)"):
        qk_clip.clip(weights, np.full(3, 200.0), TINY)
    with pytest.raises(ValueError, match="tau is the largest logit allowed, above 0, not 0"):
        qk_clip.clip(weights, np.full(2, 200.0), TINY, tau=0.0)
    with pytest.raises(ValueError, match=r"heads \[1\] are not finite"):
        qk_clip.clip(weights, np.array([200.0, np.inf]), TINY)
    assert all((weights[name] == kept[name]).all() for name in weights)
