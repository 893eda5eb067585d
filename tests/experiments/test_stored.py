"""The results in the repository belong to the code beside them, and each has its page."""

import json

import pytest

from minik2.experiments import __main__ as command
from minik2.experiments import results
from minik2.experiments.scales import ROOT, scales
from minik2.plots import experiments as pictures
from tests.plots.test_figures import assert_title_fits

NAMES = list(command.EXPERIMENTS)


@pytest.mark.parametrize("name", NAMES)
def test_stored_results_are_those_of_this_code(name):
    """A changed setting, rate or arm makes the results in the repository those of another plan."""
    record, scale = results.read(results.path_of(name, "cpu")), scales()["cpu"]
    now = {**results.setup(scale), "plan": command.EXPERIMENTS[name].plan(scale)}
    assert {key: record[key] for key in now} == json.loads(json.dumps(now))
    assert record["seeds"] == list(command.SEEDS) and len(record["seeds"]) >= 3
    assert_title_fits(getattr(pictures, name)(record))
    assert (results.FIGURES / f"{name}.png").is_file()


def test_the_stored_grid_has_no_best_on_its_edge():
    found = results.read(results.path_of("muon_vs_adamw", "cpu"))["found"]
    for rate in found["best_rate"].values():
        assert found["rates"][0] < rate < found["rates"][-1]


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_has_its_page(name):
    assert f"figures/experiments/{name}.png" in (ROOT / "LAB_NOTES.md").read_text("utf-8")


def test_the_list_tells_the_time_that_runs_took(capsys):
    assert command.main(["--list"]) == 0
    for line in capsys.readouterr().out.splitlines():
        assert "minutes of training" in line
