"""What all figures share: colours that a grey print keeps apart, a picture that saves itself."""

import errno
import itertools
import os

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import rgb_to_hsv, to_rgb

from minik2.plots import common


def grey(colour):
    """Luma, as a printer without colours makes it: 0 black, 1 white."""
    red, green, blue = to_rgb(colour)
    return 0.299 * red + 0.587 * green + 0.114 * blue


# Palettes whose colours stand side by side in one figure.
PALETTES = {
    "latent, rotary, today": (common.LATENT, common.ROTARY, common.TODAY),
    "plain": common.PLAIN,
}


@pytest.mark.parametrize("name", PALETTES)
def test_greys_are_distinct(name):
    greys = [grey(colour) for colour in PALETTES[name]]
    # 12 of 256 steps are clearly apart when they touch; white lines between bars help further.
    assert min(abs(a - b) for a, b in itertools.combinations(greys, 2)) > 12 / 256


def test_plain_colours_keep_clear_of_latent_and_rotary():
    """Blue is the latent and orange the rotary part: nothing else may be taken for either."""
    for colour in common.PLAIN:
        hue, saturation, _ = rgb_to_hsv(to_rgb(colour))
        for meaning in (common.LATENT, common.ROTARY):
            away = abs(hue - rgb_to_hsv(to_rgb(meaning))[0])
            assert saturation < 0.4 or min(away, 1 - away) > 0.1


def test_more_is_darker_in_amount():
    greys = [grey(common.AMOUNT(x)) for x in np.linspace(0, 1, 50)]
    assert greys[0] > 0.99 and all(a > b for a, b in itertools.pairwise(greys))


def test_text_on_a_square_can_be_read():
    _, axes = common.picture("Squares", 3, 3)
    image = common.heat(axes, np.linspace(0, 1, 11)[None], numbers=".1f")
    for text, value in zip(axes.texts, np.linspace(0, 1, 11), strict=True):
        square = grey(image.cmap(image.norm(value))[:3])
        assert abs(grey(text.get_color()) - square) > 0.3


def test_a_picture_is_written_whole_and_leaves_nothing_beside_it(tmp_path):
    figure, _ = common.picture("One", 2, 2)
    path = tmp_path / "one.png"
    path.write_bytes(b"old")
    figure.write(path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name, sentence", [
    ("folder", "is a directory, a device or a pipe, and a picture replaces files alone"),
    ("pipe.png", "is a directory, a device or a pipe, and a picture replaces files alone"),
    ("one.pdf", "does not end in .png, and a picture is a PNG file; name one that does"),
    ("one", "does not end in .png"),
])  # fmt: skip
def test_only_a_png_file_is_replaced(tmp_path, name, sentence):
    figure, _ = common.picture("One", 2, 2)
    (tmp_path / "folder").mkdir()
    if name == "pipe.png":
        if not hasattr(os, "mkfifo"):
            pytest.skip("there are no named pipes here")
        os.mkfifo(tmp_path / name)
    before = {path: path.stat().st_mode for path in tmp_path.iterdir()}
    with pytest.raises(ValueError) as caught:
        figure.write(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name} {sentence}")
    assert {path: path.stat().st_mode for path in tmp_path.iterdir()} == before
    figure.write(tmp_path / "ONE.PNG")


def test_a_picture_that_cannot_be_written_is_a_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    figure, _ = common.picture("One", 2, 2)
    path = tmp_path / "missing" / "one.png"
    with pytest.raises(OSError) as caught:
        figure.write(path)
    assert str(caught.value) == (f"{path} cannot be written ({os.strerror(errno.ENOENT)}); make "
                                 "its folder, or room there, or name a file elsewhere.")

    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    path = tmp_path / "one.png"
    path.write_bytes(b"old")
    with pytest.raises(OSError) as caught:
        figure.write(path)
    assert str(caught.value).startswith(f"{path} cannot be written ({os.strerror(errno.ENOSPC)})")
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == b"old"


def test_a_picture_says_its_title_where_it_cannot_be_shown():
    figure, _ = common.picture("Words first", 2, 2)
    assert repr(figure) == "Picture: Words first"


def test_the_readers_own_settings_are_left_alone():
    from minik2.plots.lesson01 import layouts

    with matplotlib.rc_context({"font.size": 31, "axes.facecolor": "black"}):
        figure = layouts(np.array([0, 2, 1, 3]))
        assert matplotlib.rcParams["font.size"] == 31
        assert figure.axes[0].get_facecolor() == (1, 1, 1, 1)


def test_blanks_and_line_ends_are_shown():
    assert common.letters("a b\n") == ["a", "␣", "b", "↵"]
    assert common.minus("-1.5e-3") == "−1.5e−3"
