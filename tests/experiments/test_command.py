"""The command: what it says, what it refuses, and figures from stored results alone."""

import pytest

from minik2.experiments import __main__ as command
from minik2.experiments import results
from minik2.plots import experiments as pictures
from minik2.plots.common import picture


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """Results and figures in a folder of the test's."""
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    monkeypatch.setattr(results, "FIGURES", tmp_path / "figures")
    monkeypatch.setattr(command, "ROOT", tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "pyproject.toml").touch()
    return tmp_path


def test_the_list_names_every_experiment(capsys):
    assert command.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(command.EXPERIMENTS)


def test_what_nobody_has_run_is_open(capsys):
    assert command.main(["--list", "--scale", "gpu"]) == 0
    for line in capsys.readouterr().out.splitlines():
        assert "Open: nobody has run it" in line


def test_an_unknown_experiment_is_a_sentence(capsys):
    assert command.main(["balence"]) == 1
    assert "There is no experiment 'balence'; there are muon_vs" in capsys.readouterr().err


def test_without_a_gpu_the_large_scale_is_refused(capsys, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main(["--scale", "gpu", "balance"]) == 1
    assert "--scale gpu needs a GPU" in capsys.readouterr().err


def test_a_larger_run_has_files_of_its_own(elsewhere, monkeypatch):
    import torch

    record = {"experiment": "balance", "plan": {}, "found": {}}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(command.EXPERIMENTS["balance"], "run", lambda scale, *_: (
        record | {"scale": scale.name}))
    monkeypatch.setattr(pictures, "balance", lambda record: picture(record["scale"])[0])
    assert command.main(["--scale", "gpu", "balance"]) == 0
    assert results.read(elsewhere / "results" / "balance-gpu.json")["scale"] == "gpu"
    assert (elsewhere / "figures" / "balance-gpu.png").is_file()


def test_outside_of_a_clone_nothing_is_run(elsewhere, capsys):
    (elsewhere / "pyproject.toml").unlink()
    assert command.main(["balance"]) == 1
    assert "clone it and run there" in capsys.readouterr().err


def test_redrawing_needs_results(elsewhere, capsys):
    assert command.main(["--redraw", "balance"]) == 1
    assert "There is no balance.json yet" in capsys.readouterr().err
    (elsewhere / "results" / "balance.json").write_text("{")
    assert command.main(["--redraw", "balance"]) == 1
    assert "is no results file" in capsys.readouterr().err


def test_a_run_stores_its_record_and_draws_from_it(elsewhere, capsys, monkeypatch):
    record, seen = {"experiment": "balance", "plan": {}, "found": {"a": [1.5]}}, []

    def run(scale, seeds, tell):
        tell(0, 10, "some runs")
        tell(10, 10, "some runs")
        seen.append((scale.name, seeds))
        return record

    monkeypatch.setattr(command.EXPERIMENTS["balance"], "run", run)
    monkeypatch.setattr(pictures, "balance", lambda record: picture(f"drawn: {record['found']}")[0])
    assert command.main(["balance"]) == 0
    assert seen == [("cpu", command.SEEDS)]
    assert results.read(elsewhere / "results" / "balance.json") == record
    assert (elsewhere / "figures" / "balance.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr()
    assert "some runs: 10 steps to make" in said.err
    assert "drawn: {'a': [1.5]} (figures/balance.png)" in said.out


def test_ctrl_c_says_how_to_go_on(elsewhere, capsys, monkeypatch):
    def run(scale, seeds, tell):
        raise KeyboardInterrupt

    monkeypatch.setattr(command.EXPERIMENTS["balance"], "run", run)
    assert command.main(["balance"]) == 130
    assert "the same command goes on" in capsys.readouterr().err
