"""The right answers of lesson 06 are what both engines compute."""

import numpy as np
import pytest
import torch

from minik2 import pytorch, reference
from minik2.checks import exercises
from minik2.training.observe import violation

RIGHT = {e.id: e.reference for e in exercises()}
SHAPES = [(40, 3, 9, 7, 5), (1, 2, 4, 6, 6), (13, 1, 30, 4, 8)]


def layer(shape):
    """x, indices, weights and the two stacks, of random numbers; some experts are idle."""
    tokens, chosen, experts, hidden, width = shape
    rng = np.random.default_rng()
    indices = np.argsort(rng.random((tokens, experts - 1)), axis=1)[:, :chosen]
    return (rng.normal(size=(tokens, hidden)), indices, rng.uniform(0.1, 2, (tokens, chosen)),
            rng.normal(size=(experts, 2 * width, hidden)),
            rng.normal(size=(experts, hidden, width)))


@pytest.mark.parametrize("shape", SHAPES)
def test_sorting_is_the_engines_dispatch(shape):
    _, indices, *_, down_proj = layer(shape)
    order, offsets = RIGHT["moe.sort_by_expert"](indices, len(down_proj))
    token, position, theirs = reference.moe.dispatch(indices, len(down_proj))
    np.testing.assert_array_equal(offsets, theirs)
    np.testing.assert_array_equal(order // indices.shape[1], token)
    np.testing.assert_array_equal(np.argsort(order), position.reshape(-1))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_three_steps_are_the_layer_of_both_engines(shape):
    x, indices, weights, gate_up_proj, down_proj = layer(shape)
    order, offsets = RIGHT["moe.sort_by_expert"](indices, len(down_proj))
    rows = x[order // indices.shape[1]]
    out = RIGHT["moe.grouped_swiglu"](rows, offsets, gate_up_proj, down_proj)
    y = RIGHT["moe.combine"](out, order, weights)

    engine = np.zeros_like(x)
    reference.moe.add_experts(engine, x, indices, weights, gate_up_proj, down_proj)
    theirs = pytorch.grouped.experts(*map(torch.from_numpy, (
        x, indices, weights, gate_up_proj, down_proj)))
    scale = np.abs(engine).max()
    np.testing.assert_allclose(y, engine, rtol=0, atol=1e-12 * scale)
    np.testing.assert_allclose(y, theirs.numpy(), rtol=0, atol=1e-12 * scale)


def test_the_violation_is_what_training_reports():
    loads = np.random.default_rng().integers(1, 90, 12)
    assert RIGHT["moe.maximum_violation"](loads) == pytest.approx(violation(loads), rel=1e-14)
