"""A small picture of an error: which numbers of the output are wrong, and by how much.

Unusual here: it is a grid of characters, in a terminal as in a notebook, where the cells are
coloured as well, more strongly when further off (which is darker on a light page and brighter on a
dark one). So it never speaks by colour alone. It is a table and no SVG because JupyterLab takes
SVG out of a notebook that it does not trust, one that came by mail for example.
"""

from dataclasses import dataclass

import numpy as np

from minik2.checks.values import Difference

ROWS, COLUMNS = 12, 32
LEGEND = "A dot = right, 1 to 9 = wrong, by little to most."
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

    def table(self) -> str:
        """The same characters as an HTML table; the first wrong number has a frame.

        Every style that JupyterLab gives to tables and that would show is overruled cell by cell.
        """
        rows = []
        for i, row in enumerate(self.strength.tolist()):
            cells = "".join(self._cell(i, j, strength) for j, strength in enumerate(row))
            rows.append(f'<tr style="background:none">{cells}</tr>')
        return ('<table style="border-collapse:collapse;margin:6px 0;font-size:11px;'
                f'line-height:1">{"".join(rows)}</table>')

    def _cell(self, i: int, j: int, strength: int) -> str:
        opacity = round(255 * (0.25 + strength / 12)) if strength else 0
        frame = "outline:2px solid;" if (i, j) == self.first else ""
        return ('<td style="width:1.2em;padding:2px 0;text-align:center;border:1px solid #88888866;'
                f'background:{WRONG}{opacity:02x};{frame}">{strength or "."}</td>')

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
