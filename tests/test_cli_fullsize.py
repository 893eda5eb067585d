"""`minik2 fullsize`: what it prints, Ctrl-C, and the refusals."""

import contextlib
import json
from functools import partial

import pytest

from minik2.config import ModelConfig
from minik2.training import interrupt
from tests import commands


@pytest.fixture
def call(monkeypatch, capsys):
    """call("--seed", 3) -> (exit status, output, errors) of `minik2 fullsize`."""
    return partial(commands.call, monkeypatch, capsys, "fullsize")


def test_it_prints_predicted_and_measured(call):
    status, out, err = call("--preset", "small", "--layers", 3, "--seed", 2)
    assert (status, err) == (0, "")
    assert out.startswith("small: 1 token, 3 of 4 layers, seed 2\n")
    lines = {line.split("  ")[0]: line.split()[-1] for line in out.splitlines() if "  " in line}
    exact = ("parameters touched", "experts made", "cache, bytes", "operations, FLOP")
    assert [lines[name] for name in exact] == ["1.000"] * 4


def test_it_prints_json(call, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(ModelConfig.preset("tiny").to_json()))
    status, out, err = call("--preset", path, "--tokens", 7, "--json")
    made = json.loads(out)
    assert (status, err) == (0, "")
    assert (made["model"], made["tokens"], made["layers"]) == (str(path), 7, 3)
    assert [len(chosen) for chosen in made["chosen"]] == [7, 7]


def test_ctrl_c_prints_what_was_done(call, monkeypatch):
    monkeypatch.setattr(interrupt, "stop_when_asked",
                        lambda: contextlib.nullcontext(iter([False, True]).__next__))
    status, out, _ = call("--preset", "tiny")
    assert status == 130 and "1 of 3 layers" in out and "measured so far" in out


@pytest.mark.parametrize(("arguments", "words"), [
    (["--tokens", 0], "tokens must be a whole number of at least 1"),
    (["--tokens", 513], "The model has 512 positions"),
    (["--layers", 4], "The model has 3 layers, fewer than the 4 asked for"),
    (["--layers", -1], "layers must be a whole number of at least 1"),
    (["--seed", -1], "seed must be a whole number"),
    (["--preset", "kimi-k3"], "There is no preset named 'kimi-k3'"),
    (["--preset", "no/such/config.json"], "cannot be read"),
])  # fmt: skip
def test_what_makes_no_sense_is_one_sentence(call, arguments, words):
    given = arguments if "--preset" in arguments else ["--preset", "tiny", *arguments]
    status, out, err = call(*given)
    assert (status, out) == (1, "") and words in err and "Traceback" not in err
