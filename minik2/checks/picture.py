"""A small picture of an error: which numbers of the output are wrong, and by how much.

Unusual here: it is drawn by hand as SVG (no plotting library to load), and it never speaks by
colour alone: a right number is an empty cell, a wrong one is filled, more strongly when further
off (which is darker on a light page and brighter on a dark one), and the first wrong one has a
thick frame; in a terminal the same is a grid of characters.
"""

from dataclasses import dataclass
from html import escape

import numpy as np

from minik2.checks.values import Difference

ROWS, COLUMNS, CELL = 12, 32, 13
DRAWN = "Empty = right, filled = wrong, stronger = further off, thick frame = the first."
TYPED = "A dot = right, 1 to 9 = wrong, by little to most."
# Vermillion of the Okabe-Ito palette, which the colour-blind can tell from the rest.
WRONG = "#d55e00"


@dataclass(frozen=True)
class Picture:
    """strength: (rows, columns), 0 for a right number, else 1 (slightly off) to 9 (most)."""

    strength: np.ndarray
    first: tuple[int, int]
    caption: str

    @classmethod
    def of(cls, difference: Difference, axes: str = "") -> "Picture | None":
        """The picture of a difference; None where a single number is all there is."""
        wrong = difference.wrong
        if wrong.size < 2:
            return None
        flat = wrong.reshape(-1, wrong.shape[-1])
        error = difference.error.reshape(flat.shape)
        row, column = (int(i) for i in np.unravel_index(int(np.argmax(flat)), flat.shape))
        # A window of the output that holds the first wrong number.
        top = max(0, min(row - ROWS // 2, flat.shape[0] - ROWS))
        left = max(0, min(column - COLUMNS // 2, flat.shape[1] - COLUMNS))
        window = np.s_[top:top + ROWS, left:left + COLUMNS]
        letters = axes.split()
        names = ""
        if len(letters) == wrong.ndim and wrong.ndim > 1:
            names = f"; rows are {' × '.join(letters[:-1])}, columns {letters[-1]}"
        part = "" if flat[window].shape == flat.shape else ", a part of it"
        caption = f"Output {wrong.shape}{part}{names}."
        return cls(_strength(error[window], flat[window]), (row - top, column - left), caption)

    def svg(self) -> str:
        """An inline SVG; grey lines take the colour of the text around them."""
        rows, columns = self.strength.shape
        cells = []
        for (i, j), strength in np.ndenumerate(self.strength):
            opacity = 0.25 + strength / 12 if strength else 0
            cells.append(
                f'<rect x="{j * CELL + 1.5}" y="{i * CELL + 1.5}" width="{CELL}" height="{CELL}" '
                f'fill="{WRONG}" fill-opacity="{opacity:.2f}" '
                f'stroke="currentColor" stroke-opacity="0.35"/>')
        i, j = self.first
        cells.append(f'<rect x="{j * CELL + 1.5}" y="{i * CELL + 1.5}" width="{CELL}" '
                     f'height="{CELL}" fill="none" stroke="currentColor" stroke-width="2.5"/>')
        return (f'<svg role="img" aria-label="{escape(self.caption)}" '
                f'width="{columns * CELL + 3}" height="{rows * CELL + 3}">{"".join(cells)}</svg>')

    def text(self) -> str:
        """The same in characters: `.` is right, 1 to 9 is wrong by little to most."""
        lines = [" ".join(str(s) if s else "." for s in row) for row in self.strength.tolist()]
        return "\n".join(f"    {line}" for line in lines)


def _strength(error: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """1 to 9 by the error's logarithm over three decades below the largest; nan is 9."""
    finite = error[wrong & np.isfinite(error)]
    top = float(finite.max()) if finite.size else 1.0
    with np.errstate(all="ignore"):
        decades = np.log10(np.where(np.isfinite(error), error, top) / top)
    return np.where(wrong, np.clip(np.round(9 + decades * 8 / 3), 1, 9), 0).astype(int)
