"""Bytes of weights in the published formats: K2's files, and every tensor one by one."""

import math

import pytest
from hypothesis import given, settings

from minik2 import sizing
from minik2.config import ModelConfig
from minik2.sizing.formats import FORMATS, bits_by_part, read_bytes
from tests.oracle.configs import configs


def test_k2s_fp8_files():
    """958.5 GiB; 1,026,470,731,056 numbers when the scales count, and the stray frequencies that
    each layer's file has (a list of its tensors)."""
    files = sizing.stored(ModelConfig.preset("kimi-k2"), "float8")
    assert round(files.bytes / 2**30, 1) == 958.5
    assert 1_026_408_232_448 + files.scales // 4 + 61 * 56 == 1_026_470_731_056


def test_k2_thinkings_int4_halves_what_fp8_takes():
    """4.5 bits for each weight of a routed expert, 16 for all others."""
    files = sizing.stored(ModelConfig.preset("kimi-k2-thinking"), "int4")
    experts = 1_014_686_023_680
    rest, biases = 1_026_408_232_448 - experts, 60 * 384
    assert files.bytes == experts * 9 // 16 + 2 * rest + 2 * biases


def one_by_one(cfg: ModelConfig, form: str) -> int:
    """Every tensor by its name."""
    total = 0
    for name, shape in cfg.tensors():
        size = math.prod(shape)
        routed = ".experts." in name
        narrow = {"float8": routed or ("proj" in name), "int4": routed}.get(form, False)
        if name.endswith("bias"):
            total += 4 * size
        elif not narrow:
            total += size * (4 if form == "float32" else 2)
        elif form == "float8":
            total += size + 4 * math.ceil(shape[0] / 128) * math.ceil(shape[1] / 128)
        else:
            total += size // 2 + 2 * (size // 32)
    return total


@given(cfg=configs())
@settings(max_examples=100, deadline=None)
def test_random_models_tensor_by_tensor(cfg):
    wide = cfg.replace(hidden_size=32 * cfg.hidden_size,
                       moe_intermediate_size=32 * cfg.moe_intermediate_size)  # fmt: skip
    for form in FORMATS:
        assert sizing.stored(wide, form).bytes == one_by_one(wide, form)


@pytest.mark.parametrize("name", ModelConfig.presets())
def test_presets_tensor_by_tensor(name):
    cfg = ModelConfig.preset(name)
    for form in ("float32", "bfloat16", "float8"):
        assert sizing.stored(cfg, form).bytes == one_by_one(cfg, form)


@given(cfg=configs())
@settings(max_examples=60, deadline=None)
def test_a_growing_batch_reads_more_up_to_everything(cfg):
    sizes = [read_bytes(cfg, "bfloat16", batch) for batch in (1, 2, 8, 4096)]
    assert sizes == sorted(sizes)
    counted = sizing.parameters(cfg)
    assert math.isclose(sizes[0], 2 * counted.read)
    # A tied table is read once, as the head; an untied one has two tables of the same size.
    assert sizes[-1] <= 2 * counted.total * (1 + 1e-9)


def test_experts_read_by_a_batch_as_drawn_at_random():
    """The mean over random choices, within five times its standard error."""
    np = pytest.importorskip("numpy")
    cfg = ModelConfig.preset("tiny")
    rng, experts, chosen, batch = np.random.default_rng(0), cfg.n_routed_experts, 2, 5
    assert (experts, cfg.num_experts_per_tok) == (8, chosen)
    draws = rng.random((4000, batch, experts)).argsort(-1)[..., :chosen].reshape(4000, -1)
    hit = np.array([len(np.unique(row)) for row in draws]) / experts
    counted = sizing.parameters(cfg)
    rest = dict(counted.read_by_part)
    alone = sum(rest.values()) - rest["routed_experts"] + (batch - 1) * cfg.hidden_size
    share = (read_bytes(cfg, "bfloat16", batch) / 2 - alone) / counted.by_part["routed_experts"]
    assert abs(share - hit.mean()) < 5 * hit.std() / math.sqrt(len(hit))


def test_formats_that_are_none():
    cfg = ModelConfig.preset("tiny")
    for call in (lambda: sizing.stored(cfg, "fp8"), lambda: bits_by_part("fp8")):
        with pytest.raises(ValueError, match="no format of weights 'fp8'"):
            call()
    with pytest.raises(ValueError, match="32 does not divide 16"):
        sizing.stored(cfg, "int4")
