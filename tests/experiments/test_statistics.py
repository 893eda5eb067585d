"""The numbers that runs are compared by, on curves whose answers are known."""

import math

import pytest

from minik2.experiments import statistics


def power_law(steps, scale=1.0):
    """Losses 2 + 3 / √(scale × step) after these steps."""
    return [(step, 2 + 3 / math.sqrt(scale * step)) for step in steps]


def test_a_curve_reaches_a_loss_where_it_passes_it():
    slow, fast = power_law(range(1, 401)), power_law(range(1, 401), scale=2)
    # Twice as fast: the loss of 400 slow steps is there after 200.
    assert statistics.reached(fast, slow[-1][1]) == pytest.approx(200)
    assert statistics.reached(slow, fast[-1][1]) is None
    assert statistics.reached(slow, slow[0][1]) == 1


def test_a_curve_that_turns_is_taken_where_it_first_passes():
    assert statistics.reached([(0, 4.0), (10, 2.0), (20, 3.0), (30, 1.0)], 2.5) == 7.5


def test_the_share_of_runs_of_their_own_length():
    shares = [0.25, 0.5, 0.7, 1.0]
    # A line in the logarithm of the length is met exactly, wherever the target lies.
    losses = [2 - 0.3 * math.log(share) for share in shares]
    for share in (0.3, 0.5, 0.6, 0.95):
        target = 2 - 0.3 * math.log(share)
        assert statistics.crossing(shares, losses, target) == pytest.approx(share)
    assert statistics.crossing(shares, losses, losses[0] + 0.1) is None
    assert statistics.crossing(shares, losses, losses[-1] - 0.1) is None


def test_differences_are_taken_seed_by_seed():
    found = statistics.differences([1.0, 2.0, 3.0], [1.5, 1.5, 2.0])
    assert found == {"mean": pytest.approx(1 / 3), "least": -0.5, "most": 1.0}


def lines(seconds, maxima):
    return [{"kind": "step", "step": n + 1, "seconds": s, "maxima_seconds": maxima}
            for n, s in enumerate(seconds)]


def test_a_step_takes_the_median_without_its_beginning():
    found = lines([9.0, 9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], 0.5)
    assert statistics.step_seconds(found, with_maxima=True) == 4.5
    assert statistics.step_seconds(found, with_maxima=False) == 4.0


def test_a_run_that_broke_off_has_no_last_loss():
    found = [{"kind": "evaluation", "step": 0, "held_out": 5.5},
             {"kind": "evaluation", "step": 50, "held_out": 3.0}]
    assert statistics.last(found, 50) == 3.0
    assert statistics.last(found, 100) == math.inf
