"""`minik2 train`: its options, what it says and where, Ctrl-C and going on, the pictures."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import MISSING, fields
from functools import partial
from pathlib import Path

import pytest
import typer

from minik2 import cli, training
from minik2.config import ModelConfig
from minik2.training import metrics
from tests import commands

ENGINES = ("reference", "pytorch")
FIELDS = [*fields(training.Settings), *fields(training.Habits)]
# A recipe that takes a moment; the text comes from the fixture below.
SHORT = ["--preset", "tiny", "--steps", 4, "--batch", 2, "--window", 16, "--evaluate-every", 2,
         "--save-every", 2, "--data", "text", "--out", "run"]  # fmt: skip
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """call("--steps", 3) -> (exit status, output, errors) of `minik2 train`, run in a folder that
    holds nothing but `text`."""
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "text"
    text.mkdir()
    for n in range(3):
        text.joinpath(f"{n}.py").write_text(f"def f{n}(x):\n    return x + {n}\n" * 40)
    return partial(commands.call, monkeypatch, capsys, "train")


@pytest.fixture
def asked(monkeypatch):
    """What the command asks of `training.train`, which is not called: a list that fills up."""
    seen = []

    def train(cfg, settings, corpus, out, habits, tell):
        seen.append((cfg, settings, corpus, Path(out), habits))
        Path(out).mkdir(parents=True)
        metrics.Metrics(Path(out), 0).close()
        return training.Outcome(0, None, None, False)

    monkeypatch.setattr(training, "train", train)
    return seen


def options():
    """{parameter: its option}, as the command line knows them."""
    command = typer.main.get_command(cli.app).commands["train"]
    return {parameter.name: parameter for parameter in command.params}


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_every_field_is_an_option_with_its_default(field):
    option = options()[field.name]
    name = "sample" if field.name == "prompt" else field.name
    assert option.opts == [f"--{name.replace('_', '-')}"] and option.help
    assert field.default is not MISSING
    default = "auto" if field.name == "device" else field.default  # a library's user names one
    assert (option.default, type(option.default)) == (default, type(default))


OTHERS = {"engine": "reference", "optimizer": "muon", "steps": 7, "batch": 3, "window": 9,
          "accumulate": 2, "rate": 0.1, "adamw_rate": 0.2, "weight_decay": 0.3, "warmup": 4,
          "decay": 0.5, "final": 0.6, "clip_norm": 0.7, "tau": 8.0, "bias_speed": 0.9,
          "bias_until": 0.25, "bias_mean_free": True, "balance_alpha": 0.35, "seed": 11,
          "device": "cpu", "threads": 1, "evaluate_every": 12, "save_every": 13,
          "prompt": "def ", "expert_ranks": 2, "recompute": True, "mixed": True}  # fmt: skip

# What is said of the text that the tests train on.
TEXT = "Text: 3 files, 2,242 bytes to train on, 1,121 held out.\n"


def test_every_option_arrives(call, asked):
    words = []
    for name, value in OTHERS.items():
        words += options()[name].opts if value is True else [*options()[name].opts, value]
    status, _, err = call(*words, "--preset", "tiny", "--data", "text")
    assert (status, err) == (0, TEXT)
    ((cfg, settings, corpus, out, habits),) = asked
    assert OTHERS.keys() == {field.name for field in FIELDS}
    assert all(value != options()[name].default for name, value in OTHERS.items())
    found = {f.name: getattr(settings if hasattr(settings, f.name) else habits, f.name)
             for f in FIELDS}  # fmt: skip
    assert found == OTHERS
    assert cfg == ModelConfig.preset("tiny") and out == Path("runs", "tiny-muon")
    assert sorted(corpus.checksums) == ["0.py", "1.py", "2.py"]


def test_without_options_the_defaults_hold(call, asked):
    pytest.importorskip("torch")
    assert call("--device", "cpu")[0] == 0
    ((cfg, settings, corpus, out, habits),) = asked
    assert (settings, habits) == (training.Settings(), training.Habits())
    assert cfg == ModelConfig.preset("small") and out == Path("runs", "small-muonclip")
    assert "json/decoder.py" in corpus.checksums  # the standard library


@pytest.mark.parametrize("given", ["mine", "mine/config.json", "mine/other.json"])
def test_a_config_of_ones_own(call, asked, given):
    cfg = ModelConfig.preset("tiny").replace(num_hidden_layers=3)
    Path("mine").mkdir()
    for name in ("config.json", "other.json"):
        Path("mine", name).write_text(json.dumps(cfg.to_json()))
    assert call("--config", given, "--data", "text", "--engine", "reference")[0] == 0
    assert asked[0][0] == cfg
    assert asked[0][3] == Path("runs", f"{'other' if 'other' in given else 'mine'}-muonclip")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_from_end_to_end(call, engine):
    if engine == "pytorch":
        pytest.importorskip("torch")
    status, out, err = call(*SHORT, "--engine", engine, "--sample", "def ", "--device", "cpu")
    assert status == 0
    held_out = [e["held_out"] for e in metrics.read("run") if e["kind"] == "evaluation"]
    told = out.splitlines()
    assert told[0].startswith("trained     4 steps, 128 tokens in ")
    assert told[1] == (f"held out    {held_out[0]:.3f} nats a byte at first, "
                       f"{held_out[-1]:.3f} at last")  # fmt: skip
    assert re.fullmatch(r"logits      \S+ at most; no head clipped; .* took \S+% of the time",
                        told[2])  # fmt: skip
    assert told[3].startswith("experts ")
    assert told[4] == f"checkpoint  {Path('run/checkpoints/step-00000004')}"
    for step, loss in zip((0, 2, 4), held_out, strict=True):
        assert re.search(rf"^step {step} of 4: .*held out {loss:.3f}", err, re.M)
    assert err.count("\ndef ") == 3  # a sample at each
    assert "\x1b" not in out + err and "Warning" not in err

    # The same command again has nothing to do, and says the same.
    status, again, err = call(*SHORT, "--engine", engine, "--sample", "def ", "--device", "cpu")
    finished = "This run is finished: all 4 steps are made.\n"
    assert (status, again, err) == (0, out, TEXT + finished)


def test_as_json(call):
    status, out, _ = call(*SHORT, "--engine", "reference", "--tau", 1e-3, "--json")
    told = json.loads(out)
    assert status == 0
    steps = [e for e in metrics.read("run") if e["kind"] == "step"]
    seconds = sum(e["seconds"] for e in steps)
    clipped = [(layer, head) for e in steps for layer, head, _ in e["clipped"]]
    assert clipped and told == {
        "step": 4, "held_out": told["held_out_last"], "interrupted": False,
        "checkpoint": str(Path("run/checkpoints/step-00000004")),
        "steps": 4, "tokens": 128, "seconds": pytest.approx(seconds),
        "tokens_per_second": pytest.approx(128 / seconds),
        "held_out_first": told["held_out_first"], "held_out_last": told["held_out_last"],
        "loss_last": pytest.approx(sum(e["loss"] for e in steps) / 4),
        "largest_logit": max(max(e["max_logit"]) for e in steps),
        "heads_clipped": len(set(clipped)), "times_clipped": len(clipped),
        "maxima_share": pytest.approx(sum(e["maxima_seconds"] for e in steps) / seconds),
        "largest_violation": max(max(e["violation"]) for e in steps),
        "last_violation": max(steps[-1]["violation"]),
    }  # fmt: skip
    assert 4 < told["held_out_last"] < 7 and 4 < told["held_out_first"] < 7


def test_a_damaged_checkpoint_is_warned_of(call):
    assert call(*SHORT, "--engine", "reference")[0] == 0
    Path("run/checkpoints/step-00000004/state.json").write_text("{}")
    status, _, err = call(*SHORT, "--engine", "reference")
    assert status == 0 and "Going on from step 2 of 4." in err
    assert "Warning: step-00000004 is damaged (state.json is not what was written)" in err


REFUSED = {
    "engine": (["--engine", "jax"], "engine is one of reference, pytorch, not 'jax'."),
    "decay": (["--decay", 1.5], "decay must be a share from 0 to 1, not 1.5."),
    "device": (["--device", "gpu"], "The device is cpu or cuda (or cuda:1 and up), not"),
    "no GPU of its own": (["--engine", "reference", "--device", "cuda"], "on the CPU, not on"),
    "preset": (["--preset", "smal"], "There is no preset named 'smal'; did you mean 'small'."),
    "two models": (["--preset", "tiny", "--config", "x"], "both name a model; give one of them."),
    "config": (["--config", "nothing.json"], "nothing.json cannot be read"),
    "data": (["--data", "nothing"], "There is no file or directory nothing; name one with text."),
    "window": (["--window", 5000, "--preset", "tiny", "--engine", "reference"], "shorter --window"),
    "threads": (["--threads", 0], "threads must be a whole number, 1 up, not 0."),
    "out": (["--out", "text", "--engine", "reference"], "is no run of minik2's"),
    "runs": (["runs/small"], "runs/small is for pictures of runs only: give --plot as well"),
    "output": (["-o", "x.png"], "--output is for pictures of runs only"),
    "no runs": (["--plot"], "--plot needs the directory of at least one run"),
    "no run": (["--plot", "text"], "text has no metrics.jsonl; give the directory that"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_refused_in_a_sentence(call, name):
    words, sentence = REFUSED[name]
    status, out, err = call(*words)
    assert (status, out) == (1, "") and sentence in err
    assert "Traceback" not in err and not Path("runs").exists()


def test_a_number_that_is_none_is_an_error_of_use(call):
    status, out, err = call("--steps", "many")
    assert (status, out) == (2, "") and "--steps" in err


def test_another_recipe_in_the_same_place_is_refused(call):
    assert call(*SHORT, "--engine", "reference")[0] == 0
    status, out, err = call(*SHORT, "--engine", "reference", "--rate", 0.1)
    assert (status, out) == (1, "") and "settings rate: 0.01 in the run, 0.1 now" in err


@pytest.mark.parametrize(("module", "words", "sentence"), [
    ("torch", ["--engine", "pytorch"], "The engine pytorch needs PyTorch, which is not installed"),
    ("matplotlib", ["--plot", "run"], "A picture needs matplotlib, which is not installed"),
])  # fmt: skip
def test_what_is_not_installed_is_named(call, monkeypatch, module, words, sentence):
    assert call(*SHORT, "--engine", "reference")[0] == 0
    monkeypatch.setitem(sys.modules, module, None)
    status, _, err = call(*words)
    assert status == 1 and sentence in err and '".[course]"' in err


def test_neither_the_reference_nor_a_picture_needs_torch(call):
    code = ("import sys; sys.modules['torch'] = None\nfrom minik2 import cli\n"
            "sys.argv = ['minik2', 'train', *{words!r}]\ncli.main()")  # fmt: skip
    for words in ([*map(str, SHORT), "--engine", "reference"], ["--plot", "run"]):
        done = subprocess.run([sys.executable, "-c", code.format(words=words)],
                              capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0, done.stderr


def test_pictures_of_one_run_and_of_several(call):
    for out in ("run", "other"):
        assert call(*SHORT, "--engine", "reference", "--out", out)[0] == 0
    # A run in progress: its last line is not whole, its checkpoints are not looked at.
    path = Path("other", metrics.NAME)
    path.write_text("\n".join(path.read_text().split("\n")[:4]) + '\n{"kind": "st')
    for words, written in ((["run"], "run/run.png"), (["run", "other"], "runs.png"),
                           (["other", "-o", "mine.png"], "mine.png")):  # fmt: skip
        status, out, err = call("--plot", *words)
        assert (status, out, err) == (0, f"The picture is {Path(written)}.\n", "")
        assert Path(written).read_bytes().startswith(PNG)
    assert json.loads(call("--plot", "run", "--json")[1]) == {"picture": str(Path("run/run.png"))}


def test_a_picture_of_lines_that_no_run_wrote_is_refused(call):
    assert call(*SHORT, "--engine", "reference")[0] == 0
    Path("run", metrics.NAME).write_text("not a line\n")
    status, _, err = call("--plot", "run")
    assert status == 1 and "is not one that a run writes" in err
    Path("run", metrics.NAME).write_text('{"kind": "evaluation", "step": 0, "held_out": 5.5}\n')
    status, _, err = call("--plot", "run")
    assert status == 1 and "run has made no step yet" in err


def begun(words, count):
    """`python -m minik2 train`, stopped by nobody yet, once it has made `count` steps."""
    process = subprocess.Popen([sys.executable, "-m", "minik2", "train", *words], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    path = Path("run", metrics.NAME)
    while not path.exists() or path.read_text().count('"kind": "step"') < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    return process


@pytest.mark.skipif(os.name != "posix", reason="there Ctrl-C is no signal that can be sent")
@pytest.mark.parametrize("engine", [
    "reference", pytest.param("pytorch", marks=pytest.mark.slow)])  # fmt: skip
def test_ctrl_c_saves_and_prints_the_command_that_goes_on(call, engine):
    if engine == "pytorch":
        pytest.importorskip("torch")
    words = [*map(str, SHORT), "--engine", engine, "--steps", "40", "--evaluate-every", "20",
             "--sample", "a = 'b'", "--device", "cpu"]  # fmt: skip
    process = begun(words, 2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    step = int(re.search(r"^Interrupted, and saved at step (\d+) of 40\.", err, re.M)[1])
    assert 2 <= step < 40 and f"trained     {step} steps" in out
    command = err.splitlines()[-1]
    assert command.startswith("  ") and "Traceback" not in err

    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"Going on from step {step} of 40." in done.stderr and "Warning" not in done.stderr
    assert done.stdout.startswith("trained     40 steps")
    steps = [e["step"] for e in metrics.read("run") if e["kind"] == "step"]
    assert steps == list(range(1, 41))


def test_a_second_ctrl_c_says_what_is_saved(call, monkeypatch):
    def train(cfg, settings, corpus, out, habits, tell):
        tell("begin", {"step": 0})
        tell("saved", {"step": 7, "path": "run/checkpoints/step-00000007"})
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", train)
    status, out, err = call(*SHORT, "--engine", "reference")
    assert (status, out) == (130, "")
    assert err.startswith(f"{TEXT}Stopped at once. Step 7 is saved in "
                          "run/checkpoints/step-00000007; the same command goes on from there:\n  ")
    assert "train --preset tiny" in err


def test_ctrl_c_before_anything_is_said(call, monkeypatch):
    def interrupted(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(training.Corpus, "from_path", interrupted)
    status, _, err = call(*SHORT, "--engine", "reference")
    assert status == 130 and err.startswith("Stopped before training.")
