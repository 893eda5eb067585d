"""Both engines against transformers' model of the same checkpoint, written and read from disk."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from minik2 import pytorch, reference
from minik2.config import ModelConfig
from tests.oracle import twin
from tests.oracle.configs import configs

TOKENS = st.tuples(st.integers(1, 3), st.integers(1, 40))


def relative_error(got, want) -> float:
    """Largest difference over the largest wanted value."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    return float(np.abs(got - want).max() / np.abs(want).max())


def our_logits(engine: str, directory: Path, tokens: np.ndarray, dtype: str) -> np.ndarray:
    if engine == "reference":
        return reference.Model.from_pretrained(directory, dtype=dtype)(tokens)
    model = pytorch.Model.from_pretrained(directory, device="cpu", dtype=getattr(torch, dtype))
    with torch.inference_mode():
        return model(torch.from_numpy(tokens)).numpy()


@pytest.mark.parametrize("scoring", ["sigmoid", "softmax"])
@given(data=st.data(), shape=TOKENS, seed=st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_logits_equal_transformers_in_float64(scoring, data, shape, seed):
    cfg = data.draw(configs(scoring, halves=True))
    tokens = np.random.default_rng(seed).integers(0, cfg.vocab_size, shape)
    with twin.in_float64(), tempfile.TemporaryDirectory() as directory:
        theirs = twin.build(cfg, seed)
        theirs.save_pretrained(directory)
        with torch.no_grad():
            want = theirs(torch.from_numpy(tokens)).logits
        # The file is read as a stranger's: nothing but what transformers wrote.
        for engine in ("reference", "pytorch"):
            got = our_logits(engine, Path(directory), tokens, "float64")
            assert relative_error(got, want) < 1e-9, engine


@given(cfg=configs(halves=True), shape=TOKENS, seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_logits_equal_transformers_in_float32(cfg, shape, seed):
    """float32 to 1e-4, where no token stands within rounding of another choice of experts."""
    tokens = np.random.default_rng(seed).integers(0, cfg.vocab_size, shape)
    with tempfile.TemporaryDirectory() as directory:
        theirs = twin.build(cfg, seed, torch.float32)
        theirs.save_pretrained(directory)
        with torch.no_grad():
            want = theirs(torch.from_numpy(tokens)).logits
        exact = reference.Model.from_pretrained(directory, dtype="float64")
        assume(smallest_margin(exact, tokens) > 1e-4)
        for engine in ("reference", "pytorch"):
            got = our_logits(engine, Path(directory), tokens, "float32")
            assert relative_error(got, want) < 1e-4, engine


def smallest_margin(model: reference.Model, tokens: np.ndarray) -> float:
    """How close any token came to another choice: worst chosen against best unchosen score."""
    cfg, margin = model.cfg, np.inf
    for saved, weights in zip(model.forward(tokens)[1], model.layers, strict=False):
        if "router" not in saved["mlp"]:
            continue
        scores = saved["mlp"]["router"]["scores"]
        choice = scores + weights["mlp"].get("gate.e_score_correction_bias", 0.0)
        if cfg.n_group > 1:
            grouped = np.sort(choice.reshape(len(choice), cfg.n_group, -1), axis=2)
            best = 2 if cfg.topk_method == "noaux_tc" else 1
            worth = grouped[..., -best:].sum(axis=2)
            margin = min(margin, cut(worth, cfg.topk_group))
            kept = worth >= np.sort(worth, axis=1)[:, -cfg.topk_group, None]
            allowed = np.repeat(kept, cfg.n_routed_experts // cfg.n_group, axis=1)
            choice = np.where(allowed, choice, -np.inf)
        margin = min(margin, cut(choice, cfg.num_experts_per_tok))
    return margin


def cut(scores: np.ndarray, kept: int) -> float:
    """The least distance, over rows, between the last score kept and the first one dropped."""
    if kept == scores.shape[1]:
        return np.inf
    ordered = np.sort(scores, axis=1)
    return float((ordered[:, -kept] - ordered[:, -kept - 1]).min())


@given(cfg=configs(halves=True), shape=TOKENS, seed=st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_transformers_loads_what_either_engine_saves(cfg, shape, seed):
    tokens = np.random.default_rng(seed).integers(0, cfg.vocab_size, shape)
    cfg = cfg.replace(initializer_range=0.3)
    ours = reference.Model.init(cfg, seed=seed % 1000, dtype="float64")
    for name, array in ours.weights.items():
        if name.endswith("e_score_correction_bias"):
            array[...] = np.random.default_rng(seed).normal(0, 0.2, array.shape).astype(np.float32)
    want = ours(tokens)
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        ours.save_pretrained(first)
        pytorch.Model.from_pretrained(first, dtype=torch.float64).save_pretrained(second)
        for directory in (first, second):
            with twin.in_float64():
                theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
                    directory, dtype=torch.float64, output_loading_info=True
                )
                assert not report["missing_keys"] and not report["unexpected_keys"]
                with torch.no_grad():
                    got = twin.plain(theirs)(torch.from_numpy(tokens)).logits
            assert relative_error(got, want) < 1e-9


def test_moonlights_eps_is_honoured_where_transformers_ignores_it():
    """Their latent norms use 1e-6 whatever the config says; ours use the config's value."""
    cfg = ModelConfig.preset("tiny").replace(rms_norm_eps=1e-2)
    tokens = np.arange(12)[None]
    with twin.in_float64(), tempfile.TemporaryDirectory() as directory:
        theirs = twin.build(cfg, 0)
        theirs.save_pretrained(directory)
        ours = our_logits("reference", Path(directory), tokens, "float64")
        with torch.no_grad():
            assert relative_error(theirs(torch.from_numpy(tokens)).logits, ours) > 1e-6
            for layer in theirs.model.layers:
                layer.self_attn.q_a_layernorm.variance_epsilon = 1e-2
                layer.self_attn.kv_a_layernorm.variance_epsilon = 1e-2
            assert relative_error(theirs(torch.from_numpy(tokens)).logits, ours) < 1e-12
