"""Two ranks make the steps that one process makes. Every layout, and faults: test_ranks, slow."""

import os

import numpy as np
import pytest

from tests.training.test_ranks import TINY, do, job, kept

pytestmark = pytest.mark.skipif(os.name != "posix", reason="starts processes")


def test_two_ranks_make_the_steps_of_one_process_with_heads_being_clipped(tmp_path):
    seen, weights = {}, {}
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        (seen[ranks],) = do(ranks, job(folder, TINY, expert=ranks, steps=3, tau=0.02))
        weights[ranks] = kept(folder, TINY)
    for what in ("losses", "norms", "held_out"):
        np.testing.assert_allclose(seen[2][what], seen[1][what], rtol=1e-10, atol=0)
    assert seen[1]["loads"] == seen[2]["loads"]
    assert seen[1]["clipped"] == seen[2]["clipped"] and sum(seen[1]["clipped"]) > 0
    for name, weight in weights[1].items():
        assert np.abs(weights[2][name] - weight).max() <= 1e-9 * np.abs(weight).max(), name
