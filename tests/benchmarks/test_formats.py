"""The benchmark of formats: what it finds in a model, and a title that says what was found."""

import json

import numpy as np
import pytest

from benchmarks import formats, records
from minik2 import ModelConfig, reference
from minik2.plots import formats as picture
from tests.plots.test_figures import PNG, assert_title_fits

STORED = json.loads((records.RESULTS / "formats.json").read_text(encoding="utf-8"))


def test_a_random_model(tmp_path, monkeypatch):
    """Rounding to 7 bits behind the point, to 3, and to 15 steps over a group: by the formula."""
    model = reference.Model.init(ModelConfig.preset("small"), seed=0)
    monkeypatch.setattr(formats, "lesson_model", lambda dtype: model)
    monkeypatch.setattr(formats, "WINDOWS", 2)
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    monkeypatch.setattr(records, "ROOT", tmp_path)
    (tmp_path / "figures").mkdir()
    assert formats.main(["--record"]) == 0
    record = json.loads((tmp_path / "formats.json").read_text())
    assert (tmp_path / "figures" / "formats.png").read_bytes().startswith(PNG)
    parts = {name: found["parts"] for name, found in record["formats"].items()}
    # A number between 2^n and 2^(n+1) is rounded to a grid of 2^n g: an error of 2^n g / sqrt(12).
    # FP8's powers of two are those of w / scale.
    experts = [w.reshape(64, 128) for n, w in model.weights.items() if ".experts." in n]
    for name, grid in (("bfloat16", 2**-7), ("float8", 2**-3), ("float8_ue8m0", 2**-3)):
        tops = [np.abs(w).max() / 448 for w in experts] if name == "float8" else [1] * len(experts)
        octaves = [t**2 * 4 ** np.floor(np.log2(np.abs(w) / t))
                   for w, t in zip(experts, tops, strict=True)]  # fmt: skip
        expected = grid * (np.sum(octaves) / np.sum(np.square(experts)) / 12) ** 0.5
        assert parts[name]["routed_experts"] == pytest.approx(expected, rel=0.02)
    # The largest of 32 normal numbers is 2.07 of them on average (half-normal: 2.3 to 2.5).
    assert 2.2 / 7.5 / 12**0.5 < parts["int4"]["routed_experts"] < 2.6 / 7.5 / 12**0.5
    assert parts["int4"]["attention"] == parts["bfloat16"]["attention"]
    assert 0 < record["formats"]["bfloat16"]["logits"] < record["formats"]["int4"]["logits"]


def test_the_stored_figure_says_what_the_stored_record_says():
    figure = picture.formats(STORED)
    found = STORED["formats"]
    title = figure.get_suptitle()
    assert f"routed experts by {found['int4']['parts']['routed_experts']:.1%}" in title
    assert f"{max(abs(f['loss']) for f in found.values()):.4f} nats at most" in title
    assert_title_fits(figure)
    assert set(found) == set(picture.LOOKS) == set(formats.FORMATS)


def test_the_title_follows_the_numbers():
    worse = json.loads(json.dumps(STORED))
    worse["formats"]["int4"]["loss"] = -1.5
    worse["formats"]["float8"]["parts"]["routed_experts"] = 0.5
    title = picture.formats(worse).get_suptitle()
    assert "FP8 all projections by 50.0%" in title and "1.5000 nats at most" in title
