"""Each part in torch against the slow specification and against its NumPy twin, in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minik2 import reference
from minik2.config import ModelConfig
from minik2.pytorch import attention, rope
from minik2.pytorch.ffn import FFN
from minik2.pytorch.norm import RMSNorm
from tests.pytorch import build
from tests.reference import build as reference_build
from tests.reference import plain
from tests.reference.bounds import FLOAT64, relative_error
from tests.reference.test_parts import SEEDS, SHAPES, any_configs, examples, moe_configs, states

HEADS = st.integers(1, 4)
pytestmark = pytest.mark.usefixtures("no_graph")


@pytest.fixture
def no_graph():
    with torch.no_grad():
        yield


def both(got, twin, want):
    """The engine's answer, its twin's, and the specification's."""
    assert relative_error(got, want) < FLOAT64
    assert relative_error(got, twin) < FLOAT64


@given(cfg=any_configs(), shape=SHAPES, seed=SEEDS)
@examples
def test_norm(cfg, shape, seed):
    x, gain = states(cfg, shape, seed), states(cfg, (), seed + 1)
    norm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps).double()
    norm.weight.data.copy_(torch.from_numpy(gain))
    twin, _ = reference.norm.forward(x, gain, cfg.rms_norm_eps)
    both(norm(torch.from_numpy(x)), twin, plain.rms_norm(x, gain, cfg.rms_norm_eps))


@given(cfg=any_configs())
@settings(max_examples=200, deadline=None)
def test_frequencies_and_scale(cfg):
    twin = reference.rope.inverse_frequencies(cfg)
    both(rope.inverse_frequencies(cfg), twin, plain.frequencies(cfg))
    scales = rope.softmax_scale(cfg), reference.rope.softmax_scale(cfg), plain.softmax_scale(cfg)
    assert scales[0] == scales[1] == pytest.approx(scales[2], rel=1e-14)


@pytest.mark.parametrize("name", ModelConfig.presets())
def test_frequencies_and_scale_of_the_presets(name):
    cfg = ModelConfig.preset(name)
    twin = reference.rope.inverse_frequencies(cfg)
    both(rope.inverse_frequencies(cfg), twin, plain.frequencies(cfg))
    assert rope.softmax_scale(cfg) == reference.rope.softmax_scale(cfg)


@given(cfg=any_configs(), shape=SHAPES, heads=st.integers(1, 3), seed=SEEDS)
@examples
def test_rotation(cfg, shape, heads, seed):
    x = np.random.default_rng(seed).standard_normal((*shape, heads, cfg.qk_rope_head_dim))
    tables = rope.table(cfg, torch.arange(shape[1]), torch.float64)
    twin_tables = reference.rope.table(cfg, np.arange(shape[1]), np.float64)
    for ours, twins in zip(tables, twin_tables, strict=True):
        assert np.abs(ours.numpy() - twins).max() < FLOAT64
    got = rope.rotate(torch.from_numpy(x), *tables, cfg.rope_interleave)
    twin = reference.rope.rotate(x, *twin_tables, cfg.rope_interleave)
    want = [[[plain.rotate(v, t, cfg) for v in token] for t, token in enumerate(row)] for row in x]
    both(got, twin, np.array(want))


@given(shape=SHAPES, heads=HEADS, sizes=st.tuples(*[st.integers(1, 9)] * 2), seed=SEEDS)
@examples
def test_attention(shape, heads, sizes, seed):
    """Values narrower than keys, as wide, and wider, which PyTorch treats in three ways."""
    rng, (key, value) = np.random.default_rng(seed), sizes
    q, k = rng.standard_normal((2, *shape, heads, key))
    v = rng.standard_normal((*shape, heads, value))
    got = attention.forward(*map(torch.from_numpy, (q, k, v)), 0.7)
    twin, _ = reference.attention.forward(q, k, v, 0.7)
    both(got, twin, plain.attention(q, k, v, 0.7))


@pytest.mark.parametrize(("key", "value"), [(24, 16), (16, 16), (16, 24)])
def test_attention_over_a_thousand_tokens(key, value):
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 2, 1025, 3, key))
    v = rng.standard_normal((2, 1025, 3, value))
    got = attention.forward(*map(torch.from_numpy, (q, k, v)), 0.2)
    twin, _ = reference.attention.forward(q, k, v, 0.2)
    assert relative_error(got, twin) < FLOAT64


@given(cfg=any_configs(), shape=SHAPES, seed=SEEDS)
@examples
def test_mla(cfg, shape, seed):
    w = plain.below(plain.random_weights(cfg, seed), "model.layers.0.self_attn.")
    x = states(cfg, shape, seed)
    block = build.model(cfg, seed).model.layers[0].self_attn
    got = block(torch.from_numpy(x), *rope.table(cfg, torch.arange(shape[1]), torch.float64))
    cos_sin = reference.rope.table(cfg, np.arange(shape[1]), np.float64)
    both(got, reference.mla.forward(x, w, cfg, *cos_sin)[0], plain.mla(x, w, cfg))


@given(cfg=any_configs(), shape=SHAPES, seed=SEEDS)
@examples
def test_ffn(cfg, shape, seed):
    dense = cfg.replace(first_k_dense_replace=1)
    w = plain.below(plain.random_weights(dense, seed), "model.layers.0.mlp.")
    x = states(cfg, shape, seed)
    block = FFN(cfg.hidden_size, cfg.intermediate_size).double()
    block.load_state_dict({name: torch.from_numpy(value) for name, value in w.items()})
    want = np.array([[plain.ffn(token, w) for token in row] for row in x])
    both(block(torch.from_numpy(x)), reference.ffn.forward(x, w)[0], want)


@given(cfg=moe_configs, tokens=st.integers(1, 20), seed=SEEDS)
@examples
def test_router(cfg, tokens, seed):
    w = plain.below(plain.random_weights(cfg, seed), "model.layers.0.mlp.")
    x = states(cfg, (tokens,), seed)
    indices, weights = build.model(cfg, seed).model.layers[0].mlp.gate(torch.from_numpy(x))
    (twin_indices, twin_weights), _ = reference.router.forward(
        x, w["gate.weight"], w.get("gate.e_score_correction_bias"), cfg
    )
    routes = [plain.route(token, w, cfg) for token in x]
    assert indices.tolist() == twin_indices.tolist() == [[e for e, _ in r] for r in routes]
    both(weights, twin_weights, [[weight for _, weight in r] for r in routes])


@given(cfg=moe_configs, shape=SHAPES, seed=SEEDS)
@examples
def test_moe(cfg, shape, seed):
    """One token, which leaves most experts without a row, and many."""
    w = plain.below(plain.random_weights(cfg, seed), "model.layers.0.mlp.")
    x = states(cfg, shape, seed)
    got = build.model(cfg, seed).model.layers[0].mlp(torch.from_numpy(x))
    twin, _ = reference.moe.forward(x, reference_build.model(cfg, seed).layers[0]["mlp"], cfg)
    want = np.array([[plain.moe(token, w, cfg) for token in row] for row in x])
    both(got, twin, want)


@given(cfg=any_configs(), shape=SHAPES, seed=SEEDS)
@examples
def test_the_whole_model(cfg, shape, seed):
    tokens = np.random.default_rng(seed).integers(0, cfg.vocab_size, shape)
    want = plain.model(tokens, plain.random_weights(cfg, seed), cfg)
    twin = reference_build.model(cfg, seed)(tokens)
    both(build.model(cfg, seed)(tokens), twin, want)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_ties_choose_experts_that_are_tied(groups):
    """Which of equals torch.topk takes is its own affair; the weights must not depend on it."""
    cfg = ModelConfig.preset("tiny").replace(n_group=groups, topk_group=1)
    gate = build.model(cfg, 0).model.layers[1].mlp.gate
    gate.e_score_correction_bias.zero_()
    indices, weights = gate(torch.zeros(5, cfg.hidden_size, dtype=torch.float64))
    size = 8 // groups
    assert (indices[:, 0] != indices[:, 1]).all()
    assert (indices // size == indices[:, :1] // size).all()
    assert torch.equal(weights, torch.full((5, 2), 2.827 / 2, dtype=torch.float64))


def test_masked_groups_lose_even_to_negative_biased_scores():
    cfg = ModelConfig.preset("tiny").replace(n_group=4, topk_group=1)
    gate = build.model(cfg, 0).model.layers[1].mlp.gate
    gate.e_score_correction_bias.copy_(torch.tensor([-5.0, -5, -5, -5, -2, -3, -5, -5]))
    indices, weights = gate(torch.zeros(1, cfg.hidden_size, dtype=torch.float64))
    assert indices.tolist() == [[4, 5]]
    assert torch.allclose(weights, torch.tensor(2.827 / 2, dtype=torch.float64))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_trouble_reaches_the_logits_of_its_sequence_and_no_other(bad):
    tokens = np.arange(24).reshape(2, 12)
    for engine in build.ENGINES:
        built = build.engine(engine, ModelConfig.preset("tiny"))
        built.weights["model.embed_tokens.weight"][17] = bad  # the second row's token 5
        with np.errstate(invalid="ignore", over="ignore"):
            logits = build.logits(built, tokens)
        # Earlier tokens may be struck too: a masked weight of 0 times NaN is NaN.
        assert np.isfinite(logits[0]).all() and np.isnan(logits[1, 5:]).all(), engine
