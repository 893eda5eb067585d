"""What both engines' Watch takes from forward passes, against the slow specification."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minik2 import pytorch, reference
from minik2.config import ModelConfig
from tests.pytorch import build
from tests.reference import plain
from tests.reference.bounds import FLOAT64
from tests.reference.test_parts import SEEDS, any_configs

TINY = ModelConfig.preset("tiny")
engines = pytest.mark.parametrize("engine", build.ENGINES)
SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 12))


def watching(engine, cfg):
    return reference.Watch(cfg) if engine == "reference" else pytorch.Watch(cfg, "cpu")


def by_brute_force(cfg, seed, batches):
    """max_logits and loads, one query and one token at a time, and how large their terms are."""
    tops = np.full((cfg.num_hidden_layers, cfg.num_attention_heads), -np.inf)
    loads, size = np.zeros((cfg.num_hidden_layers, cfg.n_routed_experts), int), 0.0
    layer = -1

    def attention(q, k, v, scale):
        nonlocal layer, size
        layer += 1
        size = max(size, scale * np.einsum("bthd,bshd->bhts", abs(q), abs(k)).max())
        for b, t, h in np.ndindex(q.shape[:3]):
            tops[layer, h] = max(tops[layer, h], (scale * (k[b, : t + 1, h] @ q[b, t, h])).max())
        return own_attention(q, k, v, scale)

    def route(x, w, cfg):
        chosen = own_route(x, w, cfg)
        for expert, _ in chosen:
            loads[layer, expert] += 1
        return chosen

    own_attention, own_route = plain.attention, plain.route
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain, "attention", attention)
        patch.setattr(plain, "route", route)
        for tokens in batches:
            layer = -1
            plain.model(tokens, plain.random_weights(cfg, seed), cfg)
    return tops, loads, size


@engines
@given(cfg=any_configs(), shapes=st.lists(SHAPES, min_size=1, max_size=3), seed=SEEDS)
@settings(max_examples=40, deadline=None)
def test_maxima_and_loads_of_all_passes_are_those_of_brute_force(engine, cfg, shapes, seed):
    rng = np.random.default_rng(seed)
    batches = [rng.integers(0, cfg.vocab_size, shape) for shape in shapes]
    tops, loads, size = by_brute_force(cfg, seed, batches)
    model, watch = build.engine(engine, cfg, seed), watching(engine, cfg)
    for tokens in batches:
        model.loss_and_grads(tokens, tokens, watch=watch)
    max_logits, got = np.asarray(watch.max_logits), np.asarray(watch.loads)
    assert max_logits.dtype == np.float64 and got.dtype == np.int64
    assert np.abs(max_logits - tops).max() <= FLOAT64 * size
    assert (got == loads).all()
    pairs = sum(b * t for b, t in shapes) * cfg.num_experts_per_tok
    moe = [cfg.is_moe(layer) for layer in range(cfg.num_hidden_layers)]
    assert got.sum(axis=1).tolist() == [pairs * experts for experts in moe]
    violation = np.asarray(watch.maximum_violation())
    assert np.isnan(violation).tolist() == [not experts for experts in moe]
    want = [row.max() * cfg.n_routed_experts / pairs - 1 for row in loads[moe]]
    assert np.allclose(violation[moe], want, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("tokens", [127, 300])
def test_longer_sequences_go_through_in_blocks(tokens):
    """More than one block of queries in either engine, the last one ragged."""
    rows = np.random.default_rng(tokens).integers(0, 256, (2, tokens))
    watches = [watching(engine, TINY) for engine in build.ENGINES]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minik2.pytorch.qk_clip.BLOCK", 50)
        for engine, watch in zip(build.ENGINES, watches, strict=True):
            model = build.engine(engine, TINY)
            model.loss_and_grads(rows, rows, watch=watch)
    _, saved = build.engine("reference", TINY).forward(rows)
    for layer in range(3):
        kept = saved[layer]["self_attn"]["attention"]
        logits = kept["scale"] * np.einsum("bthd,bshd->bhts", kept["q"], kept["k"])
        want = np.where(np.tri(tokens, dtype=bool), logits, -np.inf).max(axis=(0, 2, 3))
        for watch in watches:
            assert np.allclose(np.asarray(watch.max_logits[layer]), want, rtol=1e-12)
    assert (watches[0].loads == watches[1].loads.numpy()).all()


@engines
def test_it_changes_nothing_and_forgets_when_asked(engine):
    model, watch = build.engine(engine, TINY), watching(engine, TINY)
    tokens = np.random.default_rng(0).integers(0, 256, (2, 9))
    assert (np.asarray(watch.max_logits) == -np.inf).all() and watch.seconds == 0
    assert np.isnan(np.asarray(watch.maximum_violation())).all()
    alone, grads = model.loss_and_grads(tokens, tokens)
    value, watched = model.loss_and_grads(tokens, tokens, watch=watch)
    assert value == alone and all((watched[name] == grads[name]).all() for name in grads)
    assert watch.seconds > 0 and np.isfinite(np.asarray(watch.max_logits)).all()
    kept, loads = (np.asarray(kept).copy() for kept in (watch.max_logits, watch.loads))
    watch.reset()
    assert (np.asarray(watch.max_logits) == -np.inf).all() and watch.seconds == 0
    assert not np.asarray(watch.loads).any()
    model.forward(tokens, watch)
    assert (np.asarray(watch.max_logits) == kept).all() and (np.asarray(watch.loads) == loads).all()
    assert not getattr(watch.max_logits, "requires_grad", False)


@engines
def test_nan_does_not_vanish_in_the_next_passes_maximum(engine):
    model, watch = build.engine(engine, TINY), watching(engine, TINY)
    tokens, rows = np.arange(8)[None], model.weights["model.layers.1.self_attn.q_b_proj.weight"]
    kept = np.asarray(rows.detach() if torch.is_tensor(rows) else rows).copy()
    with torch.no_grad():
        rows[TINY.qk_head_dim] = np.nan  # a row of head 1
        model.forward(tokens, watch)
        rows[...] = torch.from_numpy(kept) if torch.is_tensor(rows) else kept
        model.forward(tokens, watch)
    broken = np.isnan(np.asarray(watch.max_logits))
    # Head 1 of layer 1, and all that comes after it.
    assert broken.tolist() == [[False, False], [False, True], [True, True]]
