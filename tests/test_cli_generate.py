"""`minik2 generate`: the text, what is said beside it, where it ends, Ctrl-C, and the refusals."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest

from minik2 import cli_generate, host, reference
from minik2.config import ModelConfig
from minik2.training import store
from tests import commands
from tests.reference import build
from tests.test_tokenizer import library_file

TINY = ModelConfig.preset("tiny")
ENGINES = ("reference", "pytorch")
engines = pytest.mark.parametrize("engine", ENGINES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint whose greedy text is ASCII and does not repeat itself."""
    path = tmp_path_factory.mktemp("model") / "tiny"
    model = build.model(TINY, 0, "float32")
    # No sense, but letters: bytes that are none never have the largest logit.
    model.weights["lm_head.weight"][list(set(range(256)) - set(range(97, 123)))] *= 0.01
    model.save_pretrained(path)
    return path


@pytest.fixture
def call(monkeypatch, capsys):
    """call("--seed", 3) -> (exit status, output, errors) of `minik2 generate`."""
    monkeypatch.setattr(cli_generate, "PATIENCE", 600.0)  # however busy the machine is
    return partial(commands.call, monkeypatch, capsys, "generate")


def wanted(folder, prompt, count, **how):
    """The reference's answer, token ids."""
    ids = np.frombuffer(prompt.encode(), np.uint8)[None]
    model = reference.Model.from_pretrained(folder)
    return model.generate(ids, count, **how)[0, ids.size :].tolist()


def test_a_long_silence_is_explained_once(call, folder, monkeypatch):
    monkeypatch.setattr(cli_generate, "PATIENCE", 0.0)
    read = reference.Model.generate

    def late(*arguments, **named):
        time.sleep(0.2)
        return read(*arguments, **named)

    monkeypatch.setattr(reference.Model, "generate", late)
    status, out, err = call("--model", folder, "--prompt", "def f", "--max-new-tokens", 3,
                            "--engine", "reference")  # fmt: skip
    assert status == 0 and out == bytes(wanted(folder, "def f", 3)).decode() + "\n"
    assert err.count("Reading the prompt; ") == 1


@engines
def test_the_text_goes_to_output_and_the_rest_to_errors(call, folder, engine):
    if engine == "pytorch":
        pytest.importorskip("torch")
    status, out, err = call("--model", folder, "--prompt", "def f", "--engine", engine,
                            "--max-new-tokens", 20)  # fmt: skip
    assert (status, out) == (0, bytes(wanted(folder, "def f", 20)).decode() + "\n")
    assert len(set(out)) > 5
    assert re.fullmatch(r"The tokenizer is bytes\.\nprompt 5 tokens at [\d,.]+ tokens/s, "
                        r"20 new at [\d,.]+ tokens/s; all tokens made\.\n", err)  # fmt: skip


@pytest.mark.parametrize("engine", [None, "reference"])
def test_weights_that_do_not_fit_in_memory_stay_in_their_files(call, folder, monkeypatch, engine):
    """The same text, whichever way; a machine of 100 kB is asked for a model of 200 kB."""
    chosen = ("--engine", engine) if engine else ()
    given = "--model", folder, "--prompt", "def f", "--max-new-tokens", 20, *chosen
    monkeypatch.setattr(host, "memory", lambda: (100_000, 100_000))
    monkeypatch.setattr(reference.Model, "from_pretrained", None)
    monkeypatch.setitem(sys.modules, "torch", None)  # not even looked for
    status, out, err = call(*given)
    monkeypatch.undo()
    assert (status, out) == (0, bytes(wanted(folder, "def f", 20)).decode() + "\n")
    assert re.search(r"The weights take \d+ kB in float32, more .* stay in their files", err)


@engines
def test_every_option_reaches_the_draw(call, folder, engine):
    if engine == "pytorch":
        pytest.importorskip("torch")
    how = {"temperature": 1.5, "top_k": 12, "top_p": 0.8, "seed": 7}
    words = [w for name, value in how.items() for w in ("--" + name.replace("_", "-"), value)]
    status, out, _ = call("--model", folder, "--prompt", "x", "--engine", engine,
                          "--max-new-tokens", 30, "--json", *words)  # fmt: skip
    told = json.loads(out)
    assert status == 0 and told["tokens"] == wanted(folder, "x", 30, **how)
    assert told["text"] == bytes(told["tokens"]).decode(errors="replace")
    assert (told["prompt_tokens"], told["new_tokens"], told["ended"]) == (1, 30, "length")
    assert told["prompt"] == "x"
    assert told["decode_tokens_per_second"] == pytest.approx(29 / told["decode_seconds"])
    assert told["prefill_tokens_per_second"] == pytest.approx(1 / told["prefill_seconds"])


def test_a_stop_text_ends_it_and_is_not_shown(call, folder):
    text = bytes(wanted(folder, "def f", 20)).decode()
    for length in (1, 2, 4):
        stop = text[6 : 6 + length]
        status, out, err = call("--model", folder, "--prompt", "def f", "--engine", "reference",
                                "--stop", "\n\n", "--stop", stop)  # fmt: skip
        assert (status, out) == (0, text[: text.index(stop)] + "\n")
        assert f" {text.index(stop) + length} new" in err and "a stop text came" in err


def test_the_end_token_of_the_config_ends_it(call, folder, tmp_path):
    tokens = wanted(folder, "def f", 20)
    for end in (tokens[6], [tokens[6], 255]):
        model = tmp_path / str(end)
        model.mkdir()
        for path in folder.iterdir():
            (model / path.name).write_bytes(path.read_bytes())
        config = json.loads((model / "config.json").read_text()) | {"eos_token_id": end}
        (model / "config.json").write_text(json.dumps(config))
        status, out, err = call("--model", model, "--prompt", "def f", "--engine", "reference")
        at = tokens.index(tokens[6])
        assert (status, out) == (0, bytes(tokens[:at]).decode() + "\n")
        assert "the model ended it" in err


def test_a_run_is_its_newest_whole_checkpoint(call, folder, tmp_path):
    call_it = ("--model", tmp_path / "run", "--prompt", "a", "--engine", "reference",
               "--max-new-tokens", 5)  # fmt: skip
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    status, _, err = call(*call_it)
    assert status == 1 and "has no checkpoint yet" in err
    model = reference.Model.from_pretrained(folder)
    for step, scale in ((1, 1.0), (2, -1.0)):
        weights = {name: value * scale for name, value in model.weights.items()}
        held = {"m/n": np.zeros(1)}
        write = partial(store.write_whole, cfg=TINY, weights=weights, optimizer=held)
        store.save(tmp_path / "run", step, write, {})
    want = bytes(wanted(folder, "a", 5)).decode() + "\n"
    status, out, err = call(*call_it)
    assert status == 0 and out != want and "Warning" not in err
    (tmp_path / "run/checkpoints/step-00000002/state.json").write_text("{}")
    status, out, err = call(*call_it)
    assert (status, out) == (0, want) and "Warning: step-00000002 is damaged" in err


def test_another_tokenizer_is_named_and_used(call, folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    made = library_file(tmp_path / "tokenizer.json")
    ids = made.encode("Hello").ids
    assert max(ids) < 300
    status, out, err = call("--model", tmp_path, "--prompt", "Hello", "--engine", "reference",
                            "--max-new-tokens", 6)  # fmt: skip
    if max(ids) >= TINY.vocab_size:
        assert status == 1 and "was the text encoded for another model?" in err
    else:
        assert status == 0 and "The tokenizer is tokenizer.json." in err and out


def test_the_context_is_a_limit(call, folder):
    words = ("--model", folder, "--prompt", "abcde", "--engine", "reference", "--max-context", 8)
    status, out, _ = call(*words)
    assert status == 0 and len(out) == 4  # three letters and the line's end
    status, out, err = call(*words[:-1], 5)
    assert (status, out) == (1, "") and "The prompt takes 5 tokens, and 5 is the limit" in err


REFUSED = {
    "prompt": (["--prompt", ""], "The prompt is empty"),
    "long prompt": (["--prompt", "x" * 512], "The prompt takes 512 tokens, and 512 is the limit"),
    "engine": (["--engine", "jax"], "--engine is reference or pytorch, not 'jax'."),
    "model": (["--model", "nowhere"], "There is no directory nowhere"),
    "temperature": (["--temperature", -1], "temperature must be 0 (greedy) or positive"),
    "top-k": (["--top-k", 0], "top_k must be 1 or more"),
    "top-p": (["--top-p", 0], "top_p must be above 0"),
    "seed": (["--seed", -1], "seed must be 0 or more"),
    "tokens": (["--max-new-tokens", 0], "--max-new-tokens is 1 or more, not 0."),
    "context": (["--max-context", 513], "--max-context is from 1 to the model's 512 positions"),
    "stop": (["--stop", ""], "--stop needs a text"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_refused_in_a_sentence_before_loading(
    call, folder, name, monkeypatch
):
    words, sentence = REFUSED[name]
    if name != "engine":
        monkeypatch.setattr(cli_generate, "_load", None)
    status, out, err = call("--model", folder, "--prompt", "a", *words)
    assert (status, out) == (1, "") and sentence in err and "Traceback" not in err


def test_weights_that_are_not_finite_are_refused(call, folder, tmp_path):
    model = reference.Model.from_pretrained(folder)
    model.weights["model.norm.weight"][3] = np.nan
    model.save_pretrained(tmp_path / "bad")
    status, out, err = call("--model", tmp_path / "bad", "--prompt", "a", "--engine", "reference")
    assert (status, out) == (1, "") and "weights must be finite" in err


@engines
def test_ctrl_c_ends_the_text_and_keeps_what_there_is(call, folder, monkeypatch, engine):
    if engine == "pytorch":
        pytest.importorskip("torch")
    text, take = bytes(wanted(folder, "def f", 20)).decode(), cli_generate.Said.take

    def interrupt(self, tokens):
        take(self, tokens)
        if len(self.tokens) == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(cli_generate.Said, "take", interrupt)
    status, out, err = call("--model", folder, "--prompt", "def f", "--engine", engine)
    assert (status, out) == (130, text[:7] + "\n")
    assert ", 7 new at " in err and err.endswith("; interrupted.\n")


@pytest.mark.skipif(os.name != "posix", reason="there Ctrl-C is no signal that can be sent")
def test_ctrl_c_from_outside_while_it_streams(folder):
    # PyTorch: the reference's 500 tokens would be out before the signal is in.
    words = ["--model", str(folder), "--prompt", "def f", "--engine", "pytorch",
             "--max-new-tokens", "500"]  # fmt: skip
    process = subprocess.Popen([sys.executable, "-m", "minik2", "generate", *words],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               # Of a shell's background jobs, children inherit that it is ignored.
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
                               )  # fmt: skip
    first = process.stdout.read(3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    text = bytes(wanted(folder, "def f", 500)).decode()
    assert 3 <= len(first + out) - 1 < 500 and text.startswith((first + out).decode()[:-1])
    assert b"interrupted" in err and b"Traceback" not in err


@pytest.mark.parametrize(("text", "stop", "held"), [
    ("abc", "cd", 1), ("aab", "aabx", 3), ("xaa", "aab", 2), ("x", "abc", 0), ("\n", "\n\n", 1),
    ("", "ab", 0), ("ab", "a", 0),
])  # fmt: skip
def test_what_may_be_the_beginning_of_a_stop_text_waits(text, stop, held):
    assert cli_generate._overlap(text, stop) == held
