"""The cost rule against the package's own count of operations, and against common sense."""

import json
from pathlib import Path

import pytest

from minik2 import ModelConfig, cost, sizing

NAMES = ["tiny", "bench", "moonlight-16b-a3b", "kimi-k2"]


def up(cfg):
    """Operations to multiply one latent with kv_b_proj, which `sizing` counts as a weight."""
    wide = cfg.qk_nope_head_dim + cfg.v_head_dim
    return 2 * cfg.num_attention_heads * cfg.kv_lora_rank * wide


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tokens", [1, 7, 300])
def test_operations_are_those_of_the_sizing_sheet(name, tokens):
    cfg = ModelConfig.preset(name)
    work, layers = sizing.flops(cfg, tokens), cfg.num_hidden_layers
    step, prompt = cost.absorbed(cfg, 1, tokens - 1), cost.absorbed(cfg, tokens, 0)
    assert layers * (step.flops - up(cfg)) == work.decode_absorbed.attention
    assert layers * (prompt.flops - tokens * up(cfg)) == work.prefill_absorbed.attention
    step, prompt = cost.expanded(cfg, 1, tokens - 1), cost.expanded(cfg, tokens, 0)
    assert layers * step.flops == work.decode_rebuilt.attention
    assert layers * (prompt.flops - tokens * up(cfg)) == work.prefill_expanded.attention


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_shares_the_weights_and_nothing_else(name):
    cfg = ModelConfig.preset(name)
    weights = up(cfg) // 2 * 2
    for count in (cost.absorbed, cost.expanded):
        one, four = count(cfg, 3, 50, size=2), count(cfg, 3, 50, batch=4, size=2)
        assert four.flops == 4 * one.flops
        assert four.bytes - weights == 4 * (one.bytes - weights)


def test_decoding_moves_the_cache_once_when_absorbed():
    cfg = ModelConfig.preset("kimi-k2")
    more = cost.absorbed(cfg, 1, 1001, size=2).bytes - cost.absorbed(cfg, 1, 1000, size=2).bytes
    assert more * cfg.num_hidden_layers == sizing.kv_cache_bytes(cfg, 1)


@pytest.mark.parametrize(("name", "border", "last"), [("bench", 128, 228), ("kimi-k2", 171, 204)])
def test_the_forms_change_places_once_and_where_the_module_says(name, border, last):
    cfg = ModelConfig.preset(name)
    for cached in (0, 100, 8192, 10**6):
        chosen = [cost.absorb(cfg, new, cached) for new in range(1, 4000)]
        assert chosen == sorted(chosen, reverse=True)
        assert not chosen[-1]
        if cached:
            assert chosen[0]
    assert sum(chosen) == pytest.approx(last, abs=1)
    few, many = cost.absorbed(cfg, border, 10**9), cost.expanded(cfg, border, 10**9)
    assert few.flops == pytest.approx(many.flops, rel=0.01)


def test_on_the_measured_grid_the_rule_errs_by_what_the_module_and_lesson_03_say():
    path = Path(__file__).parents[1] / "benchmarks" / "results" / "absorption.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    cfg, slower = ModelConfig.preset(found["preset"]), []
    for p in found["points"]:
        form = "absorbed" if cost.absorb(cfg, p["new"], p["cached"]) else "expanded"
        slower.append(p[form] / min(p["absorbed"], p["expanded"]))
    assert round(max(slower), 2) == 1.24


def test_seconds_are_those_of_operations_and_bytes_together():
    assert cost.Cost(100, 30).seconds(10, 10) == 13
    assert cost.Cost(100, 30).seconds(100, 10) == 4
