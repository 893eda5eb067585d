"""The presets against the published values, typed here a second time from the published tables."""

import json
from pathlib import Path

import pytest

import minik2
from minik2.config import PRESETS, ModelConfig, RopeScaling

# Rows as the published comparison has them; columns in the order of MODELS. `None` is a value.
MODELS = ["kimi-k2", "kimi-k2-thinking", "moonlight-16b-a3b", "deepseek-v3", "deepseek-v2-lite"]
PUBLISHED = {
    "hidden_size": (7168, 7168, 2048, 7168, 2048),
    "num_hidden_layers": (61, 61, 27, 61, 27),
    "first_k_dense_replace": (1, 1, 1, 3, 1),
    "num_attention_heads": (64, 64, 16, 128, 16),
    "q_lora_rank": (1536, 1536, None, 1536, None),
    "kv_lora_rank": (512, 512, 512, 512, 512),
    "qk_nope_head_dim": (128, 128, 128, 128, 128),
    "qk_rope_head_dim": (64, 64, 64, 64, 64),
    "v_head_dim": (128, 128, 128, 128, 128),
    "intermediate_size": (18432, 18432, 11264, 18432, 10944),
    "moe_intermediate_size": (2048, 2048, 1408, 2048, 1408),
    "n_routed_experts": (384, 384, 64, 256, 64),
    "n_shared_experts": (1, 1, 2, 1, 2),
    "num_experts_per_tok": (8, 8, 6, 8, 6),
    "n_group": (1, 1, 1, 8, 1),
    "topk_group": (1, 1, 1, 4, 1),
    "scoring_func": ("sigmoid", "sigmoid", "sigmoid", "sigmoid", "softmax"),
    "topk_method": ("noaux_tc", "noaux_tc", "noaux_tc", "noaux_tc", "greedy"),
    "norm_topk_prob": (True, True, True, True, False),
    "routed_scaling_factor": (2.827, 2.827, 2.446, 2.5, 1.0),
    "vocab_size": (163840, 163840, 163840, 129280, 102400),
    "rope_theta": (50000, 50000, 50000, 10000, 10000),
    "max_position_embeddings": (131072, 262144, 8192, 163840, 163840),
    "rms_norm_eps": (1e-6, 1e-5, 1e-5, 1e-6, 1e-6),
    "initializer_range": (0.02, 0.02, 0.02, 0.02, 0.02),
    "tie_word_embeddings": (False, False, False, False, False),
    "rope_interleave": (True, True, True, True, True),
    "num_nextn_predict_layers": (0, 0, 0, 1, 0),
    "bos_token_id": (163584, 163584, 163584, 0, 100000),
    "eos_token_id": (163585, 163586, 163586, 1, 100001),
    # factor, original context, beta_fast, beta_slow, mscale, mscale_all_dim
    "rope_scaling": (
        RopeScaling(32, 4096, 1, 1, 1, 1),
        RopeScaling(64, 4096, 1, 1, 1, 1),
        None,
        RopeScaling(40, 4096, 32, 1, 1, 1),
        RopeScaling(40, 4096, 32, 1, 0.707, 0.707),
    ),
}
BENCH = {
    "vocab_size": 1024, "hidden_size": 512, "num_hidden_layers": 6, "first_k_dense_replace": 1,
    "intermediate_size": 2048, "n_routed_experts": 32, "moe_intermediate_size": 256,
    "num_experts_per_tok": 4, "n_shared_experts": 1, "num_attention_heads": 8, "q_lora_rank": 192,
    "kv_lora_rank": 128, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64,
    "max_position_embeddings": 16384, "rope_theta": 50000, "rope_scaling": None,
    "routed_scaling_factor": 2.827, "norm_topk_prob": True, "n_group": 1, "topk_group": 1,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_released_model_has_its_published_values(name):
    cfg = ModelConfig.preset(name)
    fields = set(ModelConfig.__dataclass_fields__)
    assert set(PUBLISHED) == fields, "the table must cover every field"
    for field, values in PUBLISHED.items():
        assert getattr(cfg, field) == values[MODELS.index(name)], field


def test_bench_is_what_the_benchmarks_were_agreed_on():
    cfg = ModelConfig.preset("bench")
    assert {field: getattr(cfg, field) for field in BENCH} == BENCH


def test_every_preset_is_listed_with_a_source_and_no_file_is_left_over():
    folder = Path(minik2.__file__).parent / "presets"
    assert {path.stem for path in folder.glob("*")} == set(PRESETS)
    for path in folder.glob("*.json"):
        raw = json.loads(path.read_text(encoding="utf-8"))
        assert len(raw["_source"]) > 20, path
        # Rotation in pairs is the checkpoints' layout; every other field must be written out.
        assert set(ModelConfig.__dataclass_fields__) - set(raw) <= {"rope_interleave"}, path


def test_the_list_of_presets_is_stable():
    assert minik2.ModelConfig.presets() == [
        "tiny", "small", "bench", "moonlight-16b-a3b", "deepseek-v2-lite", "deepseek-v3",
        "kimi-k2", "kimi-k2-thinking",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["kimi-k3", "kimi_k2", "", None, 3, "../presets/tiny"])
def test_an_unknown_preset_is_refused_with_what_there_is(name):
    with pytest.raises(ValueError, match=r"no preset named .*(did you mean|choose one of)"):
        ModelConfig.preset(name)


def test_a_near_miss_is_told_what_was_meant():
    with pytest.raises(ValueError, match="did you mean 'kimi-k2'"):
        ModelConfig.preset("kimi_k2")
