"""The figure of a pass through a model of real size."""

import numpy as np
import pytest

from minik2 import fullsize
from minik2.config import ModelConfig
from minik2.plots.fullsize import route
from tests.plots.test_figures import PNG, assert_title_fits

SMALL = ModelConfig.preset("small")


@pytest.mark.parametrize("tokens", [1, 7])
def test_a_dot_stands_for_each_expert_that_was_chosen(tokens):
    made = fullsize.run(SMALL, tokens)
    figure = route(made, SMALL)
    assert figure.png(40).startswith(PNG)
    assert_title_fits(figure)
    dots = np.concatenate([dots.get_offsets() for dots in figure.axes[0].collections])
    wanted = {(expert, layer) for layer, chosen in enumerate(made.chosen, 1)
              for expert in np.ravel(chosen).tolist()}
    assert {tuple(map(int, dot)) for dot in dots} == wanted and len(dots) == len(wanted)
    of = 3 * SMALL.n_routed_experts
    assert f"{len(wanted)} of {of} experts, {len(wanted) / of:.1%}" in figure.get_suptitle()
    assert [bar.get_width() for bar in figure.axes[1].patches] == made.layer_seconds


def test_a_pass_that_was_stopped_is_drawn_as_far_as_it_went():
    figure = route(fullsize.run(SMALL, stop=iter([False, False, True]).__next__), SMALL)
    assert len(figure.axes[1].patches) == 2


def test_without_experts_there_is_nothing_to_draw():
    with pytest.raises(ValueError, match="ask for more layers"):
        route(fullsize.run(SMALL, layers=1), SMALL)
