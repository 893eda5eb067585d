"""The latent cache: however the tokens arrive and whichever form looks at them, the same logits."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minik2 import cost, reference, sizing
from minik2.config import ModelConfig
from tests.reference import build
from tests.reference.bounds import FLOAT64, relative_error
from tests.reference.test_parts import any_configs

TINY = ModelConfig.preset("tiny")
TOKENS = np.arange(24).reshape(2, 12)


def form(absorbed: bool):
    """Within, every call attends in this form, whatever it costs."""
    return mock.patch.object(cost, "absorb", lambda *_: absorbed)


def differences(model, tokens, cache, steps):
    """The worst error of each step against all at once; a step is (counts, absorbed)."""
    want, worst = model(tokens), []
    for counts, absorbed in steps:
        start = cache.lengths.copy()
        # Padded with what comes next: a cache that took it in would answer wrongly later.
        given = np.stack([np.resize(row[n : n + counts.max()], counts.max())
                          for row, n in zip(tokens, start, strict=True)])  # fmt: skip
        with form(absorbed):
            got = model(given, cache=cache, counts=counts)
        assert (cache.lengths == start + counts).all()
        for b, (n, held) in enumerate(zip(counts, start, strict=True)):
            assert (got[b, n:] == 0).all()
            if n:
                worst.append(relative_error(got[b, :n], want[b, held : held + n]))
    return worst


@given(cfg=any_configs(), batch=st.integers(1, 3), total=st.integers(1, 14),
       seed=st.integers(0, 2**31))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_ragged_chunks_in_either_form_equal_all_at_once(cfg, batch, total, seed):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, cfg.vocab_size, (batch, total))
    model, steps, left = build.model(cfg, seed), [], np.full(batch, total)
    while left.any():
        counts = rng.integers(0, left + 1)
        left -= counts
        if counts.any():
            steps.append((counts, bool(rng.integers(2))))
    cache = model.new_cache(batch, total)
    assert all(error < 1e-10 for error in differences(model, tokens, cache, steps))


@given(cfg=any_configs(), batch=st.integers(1, 3), absorbed=st.booleans(),
       seed=st.integers(0, 2**31))  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_token_by_token_equals_all_at_once(cfg, batch, absorbed, seed):
    tokens = np.random.default_rng(seed).integers(0, cfg.vocab_size, (batch, 9))
    model = build.model(cfg, seed)
    cache = model.new_cache(batch, 9)
    steps = [(np.ones(batch, int), absorbed)] * 9
    assert all(error < 1e-10 for error in differences(model, tokens, cache, steps))


@pytest.mark.parametrize("absorbed", [True, False])
def test_long_sequences_are_looked_at_in_blocks(absorbed, monkeypatch):
    """Blocks of a few queries, each over all that came before."""
    monkeypatch.setattr(reference.attention, "SCORES", 500)
    tokens = np.random.default_rng(0).integers(0, TINY.vocab_size, (2, 200))
    model = build.model(TINY, 0)
    steps = [(np.array([90, 60]), absorbed), (np.array([110, 140]), absorbed)]
    errors = differences(model, tokens, model.new_cache(2, 256), steps)
    assert max(errors) < 100 * FLOAT64


def test_a_cache_is_as_large_as_the_arithmetic_says_and_no_number_more():
    for name in ("tiny", "bench"):
        cfg = ModelConfig.preset(name)
        for dtype, size in (("float32", 4), ("float64", 8)):
            cache = reference.Cache(cfg, 3, 100, dtype)
            assert cache.nbytes == sizing.kv_cache_bytes(cfg, 100, 3, size)
            arrays = [v for v in vars(cache).values() if isinstance(v, np.ndarray)]
            assert sum(array.nbytes for array in arrays) == cache.nbytes + cache.lengths.nbytes


def test_truncated_and_filled_again_it_is_as_if_nothing_had_been_there():
    model = build.model(TINY, 0)
    want, cache = model(TOKENS), model.new_cache(2, 12)
    model(TOKENS[:, ::-1], cache=cache)
    cache.truncate(0)
    assert cache.lengths.tolist() == [0, 0]
    model(TOKENS, cache=cache)
    cache.truncate([5, 7])
    rest = np.stack([TOKENS[0, 5:10], TOKENS[1, 7:12]])
    got = model(rest, cache=cache)
    assert relative_error(got, np.stack([want[0, 5:10], want[1, 7:12]])) < 1e-12


def test_a_row_does_not_depend_on_its_neighbours():
    model = build.model(TINY, 0)
    tokens = np.tile(TOKENS[:1], (2, 1))
    cache = model.new_cache(2, 12)
    tokens[1] = tokens[1, ::-1]
    got = model(tokens, cache=cache, counts=[12, 3])
    alone = model(tokens[:1], cache=model.new_cache(1, 12))
    assert relative_error(got[:1], alone) < FLOAT64


@pytest.mark.parametrize(("counts", "error", "words"), [
    ([1], ValueError, "one a sequence"),
    ([1, -1], ValueError, "from 0 to 12"),
    ([1, 13], ValueError, "from 0 to 12"),
    ([1.0, 2.0], TypeError, "whole numbers"),
    ([[1, 2], [3]], ValueError, "differ in length"),
    (None, ValueError, "room for 14"),
    ([2, 12], ValueError, "sequence 1"),
])  # fmt: skip
def test_a_refused_call_leaves_the_cache_as_it_was(counts, error, words):
    model = build.model(TINY, 0)
    cache = model.new_cache(2, 14)
    model(TOKENS[:, :3], cache=cache)
    before = cache.rows.copy()
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
    for other in (build.model(TINY, 0, "float32"), build.model(TINY.replace(n_group=2), 0)):
        with pytest.raises(ValueError, match="another model"):
            model(TOKENS, cache=other.new_cache(2, 16))
    with pytest.raises(ValueError, match="give a cache"):
        model(TOKENS, counts=[1, 1])
    assert not cache.lengths.any() and not cache.rows.any()


def test_nothing_is_kept_of_a_call_that_was_broken_off(monkeypatch):
    """Ctrl-C in the last layer: the lengths have not moved, and the next call is right."""
    model = build.model(TINY, 0)
    want, cache = model(TOKENS), model.new_cache(2, 12)
    model(TOKENS[:, :4], cache=cache)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(reference.model.products, "product", _interrupted)
        model(TOKENS[:, ::-1][:, :8], cache=cache)
    assert cache.lengths.tolist() == [4, 4]
    assert relative_error(model(TOKENS[:, 4:], cache=cache), want[:, 4:]) < FLOAT64


def _interrupted(x, weight, count=[0]):  # noqa: B006 - counts its calls
    count[0] += 1
    if count[0] == 12:
        raise KeyboardInterrupt
    return np.matmul(x, weight.T)


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
