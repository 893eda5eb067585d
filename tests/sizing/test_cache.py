"""The cache: published numbers, hand counts, and sentences for what makes no sense."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minik2 import sizing
from minik2.config import ModelConfig
from tests.oracle.configs import configs


@pytest.mark.parametrize("name", ["kimi-k2", "deepseek-v3", "moonlight-16b-a3b"])
def test_576_numbers_a_token_a_layer(name):
    """512 + 64, whatever the heads (64, 128 and 16)."""
    assert sizing.cache(ModelConfig.preset(name), 1).numbers == 576


def test_k2_at_131072_tokens():
    """1,152 B a layer, 70,272 B a token, 9.21 GB or 8.58 GiB in all."""
    cfg = ModelConfig.preset("kimi-k2")
    kept = sizing.cache(cfg, 131072)
    assert kept.bytes_per_token == 61 * 1152 == 70_272
    assert kept.bytes == 70_272 * 131_072 == sizing.kv_cache_bytes(cfg, tokens=131072)
    assert (round(kept.bytes / 1e9, 2), round(kept.bytes / 2**30, 2)) == (9.21, 8.58)
    assert "9.21 GB (8.58 GiB)" in str(kept)


def test_other_attention_with_the_same_heads():
    """MHA: 64 x (192 + 128) = 20,480, 35.6 times as much; 28.4 times with keys of 128."""
    kept = sizing.cache(ModelConfig.preset("kimi-k2"), 1)
    assert kept.others["MHA"] == (20_480, 64 * 256)
    assert [round(n / 576, 1) for n in kept.others["MHA"]] == [35.6, 28.4]
    assert kept.others["MQA"] == (320, 256)
    # 576 = 2.25 key heads of GQA in the paper's convention (arXiv 2405.04434 table 1).
    assert kept.numbers / kept.others["GQA (8 groups)"][1] * 8 == 2.25


@given(cfg=configs(), tokens=st.integers(0, 300), batch=st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_counts_of_random_caches(cfg, tokens, batch):
    whole = sizing.kv_cache_bytes(cfg, tokens, batch)
    one = 2 * (cfg.kv_lora_rank + cfg.qk_rope_head_dim)
    assert whole == sum(one for _ in range(cfg.num_hidden_layers * tokens * batch))
    assert sizing.kv_cache_bytes(cfg, tokens + 1, batch) > whole
    assert sizing.kv_cache_bytes(cfg, tokens, batch, 4) == 2 * whole
    assert sizing.kv_cache_bytes(cfg, tokens, batch, Fraction(1, 8)) == -(-whole // 16)


@pytest.mark.parametrize("more, sentence", [
    ({"tokens": -1}, "tokens must be a whole number of at least 0, but it is -1"),
    ({"tokens": 1.5}, "tokens must be a whole number"),
    ({"tokens": True}, "tokens must be a whole number"),
    ({"batch": 0}, "batch must be a whole number of at least 1"),
    ({"bytes_per_number": 0}, "bytes_per_number must be a positive number"),
    ({"bytes_per_number": float("nan")}, "bytes_per_number must be a positive number"),
    ({"bytes_per_number": float("inf")}, "bytes_per_number must be a positive number"),
    ({"bytes_per_number": "bf16"}, "bytes_per_number must be a positive number"),
])
def test_impossible_caches(more, sentence):
    with pytest.raises(ValueError, match=sentence):
        sizing.kv_cache_bytes(ModelConfig.preset("tiny"), **{"tokens": 1} | more)


def test_unknown_formats_and_groups():
    cfg = ModelConfig.preset("tiny")
    with pytest.raises(ValueError, match="no number format 'bfloat15'; did you mean 'bfloat16'"):
        sizing.cache(cfg, 1, dtype="bfloat15")
    with pytest.raises(ValueError, match="3 groups do not divide 2 heads"):
        sizing.cache(cfg, 1, groups=3)
