"""MuonClip in both engines: step for step alike, and wired to what the forward pass shows."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from minik2 import pytorch, reference
from minik2.config import ModelConfig
from tests.oracle.configs import configs
from tests.pytorch import build
from tests.pytorch.test_muon import gradients_by_name, with_gradients
from tests.pytorch.test_watch import watching
from tests.reference.optimizers import FLOAT64
from tests.reference.spectra import error
from tests.reference.test_parts import SEEDS

TINY = ModelConfig.preset("tiny")
engines = pytest.mark.parametrize("engine", build.ENGINES)


def optimizer_of(engine, model, *arguments, **keywords):
    maker = reference.muon.MuonClip if engine == "reference" else pytorch.MuonClip
    return maker(model, *arguments, **keywords)


def train(engine, model, optimizer, tokens):
    """One forward and backward pass and step; returns γ and the maxima that it came from."""
    watch = watching(engine, model.cfg)
    inputs, targets = tokens[:, :-1], np.ascontiguousarray(tokens[:, 1:])
    if engine == "reference":
        _, grads = model.loss_and_grads(inputs, targets, watch=watch)
        gamma = optimizer.step(grads, watch.max_logits)
    else:
        optimizer.zero_grad()
        model.loss(inputs, targets, watch=watch).backward()
        gamma = optimizer.step(watch.max_logits)
    return np.asarray(gamma), np.asarray(watch.max_logits)


def values(model):
    return {name: np.asarray(t.detach() if torch.is_tensor(t) else t).copy()
            for name, t in model.weights.items()}  # fmt: skip


@given(cfg=configs(), seed=SEEDS)
@settings(max_examples=20, deadline=None)
def test_every_step_is_the_same_in_both_engines(cfg, seed):
    """Any gradients, heads past tau among others, rates set by a schedule."""
    ours, theirs = build.model(cfg, seed), build.engine("reference", cfg, seed)
    rng = np.random.default_rng(seed)
    optimizers = [optimizer_of(engine, model, lr=0.01, adamw_lr=0.02, nesterov=bool(seed % 2))
                  for engine, model in (("pytorch", ours), ("reference", theirs))]  # fmt: skip
    for step in range(3):
        tops = 150 * rng.random((cfg.num_hidden_layers, cfg.num_attention_heads))
        tops[0, 0] = 300.0
        for group in optimizers[0].param_groups:
            group["lr"] *= 0.9**step
        optimizers[1].muon.lr *= 0.9**step
        optimizers[1].adamw.lr *= 0.9**step
        with_gradients(ours, seed + step)
        grads = {name: grad.numpy() for name, grad in gradients_by_name(ours).items()
                 if "correction_bias" not in name}  # fmt: skip
        gamma = optimizers[0].step(torch.from_numpy(tops))
        want = optimizers[1].step(grads, tops)
        assert want[0, 0] == 100 / 300 and (want <= 1).all()
        assert error(gamma, want) < FLOAT64
        for name, tensor in ours.weights.items():
            assert error(tensor.detach(), theirs.weights[name]) < FLOAT64, name
    matrices = optimizers[1].muon.momentum_buffers
    assert matrices.keys() | optimizers[1].adamw.means.keys() == grads.keys()
    assert not matrices.keys() & optimizers[1].adamw.means.keys()


def test_both_engines_learn_alike_with_clipping_biting():
    """Each with its own gradients and its own maxima."""
    batches = np.random.default_rng(0).integers(0, 256, (4, 2, 30))
    models = [build.engine(engine, TINY) for engine in build.ENGINES]
    optimizers = [optimizer_of(engine, model, lr=0.01, tau=4.0)
                  for engine, model in zip(build.ENGINES, models, strict=True)]  # fmt: skip
    clipped = []
    for tokens in batches:
        (gamma, tops), (other, _) = (
            train(*three, tokens) for three in zip(build.ENGINES, models, optimizers, strict=True)
        )
        clipped.append(gamma < 1)
        assert np.allclose(gamma, 4.0 / np.maximum(tops, 4.0), rtol=1e-15)
        assert error(other, gamma) < FLOAT64
        for name, array in models[0].weights.items():
            assert error(models[1].weights[name].detach(), array) < FLOAT64, name
    assert clipped[0].any() and not np.all(clipped)


@engines
def test_a_clipped_heads_maximum_shrinks_by_gamma_and_no_other_changes(engine):
    """Learning rate 0, so that the step is the clipping alone; of all heads one is past tau."""
    model = build.engine(engine, TINY)
    tokens = np.random.default_rng(0).integers(0, 256, (2, 40))
    idle = optimizer_of(engine, model, lr=0.0, tau=1e9)
    before = train(engine, model, idle, tokens)[1]
    layer, head = np.unravel_index(before.argmax(), before.shape)
    tau = np.sort(before, axis=None)[-2:].mean()
    clipping = optimizer_of(engine, model, lr=0.0, tau=tau)
    gamma, tops = train(engine, model, clipping, tokens)
    assert (tops == before).all() and np.argwhere(gamma < 1).tolist() == [[layer, head]]
    after = train(engine, model, idle, tokens)[1]
    assert after[layer, head] == pytest.approx(tau, rel=1e-13)
    # Layers after it see what the clipped head made of the tokens.
    others = gamma[: layer + 1] == 1
    assert (after[: layer + 1][others] == before[: layer + 1][others]).all()


@engines
def test_without_tau_it_is_muon_and_adamw(engine):
    tokens = np.random.default_rng(0).integers(0, 256, (2, 40))
    models = [build.engine(engine, TINY) for _ in range(2)]
    never = optimizer_of(engine, models[0], lr=0.01, tau=1e9)
    without = optimizer_of(engine, models[1], lr=0.01, tau=None)
    for model, optimizer in zip(models, (never, without), strict=True):
        gamma, _ = train(engine, model, optimizer, tokens)
        assert gamma.shape == (3, 2) and (gamma == 1).all()
    one, other = map(values, models)
    assert all((one[name] == other[name]).all() for name in one)
    if engine == "reference":
        gamma = without.step(models[1].loss_and_grads(tokens, tokens)[1])
    else:
        gamma = without.step()
    assert gamma.shape == (3, 2) and (np.asarray(gamma) == 1).all()
    assert any((array != other[name]).any() for name, array in values(models[1]).items())


@engines
@pytest.mark.parametrize("tau", [100.0, None])
def test_maxima_that_cannot_be_meant_leave_the_model_as_it_was(engine, tau):
    model = build.engine(engine, TINY)
    optimizer = optimizer_of(engine, model, lr=0.01, tau=tau)
    tokens = np.arange(8)[None]
    _, grads = model.loss_and_grads(tokens, tokens)
    if engine == "pytorch":
        model.loss(tokens, tokens).backward()
    before = values(model)

    def step(tops):
        if engine == "reference":
            optimizer.step(grads, tops)
        else:
            optimizer.step(None if tops is None else torch.from_numpy(tops))

    with pytest.raises(ValueError, match="3 layers with 2 heads each, not the shape"):
        step(np.zeros((2, 2)))
    for bad in (math.nan, math.inf, -math.inf):
        tops = np.zeros((3, 2))
        tops[2, 1] = bad
        with pytest.raises(ValueError, match=r"\(layer, head\) \[\(2, 1\)\] are not finite"):
            step(tops)
    if tau is not None:
        with pytest.raises(ValueError, match=r"tau=100\.0 wants the largest logits of 3 layers"):
            step(None)
    after = values(model)
    assert all((after[name] == before[name]).all() for name in before)


@engines
def test_a_tau_that_cannot_be_meant_is_refused_before_any_step(engine):
    model = build.engine(engine, TINY)
    for tau in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="tau is the largest logit allowed, above 0, not"):
            optimizer_of(engine, model, lr=0.01, tau=tau)
