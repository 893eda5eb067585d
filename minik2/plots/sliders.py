"""A figure with sliders above it, for notebooks; the figure itself is a function of another module.

Unusual here: the picture's bytes go to an image, and ipywidgets.interactive is left out. It would
switch on pyplot's way to show figures for the whole notebook: those after it came out coarser than
those before. ipywidgets is imported when a figure asks for sliders, and not before.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from minik2.plots.common import Picture


def widgets() -> Any:
    """ipywidgets. Raises ImportError where it is not installed (it comes with minik2[course])."""
    return importlib.import_module("ipywidgets")


def sliders(draw: Callable[..., Picture], **controls: Any) -> Any:
    """The controls, each under its name, and below them draw(name=value, …); an ipywidget.

    The picture is drawn anew whenever a control is moved.
    """
    image = widgets().Image()

    def show(moved: Any = None) -> None:
        shown = draw(**{name: control.value for name, control in controls.items()})
        image.value, size = shown._repr_png_()
        image.width, image.height = size["width"], size["height"]

    for name, control in controls.items():
        control.description = name
        control.observe(show, "value")
    show()
    return widgets().VBox([*controls.values(), image])
