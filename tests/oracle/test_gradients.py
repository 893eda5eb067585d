"""Both engines' gradients against transformers' autograd, of the same checkpoint, in float64."""

import tempfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from minik2 import pytorch, reference
from tests.oracle import twin
from tests.oracle.configs import configs
from tests.reference.gradients import assert_alike

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 40))


def gradients_of(theirs, names, tokens, targets):
    """transformers' loss, and its gradients by the checkpoint's names."""
    logits = theirs(torch.from_numpy(tokens)).logits
    loss = F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten())
    held = dict(theirs.named_parameters())
    held = dict(zip(held, torch.autograd.grad(loss, list(held.values())), strict=True))
    return loss.item(), {name: twin.find(held, name) for name in names}


@pytest.mark.parametrize("scoring", ["sigmoid", "softmax"])
@given(data=st.data(), shape=SHAPES, seed=st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_gradients_equal_transformers_in_float64(scoring, data, shape, seed):
    cfg = data.draw(configs(scoring, halves=True))
    rng = np.random.default_rng(seed)
    tokens, targets = rng.integers(0, cfg.vocab_size, (2, *shape))
    targets[rng.random(shape) < 0.3] = -100
    targets[0, 0] = 1
    with twin.in_float64(), tempfile.TemporaryDirectory() as directory:
        theirs = twin.build(cfg, seed)
        theirs.save_pretrained(directory)
        ours = reference.Model.from_pretrained(directory, dtype="float64")
        torchs = pytorch.Model.from_pretrained(directory, dtype=torch.float64)
        value, grads = ours.loss_and_grads(tokens, targets)
        torch_value, torch_grads = torchs.loss_and_grads(tokens, targets)
        want, their_grads = gradients_of(theirs, list(grads), tokens, targets)
    assert sum(g.size for g in grads.values()) == sum(p.numel() for p in theirs.parameters())
    for loss, own in ((value, grads), (torch_value.item(), torch_grads)):
        assert loss == pytest.approx(want, rel=1e-9)
        assert_alike(own, their_grads)
