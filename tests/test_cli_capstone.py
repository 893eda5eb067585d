"""`minik2 capstone`: what it says and writes, the board, Ctrl-C, and the refusals."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from minik2 import training
from minik2.capstone import results
from tests import commands
from tests.capstone import texts
from tests.capstone.test_results import trial

ROOT = Path(__file__).parents[1]


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """call("--board") -> (exit status, output, errors) of `minik2 capstone`, run in a folder that
    holds nothing but `mine.py`, and with a small text."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training.Corpus, "standard_library", texts.corpus)
    Path("mine.py").write_text(texts.learns(0.01))
    return partial(commands.call, monkeypatch, capsys, "capstone")


def test_a_trial_is_told_written_and_shown(call):
    status, out, err = call("mine.py", "--minutes", 0.01, "--seed", 4)
    assert status == 0
    (made,) = results.read(Path("runs/capstone/results.json"))
    assert (made["entry"], made["seed"], made["minutes"]) == ("mine", 4, 0.01)
    assert out.startswith(f"mine, seed 4: {made['nats']:.4f} nats a byte on held-out files, after "
                          f"{made['steps']:,} steps and ")  # fmt: skip
    assert "\nmine" in out
    kept = Path("runs/capstone/sources", f"mine-{made['source']}.py")
    assert f"is kept as {kept}." in out and kept.read_text() == texts.learns(0.01)
    lines = err.splitlines()
    assert 2 <= len(lines) <= 11 and lines[-1].startswith("asking it about held-out files: ")
    assert "\x1b" not in out + err

    status, board, err = call("--board")
    assert (status, err) == (0, "") and board.splitlines() == out.splitlines()[3:]


def test_json(call):
    status, out, _ = call("mine.py", "--minutes", 0.01, "--json", "--results", "other.json")
    assert status == 0 and json.loads(out) == results.read(Path("other.json"))[0]
    status, out, _ = call("--board", "--json", "--results", "other.json")
    ((rows,),) = [list(json.loads(out).values())]
    assert status == 0 and [row["entry"] for row in rows] == ["mine"]
    assert not Path("runs").exists()


def test_the_board_shows_every_set_of_conditions(call):
    results.add(Path("r.json"), [trial("first", minutes=1.0), trial("last\x1b[2J")])
    status, out, _ = call("--board", "--results", "r.json")
    assert status == 0 and "\x1b" not in out
    assert out.index("1 minutes, ") < out.index("first") < out.index("5 minutes, ")


REFUSED = {
    "nothing": ([], "Name the entry to train, such as capstone/my_entry.py; or give --board"),
    "both": (["mine.py", "--board"], "--board shows results and trains nothing; leave it out"),
    "no results": (["--board"], "There are no results in runs/capstone/results.json yet"),
    "no file": (["nobody.py"], "nobody.py cannot be read: No such file or directory."),
    "no time": (["mine.py", "--minutes", 0], "minutes must be a number above 0, not 0"),
    "threads": (["mine.py", "--threads", 0], "threads must be a whole number, 1 up, not 0."),
    "a mistake": (["bad.py"], "bad.py, line 2, `return run.nothing`: AttributeError"),
    "spoiled": (["mine.py", "--results", "bad.py"], "bad.py is not a file of results"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_a_sentence(call, name):
    Path("bad.py").write_text(texts.body("return run.nothing"))
    words, sentence = REFUSED[name]
    status, out, err = call(*words)
    assert (status, out) == (1, "") and sentence.replace("/", os.sep) in err.replace("/", os.sep)
    assert "Traceback" not in err and not Path("runs").exists()


@pytest.mark.skipif(os.name != "posix", reason="there Ctrl-C is no signal that can be sent")
def test_ctrl_c_writes_nothing(tmp_path):
    source = tmp_path / "mine.py"
    source.write_text(texts.learns(0.01) + "\nprint('ready', flush=True)\n")
    code = ("import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "from minik2 import cli\nsys.argv = ['minik2', 'capstone', *sys.argv[1:]]\ncli.main()")
    process = subprocess.Popen([sys.executable, "-c", code, source], cwd=tmp_path, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert process.stderr.readline() == "ready\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == "" and err.endswith("nothing was written, since an entry counts when its time is "
                                      "over.\n")  # fmt: skip
    assert "Traceback" not in err and list(tmp_path.iterdir()) == [source]
