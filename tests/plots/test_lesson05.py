"""Lesson 05's sliders show the static figure, and leave the figures after them alone."""

import numpy as np
import pytest

from minik2.plots import lesson05


def test_sliders_show_the_static_figure():
    pytest.importorskip("ipywidgets")
    rng = np.random.default_rng(0)
    routers = {layer: (rng.random((3, 4)), rng.normal(size=4), np.eye(4)[:3]) for layer in (1, 2)}
    layer, byte, image = lesson05.explore("abc", routers, spot=1).children
    first = lesson05.route("abc", 1, 1, *routers[1])._repr_png_()
    assert (image.value, int(image.width), int(image.height)) == (first[0], *first[1].values())
    layer.value, byte.value = 2, 2
    assert image.value == lesson05.route("abc", 2, 2, *routers[2])._repr_png_()[0]
