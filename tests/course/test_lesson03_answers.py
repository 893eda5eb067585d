"""Lesson 03's right answers are the engine's, and where its figure says "even" it is even."""

import numpy as np
import pytest

import minik2
from minik2 import cost, reference, sizing
from minik2.checks.exercise import find
from minik2.plots.lesson03 import border

SMALL = minik2.ModelConfig.preset("small")


@pytest.mark.parametrize("preset", ["kimi-k2", "deepseek-v3", "small"])
def test_cache_bytes_are_the_packages_and_the_caches_own(preset):
    cfg = minik2.ModelConfig.preset(preset)
    right = find("cache.bytes").reference
    for bits in (4, 8, 16, 64):
        assert right(cfg.to_json(), 500, 3, bits) == sizing.kv_cache_bytes(
            cfg, 500, batch=3, bytes_per_number=bits / 8)
    if preset == "small":
        assert right(cfg.to_json(), 500, 3, 64) == reference.cache.Cache(
            cfg, 3, 500, np.float64).nbytes


def test_the_two_absorbed_halves_are_the_engines_attention():
    rng = np.random.default_rng()
    heads, nope, rotary, value, rank = 3, 6, 4, 5, 7
    q, latent = rng.normal(size=(8, heads, nope + rotary)), rng.normal(size=(8, rank))
    key, up = rng.normal(size=(8, rotary)), rng.normal(size=(heads * (nope + value), rank))
    kv = (latent @ up.T).reshape(8, heads, -1)
    k = np.concatenate([kv[..., :nope], np.broadcast_to(key[:, None], (8, heads, rotary))], -1)
    want = reference.attention.forward(
        q[None], k[None], np.ascontiguousarray(kv[None, ..., nope:]), 0.3)[0][0]
    moved = find("mla.absorb_query").reference(q[..., :nope], up)
    scores = 0.3 * (np.einsum("thc,sc->hts", moved, latent)
                    + np.einsum("thr,sr->hts", q[..., nope:], key))
    powers = np.exp(np.where(np.tri(8, dtype=bool), scores, -np.inf))
    mixed = np.einsum("hts,sc->thc", powers / powers.sum(-1, keepdims=True), latent)
    got = find("mla.absorb_output").reference(mixed, up, nope)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * np.abs(want).max())


def test_decode_step_is_the_engines_block_token_by_token():
    """Over all tokens of a text, with o_proj, against `mla.forward` of all at once."""
    rng = np.random.default_rng()
    cfg, tokens = SMALL, 9
    weights = {}
    for name, shape in cfg.tensor_shapes().items():
        if name.startswith("model.layers.1.self_attn."):
            own = rng.normal(size=shape) / shape[-1] ** 0.5
            short = name.removeprefix("model.layers.1.self_attn.")
            weights[short] = 1 + 0.3 * own if own.ndim == 1 else own
    x = rng.normal(size=(1, tokens, cfg.hidden_size))
    cos, sin = reference.rope.table(cfg, np.arange(tokens), np.float64)
    want, saved = reference.mla.forward(x, weights, cfg, cos, sin)

    query, _ = reference.norm.forward(
        x[0] @ weights["q_a_proj.weight"].T, weights["q_a_layernorm.weight"], cfg.rms_norm_eps)
    q = (query @ weights["q_b_proj.weight"].T).reshape(tokens, cfg.num_attention_heads, -1)
    new = x[0] @ weights["kv_a_proj_with_mqa.weight"].T
    rows, step = np.empty((0, new.shape[1])), find("mla.decode_step").reference
    for t in range(tokens):
        y, rows = step(q[t], new[t], rows, weights["kv_a_layernorm.weight"],
                       weights["kv_b_proj.weight"], cfg.rope_theta)
        got = y.ravel() @ weights["o_proj.weight"].T
        np.testing.assert_allclose(got, want[0, t], rtol=0, atol=1e-12 * np.abs(want).max())
    kept = np.concatenate([saved["latent"], saved["k_rope"]], -1)[0]
    np.testing.assert_allclose(rows, kept, rtol=0, atol=1e-12 * np.abs(kept).max())


def test_the_border_lies_where_the_lessons_formula_says():
    """After a long context; with the heads of K2 or a few of them."""
    for heads in (4, 64):
        cfg = minik2.ModelConfig.preset("kimi-k2").replace(num_attention_heads=heads)
        wide = cfg.qk_nope_head_dim + cfg.v_head_dim
        even = cfg.kv_lora_rank * wide / (2 * cfg.kv_lora_rank - wide)
        grid = [round(even) - 3, round(even), round(even) + 3]
        sides = [[form(cfg, new, 10**6).flops for new in grid]
                 for form in (cost.absorbed, cost.expanded)]
        assert abs(border(grid, *sides) - even) < 0.5


def test_the_border_at_either_end():
    assert border([1, 2], [2.0, 2.0], [1.0, 3.0]) == 0
    assert border([1, 2], [1.0, 2.0], [2.0, 3.0]) == float("inf")
    assert border([1, 4], [1.0, 4.0], [2.0, 2.0]) == pytest.approx(2)
