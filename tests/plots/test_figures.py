"""Every figure draws, and its title says what the numbers say, also when they say the opposite."""

import importlib
import pkgutil
import struct

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

import minik2.plots
from minik2.config import ModelConfig
from minik2.plots import lesson00, lesson01
from minik2.plots.model_map import model_map
from minik2.sizing import parameters

PNG = b"\x89PNG\r\n\x1a\n"
rng = np.random.default_rng(0)


def looking_back(size, distance, share):
    """Weights (T, T) that put `share` on the token `distance` back, and spread the rest."""
    even = np.tri(size) / np.arange(1, size + 1)[:, None]
    target = np.eye(size)[np.maximum(np.arange(size) - distance, 0)]
    return share * target + (1 - share) * even


def letters_by_kind(spread):
    """Rows for 26 small letters, 10 digits, 4 signs; kinds in directions of their own, or noise."""
    signs = "abcdefghijklmnopqrstuvwxyz0123456789.,:;"
    kind = np.array([0] * 26 + [1] * 10 + [2] * 4)
    return signs, 10 * spread * np.eye(16)[kind] + rng.normal(size=(40, 16))


def scores(shift):
    """Scores (T, T) that depend on the distance, and by `shift` on the position as well."""
    m, n = np.mgrid[:12, :12]
    return np.cos(m - n) + shift * m


TEXT = "for a in x:\n    y = a\n"
SIX = np.arange(6)
SPOTS = np.arange(22)[:, None]
MASKED = np.where(np.tri(5, dtype=bool), rng.normal(size=(5, 5)), -np.inf)
TABLES = {"a blind guess": 5.55, "a table": 2.4}
MODELS = {name: parameters(ModelConfig.preset(name)) for name in ("small", "kimi-k2")}
DENSE = parameters(ModelConfig.preset("tiny").replace(first_k_dense_replace=99, n_shared_experts=1))

# Figure, its arguments, and words that its title must have.
CASES = [
    (lesson00.loss_curve, ([5, 3, 2, 2], {0: 5.8, 2: 2.2, 4: 2.0}, TABLES), "After 2 steps the"),
    (lesson00.loss_curve, ([5, 3, 2, 2], {0: 5.8, 2: 2.2, 4: 2.0}, TABLES), "than a table can"),
    (lesson00.loss_curve, ([5, 5, 4, 4], {0: 5.8, 4: 4.0}, TABLES), "than a blind guess can"),
    # Below the table once, and above it at the end, is not better than the table.
    (lesson00.loss_curve, ([5, 2, 4, 4], {0: 5.8, 2: 2.0, 4: 4.0}, TABLES), "than a blind guess"),
    (lesson00.loss_curve, ([5, 6, 6, 6], {0: 5.8, 4: 6.0}, TABLES), "beat no yardstick yet"),
    (lesson00.surprise, (TEXT, np.full(22, 5.5), np.tile([1.0, 3.0], 11)), "From 5.5 to 2.0 nats"),
    (lesson00.surprise, (TEXT, np.full(22, 5.5), np.full(22, 6.0)), "did not help"),
    (lesson00.surprise, ("no end", np.full(6, 5.5), np.ones(6)), "From 5.5 to 1.0 nats"),
    (lesson00.embedding, letters_by_kind(1), "have found their kind: 100%"),
    (lesson00.embedding, letters_by_kind(0), "do not know their kind"),
    (lesson00.latents, (TEXT[:9], *np.split(rng.normal(size=(9, 64)), [48], 1), 288, 1),
     "keeps of a token: 64 numbers, where keys and values would be 288"),
    (lesson00.attention, (TEXT, looking_back(22, 1, 0.9), 1, 2), "head 2 of layer 1 looks one "),
    (lesson00.attention, (TEXT, looking_back(22, 3, 0.9), 1, 2), "looks 3 bytes back, with 9"),
    (lesson00.attention, (TEXT, looking_back(22, 0, 0.9), 1, 2), "looks at the byte itself"),
    (lesson00.attention, (TEXT, looking_back(22, 3, 0.0), 0, 3), "has no favourite distance"),
    (lesson00.router, (TEXT, np.eye(16)[np.arange(22) % 16], 1, 0.8, 0.4),
     "In layer 1 two copies of a byte share 80% of their experts, two different bytes 40%"),
    (lesson00.router, (TEXT, np.eye(16)[np.arange(22) % 16], 1, 0.4, 0.4), "hardly more"),
    (lesson00.where_parameters, (MODELS,),
     "98.9% of kimi-k2's parameters are routed experts; a token meets 3.2% of all"),
    (lesson00.where_parameters, ({"dense": DENSE},), "layers, router, norms; a token meets 100.0%"),
    (lesson01.order, (["a", "b"], looking_back(2, 1, 0.5), looking_back(2, 1, 0.5)[::-1, ::-1],
                      [1, 0]), "nothing knows the order"),
    (lesson01.order, (["a", "b"], looking_back(2, 1, 0.5), looking_back(2, 1, 0.5), [1, 0]),
     "now the order counts"),
    (lesson01.causal_mask, (np.ones((5, 5)), MASKED, np.tri(5) / 5), "removes the future"),
    (lesson01.causal_mask, (np.ones((5, 5)), MASKED, np.full((5, 5), 0.2)), "up to 80%"),
    (lesson01.clock_hands, (np.cos(np.outer(SIX, [0, 1, 1, 2])), np.array([1.0, 0.1])),
     "each is slower"),
    (lesson01.clock_hands, (np.cos(np.outer(SIX, [0, 1, 1, 2])), np.array([1.0, 1.0])),
     "not every one is slower"),
    (lesson01.relative, (scores(0),), "on nothing else"),
    (lesson01.relative, (scores(1),), "more than the difference: at one it varies by 11"),
    (lesson01.layouts, (np.array([0, 2, 1, 3]),), "one permutation apart"),
    (lesson01.layouts, (np.array([0, 2, 2, 3]),), "no permutation"),
    (lesson01.one_head, (TEXT, looking_back(22, 1, 0.9)), "at least 90% of the weight is one"),
    (lesson01.one_head, (TEXT, looking_back(22, 3, 0.9)), "In one row only "),
    # One row that does not look back is not made up for by the others.
    (lesson01.one_head, (TEXT, np.where(SPOTS == 9, looking_back(22, 3, 0.85),
                                        looking_back(22, 1, 0.9))), "In one row only 1% "),
    (lesson01.wavelengths, (2 * np.pi / np.array([4.0, 100.0, 5000.0]), 4096, 131072),
     "2 of K2's 3 pairs make a full turn within 4,096 tokens"),
]  # fmt: skip
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
