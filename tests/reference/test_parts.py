"""Each part of the reference against the slow specification, on random small configurations."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minik2.config import ModelConfig
from minik2.reference import attention, ffn, mla, moe, norm, rope, router
from tests.oracle.configs import configs
from tests.reference import build, plain
from tests.reference.bounds import FLOAT64, relative_error

SEEDS = st.integers(0, 2**31)
SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 12))
examples = settings(max_examples=40, deadline=None)


@st.composite
def any_configs(draw):
    """Both layouts of pairs, and softmax routers that renormalise, which transformers lacks."""
    cfg = draw(configs())
    return cfg.replace(
        rope_interleave=draw(st.booleans()),
        norm_topk_prob=draw(st.booleans()),
        rms_norm_eps=draw(st.sampled_from([1e-6, 1e-2])),
    )


moe_configs = any_configs().map(lambda c: c.replace(first_k_dense_replace=0))


def states(cfg, shape, seed):
    return np.random.default_rng(seed).standard_normal((*shape, cfg.hidden_size))


@given(cfg=any_configs(), shape=SHAPES, seed=SEEDS)
@examples
def test_norm(cfg, shape, seed):
    x, gain = states(cfg, shape, seed), states(cfg, (), seed + 1)
    y, saved = norm.forward(x, gain, cfg.rms_norm_eps)
    assert relative_error(y, plain.rms_norm(x, gain, cfg.rms_norm_eps)) < FLOAT64
    assert relative_error(y, x * saved["scale"].reshape(*shape, 1) * gain) < FLOAT64


@given(cfg=any_configs(), shape=SHAPES, heads=st.integers(1, 3), seed=SEEDS)
@examples
def test_rotation(cfg, shape, heads, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((*shape, heads, cfg.qk_rope_head_dim))
    positions = rng.integers(0, 131072, shape[1])
    cos, sin = rope.table(cfg, positions, np.float64)
    y = rope.rotate(x, cos, sin, cfg.rope_interleave)
    want = np.array([[[plain.rotate(v, p, cfg) for v in token]
                      for token, p in zip(row, positions, strict=True)] for row in x])
    # Frequency and angle, up to 131,072 radians, are each rounded by 2^-53 of themselves, twice.
    assert relative_error(y, want) < 4 * 131072 * 2**-53


@given(cfg=any_configs(), shape=SHAPES, seed=SEEDS)
@examples
def test_turning_back_undoes_the_turn_and_layouts_are_one_permutation(cfg, shape, seed):
    size = cfg.qk_rope_head_dim
    x = np.random.default_rng(seed).standard_normal((*shape, 2, size))
    cos, sin = rope.table(cfg.replace(rope_scaling=None), np.arange(shape[1]), np.float64)
    y = rope.rotate(x, cos, sin)
    assert relative_error(rope.rotate(y, cos, -sin), x) < FLOAT64
    # In place, in a part of a larger array, nothing else of which is touched.
    wide = np.concatenate([x, x], -1)
    rope.rotate(wide[..., x.shape[-1] :], cos, sin, out=wide[..., x.shape[-1] :])
    assert (wide[..., : x.shape[-1]] == x).all()
    assert relative_error(wide[..., x.shape[-1] :], y) < FLOAT64
    p = rope.to_halves(size)
    assert relative_error(rope.rotate(x[..., p], cos, sin, interleave=False), y[..., p]) < FLOAT64


def test_every_row_may_have_its_own_positions():
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 8))
    cfg = ModelConfig.preset("tiny")
    starts = np.array([0, 70])
    tables = [rope.table(cfg, s + np.arange(3), np.float64) for s in starts]
    together = rope.rotate(x, *(np.stack(t) for t in zip(*tables, strict=True)))
    for row, (cos, sin) in enumerate(tables):
        assert (together[row] == rope.rotate(x[row], cos, sin)).all()


@given(shape=SHAPES, heads=st.integers(1, 4), sizes=st.tuples(*[st.integers(1, 9)] * 2), seed=SEEDS)
@examples
def test_attention(shape, heads, sizes, seed):
    rng, (key, value) = np.random.default_rng(seed), sizes
    q, k = rng.standard_normal((2, *shape, heads, key))
    v = rng.standard_normal((*shape, heads, value))
    y, _ = attention.forward(q, k, v, 0.7)
    assert relative_error(y, plain.attention(q, k, v, 0.7)) < FLOAT64


@pytest.mark.parametrize("tokens", [31, 32, 33, 96, 300, 1025])
@pytest.mark.parametrize("key, value", [(5, 4), (24, 40)])
def test_attention_in_blocks_of_queries(tokens, key, value):
    """The last block whole or ragged, heads narrow and wide: what one matrix gives."""
    rng = np.random.default_rng(tokens)
    q, k = rng.standard_normal((2, 2, tokens, 3, key))
    v = rng.standard_normal((2, tokens, 3, value))
    y, _ = attention.forward(q, k, v, 0.3)
    scores = 0.3 * np.einsum("bthn,bshn->bhts", q, k)
    scores[..., np.triu(np.ones((tokens, tokens), bool), 1)] = -np.inf
    want = np.einsum("bhts,bshv->bthv", plain.softmax(scores), v)
    assert relative_error(y, want) < FLOAT64


@given(cfg=any_configs(), shape=SHAPES, seed=SEEDS)
@examples
def test_mla(cfg, shape, seed):
    w = plain.below(plain.random_weights(cfg, seed), "model.layers.0.self_attn.")
    x = states(cfg, shape, seed)
    cos, sin = rope.table(cfg, np.arange(shape[1]), np.float64)
    y, saved = mla.forward(x, w, cfg, cos, sin)
    assert relative_error(y, plain.mla(x, w, cfg)) < FLOAT64
    assert saved["latent"].shape == (*shape, cfg.kv_lora_rank)
    assert saved["k_rope"].shape == (*shape, cfg.qk_rope_head_dim)


@given(cfg=any_configs(), shape=SHAPES, seed=SEEDS)
@examples
def test_ffn(cfg, shape, seed):
    dense = cfg.replace(first_k_dense_replace=1)
    w = plain.below(plain.random_weights(dense, seed), "model.layers.0.mlp.")
    x = states(cfg, shape, seed)
    y, _ = ffn.forward(x, w)
    want = np.array([[plain.ffn(token, w) for token in row] for row in x])
    assert relative_error(y, want) < FLOAT64


@given(cfg=moe_configs, tokens=st.integers(1, 20), seed=SEEDS)
@examples
def test_router(cfg, tokens, seed):
    w = plain.below(plain.random_weights(cfg, seed), "model.layers.0.mlp.")
    x = states(cfg, (tokens,), seed)
    (indices, weights), saved = router.forward(
        x, w["gate.weight"], w.get("gate.e_score_correction_bias"), cfg
    )
    routes = [plain.route(token, w, cfg) for token in x]
    assert indices.tolist() == [[e for e, _ in route] for route in routes]
    assert relative_error(weights, [[weight for _, weight in route] for route in routes]) < FLOAT64
    assert saved["scores"].shape == (tokens, cfg.n_routed_experts)


@given(cfg=moe_configs, shape=SHAPES, seed=SEEDS)
@examples
def test_moe(cfg, shape, seed):
    layer = build.model(cfg, seed).layers[0]["mlp"]
    w = plain.below(plain.random_weights(cfg, seed), "model.layers.0.mlp.")
    x = states(cfg, shape, seed)
    y, _ = moe.forward(x, layer, cfg)
    want = np.array([[plain.moe(token, w, cfg) for token in row] for row in x])
    assert relative_error(y, want) < FLOAT64


@given(experts=st.integers(1, 9), tokens=st.integers(1, 30), k=st.integers(1, 4), seed=SEEDS)
@examples
def test_dispatch_sorts_and_can_be_undone(experts, tokens, k, seed):
    indices = np.random.default_rng(seed).integers(0, experts, (tokens, k))
    token, position, offsets = moe.dispatch(indices, experts)
    assert offsets[0] == 0 and offsets[-1] == indices.size
    for expert in range(experts):
        own = token[offsets[expert] : offsets[expert + 1]]
        # Exactly the tokens that chose it, in their order.
        assert own.tolist() == np.nonzero(indices == expert)[0].tolist()
    assert sorted(position.ravel()) == list(range(indices.size))
    assert (token[position] == np.arange(tokens)[:, None]).all()


@given(cfg=any_configs(), shape=SHAPES, seed=SEEDS)
@examples
def test_the_whole_model(cfg, shape, seed):
    tokens = np.random.default_rng(seed).integers(0, cfg.vocab_size, shape)
    want = plain.model(tokens, plain.random_weights(cfg, seed), cfg)
    assert relative_error(build.model(cfg, seed)(tokens), want) < FLOAT64
