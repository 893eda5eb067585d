"""The schedule against torch's own: LinearLR, ConstantLR and CosineAnnealingLR in a row."""

import doctest

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minik2.training import schedule
from minik2.training.schedule import wsd


def theirs(steps, warmup, falling, final):
    """The rates of steps 1 to `steps` as torch's schedulers give them."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    schedulers = torch.optim.lr_scheduler
    rise = schedulers.LinearLR(optimizer, 1 / warmup, 1.0, warmup - 1)
    flat = schedulers.ConstantLR(optimizer, 1.0)
    fall = schedulers.CosineAnnealingLR(optimizer, falling, final)
    joined = schedulers.SequentialLR(
        optimizer, [rise, flat, fall], [warmup - 1, steps - falling - 1]
    )
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        joined.step()
    return rates


@pytest.mark.parametrize(("steps", "warmup", "decay", "final"), [
    (100, 10, 0.4, 0.1), (50, 2, 0.5, 0.0), (40, 5, 0.25, 0.3), (400, 20, 0.355, 0.1),
])  # fmt: skip
def test_equals_torchs_schedulers(steps, warmup, decay, final):
    ours = [wsd(step, steps, warmup, decay, final) for step in range(1, steps + 1)]
    assert ours == pytest.approx(theirs(steps, warmup, round(decay * steps), final), abs=1e-12)


shares = st.floats(0, 1)


@given(st.integers(1, 300), st.integers(0, 400), shares, shares)
def test_is_a_share_that_rises_and_then_falls(steps, warmup, decay, final):
    rates = [wsd(step, steps, warmup, decay, final) for step in range(1, steps + 1)]
    assert all(0 < rate <= 1 or rate == final for rate in rates)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_ends_and_corners():
    assert wsd(1, 1, 0, 0.0, 0.1) == 1
    assert wsd(1, 1, 0, 1.0, 0.1) == pytest.approx(0.1)
    assert wsd(1, 100, 50, 0.0, 0.1) == pytest.approx(1 / 50)
    assert [wsd(step, 4, 0, 0.0, 0.5) for step in range(1, 5)] == [1, 1, 1, 1]


def test_its_example():
    assert doctest.testmod(schedule).failed == 0
