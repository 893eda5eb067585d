"""Figures of full size: titles that the numbers bear out, and sliders that draw the same figure."""

import pytest

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


def test_sliders_draw_the_static_figure():
    pytest.importorskip("ipywidgets")
    box = sizing.explore("kimi-k2")
    names = {child.description: child for child in box.children[:-1]}
    assert set(names) == {"context", "batch", "devices", "weights"}
    values = {name: child.value for name, child in names.items()}
    assert box.f(**values).get_suptitle() == sizing.serving(K2, "kimi-k2").get_suptitle()
    # Every place that a slider can be in is a figure.
    for name, child in names.items():
        for option in (child.options[0], child.options[-1]):
            value = option[1] if isinstance(option, tuple) else option
            assert box.f(**values | {name: value}).png(20).startswith(PNG)
