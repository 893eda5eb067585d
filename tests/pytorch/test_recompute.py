"""Layers computed a second time for the backward pass: the same bits, in less memory."""

import gc
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minik2 import pytorch
from minik2.config import ModelConfig
from tests.pytorch import build
from tests.reference.test_parts import SEEDS, any_configs

TINY = ModelConfig.preset("tiny")


@given(cfg=any_configs(), batch=st.integers(1, 3), alpha=st.sampled_from([0.0, 0.01]), seed=SEEDS)
@settings(max_examples=30, deadline=None)
def test_losses_gradients_and_what_was_seen_are_the_same_to_the_bit(cfg, batch, alpha, seed):
    model, found = build.engine("pytorch", cfg, seed), []
    tokens = np.random.default_rng(seed).integers(0, cfg.vocab_size, (batch, 9))
    for model.recompute in (False, True):
        watch = pytorch.Watch(cfg)
        loss, grads = model.loss_and_grads(tokens, tokens, alpha, watch)
        found.append([loss, *grads.values(), watch.max_logits, watch.loads])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("again", [False, True])
def test_what_a_watch_has_taken_does_not_wait_for_the_backward_pass(again):
    model, watch, queries = build.engine("pytorch", TINY), pytorch.Watch(TINY), []
    take = watch.take

    def noticed(layer, saved):
        queries.append(weakref.ref(saved["attention"]["q"]))
        take(layer, saved)

    watch.take, model.recompute = noticed, again
    loss = model.loss(np.arange(12)[None], np.arange(12)[None], 0.01, watch)
    gc.collect()
    held = [q() is not None for q in queries]
    assert held == [not again] * TINY.num_hidden_layers
    loss.backward()


def test_without_a_gradient_nothing_is_kept_or_computed_again():
    model = build.engine("pytorch", TINY)
    plain = model(np.arange(12)[None])
    model.recompute = True
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            again = model(np.arange(12)[None])
        assert torch.equal(again, plain) and not again.requires_grad
