"""Training memory: the engine's own bytes, K2's hand counts, and what must grow with what."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from benchmarks import records
from benchmarks.sizing import measure
from minik2 import pytorch, sizing
from minik2.config import ModelConfig
from minik2.sizing.activations import RECOMPUTE, layer
from minik2.sizing.memory import PLAIN, trained
from tests.oracle.configs import configs

LOCK = (records.ROOT / "requirements.lock").read_text(encoding="utf-8")
PINNED = f"torch=={torch.__version__.partition('+')[0]}\n"
FLOAT64 = sizing.Precision("float64", "float64", "float64", None)


def wide(cfg: ModelConfig) -> bool:
    """Values wider than keys, as in no model that exists: a CPU then takes another way, which with
    one sequence copies the values or not as their strides fall."""
    return cfg.v_head_dim > cfg.qk_head_dim


@given(cfg=configs(), tokens=st.integers(2, 9), batch=st.integers(1, 3),
       optimizer=st.sampled_from(["muonclip", "adamw"]))  # fmt: skip
@settings(max_examples=15, deadline=None)
def test_a_real_step_takes_what_was_said(cfg, tokens, batch, optimizer):
    """Weights, gradients and optimizer to the byte; what waits for backward within 5%."""
    assume(batch > 1 or not wide(cfg))
    for precision, dtype in ((PLAIN, torch.float32), (FLOAT64, torch.float64)):
        said = sizing.memory(cfg, tokens, batch, precision, optimizer, kernels="cpu")
        found = measure(cfg, tokens, batch, dtype, optimizer)
        assert found.parameters == said.parameters
        assert found.gradients == said.gradients
        assert found.optimizer == said.optimizer
        assert abs(found.activations / said.activations - 1) <= 0.05


@pytest.mark.skipif(PINNED not in LOCK, reason="another PyTorch may save other tensors")
@given(cfg=configs(), tokens=st.integers(2, 9), batch=st.integers(1, 3))
@settings(max_examples=15, deadline=None)
def test_every_tensor_that_waits_for_backward_is_on_the_list(cfg, tokens, batch):
    """To the byte, with the PyTorch of requirements.lock. If the engine saves others now, bring the
    list in minik2/sizing/activations.py up to date."""
    assume(batch > 1 or not wide(cfg))
    for recompute in (False, True):
        found = measure(cfg, tokens, batch, recompute=recompute).activations
        mode = "full" if recompute else "none"
        assert found == sizing.activations(cfg, tokens, batch, "float32", mode, "cpu").bytes


def test_the_correction_bias_keeps_32_bits():
    cfg = ModelConfig.preset("tiny")
    model = pytorch.Model.init(cfg, dtype=torch.bfloat16)
    held = [*model.parameters(), *model.buffers()]
    said = sizing.memory(cfg, precision=sizing.Precision())
    assert said.parameters == sum(t.numel() * t.element_size() for t in held)
    assert {t.element_size() for t in model.buffers()} == {4}


@given(cfg=configs())
@settings(max_examples=60, deadline=None)
def test_muons_share_is_the_engines(cfg):
    """By name and shape: `pytorch.muon.takes`."""
    with torch.device("meta"):
        model = pytorch.Model(cfg)
    by = {True: 0, False: 0}
    for name, p in model.named_parameters():
        by[pytorch.muon.takes(name, p.shape)] += p.numel()
    assert trained(cfg) == (by[True], by[False], len(list(model.parameters())))


def test_k2_by_hand():
    """2, 4 and 4 bytes for each of 1,026.4 B trained weights; Muon's one buffer, AdamW's two."""
    cfg = ModelConfig.preset("kimi-k2")
    biases = 60 * 384
    weights = 1_026_408_232_448 - biases
    tables_and_norms = 2 * 163840 * 7168 + 61 * (2 * 7168 + 1536 + 512) + 7168
    muon = sizing.memory(cfg)
    assert muon.parameters == 2 * weights + 4 * biases
    assert muon.gradients == muon.master == 4 * weights
    assert muon.optimizer == 4 * (weights + tables_and_norms) + 4 * (61 * 4 + 3)
    adamw = sizing.memory(cfg, optimizer="adamw")
    assert adamw.optimizer == 8 * weights + 4 * (61 * 4 + 3 + 61 * 8 + 3 * 60)
    assert muon.total == muon.states + muon.activations
    assert sizing.memory(cfg, precision=PLAIN).master == 0


@given(cfg=configs(), tokens=st.integers(1, 99), batch=st.integers(1, 4))
@settings(max_examples=80, deadline=None)
def test_counts_of_random_models(cfg, tokens, batch):
    sums = []
    for recompute in RECOMPUTE:
        kept = sizing.activations(cfg, tokens, batch, recompute=recompute)
        assert kept.bytes == sum(kept.by_tensor.values()) + kept.ends
        assert len(kept.by_layer) == cfg.num_hidden_layers and min(kept.by_layer) >= 0
        assert sizing.activations(cfg, tokens + 1, batch, recompute=recompute).bytes > kept.bytes
        assert sizing.activations(cfg, tokens, batch + 1, recompute=recompute).bytes > kept.bytes
        sums.append(kept.bytes)
    assert sums == sorted(sums, reverse=True)
    for held in (sizing.memory(cfg, tokens, batch), sizing.memory(cfg, tokens, batch, PLAIN)):
        names = ("parameters", "gradients", "optimizer", "master", "activations")
        assert held.total == sum(getattr(held, name) for name in names)
        assert min(getattr(held, name) for name in names) >= 0


def test_what_k2_computes_again_is_what_the_paper_lists():
    """arXiv 2507.20534 §2.4: norms, SwiGLU, MLA's up-projections, the experts' down-projections;
    8 bits for the inputs of the experts' up-projections and of SwiGLU."""
    cfg = ModelConfig.preset("kimi-k2")
    by = {}
    for saved in layer(cfg, 1, 4096):
        by.setdefault(saved.selective, []).append(saved.name)
    assert [name for name in by["recompute"] if "norm" not in name and "latent" not in name] == [
        "queries", "keys", "values", "router: input", "experts: silu(gate)", "experts: product",
        "experts: outputs", "shared experts: silu(gate)", "shared experts: product"]  # fmt: skip
    assert by["float8"] == ["experts: gate", "experts: up", "experts: rows",
                            "shared experts: gate", "shared experts: up"]  # fmt: skip


def test_words_that_are_none():
    cfg = ModelConfig.preset("tiny")
    with pytest.raises(ValueError, match="in float32 and float64 only, not in bfloat16"):
        sizing.memory(cfg, kernels="cpu")
    for wrong, sentence in (({"optimizer": "muon"}, "no optimizer 'muon'; did you mean 'muonclip'"),
                            ({"recompute": True}, "no recomputation True"),
                            ({"kernels": "tpu"}, "no kernels 'tpu'"),
                            ({"tokens": 0}, "tokens must be a whole number of at least 1"),
                            ({"batch": -2}, "batch must be a whole number of at least 1"),
                            ):  # fmt: skip
        with pytest.raises(ValueError, match=sentence):
            sizing.memory(cfg, **wrong)
