"""Figures of full size: titles that the numbers bear out, and sliders that draw the same figure."""

import numpy as np
import pytest

from minik2 import sizing as sizing_of
from minik2.config import ModelConfig
from minik2.plots import sizing
from tests.plots.test_figures import PNG, assert_title_fits

K2, TINY = ModelConfig.preset("kimi-k2"), ModelConfig.preset("tiny")


@pytest.mark.parametrize("name", ModelConfig.presets())
def test_the_waterfall_of_every_preset(name):
    figure = sizing.waterfall(ModelConfig.preset(name), name)
    assert figure.png(40).startswith(PNG)
    assert_title_fits(figure)


def test_the_waterfall_ends_at_the_whole():
    """Each bar starts where those below it end; the last one is all of them."""
    figure = sizing.waterfall(K2, "Kimi K2")
    assert figure.get_suptitle() == (
        "98.9% of Kimi K2's 1.03 T weights are routed experts; a token reads 3.1% of all")
    bars = [(p.get_x(), p.get_width()) for p in figure.axes[0].patches]
    ends = [0.0]
    for start, width in bars[:-1]:
        assert start == pytest.approx(ends[-1], rel=1e-9)
        ends.append(start + width)
    assert bars[-1] == (0, 1_026_408_232_448) and ends[-1] == pytest.approx(bars[-1][1])
    read = [p.get_width() for p in figure.axes[1].patches]
    assert sum(read[:-1]) == pytest.approx(read[-1])
    dense = sizing.waterfall(TINY.replace(first_k_dense_replace=99), "a dense one")
    assert "a token reads" in dense.get_suptitle() and "dense ffn" in dense.get_suptitle()


@pytest.mark.parametrize("settings, words", [
    ({}, "at most 4,215 tokens/s, limited by bandwidth"),
    ({"weights": "bfloat16", "devices": "8xh200"}, "2.13 TB do not fit"),
    ({"context": 1024, "batch": 1024, "devices": "16xh200"}, "limited by"),
])
def test_the_title_says_whether_it_fits_and_what_limits(settings, words):
    figure = sizing.serving(K2, "Kimi K2", **settings)
    assert words in figure.get_suptitle()
    assert figure.png(40).startswith(PNG)
    assert_title_fits(figure)


@pytest.mark.parametrize("layout, recompute, words", [
    (sizing_of.Layout(8, 32), "none", "Kimi K2 on 256 x H800"),
    (sizing_of.Layout(2, 2), "selective", "no stage fits"),
    (sizing_of.Layout(32, 32, dp=8), "full", "every stage fits"),
    (sizing_of.Layout(16, 16), "selective", "8 of 16 stages fit"),
])
def test_training_says_which_stages_fit(layout, recompute, words):
    figure = sizing.training(K2, "Kimi K2", layout, recompute=recompute, published=30e9)
    assert words in figure.get_suptitle()
    assert figure.png(40).startswith(PNG)
    assert_title_fits(figure)
    laid = sizing_of.cluster(K2, layout, 4096, recompute=recompute)
    bars = np.array([bar.get_height() for bar in figure.axes[0].patches]).reshape(4, layout.pp)
    np.testing.assert_allclose(bars.sum(0) * 1e9, [stage.total for stage in laid.stages])


@pytest.mark.parametrize("explore, static, names", [
    (sizing.explore, sizing.serving, {"context", "batch", "devices", "weights"}),
    (sizing.explore_training, sizing.training, {"stages", "experts_over", "copies", "recompute"}),
])
def test_sliders_draw_the_static_figure(explore, static, names, monkeypatch):
    pytest.importorskip("ipywidgets")
    drawn = []

    def noted(*arguments, **more):
        drawn.append((arguments, more))
        return static(*arguments, **more)

    monkeypatch.setattr(sizing, static.__name__, noted)
    *controls, image = explore("kimi-k2").children
    assert {control.description for control in controls} == names
    # Every place that a slider can be in is a figure, and it is the one that is shown.
    for control in controls:
        first = control.value
        for option in (control.options[0], control.options[-1]):
            control.value = option[1] if isinstance(option, tuple) else option
            arguments, more = drawn[-1]
            assert image.value == static(*arguments, **more)._repr_png_()[0]
        control.value = first
    assert len(drawn) > len(controls)


def test_sliders_for_training_are_of_the_models_own_counts():
    pytest.importorskip("ipywidgets")
    stages, shares, *_ = sizing.explore_training("small").children
    assert stages.options == (1, 2, 4) and shares.options == (1, 2, 4, 8, 16)
