"""A 16-bit twin computes, the float32 model is trained."""

import copy

import numpy as np
import pytest
import torch

from minik2 import pytorch
from minik2.config import ModelConfig
from tests.pytorch import build

TINY = ModelConfig.preset("tiny")
TOKENS = np.random.default_rng(0).integers(0, 256, (2, 24))
TARGETS = np.roll(TOKENS, -1, axis=1)


def grads(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def test_a_twin_of_the_same_dtype_gives_the_models_own_gradients():
    model = build.model(TINY, 0, torch.float64)
    mixed = pytorch.Mixed(model, torch.float64)
    loss = mixed.loss(TOKENS, TARGETS, 0.1)
    loss.backward()
    got = grads(model)
    model.zero_grad()
    want = model.loss(TOKENS, TARGETS, 0.1)
    want.backward()
    assert loss.item() == want.item()
    for name, grad in grads(model).items():
        assert torch.equal(got[name], grad), name


def test_gradients_of_micro_batches_are_summed_in_float32():
    model = build.model(TINY, 0, torch.float32)
    mixed = pytorch.Mixed(model)
    one_by_one = []
    for _ in range(3):
        model.zero_grad()
        mixed.loss(TOKENS, TARGETS).backward()
        one_by_one.append(grads(model))
    model.zero_grad()
    for _ in range(3):
        mixed.loss(TOKENS, TARGETS).backward()
    for name, p in model.named_parameters():
        assert p.grad.dtype == torch.float32
        assert torch.equal(p.grad, sum(one[name] for one in one_by_one)), name
    own = [p for p in mixed.twin.parameters() if p.dtype == torch.bfloat16]
    assert own and all(p.grad is None for p in own)


def test_routers_are_shared_and_stay_float32():
    model = build.model(TINY, 0, torch.float32)
    mixed = pytorch.Mixed(model)
    for ours, theirs in zip(mixed.twin.model.layers, model.model.layers, strict=True):
        if hasattr(theirs.mlp, "gate"):
            assert ours.mlp.gate is theirs.mlp.gate
            assert ours.mlp.gate.weight.dtype == torch.float32
        assert ours.self_attn.o_proj.weight.dtype == torch.bfloat16
    gates = [n for n, p in mixed.twin.named_parameters() if p.dtype == torch.float32]
    assert gates and all(name.endswith("mlp.gate.weight") for name in gates)


def test_refresh_rounds_what_the_optimizer_has_changed():
    model = build.model(TINY, 0, torch.float32)
    mixed, watch = pytorch.Mixed(model), pytorch.Watch(TINY)
    optimizer = pytorch.MuonClip(model, lr=0.01, tau=1.0)
    before = mixed.loss(TOKENS, TARGETS, watch=watch)
    before.backward()
    old = copy.deepcopy(mixed.twin.state_dict())
    assert (optimizer.step(watch.max_logits) < 1).any()  # and so rows of the masters are scaled
    assert all(torch.equal(old[n], p) for n, p in mixed.twin.named_parameters()
               if p.dtype == torch.bfloat16)  # fmt: skip
    mixed.refresh()
    masters = dict(model.named_parameters())
    for name, p in mixed.twin.named_parameters():
        assert torch.equal(p, masters[name].to(p.dtype)), name
    assert mixed.loss(TOKENS, TARGETS) < before


def test_a_tied_head_is_one_sentence():
    tied = build.model(TINY.replace(tie_word_embeddings=True), 0, torch.float32)
    with pytest.raises(ValueError, match="gets no twin; train it in float32"):
        pytorch.Mixed(tied)
