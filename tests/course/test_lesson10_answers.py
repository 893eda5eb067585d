"""Lesson 10's right answers are the engine's schedule and split, and the experiments' share."""

import math
from itertools import pairwise

import numpy as np
import pytest

import minik2
from minik2.checks.exercise import find
from minik2.experiments import results, statistics
from minik2.reference import muon
from minik2.training import schedule


def right(name):
    return find(f"training.{name}").reference


@pytest.mark.parametrize(("steps", "warmup", "falling", "final"),
                         [(250, 20, 100, 0.1), (37, 5, 11, 0.25), (90, 1, 1, 0.5)])
def test_the_schedule_is_the_engines(steps, warmup, falling, final):
    engine = [schedule.wsd(step, steps, warmup, falling / steps, final)
              for step in range(1, steps + 1)]
    np.testing.assert_allclose(right("wsd")(steps, warmup, falling, final), engine, rtol=1e-12)


@pytest.mark.parametrize("preset", ["tiny", "small", "moonlight-16b-a3b", "deepseek-v3"])
def test_the_groups_are_what_muon_takes_and_all_that_is_trained(preset):
    cfg = minik2.ModelConfig.preset(preset)
    got = right("groups")(cfg.tensor_shapes())
    taken = sum(math.prod(s) for name, s in cfg.tensors() if muon.takes(name, s))
    parts = minik2.sizing.parameters(cfg).by_part
    assert got == {"muon": taken, "adamw": parts["embedding"] + parts["norms"] + parts["head"]}


def test_the_share_is_that_of_the_experiments():
    found = results.read(results.path_of("muon_vs_adamw", "cpu"))["found"]
    shares = []
    for ours, theirs in zip(*found["curves"].values(), strict=True):
        (steps, losses), (_, goal) = np.array(ours).T, np.array(theirs).T
        shares.append(right("token_share")(steps, losses, goal, 1))
        place = statistics.reached(ours, goal[-1])
        assert shares[-1] == pytest.approx(place / steps[-1], abs=1e-12)
    assert shares == pytest.approx(found["share_on_the_way"], abs=1e-4)


def test_a_curve_that_is_twice_as_fast_needs_half_of_the_tokens():
    at = np.arange(1.0, 101)
    ours, theirs = 10 - 0.04 * at, 10 - 0.02 * at
    assert right("token_share")(at, ours, theirs, 1) == pytest.approx(0.5)
    # A mean of nine lies four steps behind its last loss, in both curves.
    assert right("token_share")(at, ours, theirs, 9) == pytest.approx((96 / 2 + 4) / 100)
    assert right("token_share")(at, theirs, ours, 9) == np.inf


def test_a_spike_is_marked_while_it_is_new_and_noise_is_not():
    """A new level that stays is one for as long as most of the window is from before it."""
    calm = 2 + 0.1 * np.sin(np.arange(80) ** 2)
    assert not right("spikes")(calm, 11, 6.0).any()
    raised = calm + np.where(np.arange(80) >= 40, 3.0, 0.0)
    marked = np.flatnonzero(right("spikes")(raised, 11, 6.0))
    assert marked[0] == 40 and len(marked) <= 6
    assert all(b - a == 1 for a, b in pairwise(marked))
