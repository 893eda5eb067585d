"""The build's own refusals: MathJax missing or another one, and warnings of Sphinx."""

import shutil
from pathlib import Path

import pytest

from book import build
from book.text import BookError


class Distribution:
    """A package as importlib.metadata has it, with its files in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def locate_file(self, name: str) -> Path:
        return self.folder / name


@pytest.fixture
def package(monkeypatch, tmp_path):
    monkeypatch.setattr(build.metadata, "distribution", lambda name: Distribution(tmp_path))
    return tmp_path


def test_another_mathjax_is_refused(package):
    (package / build.MATHJAX).parent.mkdir(parents=True)
    (package / build.MATHJAX).write_text("fetch('https://a.example')")
    with pytest.raises(BookError, match=r"is not MathJax 3.2.2 as released"):
        build.mathjax()


def test_a_missing_mathjax_is_a_sentence(package):
    with pytest.raises(BookError, match="MathJax is missing: `make book` installs it"):
        build.mathjax()


def test_the_old_book_stays_where_the_new_one_fails(monkeypatch, tmp_path, capsys):
    old = tmp_path / "html" / "index.html"
    old.parent.mkdir()
    old.write_text("old")

    def fail(root):
        raise BookError("Something is missing.")

    monkeypatch.setattr(build.stage, "collect", fail)
    monkeypatch.setattr(build, "OUT", tmp_path)
    assert build.main([]) == 1
    assert capsys.readouterr().err == "Something is missing.\n"
    assert old.read_text() == "old"


@pytest.mark.slow
@pytest.mark.parametrize("text", ["# A\n\n[x](#gone)\n", "# A\n\n![x](gone.png)\n",
                                  "# A\n\n```{eval-rst}\n.. autofunction:: minik2.gone\n```\n"])
def test_a_warning_of_sphinx_fails_the_build(tmp_path, text):
    pytest.importorskip("sphinx")
    shutil.copytree(build.stage.HERE / "_static", tmp_path / "pages" / "_static")
    (tmp_path / "pages" / "index.md").write_text(text)
    with pytest.raises(BookError, match="without warnings"):
        build.sphinx(tmp_path)
