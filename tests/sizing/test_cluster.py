"""Layouts: K2's published lines, sums over all GPUs, communication, and layouts that cannot be."""

import re
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minik2 import sizing
from minik2.config import ModelConfig
from minik2.sizing.cluster import Layout, stage_layers, stage_weights
from minik2.sizing.communication import muon_ratio
from minik2.sizing.memory import trained
from minik2.sizing.published import K2_LAYOUT
from tests.oracle.configs import configs


def test_k2s_published_lines():
    """6 bytes a weight over 256 GPUs: 24.4 GB of 1.04 T, 24.1 GB of what the files hold; about
    6 TB in all."""
    laid = sizing.cluster(ModelConfig.preset("kimi-k2"), K2_LAYOUT)
    assert laid.layout.group == 256
    assert round(6 * 1.04e12 / 256 / 1e9, 1) == 24.4
    assert laid.even_bytes == -(-6 * 1_026_408_232_448 // 256)
    assert round(laid.even_bytes / 1e9, 1) == 24.1
    assert round(256 * laid.even_bytes / 1e12, 1) == 6.2
    # The rest is a range: about 30 GB lies inside, for whichever number of copies.
    means = [mean for mean, _ in laid.by_dp.values()]
    assert means == sorted(means, reverse=True) and means[-1] < 30e9 < means[0]


@st.composite
def laid_out(draw):
    """A config and a layout that fits it."""
    cfg = draw(configs())
    def divisors(n):
        return st.sampled_from([d for d in range(1, n + 1) if n % d == 0])
    pp = draw(st.integers(1, cfg.num_hidden_layers))
    ep = draw(divisors(cfg.n_routed_experts))
    tps = [d for d in range(1, cfg.num_attention_heads + 1)
           if cfg.num_attention_heads % d == 0 and max(d, ep) % min(d, ep) == 0]  # fmt: skip
    virtual = draw(st.integers(1, cfg.num_hidden_layers // pp))
    return cfg, Layout(pp, ep, draw(st.sampled_from(tps)), draw(st.integers(1, 9)), virtual)


@given(given_=laid_out())
@settings(max_examples=150, deadline=None)
def test_every_weight_is_somewhere(given_):
    """With each GPU's experts counted ep times and its other weights tp times; what is not shared
    among tp GPUs (or not evenly) makes it more, and a tied table lies at both ends."""
    cfg, layout = given_
    layers = [n for s in range(layout.pp) for n in stage_layers(cfg.num_hidden_layers, layout, s)]
    assert sorted(layers) == list(range(cfg.num_hidden_layers))
    sums = [sum(column) for column in zip(
        *(stage_weights(cfg, layout, stage) for stage in range(layout.pp)), strict=True)]
    parts = sizing.parameters(cfg).by_part
    assert layout.ep * sums[0] == parts["routed_experts"]
    twice = parts["embedding"] * (cfg.tie_word_embeddings and layout.pp > 1)
    others = sizing.parameters(cfg).total - parts["routed_experts"] + twice
    assert layout.tp * (sums[1] + sums[2]) >= others
    if layout.tp == 1:
        assert sums[1] + sums[2] == others


@given(given_=laid_out())
@settings(max_examples=100, deadline=None)
def test_states_and_sums_of_random_layouts(given_):
    cfg, layout = given_
    laid = sizing.cluster(cfg, layout, tokens=64)
    for stage in laid.stages:
        amounts = (stage.parameters, stage.gradients, stage.optimizer, stage.activations)
        assert min(amounts) >= 0 and stage.total == sum(amounts)
        assert stage.total <= laid.fullest.total
        assert stage.parameters == 2 * (stage.expert_weights + stage.other_weights)
        assert 2 * stage.parameters == stage.gradients
    copied = sizing.cluster(cfg, Layout(**vars(layout) | {"dp": layout.dp + 1}), tokens=64)
    for few, more in zip(laid.stages, copied.stages, strict=True):
        assert more.optimizer <= few.optimizer and more.parameters == few.parameters
    for name in ("none", "selective"):
        less = sizing.cluster(cfg, layout, tokens=64, recompute="full").fullest.activations
        assert less <= sizing.cluster(cfg, layout, tokens=64, recompute=name).fullest.activations
    longer = sizing.cluster(cfg, layout, tokens=65)
    assert longer.fullest.activations > laid.fullest.activations
    # One GPU that holds everything holds what `memory` counts, but for the biases and counters.
    if layout.gpus == 1:
        alone = sizing.memory(cfg, 64)
        matrices, others, _ = trained(cfg)
        biases = sizing.parameters(cfg).total - matrices - others
        (only,) = laid.stages
        assert only.activations == alone.activations or layout.virtual > 1
        assert only.gradients == alone.gradients + 4 * biases
        assert only.parameters == alone.parameters - 2 * biases


def test_pipelines_under_way():
    """The first stage of p holds p micro-batches; interleaved, p (1 + (p - 1) / (p v)) of them
    (arXiv 2205.05198 §4.2.3); the last one holds one, or v chunks' worth of p (v - 1) + 1."""
    cfg = ModelConfig.preset("tiny").replace(num_hidden_layers=12, first_k_dense_replace=0)
    layer = sizing.activations(cfg, 64).by_layer[0]
    plain = sizing.cluster(cfg, Layout(pp=4), tokens=64)
    assert plain.stages[0].activations == 4 * 3 * layer
    laced = sizing.cluster(cfg, Layout(pp=4, virtual=3), tokens=64)
    assert laced.stages[0].activations == 4 * (1 + Fraction(3, 12)) * 3 * layer


@given(given_=laid_out())
@settings(max_examples=100, deadline=None)
def test_muon_sends_at_most_a_quarter_more(given_):
    cfg, layout = given_
    sent = sizing.communication(cfg, layout)
    assert sent.all_to_all >= 0 and sent.pipeline >= 0
    assert (sent.all_to_all == 0) == (layout.ep == 1 or cfg.is_all_dense)
    assert (sent.pipeline == 0) == (layout.pp == 1)
    assert sent.adamw <= sent.muon <= 1.25 * sent.adamw + 1
    assert 1 < muon_ratio(cfg) <= Fraction(5, 4)
    if layout.dp > 1:
        assert sent.ratio > 1


def test_all_to_all_by_hand():
    """K2, EP 16: 60 layers x 8 experts x 7,168 numbers x 2 bytes, there and back, and the same for
    the gradients; a sixteenth stays at home."""
    sent = sizing.communication(ModelConfig.preset("kimi-k2"), K2_LAYOUT)
    assert sent.all_to_all == 60 * 8 * 7168 * 2 * 4 * 15 // 16
    assert sent.pipeline == 15 * 7168 * 2 * 2


@pytest.mark.parametrize("layout, sentence", [
    ({"ep": 7}, "shares 384 experts out evenly, but ep 7 does not divide them"),
    ({"pp": 62}, "62 stages of 1 chunks need 62 layers at least, but the model has 61"),
    ({"pp": 16, "virtual": 4}, "16 stages of 4 chunks need 64 layers"),
    ({"tp": 3}, "shares 64 heads out evenly, but tp 3 does not"),
    ({"tp": 8, "ep": 12}, "one must divide the other, but they are 12 and 8"),
    ({"dp": 0}, "dp must be a whole number of at least 1, but it is 0"),
    ({"pp": 1.0}, "pp must be a whole number"),
])
def test_impossible_layouts(layout, sentence):
    cfg = ModelConfig.preset("kimi-k2")
    for call in (sizing.cluster, sizing.communication):
        with pytest.raises(ValueError, match=sentence):
            call(cfg, Layout(**layout))


def test_layouts_as_text():
    assert Layout.parse("pp=16, ep=16,dp=4") == Layout(pp=16, ep=16, dp=4)
    assert Layout.parse("") == Layout()
    for wrong in ("pp=16;ep=16", "gpus=8", "pp", "pp=-1", "pp=x", "pp=²", "=3"):
        with pytest.raises(ValueError, match=r"A cluster is written pp=16,ep=16,dp=4"):
            Layout.parse(wrong)


def test_printed_lines():
    text = str(sizing.cluster(ModelConfig.preset("kimi-k2"), Layout(pp=16, ep=16, dp=8)))
    assert text.startswith("weights and gradients, evenly: 24.1 GB a GPU; micro-batches of "
                           "1 x 4,096, recomputation none\n")
    assert "PP 16, EP 16, TP 1, DP 8: 2,048 GPUs" in text
    assert re.search(r"^fullest GPU +9\.64 GB +19\.3 GB", text, re.M)


def test_words_that_are_none():
    cfg = ModelConfig.preset("tiny")
    with pytest.raises(ValueError, match="no optimizer 'adam'; did you mean 'adamw'"):
        sizing.cluster(cfg, Layout(), optimizer="adam")
    with pytest.raises(ValueError, match="no recomputation 'some'"):
        sizing.cluster(cfg, Layout(), recompute="some")
    with pytest.raises(ValueError, match="no number format 'fp32'"):
        sizing.Precision(master="fp32")
