"""What is saved is what is loaded, in every dtype and any number of shards, or nothing is."""

import builtins
import errno
import json
import os

import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from minik2 import ModelConfig, checkpoint, pytorch, reference
from minik2.checkpoint import CheckpointError, write
from minik2.checkpoint.files import INDEX, SINGLE
from tests.oracle.configs import configs

CFG = ModelConfig.preset("tiny")
TOKENS = np.arange(20).reshape(2, 10)


def weights(seed: int, dtype=np.float32, cfg: ModelConfig = CFG) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n: rng.normal(size=s).astype(dtype) for n, s in cfg.tensors()}


@given(cfg=configs(), dtype=st.sampled_from([np.float64, np.float32, np.float16,
                                            ml_dtypes.bfloat16]), shard=st.integers(1, 50_000))
@settings(max_examples=25, deadline=None)
def test_every_bit_comes_back(tmp_path_factory, cfg, dtype, shard):
    path = tmp_path_factory.mktemp("any") / "model"
    given_weights = weights(0, dtype, cfg)
    checkpoint.save(path, cfg, given_weights, shard_bytes=shard)
    found = checkpoint.open_checkpoint(path, ModelConfig.from_json(path))
    assert set(found) == set(given_weights)
    for name, array in given_weights.items():
        assert found[name].dtype == array.dtype
        assert found[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("dtype, name", [(np.float32, "float32"), (np.float16, "float16"),
                                         (ml_dtypes.bfloat16, "bfloat16")])
def test_both_engines_and_transformers_load_16_bits_alike(tmp_path, dtype, name):
    checkpoint.save(tmp_path / "m", CFG, weights(1, dtype), shard_bytes=40_000)
    assert len(list(tmp_path.glob("m/*.safetensors"))) > 1
    ours = reference.Model.from_pretrained(tmp_path / "m", dtype="float64")
    torchs = pytorch.Model.from_pretrained(tmp_path / "m", dtype=torch.float64)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert theirs.dtype == getattr(torch, name)  # the config says in which dtype it is
    state = theirs.state_dict()
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        assert np.array_equal(ours.weights[key], state[key].double().numpy())
        assert np.array_equal(ours.weights[key], torchs.weights[key].detach().numpy())
    assert np.allclose(ours(TOKENS), torchs(TOKENS).detach().numpy(), rtol=0, atol=1e-10)


def test_a_bfloat16_model_keeps_its_float32_bias(tmp_path):
    model = pytorch.Model.init(CFG, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "m")
    found = checkpoint.open_checkpoint(tmp_path / "m", CFG)
    kinds = {name: array.dtype.name for name, array in found.items()}
    biases = {kinds.pop(name) for name in list(kinds) if name.endswith("correction_bias")}
    assert biases == {"float32"} and set(kinds.values()) == {"bfloat16"}


def test_tensors_are_mapped_not_read(tmp_path):
    """A tensor is a view of the file; writing to it does not reach the file."""
    checkpoint.save(tmp_path / "m", CFG, weights(2))
    before = (tmp_path / "m" / SINGLE).read_bytes()
    array = checkpoint.open_checkpoint(tmp_path / "m", CFG)["model.norm.weight"]
    base = array
    while base.base is not None and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)
    array[...] = 7
    assert (tmp_path / "m" / SINGLE).read_bytes() == before


def test_the_index_says_where_everything_is(tmp_path):
    checkpoint.save(tmp_path / "m", CFG, weights(2), shard_bytes=60_000)
    index = json.loads((tmp_path / "m" / INDEX).read_text())
    shards = sorted(p.name for p in tmp_path.glob("m/*.safetensors"))
    count = len(shards)
    assert shards == [f"model-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]
    assert list(index["weight_map"]) == list(CFG.tensor_shapes())
    assert index["metadata"]["total_size"] == sum(a.nbytes for a in weights(2).values())
    sizes = [p.stat().st_size for p in tmp_path.glob("m/*.safetensors")]
    assert max(sizes) < 60_000 + 10_000  # the headers come on top


def test_a_smaller_save_leaves_no_old_shard_and_foreign_files_stay(tmp_path):
    target = tmp_path / "m"
    checkpoint.save(target, CFG, weights(1), shard_bytes=40_000)
    (target / "tokenizer.json").write_text("mine")
    (target / "notes").mkdir()
    (target / "notes" / "a.txt").write_text("also mine")
    checkpoint.save(target, CFG, weights(2))
    assert sorted(p.name for p in target.iterdir()) == [
        "config.json", SINGLE, "notes", "tokenizer.json"]
    assert (target / "notes" / "a.txt").read_text() == "also mine"
    name = "model.norm.weight"
    assert np.array_equal(checkpoint.open_checkpoint(target, CFG)[name], weights(2)[name])
    assert os.listdir(tmp_path) == ["m"]


class Broken(Exception):
    """The failure that a test plants."""


@pytest.mark.parametrize("step", ["_write_shard", "_write_text", "_put_in_place"])
def test_a_save_that_breaks_off_leaves_the_old_checkpoint(tmp_path, monkeypatch, step):
    target = tmp_path / "m"
    checkpoint.save(target, CFG, weights(1), shard_bytes=40_000)
    before = {p.name: p.read_bytes() for p in target.iterdir()}
    honest, calls = getattr(write, step), []

    def breaks(*args):
        calls.append(args)
        if len(calls) == (3 if step == "_write_shard" else 1):
            raise Broken
        honest(*args)

    monkeypatch.setattr(write, step, breaks)
    with pytest.raises(Broken):
        checkpoint.save(target, CFG, weights(2), shard_bytes=40_000)
    assert {p.name: p.read_bytes() for p in target.iterdir()} == before
    assert os.listdir(tmp_path) == ["m"]


def test_weights_that_fail_half_way_leave_the_old_checkpoint(tmp_path):
    checkpoint.save(tmp_path / "m", CFG, weights(1))

    def stream():
        yield from list(weights(2).items())[:5]
        raise Broken

    with pytest.raises(Broken):
        checkpoint.save(tmp_path / "m", CFG, stream(), shard_bytes=10_000)
    name = "model.norm.weight"
    assert np.array_equal(checkpoint.open_checkpoint(tmp_path / "m", CFG)[name], weights(1)[name])


def test_a_full_disk_is_a_sentence(tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "m", CFG, weights(1))

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(write, "_write_shard", full)
    with pytest.raises(OSError, match=r"m could not be saved \(No space left on device\); what"):
        checkpoint.save(tmp_path / "m", CFG, weights(2))
    assert os.listdir(tmp_path) == ["m"]


def test_if_the_last_rename_fails_the_old_one_comes_back(tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "m", CFG, weights(1))
    honest = write.Path.rename

    def refuse(self, target):
        if self.name.endswith(".new"):
            raise OSError(errno.EBUSY, "Device or resource busy")
        return honest(self, target)

    monkeypatch.setattr(write.Path, "rename", refuse)
    with pytest.raises(OSError, match="busy"):
        checkpoint.save(tmp_path / "m", CFG, weights(2))
    name = "model.norm.weight"
    assert np.array_equal(checkpoint.open_checkpoint(tmp_path / "m", CFG)[name], weights(1)[name])
    assert os.listdir(tmp_path) == ["m"]


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "m").write_text("mine")
    with pytest.raises(OSError, match="is a file; name a directory"):
        checkpoint.save(tmp_path / "m", CFG, weights(1))
    assert (tmp_path / "m").read_text() == "mine"


@pytest.mark.parametrize("change, words", [
    (lambda w: w.pop("model.norm.weight"), "1 tensors were not given, model.norm.weight among"),
    (lambda w: w.update({"x": np.ones(2)}), "x of shape"),
    (lambda w: w.update({"model.norm.weight": np.ones(3)}), r"model\.norm\.weight of shape \(3,\)"),
])
def test_weights_that_do_not_fit_the_config(tmp_path, change, words):
    given_weights = weights(1)
    change(given_weights)
    with pytest.raises(CheckpointError, match=words):
        checkpoint.save(tmp_path / "m", CFG, given_weights)
    assert os.listdir(tmp_path) == []


def test_nothing_is_opened_for_writing_in_place(tmp_path, monkeypatch):
    """Every file that a save opens lies in the new directory beside the target."""
    checkpoint.save(tmp_path / "m", CFG, weights(1))
    honest, opened = builtins.open, []
    monkeypatch.setattr("io.open", lambda file, *a, **k: opened.append(file) or honest(file, *a,
                                                                                       **k))
    checkpoint.save(tmp_path / "m", CFG, weights(2))
    assert opened and all(".new" in str(path) for path in opened)
