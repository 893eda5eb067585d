"""The latent cache in torch: however tokens arrive, in either form, the logits of all at once."""

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minik2 import cost, pytorch, sizing
from minik2.config import ModelConfig
from minik2.pytorch import attention
from tests.pytorch import build
from tests.reference import build as reference_build
from tests.reference.bounds import FLOAT64, relative_error
from tests.reference.test_parts import any_configs

TINY = ModelConfig.preset("tiny")
TOKENS = np.arange(24).reshape(2, 12)


def form(absorbed: bool):
    """Within, every call attends in this form, whatever it costs."""
    return mock.patch.object(cost, "absorb", lambda *_: absorbed)


def differences(want, tokens, model, cache, steps):
    """The worst error of each step against all at once; a step is (counts, absorbed)."""
    worst = []
    for counts, absorbed in steps:
        start = cache.lengths.copy()
        # Padded with what comes next: a cache that took it in would answer wrongly later.
        given = np.stack([np.resize(row[n : n + counts.max()], counts.max())
                          for row, n in zip(tokens, start, strict=True)])  # fmt: skip
        with form(absorbed):
            got = model(given, cache=cache, counts=counts)
        assert (cache.lengths == start + counts).all() and not got.requires_grad
        for b, (n, held) in enumerate(zip(counts, start, strict=True)):
            assert (got[b, n:] == 0).all()
            if n:
                worst.append(relative_error(got[b, :n], want[b, held : held + n]))
    return worst


def random_steps(rng, batch, total):
    """Ragged chunks, empty ones among them, that bring every sequence to `total`; a form each."""
    steps, left = [], np.full(batch, total)
    while left.any():
        counts = rng.integers(0, left + 1)
        left -= counts
        if counts.any():
            steps.append((counts, bool(rng.integers(2))))
    return steps


@given(cfg=any_configs(), batch=st.integers(1, 3), total=st.integers(1, 14),
       seed=st.integers(0, 2**31))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_ragged_chunks_in_either_form_equal_all_at_once_and_the_other_engine(
    cfg, batch, total, seed
):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, cfg.vocab_size, (batch, total))
    model = build.model(cfg, seed)
    for want in (build.logits(model, tokens), reference_build.model(cfg, seed)(tokens)):
        steps, cache = random_steps(rng, batch, total), model.new_cache(batch, total)
        assert max(differences(want, tokens, model, cache, steps)) < 1e-10


@given(cfg=any_configs(), batch=st.integers(1, 3), absorbed=st.booleans(),
       seed=st.integers(0, 2**31))  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_token_by_token_equals_all_at_once(cfg, batch, absorbed, seed):
    """All sequences alike, and each of a length of its own, for which decoding needs a mask."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, cfg.vocab_size, (batch, 9))
    model = build.model(cfg, seed)
    want = build.logits(model, tokens)
    for first in (np.ones(batch, int), rng.integers(1, 4, batch)):
        steps = [(first, absorbed)] + [(np.ones(batch, int), absorbed)] * 6
        errors = differences(want, tokens, model, model.new_cache(batch, 9), steps)
        assert max(errors) < 1e-10


@pytest.mark.parametrize("absorbed", [True, False])
def test_long_sequences_are_looked_at_in_blocks(absorbed, monkeypatch):
    monkeypatch.setattr(attention, "AT_ONCE", 5000)
    tokens = np.random.default_rng(0).integers(0, TINY.vocab_size, (2, 200))
    model = build.model(TINY, 0)
    steps = [(np.array([90, 60]), absorbed), (np.array([70, 70]), absorbed),
             (np.array([40, 70]), absorbed)]  # fmt: skip
    want = build.logits(model, tokens)
    assert max(differences(want, tokens, model, model.new_cache(2, 256), steps)) < 100 * FLOAT64


def test_the_cost_rule_chooses_the_form():
    asked = []

    def absorb(*arguments):
        asked.append(arguments)
        return True

    model, cache = build.model(TINY, 0), None
    cache = model.new_cache(2, 12)
    with mock.patch.object(cost, "absorb", absorb):
        model(TOKENS[:, :5], cache=cache, counts=[5, 2])
        model(TOKENS[:, :1], cache=cache)
    assert asked == [(TINY, 5, 0), (TINY, 1, 5)]


def test_a_cache_is_as_large_as_the_arithmetic_says_and_no_number_more():
    for name in ("tiny", "bench"):
        cfg = ModelConfig.preset(name)
        for dtype in (torch.bfloat16, torch.float32, torch.float64):
            model = pytorch.Model.empty(cfg, "meta", dtype)
            cache = model.new_cache(3, 100)
            assert cache.nbytes == sizing.kv_cache_bytes(cfg, 100, 3, dtype.itemsize)
            assert cache.rows.dtype == dtype and cache.rows.device == model.device
            held = [v for v in vars(cache).values() if torch.is_tensor(v)]
            assert len(held) == 1 and held[0].untyped_storage().nbytes() == cache.nbytes


def test_nothing_grows_or_moves():
    model = build.model(TINY, 0)
    cache = model.new_cache(2, 12)
    where = cache.rows.data_ptr()
    for start in range(0, 12, 4):
        model(TOKENS[:, start : start + 4], cache=cache)
    assert cache.rows.data_ptr() == where and cache.lengths.tolist() == [12, 12]


def test_truncated_and_filled_again_it_is_as_if_nothing_had_been_there():
    model = build.model(TINY, 0)
    want, cache = build.logits(model, TOKENS), model.new_cache(2, 12)
    model(TOKENS[:, ::-1], cache=cache)
    cache.truncate(0)
    assert cache.lengths.tolist() == [0, 0]
    model(TOKENS, cache=cache)
    cache.truncate([5, 7])
    rest = np.stack([TOKENS[0, 5:10], TOKENS[1, 7:12]])
    got = model(rest, cache=cache)
    assert relative_error(got, np.stack([want[0, 5:10], want[1, 7:12]])) < 1e-12


def test_a_cache_serves_inside_and_outside_inference_mode():
    model = build.model(TINY, 0)
    want = build.logits(model, TOKENS)
    with torch.inference_mode():
        cache = model.new_cache(2, 12)
        model(TOKENS[:, :6], cache=cache)
    assert relative_error(model(TOKENS[:, 6:], cache=cache), want[:, 6:]) < 1e-12


def test_bfloat16_over_a_cache_is_as_near_as_bfloat16_without():
    exact = build.model(TINY, 0)
    want, model = build.logits(exact, TOKENS), build.model(TINY, 0, torch.bfloat16)
    with torch.no_grad():
        plain = relative_error(model(TOKENS).double(), want)
    for absorbed in (True, False):
        cache = model.new_cache(2, 12)
        with form(absorbed):
            got = [model(TOKENS[:, t, None], cache=cache) for t in range(12)]
        assert relative_error(torch.cat(got, 1).double(), want) < 3 * plain


@pytest.mark.parametrize(("counts", "error", "words"), [
    ([1], ValueError, "one a sequence"),
    ([1, -1], ValueError, "from 0 to 12"),
    ([1, 13], ValueError, "from 0 to 12"),
    ([1.0, 2.0], TypeError, "whole numbers"),
    (None, ValueError, "room for 14"),
    ([2, 12], ValueError, "sequence 1"),
])  # fmt: skip
def test_a_refused_call_leaves_the_cache_as_it_was(counts, error, words):
    model = build.model(TINY, 0)
    cache = model.new_cache(2, 14)
    model(TOKENS[:, :3], cache=cache)
    before = cache.rows.clone()
    with pytest.raises(error, match=words):
        model(TOKENS, cache=cache, counts=counts)
    assert cache.lengths.tolist() == [3, 3] and (cache.rows == before).all()


def test_wrong_tokens_and_foreign_caches_are_refused_before_any_work():
    model = build.model(TINY, 0)
    cache = model.new_cache(2, 16)
    for tokens, error in [(TOKENS + TINY.vocab_size, ValueError), (TOKENS * 1.0, TypeError),
                          (TOKENS[:, :0], ValueError), (TOKENS[0], ValueError)]:  # fmt: skip
        with pytest.raises(error):
            model(tokens, cache=cache)
    with pytest.raises(ValueError, match="new_cache\\(batch=1\\)"):
        model(TOKENS[:1], cache=cache)
    for other in (build.model(TINY, 0, torch.float32), build.model(TINY.replace(n_group=2), 0)):
        with pytest.raises(ValueError, match="another model"):
            model(TOKENS, cache=other.new_cache(2, 16))
    with pytest.raises(ValueError, match="give a cache"):
        model(TOKENS, counts=[1, 1])
    with pytest.raises(ValueError, match="no cache"):
        model(TOKENS, cache=cache, watch=pytorch.Watch(TINY))
    assert not cache.lengths.any() and not cache.rows.any()


@pytest.mark.parametrize("layer", [0, 2])
def test_nothing_is_kept_of_a_call_that_was_broken_off(layer):
    """Ctrl-C in a layer: the lengths have not moved, and the next call is right."""
    model = build.model(TINY, 0)
    want, cache = build.logits(model, TOKENS), model.new_cache(2, 12)
    model(TOKENS[:, :4], cache=cache)

    def interrupt(*_):
        raise KeyboardInterrupt

    hook = model.model.layers[layer].mlp.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(TOKENS[:, ::-1][:, :8], cache=cache)
    hook.remove()
    assert cache.lengths.tolist() == [4, 4]
    assert relative_error(model(TOKENS[:, 4:], cache=cache), want[:, 4:]) < FLOAT64


@pytest.mark.parametrize(("lengths", "error"), [
    (-1, ValueError), (5, ValueError), ([4, 5], ValueError), ([1, 2, 3], ValueError),
    (2.0, TypeError), (True, TypeError),
])  # fmt: skip
def test_lengths_that_a_cache_cannot_go_back_to(lengths, error):
    model = build.model(TINY, 0)
    cache = model.new_cache(2, 12)
    model(TOKENS[:, :4], cache=cache)
    with pytest.raises(error):
        cache.truncate(lengths)
    assert cache.lengths.tolist() == [4, 4]


@pytest.mark.parametrize(("batch", "max_tokens", "error"), [
    (0, 8, ValueError), (1, 0, ValueError), (1, TINY.max_position_embeddings + 1, ValueError),
    (1.0, 8, TypeError), (1, "8", TypeError), (True, 8, TypeError),
])  # fmt: skip
def test_caches_that_cannot_be(batch, max_tokens, error):
    with pytest.raises(error):
        build.model(TINY, 0).new_cache(batch, max_tokens)
