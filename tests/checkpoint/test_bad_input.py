"""Every way in which a checkpoint can be wrong is a sentence naming the file and the tensor."""

import json
import re
import shutil
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from minik2 import ModelConfig, checkpoint, reference
from minik2.checkpoint import CheckpointError
from minik2.checkpoint.files import INDEX, SINGLE

CFG = ModelConfig.preset("tiny")
NORM = "model.norm.weight"
EXPERT = "model.layers.1.mlp.experts.3.up_proj.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "tiny"
    reference.Model.init(CFG, seed=3).save_pretrained(path)
    return path


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


@pytest.fixture
def sharded(tmp_path):
    path = tmp_path / "sharded"
    model = reference.Model.init(CFG, seed=3)
    checkpoint.save(path, CFG, model.weights, shard_bytes=60_000)
    return path


def says(directory, *words: str, error=CheckpointError) -> str:
    """The sentence that loading raises; it must hold every word, and be one line."""
    with pytest.raises(error) as caught:
        reference.Model.from_pretrained(directory)
    text = str(caught.value)
    assert "\n" not in text and text.endswith((".", "?")), text
    for word in words:
        assert word in text, text
    return text


def rewrite(directory, change) -> None:
    """Read the one file of a checkpoint, change its tensors, write it again."""
    path = directory / SINGLE
    tensors = {name: np.array(array) for name, array in
               checkpoint.open_checkpoint(directory, CFG).items()}
    change(tensors)
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})


def test_a_missing_tensor(folder):
    rewrite(folder, lambda t: t.pop(EXPERT))
    says(folder, "lacks", EXPERT, str(folder))


def test_a_surplus_tensor(folder):
    rewrite(folder, lambda t: t.update({"model.layers.1.mlp.extra": np.ones(3, np.float32)}))
    says(folder, "holds model.layers.1.mlp.extra", SINGLE)


def test_a_renamed_tensor_shows_both_names(folder):
    rewrite(folder, lambda t: t.update({"model.final_norm.weight": t.pop(NORM)}))
    says(folder, f"lacks {NORM}", "has model.final_norm.weight instead")


def test_a_misshapen_tensor(folder):
    rewrite(folder, lambda t: t.update({EXPERT: t[EXPERT].T.copy()}))
    says(folder, EXPERT, SINGLE, "(32, 16)", "(16, 32)")


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite(folder, dtype, value):
    def spoil(tensors):
        tensors[EXPERT] = tensors[EXPERT].astype(np.dtype(getattr(ml_dtypes, dtype, dtype)))
        tensors[EXPERT][4, 7] = value

    rewrite(folder, spoil)
    says(folder, EXPERT, SINGLE, f"holds {float(value)} at [4, 7]")


def test_the_largest_finite_numbers_are_welcome(folder):
    def extreme(tensors):
        tensors[EXPERT][0, :2] = np.finfo(np.float32).max, -np.finfo(np.float32).max
        tensors[NORM] = np.full(32, ml_dtypes.finfo(ml_dtypes.bfloat16).max, ml_dtypes.bfloat16)

    rewrite(folder, extreme)
    model = reference.Model.from_pretrained(folder)
    assert model.weights[EXPERT][0, 0] == np.finfo(np.float32).max


def test_a_dtype_that_is_not_read_yet(folder):
    rewrite(folder, lambda t: t.update({EXPERT: t[EXPERT].astype(np.int8)}))
    says(folder, EXPERT, SINGLE, "stored as I8", "bfloat16")


@given(keep=st.floats(0, 0.999))
@settings(max_examples=20, deadline=None)
def test_a_truncated_file(saved, tmp_path_factory, keep):
    folder = shutil.copytree(saved, tmp_path_factory.mktemp("cut") / "copy")
    data = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(data[: int(len(data) * keep)])
    says(folder, SINGLE, "truncated")


@given(place=st.integers(0, 3000), byte=st.integers(0, 255))
@settings(max_examples=60, deadline=None)
def test_a_damaged_header_never_escapes_as_anything_else(saved, tmp_path_factory, place, byte):
    folder = shutil.copytree(saved, tmp_path_factory.mktemp("bad") / "copy")
    data = bytearray((folder / SINGLE).read_bytes())
    data[place] = byte
    (folder / SINGLE).write_bytes(data)
    try:
        reference.Model.from_pretrained(folder)
    except (CheckpointError, OSError) as error:
        assert "\n" not in str(error)


def test_an_absurd_header_length(folder):
    (folder / SINGLE).write_bytes(struct.pack("<Q", 2**62) + b"{}")
    says(folder, SINGLE)


def test_no_weights_at_all(folder):
    (folder / SINGLE).unlink()
    says(folder, str(folder), "no *.safetensors file")


def test_a_pickle_is_named_and_never_read(folder):
    (folder / SINGLE).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    says(folder, "pytorch_model.bin", "pickle")


def test_no_directory_and_no_config(tmp_path, folder):
    says(tmp_path / "nowhere", "nowhere", error=OSError)
    (folder / "config.json").unlink()
    says(folder, "config.json", error=OSError)
    (folder / "config.json").write_text("{", encoding="utf-8")
    says(folder, "config.json", "JSON", error=ValueError)


def edit_index(directory, change) -> dict:
    index = json.loads((directory / INDEX).read_text())
    change(index)
    (directory / INDEX).write_text(json.dumps(index))
    return index


def test_a_shard_that_is_absent(sharded):
    shard = sorted(sharded.glob("model-*"))[1]
    shard.unlink()
    says(sharded, shard.name, "not in the directory")


@pytest.mark.parametrize("name", [
    "../secret.safetensors", "/etc/model.safetensors", "a/b.safetensors", "..", "",
    ".hidden.safetensors", "a\\b.safetensors", "weights.txt", "c:x.safetensors",
])
def test_a_shard_name_that_leaves_the_directory(sharded, name):
    edit_index(sharded, lambda index: index["weight_map"].update({NORM: name}))
    says(sharded, INDEX, "plain")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "../model.pkl"])
def test_a_shard_that_is_a_pickle(sharded, name):
    edit_index(sharded, lambda index: index["weight_map"].update({NORM: name}))
    says(sharded, "pickle")


def test_a_tensor_that_is_not_where_the_index_says(sharded):
    index = json.loads((sharded / INDEX).read_text())
    other = next(s for s in index["weight_map"].values() if s != index["weight_map"][NORM])
    edit_index(sharded, lambda index: index["weight_map"].update({NORM: other}))
    says(sharded, INDEX, NORM, other)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}',
                                  "\x00"])
def test_an_index_that_is_none(sharded, text):
    (sharded / INDEX).write_text(text)
    says(sharded, INDEX)


def test_a_tensor_in_two_files(folder):
    shutil.copy(folder / SINGLE, folder / "other.safetensors")
    says(folder, "is in both", SINGLE, "other.safetensors")


@pytest.mark.parametrize("key, value", [
    ("hidden_size", 2**40), ("num_hidden_layers", 10**12), ("n_routed_experts", 10**12),
    ("vocab_size", 2**50), ("hidden_size", 64), ("num_hidden_layers", 2),
])
def test_sizes_that_the_headers_contradict_cost_no_memory(folder, key, value):
    """Found out from the headers: the first would ask for terabytes if anything was allocated."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    says(folder, str(folder))


def test_known_strays_and_the_next_token_layers_are_passed_over(folder):
    def add(tensors):
        for layer in range(3):
            tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = np.full(
                7, np.nan, np.float32)
        tensors["model.layers.3.enorm.weight"] = np.ones(32, np.float32)

    rewrite(folder, add)
    says(folder, "model.layers.3.enorm.weight")
    config = json.loads((folder / "config.json").read_text())
    config["num_nextn_predict_layers"] = 1
    (folder / "config.json").write_text(json.dumps(config))
    tokens = np.arange(9)[None]
    got = reference.Model.from_pretrained(folder)(tokens)
    assert np.array_equal(got, reference.Model.init(CFG, seed=3)(tokens))


def test_messages_do_not_name_python_internals(folder):
    rewrite(folder, lambda t: t.pop(NORM))
    assert not re.search(r"KeyError|Traceback|0x", says(folder))
