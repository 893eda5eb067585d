"""Every figure draws, and its title says what the numbers say, also when they say the opposite."""

import importlib
import pkgutil
import struct

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

import minik2.plots
from minik2.config import ModelConfig
from minik2.plots.model_map import model_map
from tests.plots.cases import CASES

PNG = b"\x89PNG\r\n\x1a\n"
IDS = [f"{draw.__module__[-8:]}-{draw.__name__}-{words[:24]}" for draw, _, words in CASES]


def figures():
    """Every figure function of the lessons' modules: what `styled` wraps."""
    names = [m.name for m in pkgutil.iter_modules(minik2.plots.__path__)]
    modules = [importlib.import_module(f"minik2.plots.{n}") for n in names if n[:6] == "lesson"]
    return {f for m in modules for n, f in vars(m).items()
            if hasattr(f, "__wrapped__") and f.__module__ == m.__name__}


def test_no_figure_is_left_out():
    assert figures() == {draw for draw, _, _ in CASES}


@pytest.mark.parametrize(("draw", "arguments", "words"), CASES, ids=IDS)
def test_a_figure_draws_under_a_title_that_its_numbers_bear_out(draw, arguments, words):
    figure = draw(*arguments)
    assert words in figure.get_suptitle()
    png, shown = figure._repr_png_()
    assert png.startswith(PNG)
    width, height = struct.unpack(">II", png[16:24])
    assert abs(width - 2 * shown["width"]) <= 2 and abs(height - 2 * shown["height"]) <= 2
    assert_title_fits(figure)


def assert_title_fits(figure):
    box = figure._suptitle.get_window_extent(FigureCanvasAgg(figure).get_renderer())
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width, f"cut off: {figure.get_suptitle()}"


@pytest.mark.parametrize("name", ModelConfig.presets())
def test_the_map_draws_every_preset(name):
    figure = model_map(["all"], f"The whole of {name}", ModelConfig.preset(name))
    assert figure.png(40).startswith(PNG)
    assert_title_fits(figure)


def test_the_map_shows_the_sizes_of_its_model():
    shown = {text.get_text() for text in model_map(cfg=ModelConfig.preset("small")).axes[0].texts}
    assert {"4 of 16", "16 experts", "48 + 16", "4 layers of this"} <= shown


def test_the_map_lights_what_it_is_told_to():
    def fills(lit):
        return [patch.get_facecolor() for patch in model_map(lit).axes[0].patches]

    dark, router, everything = fills([]), fills(["router"]), fills(["all"])
    assert sum(a != b for a, b in zip(dark, router, strict=True)) == 1
    changed = [n for n, (a, b) in enumerate(zip(dark, router, strict=True)) if a != b]
    assert all(everything[n] == router[n] for n in changed)


def test_the_map_refuses_a_part_that_it_has_not():
    with pytest.raises(ValueError, match=r"no part named attend; it has embedding, .*attention"):
        model_map(["router", "attend"])
