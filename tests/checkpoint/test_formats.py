"""FP8 blocks and packed INT4: bit by bit what ml_dtypes, torch, transformers and compressed-tensors
make of the same numbers; and whole checkpoints of each format, in both engines."""

import json
from types import SimpleNamespace

import compressed_tensors
import ml_dtypes
import numpy as np
import pytest
import torch
from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.integrations import finegrained_fp8

from minik2 import ModelConfig, checkpoint, pytorch, reference, sizing
from minik2.checkpoint import CheckpointError, float8, int4, quantization
from minik2.checkpoint.files import stored_tensors
from tests.oracle.configs import configs
from tests.reference import build

TINY = ModelConfig.preset("tiny")
# Ragged blocks on both sides, several blocks, and rows of whole groups of 32.
WIDE = TINY.replace(hidden_size=160, moe_intermediate_size=96, intermediate_size=192,
                    q_lora_rank=40, kv_lora_rank=136)  # fmt: skip
SIDES = st.tuples(st.integers(1, 300), st.integers(1, 300))


def matrix(shape, seed) -> np.ndarray:
    """Numbers of many sizes, some of them zero; the second block may be all zero."""
    rng = np.random.default_rng(seed)
    found = rng.normal(size=shape) * np.exp(rng.normal(0, 3, shape)) * (rng.random(shape) > 0.1)
    found[128:] *= rng.random() > 0.5
    return found.astype(np.float32)


def test_the_values_of_the_256_bytes_are_torchs():
    torchs = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    assert np.array_equal(float8.VALUES, torchs, equal_nan=True)


@given(shape=SIDES, seed=st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_fp8_numbers_are_torchs_rounding_of_weight_over_scale(shape, seed):
    weight = matrix(shape, seed)
    values, scales = float8.quantize(weight)
    assert scales.shape == (-(-shape[0] // 128), -(-shape[1] // 128)) and scales.dtype == "f4"
    for r, c in np.ndindex(scales.shape):
        own = np.s_[128 * r : 128 * r + 128, 128 * c : 128 * c + 128]
        top = np.abs(weight[own]).max()
        assert scales[r, c] == (top / np.float32(448) if top else 1)
        want = torch.from_numpy(weight[own] / scales[r, c]).clamp(-448, 448)
        want = want.to(torch.float8_e4m3fn).view(torch.uint8).numpy()
        assert np.array_equal(values[own].view(np.uint8), want)


@given(shape=SIDES, seed=st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_fp8_is_read_as_transformers_reads_it(shape, seed):
    """Ragged edges too: `_dequantize_fp8_weight` is what its backward pass uses."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 127, shape, np.uint8) | rng.integers(0, 2, shape, np.uint8) << 7
    scales = rng.random((-(-shape[0] // 128), -(-shape[1] // 128)), np.float32) + 0.1
    want = finegrained_fp8._dequantize_fp8_weight(
        torch.from_numpy(values).view(torch.float8_e4m3fn), torch.from_numpy(scales), [128, 128],
        torch.float32)  # fmt: skip
    assert np.array_equal(float8.dequantize(values, scales), want.numpy())


@pytest.mark.parametrize("power_of_two", [False, True])
def test_fp8_is_written_as_transformers_writes_it(power_of_two):
    """It multiplies by 448 / max where we divide by max / 448: a last bit apart, so that a number
    half way between two may go either way."""
    weight = matrix((384, 256), 5)
    said = SimpleNamespace(weight_block_size=[128, 128],
                           scale_fmt="ue8m0" if power_of_two else None)  # fmt: skip
    theirs = finegrained_fp8.Fp8Quantize(SimpleNamespace(quantization_config=said))
    made = theirs._quantize_one("a.weight", torch.from_numpy(weight))
    values, scales = float8.quantize(weight, power_of_two=power_of_two)
    want = made["a.weight_scale_inv"].float().numpy()
    assert np.allclose(scales, want, rtol=0 if power_of_two else 3e-7, atol=0)
    same = values.view(np.uint8) == made["a.weight"].view(torch.uint8).numpy()
    assert same.all() if power_of_two else same.mean() > 0.999
    if power_of_two:
        assert (np.frexp(scales)[0] == 0.5).all()


@given(shape=SIDES, seed=st.integers(0, 2**31), power_of_two=st.booleans())
@settings(max_examples=40, deadline=None)
def test_fp8_errs_by_half_a_step_at_most(shape, seed, power_of_two):
    """Three bits behind the point: 1/16 of a number, or half the smallest step of its block."""
    weight = matrix(shape, seed)
    values, scales = float8.quantize(weight, power_of_two=power_of_two)
    error = np.abs(float8.dequantize(values, scales) - weight)
    step = float8.spread(scales, shape, (128, 128)) * 2.0**-9
    assert (error <= np.maximum(np.abs(weight) / 16, step / 2) * (1 + 1e-6)).all()


def test_int4_layout():
    """Recorded from compressed-tensors 0.20.0's pack_to_int32: -8 … 7, and 7 … -8."""
    whole = np.array([range(-8, 8), range(7, -9, -1)])
    words = np.array([[0x76543210, 0xFEDCBA98], [0x89ABCDEF, 0x01234567]], np.uint32)
    ones = np.ones((2, 2), np.float32)
    assert np.array_equal(int4.dequantize(words.view(np.int32), ones), whole)
    packed, scales = int4.quantize(whole.repeat(2, axis=1)[:, :32] * 7.5 / 8)
    assert np.array_equal(int4.dequantize(packed, scales).astype(int), whole.repeat(2, axis=1))


@given(rows=st.integers(1, 40), groups=st.integers(1, 9), seed=st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_int4_is_what_compressed_tensors_makes(rows, groups, seed):
    theirs = compressed_tensors.quantization
    args = theirs.QuantizationArgs(num_bits=4, group_size=32, strategy="group",
                                                 symmetric=True, type="int")  # fmt: skip
    scheme = theirs.QuantizationScheme(targets=["Linear"], weights=args)
    weight = matrix((rows, 32 * groups), seed)
    packed, scales = int4.quantize(weight)
    tops = torch.from_numpy(weight.reshape(rows, groups, 32))
    want, _ = theirs.utils.calculate_qparams(tops.amin(2), tops.amax(2), args)
    ours = torch.from_numpy(scales.astype(np.float32))
    busy = (tops != 0).any(2)  # a group of zeros may have any scale
    assert torch.equal(ours[busy], want.to(torch.bfloat16).float()[busy])
    compressor = PackedQuantizationCompressor
    state = {"weight": torch.from_numpy(weight), "weight_scale": ours,
             "weight_zero_point": torch.zeros_like(ours, dtype=torch.int8)}  # fmt: skip
    state = compressor.compress(state, scheme)
    assert np.array_equal(state["weight_packed"].numpy(), packed)
    assert state["weight_shape"].tolist() == [rows, 32 * groups]
    assert np.array_equal(compressor.decompress(state, scheme)["weight"].numpy(),
                          int4.dequantize(packed, scales))  # fmt: skip


@given(rows=st.integers(1, 40), groups=st.integers(1, 9), seed=st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_int4_errs_by_half_a_step_at_most(rows, groups, seed):
    """Half a scale; a little more at the two ends, 7.5 scales from the middle: bfloat16 may round
    the scale down by 1/256 of it, 7.5 / 256 at the ends."""
    weight = matrix((rows, 32 * groups), seed)
    packed, scales = int4.quantize(weight)
    error = np.abs(int4.dequantize(packed, scales) - weight).reshape(rows, groups, 32)
    assert (error <= scales.astype(np.float32)[..., None] * (0.5 + 7.5 / 256)).all()


@pytest.mark.parametrize("quantize", [float8.quantize, int4.quantize])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_not_narrowed(quantize, value):
    weight = np.ones((3, 64), np.float32)
    weight[1, 40] = value
    with pytest.raises(CheckpointError, match="Only finite weights"):
        quantize(weight)


def narrow(cfg: ModelConfig, seed: int, format: str, tmp_path) -> dict[str, np.ndarray]:
    """A model saved in this format, and what its tensors must be when they are read."""
    model = build.model(cfg, seed, "float32")
    model.save_pretrained(tmp_path, format=format)
    want = {}
    for name, array in model.weights.items():
        if not quantization.narrows(format, name):
            bias = name.endswith("correction_bias")
            want[name] = array if bias else array.astype(ml_dtypes.bfloat16).astype(np.float32)
        elif format == "int4":
            want[name] = int4.dequantize(*int4.quantize(array))
        else:
            power = format == "float8_ue8m0"
            want[name] = float8.dequantize(*float8.quantize(array, power_of_two=power))
    return want


@pytest.mark.parametrize("format", quantization.FORMATS)
def test_both_engines_load_each_format(tmp_path, format):
    want = narrow(WIDE, 2, format, tmp_path)
    exact = build.model(WIDE, 2, "float64")
    for name, array in exact.weights.items():
        array[...] = want[name]
    tokens = np.arange(20).reshape(2, 10)
    ours = reference.Model.from_pretrained(tmp_path, dtype="float64")
    assert all(np.array_equal(ours.weights[name], want[name]) for name in want)
    torchs = pytorch.Model.from_pretrained(tmp_path, dtype=torch.float64)
    for name, tensor in torchs.weights.items():
        assert np.array_equal(tensor.detach().numpy(), want[name]), name
    assert np.array_equal(ours(tokens), exact(tokens))
    assert np.allclose(torchs(tokens).detach().numpy(), exact(tokens), rtol=0, atol=1e-10)
    # What the torch engine saves is what the reference saves.
    pytorch.Model.init(WIDE, 3).save_pretrained(tmp_path / "a", format=format)
    reference.Model.init(WIDE, 3).save_pretrained(tmp_path / "b", format=format)
    files = [tmp_path / name / "model.safetensors" for name in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()


@given(cfg=configs(), format=st.sampled_from(["float8", "float8_ue8m0"]))
@settings(max_examples=15, deadline=None)
def test_any_configuration_goes_through_fp8(tmp_path_factory, cfg, format):
    path = tmp_path_factory.mktemp("any") / "m"
    want = narrow(cfg, 1, format, path)
    found = checkpoint.open_checkpoint(path, ModelConfig.from_json(path))
    assert set(found) == set(want)
    assert all(np.array_equal(found[name], want[name]) for name in want)


def test_the_files_are_laid_out_as_the_released_ones(tmp_path):
    reference.Model.init(WIDE).save_pretrained(tmp_path / "k2", format="float8")
    found = {name: (s.dtype, s.shape) for name, s in stored_tensors(tmp_path / "k2").items()}
    layer = "model.layers.1."
    assert found[layer + "self_attn.q_b_proj.weight"] == ("F8_E4M3", (32, 40))
    assert found[layer + "self_attn.kv_a_proj_with_mqa.weight_scale_inv"] == ("F32", (2, 2))
    assert found[layer + "mlp.experts.3.down_proj.weight_scale_inv"] == ("F32", (2, 1))
    assert found[layer + "mlp.gate.weight"] == ("BF16", (8, 160))
    assert found[layer + "mlp.gate.e_score_correction_bias"] == ("F32", (8,))
    assert {found[n][0] for n in ("model.embed_tokens.weight", "lm_head.weight",
                                  layer + "self_attn.q_a_layernorm.weight")} == {"BF16"}
    said = json.loads((tmp_path / "k2" / "config.json").read_text())
    assert said["torch_dtype"] == "bfloat16"
    assert said["quantization_config"]["weight_block_size"] == [128, 128]

    reference.Model.init(WIDE).save_pretrained(tmp_path / "thinking", format="int4")
    found = {name: (s.dtype, s.shape) for name, s in stored_tensors(tmp_path / "thinking").items()}
    expert = layer + "mlp.experts.0.gate_proj."
    assert expert + "weight" not in found
    assert found[expert + "weight_packed"] == ("I32", (96, 20))
    assert found[expert + "weight_scale"] == ("BF16", (96, 5))
    assert found[expert + "weight_shape"] == ("I64", (2,))
    assert found[layer + "mlp.shared_experts.gate_proj.weight"][0] == "BF16"
    assert found["model.layers.0.mlp.gate_proj.weight"][0] == "BF16"


@pytest.mark.parametrize("format, counted", [("float8", "float8"), ("float8_ue8m0", "float8"),
                                             ("int4", "int4")])
def test_the_files_are_as_large_as_sizing_says(tmp_path, format, counted):
    reference.Model.init(WIDE).save_pretrained(tmp_path, format=format)
    found = stored_tensors(tmp_path)
    sides = sum(s.nbytes for name, s in found.items() if name.endswith("weight_shape"))
    assert sum(s.nbytes for s in found.values()) - sides == sizing.stored(WIDE, counted).bytes


def test_a_checkpoint_goes_from_one_format_to_another_without_being_in_memory(tmp_path):
    """`items` hands over one tensor after the other, and `save` takes them as they come."""
    reference.Model.init(WIDE, 1).save_pretrained(tmp_path / "a")
    read = checkpoint.open_checkpoint(tmp_path / "a", WIDE)
    checkpoint.save(tmp_path / "b", WIDE, read.items(), shard_bytes=100_000, format="int4")
    assert len(list((tmp_path / "b").glob("*.safetensors"))) > 3
    reference.Model.init(WIDE, 1).save_pretrained(tmp_path / "c", format="int4")
    first, second = (checkpoint.open_checkpoint(tmp_path / name, WIDE) for name in "bc")
    assert all(np.array_equal(first[name], second[name]) for name in second)


def test_scales_may_be_stored_as_eight_bit_exponents(tmp_path):
    """As transformers writes V3.1's scales; the released file holds them as float32."""
    import safetensors.numpy

    want = narrow(WIDE, 2, "float8_ue8m0", tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = {}
    for name, stored in stored_tensors(tmp_path).items():
        tensors[name] = np.array(checkpoint.tensor.mapped(stored, "r"))
        if name.endswith("scale_inv"):
            tensors[name] = tensors[name].astype(ml_dtypes.float8_e8m0fnu)
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})
    found = checkpoint.open_checkpoint(tmp_path, WIDE)
    assert all(np.array_equal(found[name], want[name]) for name in want)


def test_an_unknown_format_is_a_sentence_and_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint format 'fp8'; choose one of float8, "):
        reference.Model.init(TINY).save_pretrained(tmp_path / "m", format="fp8")
    with pytest.raises(CheckpointError, match=r"experts\.0\..* cannot be saved as int4\. INT4 sca"):
        reference.Model.init(TINY).save_pretrained(tmp_path / "m", format="int4")
    assert not list(tmp_path.iterdir())
