"""The sheet and `minik2 size`: one screen, every number in JSON, sentences for slips."""

import json
import math
from functools import partial

import pytest
from hypothesis import given, settings

from minik2 import sizing
from minik2.config import ModelConfig
from minik2.sizing.published import CLAIMS, with_mtp
from minik2.sizing.units import amount
from tests import commands
from tests.oracle.configs import configs


@pytest.fixture
def call(monkeypatch, capsys):
    """call("kimi-k2", "--json") -> (exit status, output, errors) of `minik2 size`."""
    return partial(commands.call, monkeypatch, capsys, "size")


@pytest.mark.parametrize("name", ModelConfig.presets())
def test_the_sheet_of_every_preset_fits_one_screen(call, name):
    layers = ModelConfig.preset(name).num_hidden_layers
    status, out, err = call(name, "--cluster", f"pp={min(16, layers)},ep=8,dp=4")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) <= 50 and max(map(len, lines)) <= 100
    assert lines[0].startswith(f"{name}: {layers} layers")


def test_k2s_figures_are_on_it(call):
    _, out, _ = call("kimi-k2", "--cluster", "pp=16,ep=16")
    for figure in ("1,026,408,232,448", "70,272 B a token", "9.21 GB (8.58 GiB)", "MHA 35.6 x",
                   "+83.3%", "24.4 GB; here 24.1 GB", "958.5 GiB; here 958.5 GiB",
                   "published 1,043 B", "GPU-hours for 15.5 T tokens: not published",
                   "128 heads at 128k: published +83%; here +83.3%, expanded, weights fixed "
                   "(unverified)"):  # fmt: skip
        assert figure in out, figure


def test_json_has_every_number(call):
    more = ("--context", 4096, "--batch", 2, "--cluster", "pp=2")
    status, out, err = call("kimi-k2", "--json", *more)
    assert (status, err) == (0, "")
    sheet = json.loads(out)
    assert sheet["parameters"]["total"] == 1_026_408_232_448
    assert sheet["parameters"]["computed"] == 31_686_066_176
    assert sheet["cache"]["bytes"] == 2 * 4096 * 70_272
    assert sheet["flops"]["training"]["total"] == sum(
        sheet["flops"]["training"][part] for part in ("weights", "attention"))
    assert sheet["cluster"]["layout"]["pp"] == 2 and sheet["decode"]["steps"][0]["batch"] == 2
    assert all(sheet[part]["formula"] for part in ("cache", "flops", "memory", "compute"))
    assert {claim["what"] for claim in sheet["published"] if claim["unverified"]} == {
        "weights", "active", "128 heads at 128k", "all states a GPU"}


def test_a_file_says_what_its_preset_says(call, tmp_path):
    cfg = ModelConfig.preset("moonlight-16b-a3b")
    (tmp_path / "config.json").write_text(json.dumps(cfg.to_json()))
    whole = json.loads(call("moonlight-16b-a3b", "--json")[1])
    for path in (tmp_path, tmp_path / "config.json"):
        status, out, _ = call(path, "--json")
        assert status == 0
        there = json.loads(out)
        published = there.pop("published")
        assert published == [] and there.pop("name").startswith(str(tmp_path))
        assert there == {k: v for k, v in whole.items() if k not in ("name", "published")}


@pytest.mark.parametrize("arguments, sentence", [
    (["kimi-k3"], "There is no preset named 'kimi-k3'; did you mean 'kimi-k2'."),
    (["nowhere/config.json"], "cannot be read"),
    (["tiny", "--context", "-1"], "context must be a whole number of at least 1, but it is -1"),
    (["tiny", "--batch", "0"], "batch must be a whole number of at least 1, but it is 0"),
    (["tiny", "--weights", "fp8"], "There is no format of weights 'fp8'"),
    (["tiny", "--weights", "int4"], "32 does not divide 16"),
    (["tiny", "--cache", "bf16"], "There is no number format 'bf16'"),
    (["tiny", "--machine", "tpu"], "There is no machine 'tpu'; choose one of laptop"),
    (["tiny", "--cluster", "pp=9"], "9 stages of 1 chunks need 9 layers at least"),
    (["tiny", "--cluster", "nodes=2"], "A cluster is written pp=16,ep=16,dp=4"),
    (["tiny", "--cluster", "ep=3"], "shares 8 experts out evenly, but ep 3 does not"),
])
def test_slips_end_in_a_sentence(call, arguments, sentence):
    status, out, err = call(*arguments)
    assert status != 0 and out == ""
    assert sentence in err and "Traceback" not in err and err.count("\n") <= 1


def test_a_context_beyond_what_the_model_is_made_for_is_said(call):
    assert "made for 512 tokens at most" in call("tiny", "--context", 513)[1]
    assert "made for 512" not in call("tiny", "--context", 512)[1]


def test_one_mtp_layer_gives_the_papers_1043_billion():
    """17.16 B for it: an inference, marked so."""
    cfg = ModelConfig.preset("kimi-k2")
    more = with_mtp(cfg) - sizing.parameters(cfg).total
    assert round(more / 1e9, 2) == 17.16 and round(with_mtp(cfg) / 1e9) == 1044
    assert math.floor(with_mtp(cfg) / 1e9) == 1043


def test_only_presets_have_published_figures():
    assert set(CLAIMS) <= set(ModelConfig.presets()) and sizing.claims("tiny") == []
    for name in CLAIMS:
        assert all(claim.source and claim.ours for claim in sizing.claims(name))


@given(cfg=configs())
@settings(max_examples=25, deadline=None)
def test_sheets_of_random_models(cfg):
    made = sizing.sheet(cfg, context=40)
    json.dumps(made.to_dict(), allow_nan=False)
    lines = str(made).splitlines()
    assert len(lines) <= 50 and max(map(len, lines)) <= 100


def test_amounts():
    given_ = {0: "0", 7: "7", 999: "999", 1000: "1.00 k", 999_499: "999 k", 999_999: "1.00 M",
              9.99e9: "9.99 G", 9.996e9: "10.0 G", 99.96e9: "100 G", 0.5: "0.50"}  # fmt: skip
    assert {n: amount(n) for n in given_} == given_
    assert amount(2**80, "B") == "1.21 YB" and amount(10**30) == "1000000 Y"
