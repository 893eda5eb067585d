"""Lesson 11's right answers are `minik2.sizing`'s and the checkpoint reader's, at real sizes."""

import json
from importlib import resources

import ml_dtypes
import numpy as np
import pytest

import minik2
from minik2 import sizing
from minik2.checkpoint import float8
from minik2.checks.exercise import find
from minik2.reference.cache import Cache
from minik2.sizing.cluster import stage_weights
from minik2.sizing.formats import bits_by_part, read_bytes

WITH_QUERY_LATENT = ["kimi-k2", "kimi-k2-thinking", "deepseek-v3", "small", "tiny"]


def right(name):
    return find(f"fullscale.{name}").reference


def raw(preset):
    text = (resources.files("minik2") / "presets" / f"{preset}.json").read_text(encoding="utf-8")
    return json.loads(text)


@pytest.mark.parametrize("preset", WITH_QUERY_LATENT)
def test_layers_and_models_are_counted_as_the_checkpoint_has_them(preset):
    cfg = minik2.ModelConfig.preset(preset)
    shapes = cfg.tensor_shapes()
    for layer in {0, cfg.first_k_dense_replace, cfg.num_hidden_layers - 1}:
        own = sum(np.prod(shape, dtype=np.int64) for name, shape in shapes.items()
                  if name.startswith(f"model.layers.{layer}."))
        assert right("count_layer")(raw(preset), layer) == own
    counted = sizing.parameters(cfg)
    assert right("count_model")(raw(preset)) == {
        "total": counted.total, "active": counted.active_without_embedding}


def test_the_published_totals_come_out():
    assert right("count_model")(raw("kimi-k2"))["total"] == 1_026_408_232_448
    assert round(right("count_model")(raw("deepseek-v3"))["total"] / 1e9, 1) == 671.0


@pytest.mark.parametrize("preset", ["kimi-k2", "deepseek-v3", "small"])
def test_caches_in_pages_are_what_engines_would_lay_out(preset):
    """An engine's cache of whole pages, sequence by sequence; the small one is really made."""
    cfg = minik2.ModelConfig.preset(preset)
    lengths = np.random.default_rng().integers(1, 200, 5)
    rooms = [int(-(-n // 16) * 16) for n in lengths]
    found = right("cache_bytes")(raw(preset), lengths, 16, 3)
    assert found == 3 * sum(sizing.kv_cache_bytes(cfg, room) for room in rooms)
    if preset == "small":  # float32: twice the bytes of bfloat16
        held = sum(Cache(cfg, 1, room, np.float32).nbytes for room in rooms)
        assert 2 * found == 3 * held


@pytest.mark.parametrize("batch", [1, 7, 256])
@pytest.mark.parametrize("weights", ["bfloat16", "float8", "int4"])
def test_the_rate_is_that_of_sizing(batch, weights):
    """Where memory is the limit; sizing counts the embedding's rows too, 14 kB a token."""
    cfg, machine = minik2.ModelConfig.preset("kimi-k2"), sizing.machine("16xh200")
    bits, counted = bits_by_part(weights), sizing.parameters(cfg)
    parts = {part: float(n * bits[part] / 8) for part, n in counted.by_part.items()}
    experts = parts.pop("routed_experts")
    always = sum(parts.values()) - parts["embedding"] + batch * 2 * cfg.hidden_size
    assert always + experts * (1 - (1 - 8 / 384) ** batch) == pytest.approx(
        read_bytes(cfg, weights, batch), rel=1e-12)
    step = sizing.decode(cfg, machine, 8192, batch, weights)
    rate = right("decode_rate")(raw("kimi-k2"), always, experts, 8192, batch,
                                machine.devices * machine.bandwidth)
    assert rate == pytest.approx(batch / step.bandwidth_seconds, rel=1e-12)


@pytest.mark.parametrize("stage", [0, 1, 7, 15])
def test_states_are_those_of_a_gpu_of_the_published_layout(stage):
    cfg, layout = minik2.ModelConfig.preset("kimi-k2"), sizing.Layout(pp=16, ep=16, dp=8)
    share, matrices, rest = stage_weights(cfg, layout, stage)
    found = right("states")(16 * share, matrices, rest, 16, 8)
    held = sizing.cluster(cfg, layout).stages[stage]
    for name, ours in (("weights", held.parameters), ("gradients", held.gradients),
                       ("optimizer", held.optimizer)):
        assert 0 <= ours - found[name] < 1, name  # sizing rounds up to whole bytes


@pytest.mark.parametrize("shape", [(576, 1792), (300, 129), (128, 128)])
def test_dequantize_is_the_checkpoint_readers(shape):
    rng = np.random.default_rng()
    values, scales = float8.quantize(rng.normal(size=shape), float8.BLOCK)
    assert scales.shape == tuple(-(-n // 128) for n in shape)
    back = right("dequantize")(values.view(np.uint8), scales.astype(np.float64), 128)
    np.testing.assert_array_equal(back.astype(np.float32), float8.dequantize(values, scales))


def test_the_lessons_table_of_values_is_ml_dtypes():
    theirs = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    codes = np.arange(256, dtype=np.uint8).reshape(1, 256)
    np.testing.assert_array_equal(right("dequantize")(codes, np.ones((1, 2)), 128)[0], theirs)
