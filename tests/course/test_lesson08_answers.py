"""The right answers of lesson 08 are the engine's Muon, and torch.optim's in turn."""

import random

import numpy as np
import pytest
import torch

from minik2.checks import exercises
from minik2.reference import muon

RIGHT = {e.id: e.reference for e in exercises() if e.lesson == "08"}


@pytest.fixture
def rng():
    seed = random.SystemRandom().randrange(10**6)
    print("seed:", seed)
    return np.random.default_rng(seed)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6), (130, 400)])
def test_newton_schulz_is_the_engines(rng, shape):
    G = rng.normal(size=shape)
    for steps in (1, 5):
        np.testing.assert_allclose(RIGHT["muon.newton_schulz"](G, steps),
                                   muon.newton_schulz(G, steps), rtol=0, atol=1e-10)


def test_scale_is_the_engines():
    for shape in ((5, 9), (9, 5), (7168, 2048)):
        assert RIGHT["muon.scale"](*shape) == muon.scale(*shape, "match_rms_adamw")


def test_steps_are_the_engines(rng):
    W = rng.normal(size=(7, 4))
    weights = {"matrix": W.copy()}
    engine, M = muon.Muon(lr=0.03, weight_decay=0.2, momentum=0.9), np.zeros_like(W)
    for _ in range(4):
        G = rng.normal(size=W.shape)
        engine.step(weights, {"matrix": G})
        W, M = RIGHT["muon.step"](W, M, G, 0.03, 0.9, 0.2).values()
    np.testing.assert_allclose(W, weights["matrix"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(M, engine.momentum_buffers["matrix"], rtol=0, atol=1e-12)


def test_steps_are_torchs_but_for_bfloat16(rng):
    """torch.optim.Muon iterates in bfloat16, so its update is known to three digits at most."""
    W, lr = rng.normal(size=(24, 10)), 0.05
    theirs = torch.nn.Parameter(torch.tensor(W))
    optimizer = torch.optim.Muon([theirs], lr=lr, weight_decay=0.2, momentum=0.9,
                                 adjust_lr_fn="match_rms_adamw")
    M, start = np.zeros_like(W), W
    for _ in range(3):
        G = rng.normal(size=W.shape)
        theirs.grad = torch.tensor(G)
        optimizer.step()
        W, M = RIGHT["muon.step"](W, M, G, lr, 0.9, 0.2).values()
    off = np.linalg.norm(theirs.detach().numpy() - W) / np.linalg.norm(W - start)
    assert off < 0.02


def test_a_stack_is_the_engines(rng):
    U = rng.normal(size=(3, 8, 5)) * np.array([1, 1e-3, 10])[:, None, None]
    weights = {"stack": np.zeros_like(U)}
    muon.Muon(lr=1.0, momentum=0.0, weight_decay=0.0).step(weights, {"stack": U})
    np.testing.assert_allclose(RIGHT["muon.stacked_experts"](U), -weights["stack"],
                               rtol=0, atol=1e-10)
