"""Training compute: V3's published hours, the rule beside the exact count, what grows with what."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minik2 import sizing
from minik2.config import ModelConfig
from tests.oracle.configs import configs


def test_v3s_hours_give_a_utilisation():
    """By hand: 6 x 36.62 G weights met and 6 x 61 x 128 x 320 x 2,048.5 of attention for each of
    14.8 T tokens, in 2.664 M hours of 989 TFLOP/s."""
    found = sizing.calibration()
    token = 6 * 36_624_596_992 + 6 * 61 * 128 * 320 * 2048.5
    by_hand = token * 14.8e12 / (2.664e6 * 3600 * 989e12)
    assert math.isclose(found.utilisation, by_hand, rel_tol=1e-6)
    assert round(found.utilisation, 3) == 0.391
    assert found.utilisation < found.utilisation_with_mtp < 1.1 * found.utilisation
    assert "39.1% of 989 TFLOP/s (bfloat16)" in str(found)


def test_v3s_own_hours_come_back():
    cfg = ModelConfig.preset("deepseek-v3")
    run = sizing.training_compute(cfg, 14_800_000_000_000)
    assert math.isclose(run.hours, 2.664e6, rel_tol=1e-6)
    # 36.63 B active weights without the embedding; attention comes on top.
    assert run.rule == 6 * 36_625_618_432 * 14_800_000_000_000 < run.exact
    assert "H800-hours at an assumed 39.1% of peak" in str(run)


@given(cfg=configs(), tokens=st.integers(1, 10**15), context=st.integers(1, 10**5))
@settings(max_examples=60, deadline=None)
def test_compute_of_random_models(cfg, tokens, context):
    run = sizing.training_compute(cfg, tokens, context, utilisation=0.5)
    twice = sizing.training_compute(cfg, 2 * tokens, context, utilisation=0.5)
    assert abs(twice.exact - 2 * run.exact) <= 1 and twice.hours > run.hours > 0
    half = sizing.training_compute(cfg, tokens, context, utilisation=0.25)
    assert math.isclose(half.hours, 2 * run.hours)
    longer = sizing.training_compute(cfg, tokens * context, context + 1, utilisation=0.5)
    assert longer.exact >= sizing.training_compute(cfg, tokens * context, context).exact
    assert run.rule == 6 * sizing.parameters(cfg).active_without_embedding * tokens


@pytest.mark.parametrize("share", [0, -1, 1.1, float("nan"), True, "half"])
def test_a_utilisation_that_is_no_share(share):
    with pytest.raises(ValueError, match="utilisation must be above 0 and at most 1, but it is"):
        sizing.training_compute(ModelConfig.preset("tiny"), 10**9, utilisation=share)
