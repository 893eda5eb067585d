"""The decoding step in Numba against the same step through the parts that training uses."""

import resource
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minik2 import reference
from minik2.config import ModelConfig
from minik2.reference import decode, kernels_decode, kernels_serial
from tests.oracle.configs import rope_scalings
from tests.reference import build
from tests.reference.bounds import relative_error, within
from tests.reference.test_parts import any_configs

TINY = ModelConfig.preset("tiny")


@given(cfg=any_configs(), batch=st.integers(1, 4), start=st.integers(0, 5),
       seed=st.integers(0, 2**31))  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_steps_equal_all_at_once(cfg, batch, start, seed):
    tokens = np.random.default_rng(seed).integers(0, cfg.vocab_size, (batch, start + 6))
    model = build.model(cfg, seed)
    want, cache = model(tokens), model.new_cache(batch, start + 6)
    if start:
        model(tokens[:, :start], cache=cache)
    for t in range(start, start + 6):
        got = model(tokens[:, t : t + 1], cache=cache)
        assert relative_error(got[:, 0], want[:, t]) < 1e-10
    assert (cache.lengths == start + 6).all()


@given(heads=st.integers(1, 9), scaling=rope_scalings(), seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_ragged_sequences_of_several_blocks(heads, scaling, seed):
    """Lengths that leave every remainder of blocks, pairs of positions and fours of heads."""
    cfg = TINY.replace(num_attention_heads=heads, rope_scaling=scaling)
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 4 * kernels_decode.BLOCK, 3)
    tokens = rng.integers(0, cfg.vocab_size, (3, counts.max() + 1))
    model = build.model(cfg, seed)
    cache = model.new_cache(3, counts.max() + 1)
    model(tokens[:, :-1], cache=cache, counts=counts)
    got = model(tokens[np.arange(3), counts][:, None], cache=cache)
    want = model(tokens)[np.arange(3), counts]
    assert relative_error(got[:, 0], want) < 1e-10
    assert (cache.lengths == counts + 1).all()


def test_more_sequences_than_a_few_give_the_same():
    model = build.model(TINY, 0)
    batch = decode.FEW + 1
    tokens = np.random.default_rng(0).integers(0, TINY.vocab_size, (batch, 4))
    cache, decoder = model.new_cache(batch, 8), reference.Decoder(model)
    model(tokens[:, :3], cache=cache)
    many = model(tokens[:, 3:], cache=cache)
    cache.truncate(3)
    assert relative_error(decoder(tokens[:, 3:], cache), many) < 1e-12


def test_a_model_that_is_trained_further_decodes_with_its_new_weights():
    model = build.model(TINY, 0)
    tokens = np.arange(6)[None]
    cache = model.new_cache(1, 8)
    model(tokens[:, :1], cache=cache)
    for array in model.weights.values():
        array *= 1.1
    cache.truncate(0)
    got = np.concatenate([model(tokens[:, t : t + 1], cache=cache) for t in range(6)], axis=1)
    assert relative_error(got, model(tokens)) < 1e-10


def test_bfloat16_weights_are_a_model_of_rounded_weights():
    """The same as float32 arithmetic with matrices rounded to bfloat16, router and norms not."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    model, tokens = build.model(TINY, 1, "float32"), np.arange(10)[None]
    decoder = reference.Decoder(model, weights="bfloat16")
    cache = model.new_cache(1, 10)
    got = np.concatenate([decoder(tokens[:, t : t + 1], cache) for t in range(10)], axis=1)
    rounded = build.model(TINY, 1, "float32")
    for name, array in rounded.weights.items():
        if array.ndim == 2 and "mlp.gate." not in name and "embed" not in name:
            array[...] = array.astype(ml_dtypes.bfloat16).astype(np.float32)
    assert relative_error(got, rounded(tokens)) < 6e-5 < 1e-3 < relative_error(got, model(tokens))
    assert got.dtype == np.float32


@given(seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_bfloat16_is_widened_as_ml_dtypes_does(seed):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    rng = np.random.default_rng(seed)
    w = rng.standard_normal(77).astype(np.float32) * np.float32(10.0) ** rng.integers(-30, 30, 77)
    w = w.astype(np.float32).astype(ml_dtypes.bfloat16)
    x = rng.standard_normal(77).astype(np.float32)
    terms = w.astype(np.longdouble) * x.astype(np.longdouble)
    got = kernels_serial.dot(w.view(np.uint16)[None], 0, x[None], 0)
    assert within(np.array(got), terms.sum(), 80 * 2.0**-23 * np.abs(terms).sum())


@pytest.mark.parametrize(("dtype", "weights"), [
    ("float64", "bfloat16"), ("float64", "float32"), ("float32", "float64"), ("float32", "int8"),
])  # fmt: skip
def test_other_weights_are_refused(dtype, weights):
    with pytest.raises(ValueError, match="bfloat16"):
        reference.Decoder(reference.Model.init(TINY, dtype=dtype), weights)


def test_a_decoder_checks_as_the_model_does():
    model = build.model(TINY, 0)
    decoder, cache = reference.Decoder(model), model.new_cache(2, 1)
    for tokens, error in [(np.full((2, 1), TINY.vocab_size), ValueError),
                          (np.zeros((2, 1)), TypeError), (np.zeros((2, 2), int), ValueError),
                          (np.zeros((1, 1), int), ValueError)]:  # fmt: skip
        with pytest.raises(error):
            decoder(tokens, cache)
    decoder(np.zeros((2, 1), int), cache)
    with pytest.raises(ValueError, match="room for 1"):
        decoder(np.zeros((2, 1), int), cache)
    with pytest.raises(ValueError, match="another model"):
        decoder(np.zeros((2, 1), int), build.model(TINY, 0, "float32").new_cache(2, 1))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_trouble_in_the_weights_shows_in_the_logits(bad):
    for name in ("self_attn.kv_a_layernorm", "mlp.shared_experts.down_proj", "mlp.gate"):
        model = build.model(TINY, 0)
        model.weights[f"model.layers.1.{name}.weight"].flat[0] = bad
        cache = model.new_cache(1, 4)
        logits = [model(np.array([[t]]), cache=cache) for t in range(3)]
        whole = model(np.arange(3)[None])
        assert np.isfinite(whole).all() == np.isfinite(logits).all()


def test_the_steady_state_takes_no_memory():
    """A hundred steps: no page of memory new to the process, no object that stays."""
    cfg = ModelConfig.preset("small")
    model = reference.Model.init(cfg)
    cache = model.new_cache(1, 400)
    tokens = np.array([[5]])
    for _ in range(150):
        model(tokens, cache=cache)
    tracemalloc.start()
    try:
        model(tokens, cache=cache)
        before, faults = tracemalloc.get_traced_memory()[0], _faults()
        for _ in range(100):
            model(tokens, cache=cache)
        after, faults = tracemalloc.get_traced_memory()[0], _faults() - faults
    finally:
        tracemalloc.stop()
    # Some kB for tracemalloc's own books; one array kept a step would be 100 times 0.5 kB and up.
    assert after - before < 20_000
    assert faults < 50


def _faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
