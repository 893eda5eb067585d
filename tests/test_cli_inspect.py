"""`minik2 inspect`: every tensor counted, checked against the config, and what running it takes."""

import json
import math
import sys
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minik2 import ModelConfig, checkpoint, reference, sizing
from minik2.checkpoint import files, quantization
from minik2.checkpoint.tensor_map import tensor_map
from tests import commands
from tests.checkpoint.test_bad_formats import rewrite
from tests.oracle.configs import configs

TINY = ModelConfig.preset("tiny").replace(moe_intermediate_size=32)
EXPERT = "model.layers.1.mlp.experts.3.up_proj."


@pytest.fixture
def call(monkeypatch, capsys):
    """call(folder, "--json") -> (exit status, output, errors) of `minik2 inspect`."""
    return partial(commands.call, monkeypatch, capsys, "inspect")


@pytest.fixture
def folder(tmp_path):
    reference.Model.init(TINY).save_pretrained(tmp_path / "m", format="int4")
    return tmp_path / "m"


@pytest.mark.parametrize("format", [None, "float8", "float8_ue8m0", "int4"])
def test_the_page(call, tmp_path, format):
    reference.Model.init(TINY).save_pretrained(tmp_path, format=format)
    status, out, err = call(tmp_path)
    assert (status, err) == (0, "")
    assert f"3 layers, hidden 32, weights {format or 'plain'}" in out.splitlines()[0]
    assert "Names, shapes and dtypes are what config.json asks for." in out
    kinds = {None: ("F32", "32x32"), "int4": ("I32", "32x4")}
    dtype, shape = kinds.get(format, ("F8_E4M3", "32x32"))
    name = "up_proj.weight" + "_packed" * (format == "int4")
    (line,) = (text for text in out.splitlines() if f"experts.0-7.{name} " in text)
    assert line.split() == [f"model.layers.1-2.mlp.experts.0-7.{name}", shape, dtype, "16",
                            *sizing.units.amount(16 * 1024 * {"F32": 4, "I32": 0.5}.get(dtype, 1),
                                                 "B").split()]  # fmt: skip


@given(cfg=configs(), format=st.sampled_from([None, "float8"]), shard=st.integers(1000, 50_000))
@settings(max_examples=15, deadline=None)
def test_every_tensor_is_counted_once(tmp_path_factory, cfg, format, shard):
    path = tmp_path_factory.mktemp("any") / "m"
    weights = reference.Model.init(cfg).weights
    checkpoint.save(path, cfg, weights, shard_bytes=shard, format=format)
    made, found = tensor_map(path, cfg), files.stored_tensors(path)
    assert made.problem == "" and set(made.tensors) == set(weights)
    assert made.count == len(found) and made.files == len(list(path.glob("*.safetensors")))
    assert made.bytes == sum(kind.bytes for kind in made.kinds) == sum(
        stored.nbytes for stored in found.values())
    for kind in made.kinds:
        assert kind.bytes == kind.count * math.prod(kind.shape) * {
            "F32": 4, "BF16": 2, "F8_E4M3": 1}[kind.dtype]


def test_what_it_takes(call, folder):
    status, out, _ = call(folder, "--json")
    found = json.loads(out)
    assert status == 0 and found["quantization"] == {"format": "int4", "block": [1, 32]}
    assert found["parameters"] == sizing.parameters(TINY).total
    assert found["float32_bytes"] == 2 * found["bfloat16_bytes"] == 4 * found["parameters"]
    assert found["cache_bytes_per_token"] == sizing.kv_cache_bytes(TINY, 1, 1, 4)
    assert found["context"] == TINY.max_position_embeddings
    # Within a row of the embedding of what sizing counts; the bias and sides are small.
    counted = sizing.formats.read_bytes(TINY, "int4")
    assert abs(found["read_bytes_per_token"] - counted) <= 2 * 32 + 64


@pytest.mark.parametrize("change, words", [
    (lambda t: t.pop(EXPERT + "weight_scale"), f"{EXPERT}weight_scale, without which"),
    (lambda t: t.update({EXPERT + "weight_packed": np.zeros((32, 3), np.int32)}), "(32, 3)"),
    (lambda t: t.pop("lm_head.weight"), "lacks lm_head.weight"),
    (lambda t: t.update(more=np.zeros(3)), "holds more"),
])  # fmt: skip
def test_what_does_not_fit_is_said_below_the_map(call, folder, change, words):
    rewrite(folder, change)
    status, out, err = call(folder)
    assert (status, err) == (1, "")
    assert words in out.splitlines()[-1] and "model.layers.0-2.self_attn.q_a_proj.weight" in out
    status, out, _ = call(folder, "--json")
    assert status == 1 and words in json.loads(out)["problem"]


def test_kinds_that_differ_stand_apart(call, folder):
    def change(tensors):
        for layer in (0, 2):
            name = f"model.layers.{layer}.self_attn.q_a_proj.weight"
            tensors[name] = tensors[name].astype(np.float32)

    rewrite(folder, change)
    _, out, _ = call(folder)
    assert "model.layers.0,2.self_attn.q_a_proj.weight" in out
    assert "model.layers.1.self_attn.q_a_proj.weight" in out


def test_nothing_is_read_but_headers(call, folder, monkeypatch):
    monkeypatch.setattr(np, "memmap", None)
    assert call(folder)[0] == 0


def test_what_is_no_checkpoint_is_a_sentence(call, tmp_path, folder):
    for where, words in ((tmp_path / "nowhere", "no directory"), (tmp_path, "config.json")):
        status, out, err = call(where)
        assert (status, out) == (1, "") and words in err and "\n" not in err.strip()
    (folder / "model.safetensors").write_bytes(b"cut short")
    status, out, err = call(folder)
    assert (status, out) == (1, "") and "truncated" in err
    # A name from a file does not steer the terminal.
    reference.Model.init(TINY).save_pretrained(folder)
    rewrite(folder, lambda t: t.update({"evil\x1b[2J": np.zeros(3)}))
    assert "\x1b" not in call(folder)[1]


def write_hollow(path, cfg: ModelConfig) -> None:
    """K2-Instruct's files as they are published, a file a layer, all headers and no data: holes."""
    size = {"BF16": 2, "F32": 4, "F8_E4M3": 1}
    shards: dict[str, dict[str, tuple]] = {}
    for name, shape in cfg.tensors():
        shard = shards.setdefault(name.split(".")[2] if ".layers." in name else "0", {})
        if quantization.narrows("float8", name):
            blocks = tuple(-(-side // 128) for side in shape)
            shard |= {name: ("F8_E4M3", shape), f"{name}_scale_inv": ("F32", blocks)}
        else:
            shard[name] = "F32" if name.endswith("correction_bias") else "BF16", shape
    for layer, shard in shards.items():
        shard[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = "BF16", (56,)
        header, end = {}, 0
        for name, (dtype, shape) in shard.items():
            start, end = end, end + size[dtype] * math.prod(shape)
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        with open(path / f"model-{int(layer) + 1:05}-of-00061.safetensors", "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)
    said = {"quantization_config": quantization.to_config("float8")}
    (path / "config.json").write_text(json.dumps(cfg.to_json() | said))


@pytest.mark.skipif(sys.platform != "linux", reason="not every file system has holes")
def test_k2s_published_files(call, tmp_path):
    """958.5 GiB in 61 files and 139,644 tensors, of 1,026,470,731,056 numbers with the scales: what
    a listing of the released checkpoint says (a third party's; the files were not at hand)."""
    cfg = ModelConfig.preset("kimi-k2")
    try:
        write_hollow(tmp_path, cfg)
    except OSError as error:
        pytest.skip(f"no room for 1 TB of holes: {error}")
    status, out, _ = call(tmp_path, "--json")
    found = json.loads(out)
    assert (status, found["problem"]) == (0, "")
    assert (found["files"], found["tensors"]) == (61, 139_644)
    assert f"{found['bytes'] / 2**30:.1f}" == "958.5"
    numbers = sum(kind["count"] * math.prod(kind["shape"]) for kind in found["kinds"])
    assert numbers == 1_026_470_731_056
    assert len(found["kinds"]) < 50
    # And the model opens: its vectors are read, and the first zero that should be a scale is named.
    model = reference.MappedModel.from_pretrained(tmp_path)
    with pytest.raises(checkpoint.CheckpointError, match=r"q_a_proj\.weight.*hold 0\.0 at"):
        model(np.arange(2)[None])
