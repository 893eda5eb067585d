"""config.json in and out: both generations of rope keys, what is filled in, what is refused."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minik2.config import ConfigError, ModelConfig, RopeScaling
from tests.oracle.configs import configs

K2 = ModelConfig.preset("kimi-k2")
OLD = K2.to_json()
YARN = OLD["rope_scaling"]


def changed(**changes):
    """K2's file with some keys changed; `...` takes a key away."""
    return {k: v for k, v in (OLD | changes).items() if v is not ...}


def refusal(source) -> str:
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_json(source)
    return str(caught.value)


def new_form(raw):
    """The same config in the keys of transformers 5."""
    yarn = dict(raw.get("rope_scaling") or {"type": "default"})
    rope = {"rope_theta": raw["rope_theta"], "rope_type": yarn.pop("type"), **yarn}
    return {k: v for k, v in raw.items() if not k.startswith("rope_")} | {"rope_parameters": rope}


@st.composite
def any_config(draw):
    cfg = draw(configs())
    return cfg.replace(
        rope_interleave=draw(st.booleans()),
        rms_norm_eps=draw(st.sampled_from([1e-6, 1e-5])),
        bos_token_id=draw(st.none() | st.integers(0, 9)),
        eos_token_id=draw(st.none() | st.integers(0, 9) | st.just((1, 2))),
    )


@given(cfg=any_config())
@settings(max_examples=200, deadline=None)
def test_what_is_written_is_read_back_the_same(cfg):
    through_a_file = json.loads(json.dumps(cfg.to_json(), allow_nan=False))
    assert ModelConfig.from_json(through_a_file) == cfg


@given(cfg=any_config().filter(lambda c: c.rope_interleave))
@settings(max_examples=100, deadline=None)
def test_old_and_new_rope_keys_mean_the_same(cfg):
    assert ModelConfig.from_json(new_form(cfg.to_json())) == cfg


@pytest.mark.parametrize("name", ModelConfig.presets())
def test_presets_survive_the_round_trip(name):
    cfg = ModelConfig.preset(name)
    # A prediction layer that is not saved is not announced; all else is the same.
    assert ModelConfig.from_json(cfg.to_json()) == cfg.replace(num_nextn_predict_layers=0)


@pytest.mark.parametrize("name", ModelConfig.presets())
def test_transformers_reads_what_is_written(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    cfg = ModelConfig.preset(name)
    (tmp_path / "config.json").write_text(json.dumps(cfg.to_json()))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert theirs.model_type == ("deepseek_v3" if cfg.scoring_func == "sigmoid" else "deepseek_v2")
    rope = theirs.rope_parameters
    assert rope["rope_theta"] == cfg.rope_theta
    assert rope["rope_type"] == ("default" if cfg.rope_scaling is None else "yarn")
    for field in dataclasses.fields(RopeScaling) if cfg.rope_scaling else ():
        assert rope[field.name] == getattr(cfg.rope_scaling, field.name)
    for field in dataclasses.fields(ModelConfig):
        if field.name not in ("rope_theta", "rope_scaling", "num_nextn_predict_layers"):
            assert getattr(theirs, field.name) == getattr(cfg, field.name), field.name
    # And what transformers writes in its turn.
    theirs.save_pretrained(tmp_path / "again")
    again = ModelConfig.from_json(tmp_path / "again")
    assert again.replace(num_nextn_predict_layers=0) == cfg.replace(num_nextn_predict_layers=0)


def test_a_file_a_directory_and_a_dict_say_the_same(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(OLD))
    for source in (path, str(path), tmp_path, str(tmp_path), OLD):
        assert ModelConfig.from_json(source) == K2


def test_a_file_that_is_not_there_is_the_file_systems_error(tmp_path):
    for source in (tmp_path, tmp_path / "absent.json"):
        with pytest.raises(FileNotFoundError):
            ModelConfig.from_json(source)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"{'a': 1}", b"\xff\xfe{}", b"[" * 100_000, b'{"vocab_size": 1'],
    ids=["empty", "open", "quotes", "not text", "deep", "truncated"],
)  # fmt: skip
def test_broken_json_is_named_with_its_file(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    sentence = refusal(tmp_path)
    assert str(path) in sentence and "not valid JSON" in sentence


@pytest.mark.parametrize("value", [[1], "a", 3, None])
def test_json_that_is_no_object_is_refused(tmp_path, value):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(value))
    assert f"but it holds a {type(value).__name__}" in refusal(path)


@pytest.mark.parametrize("model_type", ["llama", "kimi_k25", "deepseek_v32", None, 3, ["kimi_k2"]])
def test_other_architectures_are_refused_by_name(model_type):
    sentence = refusal(changed(model_type=model_type))
    assert f"model_type {model_type!r}" in sentence
    assert "deepseek_v3, kimi_k2, deepseek_v2" in sentence


def test_a_file_without_a_model_type_is_refused():
    assert "model_type None" in refusal(changed(model_type=...))


def test_the_model_type_fills_in_the_router():
    bare = {"scoring_func": ..., "topk_method": ..., "norm_topk_prob": ..., "moe_layer_freq": ...}
    for model_type in ("kimi_k2", "deepseek_v3"):
        cfg = ModelConfig.from_json(changed(model_type=model_type, **bare))
        assert (cfg.scoring_func, cfg.topk_method, cfg.norm_topk_prob) == (
            "sigmoid", "noaux_tc", True)  # fmt: skip
    cfg = ModelConfig.from_json(changed(model_type="deepseek_v2", **bare))
    assert (cfg.scoring_func, cfg.topk_method, cfg.norm_topk_prob) == ("softmax", "greedy", False)
    # What the file does say wins over its type; null says nothing.
    said = changed(model_type="deepseek_v2", **bare) | {"norm_topk_prob": True, "topk_method": None}
    cfg = ModelConfig.from_json(said)
    assert (cfg.topk_method, cfg.norm_topk_prob) == ("greedy", True)


def test_keys_that_do_not_change_the_arithmetic_are_ignored():
    extra = {
        "_source": "a note", "transformers_version": "9", "use_cache": False, "seq_aux": True,
        "aux_loss_alpha": 0.001, "quantization_config": {"quant_method": "fp8"}, "ep_size": 1,
        "auto_map": {}, "torch_dtype": "bfloat16", "head_dim": 64, "pretraining_tp": 1,
    }  # fmt: skip
    assert ModelConfig.from_json(OLD | extra) == K2


@pytest.mark.parametrize(
    ("key", "value"),
    [("hidden_act", "gelu"), ("attention_bias", True), ("mlp_bias", True), ("moe_layer_freq", 2),
     ("attention_dropout", 0.1), ("hidden_act", ["silu"])],
)  # fmt: skip
def test_settings_with_one_implemented_value_are_refused_otherwise(key, value):
    sentence = refusal(changed(**{key: value}))
    assert f"implements only {key} =" in sentence and repr(value) in sentence
    assert ModelConfig.from_json(changed(**{key: None})) == K2
    assert ModelConfig.from_json(changed(**{key: ...})) == K2


def test_key_heads_must_equal_query_heads():
    assert "num_key_value_heads 8" in refusal(changed(num_key_value_heads=8))
    for absent in (None, ...):
        assert ModelConfig.from_json(changed(num_key_value_heads=absent)) == K2


def test_missing_keys_are_all_named():
    sentence = refusal(changed(vocab_size=..., kv_lora_rank=None))
    assert "the config given lacks vocab_size, kv_lora_rank;" in sentence
    # A null query rank is a value; an absent one is not.
    assert ModelConfig.from_json(changed(q_lora_rank=None)).q_lora_rank is None
    assert "lacks q_lora_rank" in refusal(changed(q_lora_rank=...))


def test_wrong_values_in_a_file_are_refused_as_in_a_constructor(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(changed(rms_norm_eps=float("nan"))))
    assert "rms_norm_eps must be a positive finite number" in refusal(path)
    assert "hidden_size must be a whole number" in refusal(changed(hidden_size="7168"))


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_rope_settings_that_are_not_implemented_are_refused(key):
    yarn = {**YARN, "rope_theta": 50000.0}
    assert "must be an object" in refusal(changed(**{key: [1]}))
    assert "'linear'" in refusal(changed(**{key: {"type": "linear", "factor": 2.0}}))
    assert "attention_factor" in refusal(changed(**{key: {**yarn, "attention_factor": 1.3}}))
    assert "truncate" in refusal(changed(**{key: {**yarn, "truncate": False}}))
    for name in ("factor", "original_max_position_embeddings"):
        assert f"lack {name}" in refusal(changed(**{key: {**yarn, name: None}}))
    assert "rope_scaling.factor must be" in refusal(changed(**{key: {**yarn, "factor": "32"}}))


def test_yarns_optional_values_have_the_customary_defaults():
    short = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    for raw in (short, {**short, "beta_fast": None, "mscale": None}):
        scaling = ModelConfig.from_json(changed(rope_scaling=raw)).rope_scaling
        assert scaling == RopeScaling(4.0, 64, 32.0, 1.0, 0.0, 0.0)


@pytest.mark.parametrize("none", [None, {}, {"type": "default"}, {"rope_type": "default"}])
def test_no_scaling_has_several_spellings(none):
    assert ModelConfig.from_json(changed(rope_scaling=none)).rope_scaling is None


def test_an_all_dense_model_is_accepted():
    cfg = ModelConfig.from_json(changed(first_k_dense_replace=61))
    assert cfg.is_all_dense
    assert ModelConfig.from_json(cfg.to_json()) == cfg


def test_end_tokens_may_be_a_list():
    cfg = ModelConfig.from_json(changed(eos_token_id=[163585, 163586]))
    assert cfg.eos_token_id == (163585, 163586)
    assert cfg.to_json()["eos_token_id"] == [163585, 163586]


@pytest.mark.parametrize("key", ["n_group", "topk_group", "routed_scaling_factor"])
def test_what_other_readers_would_fill_in_differently_is_asked_for(key):
    """transformers takes 8, 4 and 2.5 where a V3 file says nothing; a guess would be silent."""
    for value in (..., None):
        assert f"the config given lacks {key};" in refusal(changed(**{key: value}))
