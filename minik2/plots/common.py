"""What every figure of the course shares: colours, type, and a figure that shows itself.

Unusual here: no pyplot. A picture is an object that a function returns, so nothing is drawn twice,
nothing is kept open, and drawing works the same in a notebook, a test and a script. Titles state
the conclusion. The latent is always blue and the rotary part always orange; every colour differs
from the others in lightness too, so that a grey print and a colour-blind reader lose nothing.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from minik2.files import write_whole

# Okabe and Ito's palette, from dark to light (https://jfly.uni-koeln.de/color).
LATENT = "#0072B2"
ROTARY = "#E69F00"
TODAY = "#00664A"
SECOND = "#A0527A"
INK = "#22262E"
SOFT = "#7A828E"
FAINT = "#E8EAED"
# For things that are neither: from dark to light, without blue or orange.
PLAIN = (INK, TODAY, SECOND, "#8A919C", "#C6C9CE")

# From nothing (white) to much (dark), for weights and shares; one hue, so lightness is the value.
AMOUNT = LinearSegmentedColormap.from_list("amount", ["#FFFFFF", "#C6C9CE", "#747982", "#1C2027"])
# Around zero: green is below, purple above.
SIGNED = "PRGn_r"

STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "mathtext.fontset": "dejavusans",
}
# Dots an inch: what a notebook shows, and how many times finer the stored picture is.
SHOWN_DPI, FINER = 84, 2

Draw = TypeVar("Draw", bound=Callable[..., Any])


class Picture(Figure):
    """A figure that a notebook shows by itself, and that a screen reader reads its title of."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        width, height = self.get_size_inches() * SHOWN_DPI
        return self.png(SHOWN_DPI * FINER), {"width": round(width), "height": round(height)}

    def png(self, dpi: float) -> bytes:
        """The picture as the bytes of a PNG file."""
        buffer = io.BytesIO()
        with matplotlib.rc_context(STYLE):
            self.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
        return buffer.getvalue()

    def write(self, path: str | Path) -> None:
        """Save as a PNG file, whole, so that a broken-off write leaves the old one.

        Raises ValueError for what is no .png file, OSError where it cannot be written.
        """
        path = Path(path)
        try:
            if path.exists() and not path.is_file():  # a rename would replace a device as well
                raise ValueError(f"{path} is a directory, a device or a pipe, and a picture "
                                 "replaces files alone; name a file that ends in .png.")
            if path.suffix.lower() != ".png":
                raise ValueError(f"{path} does not end in .png, and a picture is a PNG file; name "
                                 "one that does.")
            write_whole(path, self.png(SHOWN_DPI * FINER))
        except OSError as error:
            raise OSError(f"{path} cannot be written ({error.strerror or error}); make its folder, "
                          "or room there, or name a file elsewhere.") from error

    def __repr__(self) -> str:
        return f"Picture: {self.get_suptitle()}"


def styled(draw: Draw) -> Draw:
    """Draw under the course's style whatever the reader's own settings are."""

    @functools.wraps(draw)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(STYLE)
            return draw(*args, **kwargs)

    return wrapper  # type: ignore[return-value]


def picture(
    title: str, width: float = 9.0, height: float = 3.2, rows: int = 1, columns: int = 1,
    **grid: Any,
) -> tuple[Picture, Any]:
    """A picture under its conclusion, and its axes as `Figure.subplots` gives them; inches."""
    figure = Picture(figsize=(width, height), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    return figure, figure.subplots(rows, columns, **grid)


def heat(
    axes: Axes, values: Any, cmap: Any = AMOUNT, low: float | None = None,
    high: float | None = None, numbers: str | None = None,
) -> Any:
    """A matrix as coloured squares; numbers: a format such as ".2f" to write into each."""
    values = np.asarray(values)
    image = axes.imshow(values, cmap=cmap, vmin=low, vmax=high, interpolation="nearest")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    if numbers:
        for (row, column), value in np.ndenumerate(values):
            if not np.isnan(value):
                axes.text(column, row, minus(format(value, numbers)), ha="center", va="center",
                          fontsize=9, color=readable(image, value))
    return image


def signed(axes: Axes, values: Any, numbers: str | None = None, high: float | None = None) -> Any:
    """A matrix of positive and negative numbers, zero white."""
    largest = np.nanmax(np.abs(values)) if high is None else high
    return heat(axes, values, SIGNED, -largest, largest, numbers)


def readable(image: Any, value: float) -> str:
    """The colour of a text that stands on this value's square of an image."""
    red, green, blue, _ = image.cmap(image.norm(value))
    return "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.5 else INK


def ticks(axes: Axes, x: Sequence[str] | None = None, y: Sequence[str] | None = None) -> None:
    """Name every column and row."""
    if x is not None:
        axes.set_xticks(range(len(x)), x)
    if y is not None:
        axes.set_yticks(range(len(y)), y)


def letters(text: str) -> list[str]:
    """The characters of a text as they are written below a figure: blanks and line ends shown."""
    return ["␣" if c == " " else "↵" if c == "\n" else c for c in text]


def minus(text: str) -> str:
    """A number with a minus sign instead of a hyphen."""
    return text.replace("-", "−")
