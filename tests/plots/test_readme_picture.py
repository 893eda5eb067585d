"""The README's picture is made of figures that lesson 00 shows, and of nothing else."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("readme_picture", ROOT / "tools/readme_picture.py")
readme_picture = importlib.util.module_from_spec(spec)
spec.loader.exec_module(readme_picture)


@pytest.mark.skipif(os.environ.get("CI") != "true",
                    reason="whoever runs lesson 00 has figures of their own in it")
def test_the_picture_is_what_the_notebook_shows():
    made, stored = np.asarray(readme_picture.picture()), Image.open(readme_picture.PICTURE)
    message = "run python tools/readme_picture.py: lesson 00 has been run anew"
    assert np.array_equal(made, np.asarray(stored.convert("RGB"))), message


def test_a_notebook_that_was_not_run_gets_a_sentence():
    notebook = readme_picture.nbformat.v4.new_notebook(
        cells=[readme_picture.nbformat.v4.new_code_cell("plots.loss_curve(a)")])
    with pytest.raises(ValueError, match=r"shows no figure of plots\.loss_curve"):
        readme_picture.figure_of(notebook, "plots.loss_curve(")
