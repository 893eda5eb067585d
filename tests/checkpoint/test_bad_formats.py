"""What can be wrong with a narrowed checkpoint: each a sentence that names file and tensor."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from minik2 import ModelConfig, checkpoint, reference
from minik2.checkpoint import CheckpointError, quantization
from minik2.checkpoint.files import SINGLE, stored_tensors
from tests.checkpoint.test_bad_input import says

CFG = ModelConfig.preset("tiny").replace(moe_intermediate_size=32)
FORMATS = quantization.FORMATS
BASE = "model.layers.1.mlp.experts.3.up_proj."
WEIGHT, SCALE, PACKED = BASE + "weight", BASE + "weight_scale", BASE + "weight_packed"
INVERSE = BASE + "weight_scale_inv"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved")
    for format in FORMATS:
        reference.Model.init(CFG, seed=3).save_pretrained(path / format, format=format)
    return path


@pytest.fixture(params=FORMATS)
def folder(request, saved, tmp_path):
    return shutil.copytree(saved / request.param, tmp_path / "copy")


@pytest.fixture
def fp8(saved, tmp_path):
    return shutil.copytree(saved / "float8", tmp_path / "fp8")


@pytest.fixture
def int4(saved, tmp_path):
    return shutil.copytree(saved / "int4", tmp_path / "int4")


def rewrite(directory, change) -> None:
    """Read the one file of a checkpoint as it is stored, change its tensors, write it again."""
    tensors = {name: np.array(checkpoint.tensor.mapped(stored, "r"))
               for name, stored in stored_tensors(directory).items()}  # fmt: skip
    change(tensors)
    safetensors.numpy.save_file(tensors, directory / SINGLE, metadata={"format": "pt"})


def edit(directory, change) -> None:
    """Change the quantization_config of a checkpoint's config.json, in place."""
    path = directory / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def spoiled(name, value, place=(0, 0)):
    def spoil(tensors):
        tensors[name][place] = value

    return spoil


@pytest.mark.parametrize("value", [np.nan, np.inf, 0, -1])
def test_a_scale_that_is_none(saved, tmp_path, value):
    for format, name in (("float8", INVERSE), ("float8_ue8m0", INVERSE), ("int4", SCALE)):
        folder = shutil.copytree(saved / format, tmp_path / format)
        rewrite(folder, spoiled(name, value))
        says(folder, f"The scales of {WEIGHT}", SINGLE, f"hold {float(value)} at [0, 0]",
             "positive finite")


def test_a_scale_that_is_no_power_of_two(saved, tmp_path):
    folder = shutil.copytree(saved / "float8_ue8m0", tmp_path / "m")
    rewrite(folder, spoiled(INVERSE, 0.75))
    says(folder, WEIGHT, "hold 0.75", "a power of two, says config.json")


@pytest.mark.parametrize("byte", [0x7F, 0xFF])
def test_a_number_that_is_none(fp8, byte):
    def spoil(tensors):
        tensors[WEIGHT].view(np.uint8)[4, 7] = byte

    rewrite(fp8, spoil)
    says(fp8, WEIGHT, SINGLE, "holds nan at [4, 7]", "finite")


def test_scales_of_the_wrong_shape(fp8, int4):
    rewrite(fp8, lambda t: t.update({INVERSE: np.ones((1, 2), np.float32)}))
    says(fp8, INVERSE, "(1, 2)", "(1, 1)")
    rewrite(int4, lambda t: t.update({SCALE: np.ones((32, 2), ml_dtypes.bfloat16)}))
    says(int4, SCALE, "(32, 2)", "(32, 1)")


def test_a_packed_tensor_cut_short(int4):
    rewrite(int4, lambda t: t.update({PACKED: t[PACKED][:, :3].copy()}))
    says(int4, PACKED, "(32, 3)", "(32, 4)")


@pytest.mark.parametrize("part", ["weight_scale", "weight_shape", "weight_packed"])
def test_a_part_that_is_missing(int4, part):
    rewrite(int4, lambda t: t.pop(BASE + part))
    says(int4, WEIGHT, "fetch the missing")


def test_fp8_scales_that_are_missing(fp8):
    rewrite(fp8, lambda t: t.pop(INVERSE))
    says(fp8, f"{WEIGHT} is narrowed, but {INVERSE}")


@pytest.mark.parametrize("name, dtype", [(INVERSE, np.float16), (INVERSE, np.uint8)])
def test_scales_of_another_dtype(fp8, name, dtype):
    rewrite(fp8, lambda t: t.update({name: t[name].astype(dtype)}))
    says(fp8, name, "F32 or F8_E8M0")


def test_words_of_another_dtype(int4):
    rewrite(int4, lambda t: t.update({PACKED: t[PACKED].view(np.uint32)}))
    says(int4, PACKED, "stored as U32", "I32")


def test_sides_that_belong_to_another_tensor(int4):
    rewrite(int4, spoiled(BASE + "weight_shape", 64, 1))
    says(int4, WEIGHT, "packed as (32, 64)", "(32, 32)")


def test_a_tensor_both_plain_and_packed(int4):
    rewrite(int4, lambda t: t.update({WEIGHT: np.ones((32, 32), np.float32)}))
    says(int4, "holds", BASE)


def test_scales_beside_a_plain_tensor(fp8):
    rewrite(fp8, lambda t: t.update({WEIGHT: np.ones((32, 32), np.float32)}))
    says(fp8, f"holds {INVERSE}")


def test_a_vector_in_fp8(fp8):
    name = "model.norm.weight"
    rewrite(fp8, lambda t: t.update({name: t[name].astype(ml_dtypes.float8_e4m3fn)}))
    says(fp8, name, "F8_E4M3", "bfloat16")


def test_narrowed_tensors_that_the_config_does_not_know_of(folder):
    edit(folder, lambda c: c.pop("quantization_config"))
    says(folder, "has no quantization_config", SINGLE)


def test_the_config_of_one_format_beside_the_tensors_of_another(fp8, int4):
    here, there = (json.loads((p / "config.json").read_text()) for p in (fp8, int4))
    edit(fp8, lambda c: c.update(quantization_config=there["quantization_config"]))
    says(fp8, "is FP8, but config.json says that weights are int4", "'fp8'")
    edit(int4, lambda c: c.update(quantization_config=here["quantization_config"]))
    says(int4, "is INT4, but config.json says that weights are float8", "'compressed-tensors'")


def test_a_config_that_says_so_beside_plain_tensors(fp8, tmp_path):
    said = json.loads((fp8 / "config.json").read_text())["quantization_config"]
    reference.Model.init(CFG).save_pretrained(tmp_path / "m")
    edit(tmp_path / "m", lambda c: c.update(quantization_config=said))
    says(tmp_path / "m", "has a quantization_config, but none of the tensors is narrowed")


def test_groups_that_do_not_divide_the_rows(int4):
    edit(int4, lambda c: c["quantization_config"]["config_groups"]["group_0"]["weights"].update(
        group_size=24))
    says(int4, "whole groups of 24", "(32, 32)")


@pytest.mark.parametrize("given, words", [
    ([], "must be an object"),
    ({}, "method None"),
    ({"quant_method": "awq"}, "method 'awq'"),
    ({"quant_method": "fp8"}, "weight_block_size"),
    ({"quant_method": "fp8", "weight_block_size": [128, 0]}, "[128, 0]"),
    ({"quant_method": "fp8", "weight_block_size": [128, 128.0]}, "128.0"),
    ({"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e5m2"}, "fmt = 'e5m2'"),
    ({"quant_method": "fp8", "weight_block_size": [128, 128], "scale_fmt": "int8"}, "scale_fmt"),
    ({"quant_method": "fp8", "weight_block_size": [128, 128], "num_bits": 4}, "belongs to another"),
    ({"quant_method": "compressed-tensors", "weight_block_size": [128, 128]}, "belongs to another"),
    ({"quant_method": "compressed-tensors"}, "format = None"),
    ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}, "nvfp4"),
    ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "config_groups"),
    ({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"a": 1}},
     "do not say"),
])  # fmt: skip
def test_a_config_that_is_unknown_or_contradicts_itself(fp8, given, words):
    edit(fp8, lambda c: c.update(quantization_config=given))
    says(fp8, words, "config.json")


@pytest.mark.parametrize("key, value", [
    ("num_bits", 8), ("type", "float"), ("strategy", "channel"), ("symmetric", False),
    ("dynamic", True), ("actorder", "group"), ("group_size", 12), ("group_size", None),
    ("group_size", True), ("symmetric", 1),
])  # fmt: skip
def test_ways_to_pack_that_are_not_read(int4, key, value):
    edit(int4, lambda c: c["quantization_config"]["config_groups"]["group_0"]["weights"].update(
        {key: value}))
    says(int4, key, repr(value))


def test_activations_that_would_be_narrowed_too(int4):
    edit(int4, lambda c: c["quantization_config"]["config_groups"]["group_0"].update(
        input_activations={"num_bits": 8}))
    says(int4, "input_activations")


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_written_is_what_is_read(format):
    said = quantization.from_config({"quantization_config": quantization.to_config(format)}, "here")
    assert said == quantization.named(format)


def test_the_errors_are_those_of_a_checkpoint():
    with pytest.raises(CheckpointError):
        quantization.from_config({"quantization_config": 3}, "here")
