"""The lessons' model: trained once, read afterwards, and gone on with where it was cut off."""

import importlib

import numpy as np
import pytest

from minik2.training import lesson_model as get
from minik2.training import store

# The package's name of that kind is the function.
module = importlib.import_module("minik2.training.lesson_model")


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIK2_SHORT", "1")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "SHORT_STEPS", 2)
    (tmp_path / "lessons").mkdir()
    return tmp_path / "runs" / "lessons"


def test_it_is_trained_once_and_then_read(home, capsys, monkeypatch):
    first = get("float32")
    assert "once" in capsys.readouterr().out
    monkeypatch.setattr(module, "train", None)  # a second training would raise
    again = get()
    assert capsys.readouterr().out == ""
    assert again.weights["lm_head.weight"].dtype == np.float64
    for name, weight in first.weights.items():
        np.testing.assert_array_equal(weight, again.weights[name])
    assert np.abs(first.weights["model.norm.weight"] - 1).max() > 0


def test_one_that_was_cut_off_is_finished(home, monkeypatch):
    run = home / "small-2"
    with monkeypatch.context() as cut:
        def stopped(cfg, settings, corpus, out, habits, tell):
            raise KeyboardInterrupt
        cut.setattr(module, "train", stopped)
        with pytest.raises(KeyboardInterrupt):
            get()
    get()
    saved, warnings = store.newest(run)
    assert saved.step == 2 and not warnings
