"""A model that stays in its files gives what the same model gives in memory, and holds little."""

import subprocess
import sys
from types import SimpleNamespace
from unittest import mock

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minik2 import ModelConfig, checkpoint, reference
from minik2.checkpoint import CheckpointError, float8, int4
from minik2.reference import kernels_stored, stored
from tests.checkpoint.test_bad_formats import rewrite, spoiled
from tests.oracle.configs import configs
from tests.reference import build
from tests.reference.bounds import relative_error

TINY = ModelConfig.preset("tiny")
# Ragged FP8 blocks, more than one of them, and rows of whole groups of 32.
WIDE = TINY.replace(hidden_size=160, moe_intermediate_size=96, q_lora_rank=40, kv_lora_rank=136)
FORMATS = (None, "float8", "float8_ue8m0", "int4")


def both(path, dtype="float64"):
    """The same checkpoint in memory and left in its files."""
    models = reference.Model, reference.MappedModel
    return [model.from_pretrained(path, dtype=dtype) for model in models]


def agree(held, mapped, tokens) -> float:
    """How far the logits are apart: at once, over a cache in pieces, and token by token."""
    want = held(tokens)
    errors = [relative_error(mapped(tokens), want)]
    for sizes in ([tokens.shape[1]], [3, tokens.shape[1] - 3], [1] * tokens.shape[1]):
        cache = mapped.new_cache(len(tokens), tokens.shape[1])
        ends = np.cumsum(sizes)
        got = np.concatenate([mapped(tokens[:, end - n : end], cache=cache)
                              for n, end in zip(sizes, ends, strict=True)], axis=1)  # fmt: skip
        errors.append(relative_error(got, want))
    return max(errors)


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_logits_in_every_format(tmp_path, format):
    build.model(WIDE, 3, "float64").save_pretrained(tmp_path, format=format)
    tokens = np.random.default_rng(0).integers(0, 256, (2, 11))
    held, mapped = both(tmp_path)
    assert agree(held, mapped, tokens) < 1e-12
    assert np.array_equal(mapped.generate(tokens, 12), held.generate(tokens, 12))
    assert mapped.loss(tokens, tokens) == pytest.approx(held.loss(tokens, tokens), rel=1e-12)
    assert agree(*both(tmp_path, "float32"), tokens) < 1e-4


@given(cfg=configs(), dtype=st.sampled_from(["float64", "float32", "float16", "bfloat16",
                                            "float8"]), seed=st.integers(0, 2**31))  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_the_same_logits_of_any_configuration(tmp_path_factory, cfg, dtype, seed):
    path = tmp_path_factory.mktemp("any") / "m"
    weights = build.model(cfg, seed % 1000).weights
    if dtype != "float8":
        kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
        weights = {name: array.astype(kind) for name, array in weights.items()}
    checkpoint.save(path, cfg, weights, format="float8" if dtype == "float8" else None)
    tokens = np.random.default_rng(seed).integers(0, cfg.vocab_size, (2, 5))
    assert agree(*both(path), tokens) < 1e-9


def stored_forms():
    """What each format's file holds of a matrix, the float32 matrix, rows and columns a scale."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(300, 416)).astype(np.float32)
    values, scales = float8.quantize(weight)
    values.view(np.uint8)[:2, :256] = np.arange(256)  # every number there is,
    values.view(np.uint8)[:2, [127, 255]] = 0  # but for NaN
    yield "float8", values.view(np.int8), scales, (128, 128), float8.dequantize(values, scales)
    words, scales = int4.quantize(weight)
    yield ("int4", words.view(np.uint8), scales.astype(np.float32), (1, 32),
           int4.dequantize(words, scales))  # fmt: skip
    half, none = weight.astype(ml_dtypes.bfloat16), np.empty((0, 0), np.float32)
    yield "bfloat16", half.view(np.uint16), none, (1, 1), half.astype(np.float32)
    yield "float32", weight, none, (1, 1), weight


@pytest.mark.parametrize("form", list(stored_forms()), ids=lambda form: form[0])
@pytest.mark.parametrize("tokens", [1, 4, 6])
@pytest.mark.parametrize("start", [0, 128, 200])
def test_the_kernel_multiplies_what_the_numbers_stand_for(form, tokens, start):
    """Exactly: x picks one column of the matrix a token, so no sum is rounded."""
    _, values, scales, block, weight = form
    columns = np.random.default_rng(1).integers(0, 416, tokens)
    x = np.zeros((tokens, 416), np.float32)
    x[np.arange(tokens), columns] = 1
    y = np.zeros((tokens, 300), np.float32)
    kernels_stored.stored_product(values[start:], scales[start // block[0] :], start, *block, x, y,
                                  np.empty((2, 416), np.float32))  # fmt: skip
    assert np.array_equal(y[:, start:], weight.T[columns][:, start:]) and not y[:, :start].any()


def test_fp8s_nan_stays_nan():
    for byte in (0x7F, 0xFF):
        values = np.full((1, 3), byte, np.uint8).view(np.int8)
        y, ones = np.zeros((1, 1), np.float32), np.ones((1, 1), np.float32)
        kernels_stored.stored_product(values, ones, 0, 128, 128, np.ones((1, 3), np.float32), y,
                                      np.empty((1, 3), np.float32))  # fmt: skip
        assert np.isnan(y)


@pytest.mark.parametrize("format", ["float8", "int4"])
def test_a_matrix_larger_than_what_is_mapped_at_once(tmp_path, monkeypatch, format):
    """Pieces that end within a block."""
    build.model(WIDE, 3, "float64").save_pretrained(tmp_path, format=format)
    tokens = np.arange(7)[None]
    held, mapped = both(tmp_path)
    whole = mapped(tokens)
    monkeypatch.setattr(stored, "PIECE", 6000)
    assert relative_error(held(tokens), whole) < 1e-12
    assert np.array_equal(mapped(tokens), whole)


def test_only_chosen_experts_are_read(tmp_path):
    """The others may hold what they want: here a NaN, which a whole reading refuses."""
    build.model(TINY, 0, "float32").save_pretrained(tmp_path, format="float8")
    tokens = np.arange(4)[None]
    saved = reference.Model.from_pretrained(tmp_path).forward(tokens)[1][1]
    chosen = {int(e) for e in saved["mlp"]["router"]["indices"].flat}
    (left, *_), (taken, *_) = set(range(8)) - chosen, chosen
    name = "model.layers.1.mlp.experts.{}.up_proj.weight"
    rewrite(tmp_path, spoiled(name.format(left), np.nan))
    with pytest.raises(CheckpointError, match=rf"experts\.{left}\.up_proj.*holds nan at \[0, 0\]"):
        reference.Model.from_pretrained(tmp_path)
    assert np.isfinite(reference.MappedModel.from_pretrained(tmp_path)(tokens)).all()
    rewrite(tmp_path, spoiled(name.format(taken), np.nan))
    mapped = reference.MappedModel.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=rf"experts\.{taken}\.up_proj.*holds nan at \[0, 0\]"):
        mapped(tokens)


def test_bad_scales_are_found_when_they_are_met(tmp_path):
    build.model(TINY, 0, "float32").save_pretrained(tmp_path, format="float8")
    rewrite(tmp_path, spoiled("model.layers.0.mlp.gate_proj.weight_scale_inv", 0))
    mapped = reference.MappedModel.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.gate_proj.* hold 0\.0 at \[0, 0\]"):
        mapped(np.arange(4)[None])


def test_it_is_not_trained_saved_or_made(tmp_path):
    build.model(TINY, 0, "float32").save_pretrained(tmp_path)
    mapped = reference.MappedModel.from_pretrained(tmp_path)
    for call in (lambda: mapped.loss_and_grads(np.arange(4)[None], np.arange(4)[None]),
                 lambda: mapped.save_pretrained(tmp_path), lambda: mapped.init(TINY)):  # fmt: skip
        with pytest.raises(TypeError, match="A mapped model "):
            call()


# A model of 1.6 GB in FP8, nearly all of it experts; what it is made of is of no matter.
LARGE = WIDE.replace(vocab_size=300, hidden_size=1024, num_hidden_layers=3, n_routed_experts=256,
                     num_experts_per_tok=4, moe_intermediate_size=1024,
                     intermediate_size=1024)  # fmt: skip
MEGABYTE = 2**20


def write_large(path) -> int:
    """Its checkpoint, one tensor of each shape repeated; returns the bytes of its files."""
    rng = np.random.default_rng(0)
    kinds: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]] = {}

    def quantize(weight, power_of_two):
        """Numbers and scales of the tensor's kind; saving only needs its shape."""
        kind = (*weight.shape, rng.integers(3))
        if kind not in kinds:
            kinds[kind] = float8.quantize(rng.normal(0, 0.03, weight.shape))
        return kinds[kind]

    weights = ((name, np.ones(shape, np.float32) if "proj" in name or "norm" in name
                else rng.normal(0, 0.3, shape)) for name, shape in LARGE.tensors())  # fmt: skip
    with mock.patch.object(checkpoint.write, "float8", SimpleNamespace(quantize=quantize)):
        checkpoint.save(path, LARGE, weights, shard_bytes=500 * MEGABYTE, format="float8")
    return sum(p.stat().st_size for p in path.glob("*.safetensors"))


RUN = """
import resource, sys, numpy as np
from minik2 import reference
def used(kind):
    line, = (l for l in open("/proc/self/status") if l.startswith(kind))
    return int(line.split()[1]) // 1024
small = reference.MappedModel.from_pretrained(sys.argv[1])
small(np.arange(2)[None]); small.generate(np.arange(2)[None], 2)   # compiled, and warm
data = used("VmData")
limit = int(sys.argv[3]) * 2**20
# Private memory: what is allocated. Files are mapped to be read, which this does not count.
resource.setrlimit(resource.RLIMIT_DATA, (data * 2**20 + limit, data * 2**20 + limit))
open("/proc/self/clear_refs", "w").write("5")  # the highest resident set is counted anew
before = used("VmRSS")
model = reference.MappedModel.from_pretrained(sys.argv[2])
out = model.generate(np.arange(24)[None], 24)
print(used("VmHWM") - before, len(np.unique(out)))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_a_checkpoint_larger_than_the_memory_that_it_gets(tmp_path):
    """1.6 GB of files, 64 MB of memory allowed, for 24 tokens read and 24 made.

    Private memory is limited by the system; the resident set, files' pages included, is measured.
    """
    build.model(WIDE, 0, "float32").save_pretrained(tmp_path / "small", format="float8")
    size, limit = write_large(tmp_path / "large"), 64
    assert size > 20 * limit * MEGABYTE
    done = subprocess.run([sys.executable, "-c", RUN, tmp_path / "small", tmp_path / "large",
                           str(limit)], capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    grown, different = map(int, done.stdout.split())
    assert grown < limit and different > 24
    # And the limit is one: the same model in memory does not fit.
    whole = RUN.replace("MappedModel.from_pretrained(sys.argv[2])",
                        "Model.from_pretrained(sys.argv[2])")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", whole, tmp_path / "small", tmp_path / "large",
                           str(limit)], capture_output=True, text=True)  # fmt: skip
    assert done.returncode and "Unable to allocate" in done.stderr
