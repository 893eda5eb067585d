"""Make figures/readme.png: `python tools/readme_picture.py`, after `make lessons`.

Unusual here: nothing is drawn. The picture is put together from figures that stand among the
outputs of notebooks/00_k2_in_one_hour.ipynb, so it shows what the lesson's own model did.
"""

import base64
import io
import os
from pathlib import Path

import nbformat
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
LESSON = ROOT / "notebooks" / "00_k2_in_one_hour.ipynb"
PICTURE = ROOT / "figures" / "readme.png"
# What the cells of these figures call, from top to bottom.
FIGURES = ("plots.loss_curve(", "plots.surprise(", "plots.router(")
GAP = 40  # dots of white between two figures


def figure_of(notebook: nbformat.NotebookNode, call: str) -> Image.Image:
    """The figure that the cell with this call has shown; ValueError where there is none."""
    for cell in notebook.cells:
        if cell.cell_type == "code" and call in cell.source:
            for output in cell.outputs:
                if png := output.get("data", {}).get("image/png"):
                    return Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    raise ValueError(f"{LESSON.name} shows no figure of {call}…); run `make lessons` first.")


def picture() -> Image.Image:
    """The figures of FIGURES on one sheet, one above the other."""
    notebook = nbformat.read(LESSON, as_version=4)
    parts = [figure_of(notebook, call) for call in FIGURES]
    width = max(part.width for part in parts)
    height = sum(part.height for part in parts) + GAP * (len(parts) - 1)
    sheet = Image.new("RGB", (width, height), "white")
    top = 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height + GAP
    return sheet


def main() -> None:
    PICTURE.parent.mkdir(exist_ok=True)
    beside = PICTURE.with_name(f".{PICTURE.name}.{os.getpid()}")
    picture().save(beside, format="PNG", optimize=True)
    beside.replace(PICTURE)
    print(f"{PICTURE.relative_to(ROOT)} written")


if __name__ == "__main__":
    main()
