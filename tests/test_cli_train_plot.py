"""`minik2 train --plot`: which runs it draws, under which names, and into which files."""

import json
from functools import partial
from pathlib import Path

import pytest

from minik2.plots import training as pictures
from minik2.training import summary
from tests import commands
from tests.plots.test_training import lines

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """call("run") -> (exit status, output, errors) of `minik2 train --plot`, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return partial(commands.call, monkeypatch, capsys, "train", "--plot")


@pytest.fixture
def drawn(monkeypatch):
    """The names, a tuple a picture, and tau where one run is drawn: a list that fills up."""
    seen = []
    one, several = pictures.one_run, pictures.several_runs

    def one_run(name, entries, tau):
        seen.append(((name,), tau))
        return one(name, entries, tau)

    def several_runs(runs):
        seen.append(tuple(runs))
        return several(runs)

    monkeypatch.setattr(pictures, "one_run", one_run)
    monkeypatch.setattr(pictures, "several_runs", several_runs)
    return seen


def run(path, entries=None, **settings):
    """A run's two files, as training leaves them."""
    path = Path(path)
    path.mkdir(parents=True)
    told = "".join(json.dumps(entry) + "\n" for entry in entries or lines())
    path.joinpath("metrics.jsonl").write_text(told)
    path.joinpath("run.json").write_text(
        json.dumps({"config": {}, "settings": settings, "text": {}}))


def test_a_run_named_twice_is_drawn_once(call, drawn):
    run("run", optimizer="muonclip", tau=5.0)
    run("other", optimizer="adamw")
    assert call("run", "./run", Path("run").resolve(), "other/../run")[0] == 0
    assert Path("run/run.png").read_bytes().startswith(PNG)
    assert call("run", "other", "run")[0] == 0
    assert drawn == [(("run",), 5.0), ("run", "other")]


def test_runs_in_directories_of_one_name_stay_apart(call, drawn):
    for path in ("a/run", "b/run", "c"):
        run(path)
    assert call("a/run", "b/run", "c", "a/../b/run")[0] == 0
    ((first, second, third),) = drawn
    assert [first, second] == [str(Path(name, "run")) for name in "ab"]
    assert Path(third).name == "c"


@pytest.mark.parametrize("settings", [{"optimizer": "muonclip"}, {}], ids=str)
def test_a_run_whose_settings_name_no_tau_is_drawn_without(call, drawn, settings):
    run("run", **settings)
    status, _, err = call("run")
    assert (status, err, drawn) == (0, "", [(("run",), None)])


def test_a_name_that_would_be_a_broken_formula(call):
    run("$a_$")
    assert call("$a_$") == (0, f"The picture is {Path('$a_$/run.png')}.\n", "")


@pytest.mark.parametrize("output, sentence", [
    ("run", "run is a directory, a device or a pipe, and a picture replaces files alone; name a"),
    ("run.pdf", "run.pdf does not end in .png, and a picture is a PNG file; name one that does."),
    ("missing/x.png", "x.png cannot be written (No such file or directory); make its folder, or"),
])  # fmt: skip
def test_what_no_picture_can_be_written_to_is_refused(call, output, sentence):
    run("run")
    status, out, err = call("run", "-o", output)
    assert (status, out) == (1, "") and sentence in err and "Traceback" not in err
    assert [path.name for path in Path().iterdir()] == ["run"]


def test_a_run_evaluated_before_its_first_step_alone_is_summed_up_by_its_training(tmp_path):
    def said(entries):
        for entry in entries:
            entry.update(seconds=1.0, maxima_seconds=0.0)
        path = tmp_path / str(len(entries))
        run(path, entries)
        found = summary.figures(path)
        return found, summary.lines(found)[1:3]

    entries = lines(30, every=100)
    found, (first, last) = said(entries)
    assert (found["held_out_first"], found["held_out_last"]) == (5.0, None)
    recent = [entry["loss"] for entry in entries if entry["kind"] == "step"][-summary.RECENT :]
    assert found["loss_last"] == pytest.approx(sum(recent) / 20)
    assert first == "held out    5.000 nats a byte before the first step, not looked at since"
    assert last == "loss        4.317 nats a byte of training, mean of the last 20 steps"
    assert said(lines(8, every=100)[1:])[1][0] == (
        "loss        4.438 nats a byte of training, mean of the last 8 steps")
    found, (first, last) = said(lines(30))
    assert found["held_out_last"] == 2.0
    assert first == "held out    5.000 nats a byte at first, 2.000 at last"
    assert not last.startswith("loss")
