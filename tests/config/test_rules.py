"""Every rule of a configuration: what breaks it, and the sentence that says so."""

import dataclasses

import pytest

from minik2.config import ConfigError, ModelConfig, RopeScaling

TINY = ModelConfig.preset("tiny")
V2 = ModelConfig.preset("tiny").replace(
    scoring_func="softmax", topk_method="group_limited_greedy", n_group=4, topk_group=2
)
YARN = RopeScaling(4.0, 128)

COUNTS = [
    f.name for f in dataclasses.fields(ModelConfig)
    if f.type == "int" and f.name not in ("first_k_dense_replace", "num_nextn_predict_layers")
]  # fmt: skip
NUMBERS = ["rope_theta", "rms_norm_eps", "routed_scaling_factor", "initializer_range"]
FLAGS = ["norm_topk_prob", "rope_interleave", "tie_word_embeddings"]
NAN, INF = float("nan"), float("inf")


def test_the_lists_above_cover_every_field():
    others = {
        "first_k_dense_replace", "num_nextn_predict_layers", "q_lora_rank", "scoring_func",
        "topk_method", "rope_scaling", "bos_token_id", "eos_token_id",
    }  # fmt: skip
    every = {f.name for f in dataclasses.fields(ModelConfig)}
    assert {*COUNTS, *NUMBERS, *FLAGS} | others == every


def refused(cfg: ModelConfig, **changes: object) -> str:
    with pytest.raises(ConfigError) as caught:
        cfg.replace(**changes)
    sentence = str(caught.value)
    assert sentence.endswith(".") and "\n" not in sentence
    return sentence


@pytest.mark.parametrize("value", [0, -1, 2.0, 2.5, NAN, INF, True, "8", None, [4]])
@pytest.mark.parametrize("name", COUNTS)
def test_a_size_must_be_a_positive_whole_number(name, value):
    sentence = refused(TINY, **{name: value})
    assert sentence == f"{name} must be a whole number of at least 1, but it is {value!r}."


@pytest.mark.parametrize("value", [-1, 1.0, NAN, True, "1", None])
@pytest.mark.parametrize("name", ["first_k_dense_replace", "num_nextn_predict_layers"])
def test_a_count_that_may_be_zero_is_still_a_whole_number(name, value):
    assert f"{name} must be a whole number of at least 0" in refused(TINY, **{name: value})
    assert getattr(TINY.replace(**{name: 0}), name) == 0


@pytest.mark.parametrize("value", [0, -3, 1.5, NAN, True, "16"])
def test_the_query_rank_is_a_positive_number_or_null(value):
    assert "q_lora_rank must be a positive whole number, or null" in refused(
        TINY, q_lora_rank=value
    )
    assert TINY.replace(q_lora_rank=None).q_lora_rank is None


@pytest.mark.parametrize("value", [0, -1e-6, NAN, INF, -INF, True, "1e-6", None, 10**400])
@pytest.mark.parametrize("name", NUMBERS)
def test_a_constant_must_be_positive_and_finite(name, value):
    assert f"{name} must be a positive finite number" in refused(TINY, **{name: value})


@pytest.mark.parametrize("value", [0, 1, "true", None])
@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_must_be_true_or_false(name, value):
    assert refused(TINY, **{name: value}) == f"{name} must be true or false, but it is {value!r}."


@pytest.mark.parametrize("value", [-1, 1.0, NAN, True, "2"])
def test_special_tokens_are_ids_or_null(value):
    assert "bos_token_id must be null or a token id" in refused(TINY, bos_token_id=value)
    assert "eos_token_id must be null or a token id" in refused(TINY, eos_token_id=value)
    assert "eos_token_id must be null or a token id" in refused(TINY, eos_token_id=(1, value))
    assert TINY.replace(bos_token_id=0, eos_token_id=(1, 2)).eos_token_id == (1, 2)


def test_rotary_sizes_and_bases():
    assert "qk_rope_head_dim must be even" in refused(TINY, qk_rope_head_dim=7)
    assert "rope_theta must exceed 1" in refused(TINY, rope_theta=1.0)


@pytest.mark.parametrize("value", [NAN, INF, -1.0, True, "4", None])
@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(RopeScaling)])
def test_yarns_numbers_must_be_positive_and_finite(name, value):
    broken = dataclasses.replace(YARN, **{name: value})
    assert f"rope_scaling.{name} must be a positive finite" in refused(TINY, rope_scaling=broken)


def test_yarns_numbers_must_agree_with_each_other():
    for changes in ({"factor": 0.5}, {"beta_fast": 0.5}):
        broken = dataclasses.replace(YARN, **changes)
        assert "factor >= 1 and beta_fast >= beta_slow" in refused(TINY, rope_scaling=broken)
    for name in ("factor", "beta_fast", "beta_slow", "original_max_position_embeddings"):
        broken = dataclasses.replace(YARN, **{name: 0})
        assert f"rope_scaling.{name} must be" in refused(TINY, rope_scaling=broken)
    broken = dataclasses.replace(YARN, original_max_position_embeddings=128.5)
    assert "must be a whole number of tokens" in refused(TINY, rope_scaling=broken)
    assert "from_json takes a dict" in refused(TINY, rope_scaling={"factor": 4.0})
    switched_off = dataclasses.replace(YARN, mscale=0.0, mscale_all_dim=0)
    assert TINY.replace(rope_scaling=switched_off).rope_scaling == switched_off


@pytest.mark.parametrize("value", ["best", None, ["greedy"], 1])
def test_routers_are_refused_by_name(value):
    sentence = refused(TINY, topk_method=value)
    assert sentence.startswith("topk_method must be one of noaux_tc, greedy, group_limited_greedy")
    assert repr(value) in sentence
    assert "goes with scoring_func 'sigmoid'" in refused(TINY, scoring_func=value)


def test_scores_and_method_go_together():
    assert "'noaux_tc' goes with scoring_func 'sigmoid'" in refused(TINY, scoring_func="softmax")
    assert "goes with scoring_func 'softmax'" in refused(V2, scoring_func="sigmoid")


def test_groups_and_choices_must_fit_the_experts():
    assert "3 does not divide 8" in refused(TINY, n_group=3)
    assert "topk_group (3) cannot exceed n_group (2)" in refused(TINY, n_group=2, topk_group=3)
    assert "8 experts in 8 groups leave one each" in refused(TINY, n_group=8, topk_group=8)
    assert "'greedy' ignores groups" in refused(V2, topk_method="greedy")
    # 2 of 4 groups of 2 experts: 4 may be chosen, 5 may not.
    assert V2.replace(num_experts_per_tok=4).num_experts_per_tok == 4
    assert "allows only 4" in refused(V2, num_experts_per_tok=5)
    assert "allows only 8" in refused(TINY, num_experts_per_tok=9)
    # A group of one expert has no two best, but group_limited_greedy needs only one.
    assert V2.replace(n_group=8, topk_group=2).n_group == 8


def test_a_model_without_experts_may_say_anything_about_them():
    dense = TINY.replace(first_k_dense_replace=3, n_group=5, num_experts_per_tok=99)
    assert dense.is_all_dense and not any(dense.is_moe(layer) for layer in range(3))
    assert not any("expert" in name or ".gate." in name for name in dense.tensor_shapes())
    assert TINY.replace(first_k_dense_replace=70).is_all_dense
    assert not TINY.is_all_dense and [TINY.is_moe(n) for n in range(3)] == [False, True, True]


def test_the_error_is_a_value_error_and_the_config_is_frozen():
    assert issubclass(ConfigError, ValueError)
    with pytest.raises(dataclasses.FrozenInstanceError):
        TINY.hidden_size = 5
    assert hash(TINY) == hash(ModelConfig.preset("tiny"))
    with pytest.raises(TypeError, match="hiden_size"):
        TINY.replace(hiden_size=5)
