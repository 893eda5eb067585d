"""What only the reference has: its dtypes, what `forward` saves, arrays that are views."""

import numpy as np
import pytest

from minik2 import initial, reference
from minik2.config import ModelConfig
from tests.reference import build
from tests.reference.bounds import relative_error

TINY = ModelConfig.preset("tiny")
TOKENS = np.arange(24).reshape(2, 12)


def test_forward_returns_the_logits_and_what_every_layer_saved():
    model = build.model(TINY, 0)
    logits, saved = model.forward(TOKENS)
    assert (logits == model(TOKENS)).all()
    assert len(saved) == TINY.num_hidden_layers + 1
    for layer, kept in enumerate(saved[:-1]):
        assert set(kept) == {
            "input_layernorm", "self_attn", "post_attention_layernorm", "mlp",
        }  # fmt: skip
        attention = kept["self_attn"]["attention"]
        assert attention["q"].shape == attention["k"].shape == (2, 12, 2, 16)
        assert attention["v"].shape == (2, 12, 2, 8)
        assert attention["scale"] == reference.rope.softmax_scale(TINY)
        if TINY.is_moe(layer):
            router = kept["mlp"]["router"]
            assert router["indices"].shape == router["weights"].shape == (24, 2)
            assert np.allclose(router["weights"].sum(axis=1), TINY.routed_scaling_factor)
            assert kept["mlp"]["experts"]["offsets"][-1] == 24 * 2
        else:
            assert kept["mlp"]["hidden"].shape == (24, TINY.intermediate_size)
    # The last entry's norm is what the head reads.
    final = saved[-1]["norm"]
    states = final["x"] * final["scale"].reshape(2, 12, 1) * final["weight"]
    assert relative_error(states @ model.head.T, logits) < 1e-14


def test_saved_attention_gives_the_saved_context():
    _, saved = build.model(TINY, 0).forward(TOKENS)
    kept = saved[1]["self_attn"]
    y, _ = reference.attention.forward(*(kept["attention"][n] for n in ("q", "k", "v", "scale")))
    assert (y.reshape(kept["context"].shape) == kept["context"]).all()


def test_weights_are_what_the_layers_compute_with():
    """Writing to a tensor of the checkpoint changes the model, stacked experts included."""
    model = build.model(TINY.replace(num_experts_per_tok=8), 0)
    before = model(TOKENS)
    for name, array in model.weights.items():
        if name.endswith("e_score_correction_bias"):
            continue  # where all experts are chosen it has nothing to move
        kept = array.copy()
        array += 0.5
        assert (model(TOKENS) != before).any(), name
        array[...] = kept
        assert (model(TOKENS) == before).all(), name
    mlp = model.layers[1]["mlp"]
    for expert in range(8):
        base = f"model.layers.1.mlp.experts.{expert}."
        gate, up = np.split(mlp["experts.gate_up_proj"][expert], 2)
        assert np.shares_memory(gate, model.weights[base + "gate_proj.weight"])
        assert np.shares_memory(up, model.weights[base + "up_proj.weight"])


def test_tied_embeddings_are_one_array():
    tied = reference.Model.init(TINY.replace(tie_word_embeddings=True))
    assert tied.head is tied.weights["model.embed_tokens.weight"]
    assert "lm_head.weight" not in tied.weights


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int64", "complex128", "fast"])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(TypeError):
        reference.Model(TINY, dtype)


def test_float32_stays_float32_and_near_float64():
    exact = build.model(TINY, 3)
    single = build.model(TINY, 3, "float32")
    got, want = single(TOKENS), exact(TOKENS)
    assert got.dtype == np.float32 and want.dtype == np.float64
    # Some hundred rounded terms a number, three layers: 1e3 units of 6e-8; no choice of experts
    # lies that close in these weights, or the difference would be a thousand times as large.
    assert relative_error(got, want) < 6e-5


def test_starting_weights():
    cfg = ModelConfig.preset("small")
    model = reference.Model.init(cfg, seed=5)
    for name, array in model.weights.items():
        assert array.dtype == np.float32
        if name.endswith("norm.weight"):
            assert (array == 1).all()
        elif name.endswith("e_score_correction_bias"):
            assert (array == 0).all()
        else:
            # The deviation of n normal numbers is off by 1 / sqrt(2n) one time in three; five
            # times that, one time in two million.
            spread = cfg.initializer_range * (1 + 5 / np.sqrt(2 * array.size) * np.array([-1, 1]))
            assert spread[0] < array.std() < spread[1], name
            assert abs(array.mean()) < 5 * cfg.initializer_range / np.sqrt(array.size), name
    again, other = (reference.Model.init(cfg, seed=s) for s in (5, 6))
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    assert all((again.weights[n] == w).all() for n, w in model.weights.items())
    assert (other.weights[name] != model.weights[name]).mean() > 0.99
    # One tensor can be made without the others, and no two are alike.
    assert (initial.tensor(name, (64, 128), cfg, 5) == model.weights[name]).all()
    neighbour = name.replace("experts.3", "experts.4")
    assert (model.weights[neighbour] != model.weights[name]).mean() > 0.99
