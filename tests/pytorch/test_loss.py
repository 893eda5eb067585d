"""The head and its cross-entropy by blocks: the same loss and gradients as all at once."""

import pytest
import torch
import torch.nn.functional as F

from minik2.pytorch import loss
from tests.reference.bounds import FLOAT64, relative_error


def operands(tokens=29, size=7, vocabulary=11, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, size, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(
        vocabulary, size, generator=generator, dtype=torch.float64, requires_grad=True
    )
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    targets[::5] = -100
    return x, weight, targets


@pytest.mark.parametrize("rows", [1, 4, 28])
def test_blocks_equal_the_whole(monkeypatch, rows):
    x, weight, targets = operands()
    want = F.cross_entropy(x @ weight.T, targets)
    grads = torch.autograd.grad(3 * want, (x, weight))
    monkeypatch.setattr(loss, "AT_ONCE", rows * len(weight))
    got = loss.forward(x, weight, targets)
    assert relative_error(got.detach(), want.detach()) < FLOAT64
    for ours, theirs in zip(torch.autograd.grad(3 * got, (x, weight)), grads, strict=True):
        assert relative_error(ours, theirs) < FLOAT64
    with torch.no_grad():
        assert relative_error(loss.forward(x, weight, targets), want.detach()) < FLOAT64


def test_blocks_hold_no_more_logits_than_they_may(monkeypatch):
    x, weight, targets = operands()
    seen = []
    whole = loss._logits
    monkeypatch.setattr(loss, "AT_ONCE", 5 * len(weight))
    monkeypatch.setattr(loss, "_logits", lambda *a: seen.append(whole(*a)) or seen[-1])
    loss.forward(x, weight, targets)
    assert sum(map(len, seen)) == len(x) and max(map(len, seen)) == 5


def test_in_bfloat16_softmax_and_mean_are_float32(monkeypatch):
    x, weight, targets = operands()
    x, weight = (t.detach().to(torch.bfloat16).requires_grad_() for t in (x, weight))
    monkeypatch.setattr(loss, "AT_ONCE", 4 * len(weight))
    got = loss.forward(x, weight, targets)
    want = F.cross_entropy(F.linear(x, weight).float(), targets)
    assert got.dtype == torch.float32 and abs(got.item() - want.item()) < 1e-6
    for ours, theirs in zip(torch.autograd.grad(got, (x, weight)),
                            torch.autograd.grad(want, (x, weight)), strict=True):  # fmt: skip
        assert ours.dtype == torch.bfloat16
        assert relative_error(ours.double(), theirs.double()) < 3 * 2**-8
