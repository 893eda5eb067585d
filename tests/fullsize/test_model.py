"""The same code path with small models equals both engines, and its counts minik2.sizing's."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minik2 import pytorch, reference, sizing
from minik2.config import ModelConfig
from minik2.fullsize import Model
from minik2.reference import ffn, mla, norm, rope, router
from tests.oracle.configs import configs
from tests.pytorch.build import load, logits

TINY = ModelConfig.preset("tiny")
SEEDS = st.integers(0, 2**31)


def whole(cfg: ModelConfig, model: Model) -> dict[str, np.ndarray]:
    return {name: model.weights.tensor(name, shape) for name, shape in cfg.tensors()}


def ids(cfg: ModelConfig, tokens: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, cfg.vocab_size, tokens)


def relative(got, want) -> float:
    return float(np.abs(got - want).max() / np.abs(want).max())


@given(cfg=configs(), tokens=st.integers(1, 9), seed=SEEDS)
@settings(max_examples=40, deadline=None)
def test_logits_and_cache_equal_both_engines(cfg, tokens, seed):
    given = ids(cfg, tokens, seed)
    made = Model(cfg, seed, "float64")
    cache = made.new_cache(tokens)
    answer = made(given, cache)
    engines = reference.Model(cfg, "float64"), pytorch.Model.empty(cfg, "cpu", torch.float64)
    for engine in engines:
        load(engine, whole(cfg, made))
        assert relative(answer, logits(engine, given[None] if engine is engines[0]
                                       else torch.from_numpy(given[None]))[0, -1]) < 1e-11
    theirs = engines[0].new_cache(1, tokens)
    engines[0](given[None], cache=theirs)
    assert relative(cache.rows, theirs.rows) < 1e-11
    assert cache.lengths == theirs.lengths


@given(cfg=configs(), tokens=st.integers(2, 9), seed=SEEDS, data=st.data())
@settings(max_examples=20, deadline=None)
def test_in_two_steps_over_the_cache_as_at_once(cfg, tokens, seed, data):
    given, made = ids(cfg, tokens, seed), Model(cfg, seed, "float64")
    at_once, cache = made(given, made.new_cache(tokens)), made.new_cache(tokens)
    first = data.draw(st.integers(1, tokens - 1))
    made(given[:first], cache)
    assert relative(made(given[first:], cache), at_once) < 1e-11


@given(cfg=configs(), seed=SEEDS)
@settings(max_examples=40, deadline=None)
def test_one_token_touches_what_sizing_says_it_reads(cfg, seed):
    made = Model(cfg, seed)
    made(ids(cfg, 1, seed), made.new_cache(1))
    assert made.weights.made == sizing.parameters(cfg).read


@given(cfg=configs(), tokens=st.integers(1, 9), seed=SEEDS)
@settings(max_examples=40, deadline=None)
def test_operations_are_those_that_sizing_counts(cfg, tokens, seed):
    made = Model(cfg, seed)
    cache = made.new_cache(tokens)
    made(ids(cfg, tokens, seed), cache)
    said = sizing.flops(cfg, tokens).prefill_absorbed
    assert (made.weights.flops, made.attention_flops) == (said.weights, said.attention)
    assert cache.rows.nbytes == sizing.kv_cache_bytes(cfg, tokens, bytes_per_number=4)


@given(cfg=configs(), tokens=st.integers(1, 9), seed=SEEDS)
@settings(max_examples=40, deadline=None)
def test_an_expert_is_made_once_for_all_tokens_that_chose_it(cfg, tokens, seed):
    made, given = Model(cfg, seed), ids(cfg, tokens, seed)
    made(given, made.new_cache(tokens))
    read = dict(sizing.parameters(cfg).read_by_part)
    read["embedding"] *= len(set(given.tolist()))
    expert = 3 * cfg.hidden_size * cfg.moe_intermediate_size
    hit = sum(len(set(chosen.ravel().tolist())) for chosen in made.chosen)
    assert made.weights.made == sum(read.values()) - read["routed_experts"] + hit * expert
    assert len(made.chosen) == max(0, cfg.num_hidden_layers - cfg.first_k_dense_replace)


def test_a_pass_that_is_ended_leaves_the_cache_as_long_as_it_was():
    made = Model(TINY)
    cache = made.new_cache(8)
    made([1, 2, 3], cache)
    want = made([4], cache)
    cache.truncate(3)

    def end(layer):
        if layer == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made([5], cache, end)
    assert cache.lengths == [3] and np.array_equal(made([4], cache), want)


@pytest.mark.parametrize(("tokens", "words"), [
    ([], "at least one"), ([256], "outside the vocabulary"), (3 * [1], "room"),
])  # fmt: skip
def test_tokens_that_do_not_fit_are_refused(tokens, words):
    made = Model(TINY)
    with pytest.raises(ValueError, match=words):
        made(tokens, made.new_cache(2))


# K2's and V3's own dimensions: a layer with everything in memory that two tokens meet, expanded.
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("preset", "layer"), [
    ("kimi-k2", 0), ("kimi-k2", 1), ("deepseek-v3", 3), ("moonlight-16b-a3b", 26),
])  # fmt: skip
def test_a_layer_of_real_size_equals_the_plain_one(preset, layer):
    cfg, tokens = ModelConfig.preset(preset), 2
    made = Model(cfg)
    x = np.random.default_rng(0).standard_normal((tokens, cfg.hidden_size)).astype(np.float32)
    turn = rope.table(cfg, np.arange(tokens), np.float32)
    shapes = cfg.tensor_shapes()
    base = f"model.layers.{layer}."

    def stored(part: str) -> dict[str, np.ndarray]:
        """The tensors whose names go on with `part`, by the rest of their names."""
        start = base + part
        return {name.removeprefix(start): made.weights.tensor(name, shape)
                for name, shape in shapes.items() if name.startswith(start)}

    def gain(name: str) -> np.ndarray:
        return np.ones(cfg.hidden_size, np.float32)

    y, _ = norm.forward(x, gain("input_layernorm"), cfg.rms_norm_eps)
    plain = x + mla.forward(y[None], stored("self_attn."), cfg, *turn)[0][0]
    y, _ = norm.forward(plain, gain("post_attention_layernorm"), cfg.rms_norm_eps)
    if cfg.is_moe(layer):
        gate = stored("mlp.gate.")
        (chosen, shares), _ = router.forward(
            y, gate["weight"], gate["e_score_correction_bias"], cfg)
        plain = plain + ffn.forward(y, stored("mlp.shared_experts."))[0]
        for t in range(tokens):
            for expert, share in zip(chosen[t], shares[t], strict=True):
                out, _ = ffn.forward(y[t : t + 1], stored(f"mlp.experts.{expert}."))
                plain[t] += share * out[0]
    else:
        plain = plain + ffn.forward(y, stored("mlp."))[0]

    rows = np.zeros((tokens, cfg.kv_lora_rank + cfg.qk_rope_head_dim), np.float32)
    ours = x.copy()
    made.layer(ours, layer, rows, 0, turn)
    if cfg.is_moe(layer):
        assert np.array_equal(np.sort(made.chosen[0]), np.sort(chosen))
    assert relative(ours - x, plain - x) < 2e-5
