"""Decoding's bounds: both limits by hand, and what must grow with what."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minik2 import sizing
from minik2.config import ModelConfig
from minik2.sizing.machines import MACHINES, Machine
from tests.oracle.configs import configs

UNIT = Machine("unit", 10**6, 100.0, {"bfloat16": 1000.0}, 0, 0, "made up")


def test_both_limits_by_hand():
    """A machine of 100 B/s and 1,000 FLOP/s; tiny reads 32,880 weights of two bytes."""
    cfg = ModelConfig.preset("tiny")
    step = sizing.decode(cfg, UNIT, tokens=10)
    assert step.weight_bytes == 2 * 32_880 and step.cache_bytes == 10 * 144
    assert step.bandwidth_seconds == (2 * 32_880 + 1440) / 100
    work = 2 * 32_512 + 3 * 2 * 10 * 2 * (2 * 16 + 8)
    assert (step.flops, step.compute_seconds) == (work, work / 1000)
    assert step.bound == "bandwidth" and step.tokens_per_second == 1 / step.bandwidth_seconds
    assert step.held_bytes == sizing.stored(cfg).bytes + 1440 and step.fits


def test_k2_fits_where_it_should():
    """1.03 TB of FP8 weights: 8 x 141 GB hold them, 8 x 80 GB do not; two bytes need 16 x 141."""
    cfg = ModelConfig.preset("kimi-k2")
    fits = {(name, weights): sizing.decode(cfg, sizing.machine(name), 4096, 1, weights).fits
            for name in ("8xh800", "8xh200", "16xh200") for weights in ("float8", "bfloat16")}
    assert [name for name, held in fits.items() if held] == [
        ("8xh200", "float8"), ("16xh200", "float8"), ("16xh200", "bfloat16")]


@given(cfg=configs(), tokens=st.integers(1, 999), batch=st.integers(1, 99))
@settings(max_examples=80, deadline=None)
def test_bounds_of_random_models(cfg, tokens, batch):
    few, more = (sizing.decode(cfg, UNIT, tokens, b) for b in (batch, batch + 1))
    assert 0 < few.seconds <= more.seconds and few.seconds == max(
        few.bandwidth_seconds, few.compute_seconds)
    # Sharing what is read never makes a token dearer.
    assert more.tokens_per_second >= few.tokens_per_second * (1 - 1e-9)
    assert sizing.decode(cfg, UNIT, tokens + 1, batch).seconds > few.seconds
    rebuilt = sizing.decode(cfg, UNIT, tokens, batch, absorbed=False)
    assert rebuilt.weight_bytes == few.weight_bytes
    assert rebuilt.flops == sizing.flops(cfg, tokens, batch).decode_rebuilt.total


def test_machines_by_name():
    assert sizing.machine("8xH200").devices == sizing.machine(" 8 x h200".strip()).devices == 8
    assert sizing.machine("laptop") == MACHINES["laptop"]
    # The bfloat16 speed stands in for int4, which is widened; float32's for a laptop's bfloat16.
    assert MACHINES["h800"].peak("int4") == 989e12 and MACHINES["laptop"].peak("float8") == 5e11
    for wrong, hint in {"h2000": "did you mean 'h200'", "0xh200": "0xh200", "": "choose one of",
                        "8x": "choose one of", "-1xh200": "h200", "9" * 9 + "xh200": "h200",
                        }.items():  # fmt: skip
        with pytest.raises(ValueError, match=hint):
            sizing.machine(wrong)
    with pytest.raises(ValueError, match=r"No speed in float64 is known of H800; it has bfloat16"):
        MACHINES["h800"].peak("float64")


def test_the_sweep_prints_a_row_a_batch_and_its_machine():
    table = str(sizing.sweep(ModelConfig.preset("kimi-k2"), sizing.machine("8xh200"), 131072,
                             (1, 8, 512), "float8"))  # fmt: skip
    lines = table.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["1", "8", "512"]
    assert lines[1].endswith("bandwidth") and lines[3].endswith("does not fit")
    assert lines[4].startswith("8 x H200 SXM: 38.4 TB/s, 1.13 TB (data-sheet")
