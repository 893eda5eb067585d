"""What the book is put together from: all of it, once, and what is missing is a sentence."""

import json
import re
import shutil
from pathlib import Path

import pytest

from book import stage
from book.text import BookError, headings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def book():
    pytest.importorskip("torch")  # the reference of the torch engine has its names from there
    return stage.collect(ROOT)


def test_every_lesson_is_a_page_with_its_outputs(book):
    lessons = sorted(ROOT.glob("notebooks/[0-9][0-9]_*.ipynb"))
    assert lessons
    for path in lessons:
        shown = json.loads(book.pages[f"lessons/{path.stem}"])
        stored = json.loads(path.read_text())
        assert [c["id"] for c in shown["cells"]] == [c["id"] for c in stored["cells"]]
        assert [c.get("outputs") for c in shown["cells"]] == [
            c.get("outputs") for c in stored["cells"]]


def test_every_section_of_the_readme_is_in_the_book_once(book):
    for title in headings((ROOT / "README.md").read_text(), 2):
        shown = [name for name, text in book.pages.items() if f"\n## {title}\n" in text
                 and not name.startswith("lessons/") and name not in stage.WHOLE]
        assert len(shown) == 1, title


@pytest.mark.parametrize("name, document", sorted(stage.WHOLE.items()))
def test_whole_documents_are_pages(book, name, document):
    assert headings(book.pages[name]) == headings((ROOT / document).read_text())


def test_every_page_is_in_the_contents_once(book):
    listed = re.findall(r"^\S+$", "\n".join(re.findall(
        r"```\{toctree\}\n:hidden:\n:caption: [^\n]+\n(.*?)```", book.pages["index"], re.S)), re.M)
    assert sorted(listed) == sorted(set(book.pages) - {"index"})


def test_nothing_is_left_of_what_was_to_be_put_in(book):
    for name, text in book.pages.items():
        assert not stage.INCLUDE.search(text) and not stage.MAKE.search(text), name


def test_exercises_are_all_named(book):
    from minik2.checks import exercises

    assert all(f"| `{e.id}` |" in book.pages["exercises"] for e in exercises())


def test_public_names_are_all_in_the_reference(book):
    import minik2

    text = "\n".join(page for name, page in book.pages.items() if name.startswith("api/"))
    for part in ("reference", "pytorch", "sizing", "checkpoint", "training", "fullsize", "checks"):
        for name in getattr(minik2, part).__all__:
            assert f"minik2.{part}.{name}" in text
    assert "autoclass:: minik2.config.ModelConfig" in text


@pytest.fixture
def project(tmp_path):
    """A project of one lesson, with README, results and documents, that a test can spoil."""
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LAB_NOTES.md", "GLOSSARY.md",
                 "ERRATA.md", "AGENTS.md", "figures", "benchmarks/results", "lessons", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    (tmp_path / "capstone").mkdir()
    shutil.copy(ROOT / "capstone" / "README.md", tmp_path / "capstone")
    (tmp_path / "notebooks").mkdir()
    shutil.copy(next(ROOT.glob("notebooks/00_*.ipynb")), tmp_path / "notebooks")
    return tmp_path


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_what_is_optional_comes_by_itself(project):
    (project / "capstone" / "README.md").write_text("# The capstone\n\n[x](../README.md#speed)\n")
    change(project / "README.md", "## Licence", "## Something new\n\nOf a later day.\n\n## Licence")
    book = stage.collect(project)
    assert book.pages["capstone"].strip() == "# The capstone\n\n[x](measurements.md#speed)"
    assert "capstone\n" in book.pages["index"]
    assert "Of a later day." in book.pages["using"]


@pytest.mark.parametrize("document, old, new, said", [
    ("README.md", "## Speed", "## Pace", r"no section 'Speed'"),
    ("LAB_NOTES.md", "# Lab notes", "# Lab notes\n[x](gone.md)", r"LAB_NOTES.md links to gone.md"),
    ("README.md", "(LAB_NOTES.md)", "(LAB_NOTES.md#gone)", r"README.md links to LAB_NOTES.md#gone"),
])
def test_what_leads_nowhere_is_a_sentence(project, document, old, new, said):
    change(project / document, old, new)
    with pytest.raises(BookError, match=said):
        stage.collect(project)


def test_a_missing_document_is_a_sentence(project):
    (project / "GLOSSARY.md").unlink()
    with pytest.raises(BookError, match=r"shows GLOSSARY.md, which is not there"):
        stage.collect(project)


def spoil(project: Path, output: dict | None) -> None:
    """Take the first code cell's outputs away, or put this one there."""
    (path,) = (project / "notebooks").glob("*.ipynb")
    notebook = json.loads(path.read_text())
    cell = next(c for c in notebook["cells"] if c["cell_type"] == "code")
    cell["outputs"] = [output] if output else []
    if not output:
        cell["execution_count"] = None
    path.write_text(json.dumps(notebook))


def test_a_lesson_that_was_not_run_is_a_sentence(project):
    spoil(project, None)
    with pytest.raises(BookError, match=r"00_k2_in_one_hour.ipynb has not been run"):
        stage.collect(project)


def slider(**twin: str) -> dict:
    return {"output_type": "display_data", "metadata": {},
            "data": {stage.WIDGET: {"model_id": "x"}, "text/plain": "interactive(…)", **twin}}


def test_sliders_without_a_twin_are_a_sentence(project):
    spoil(project, slider())
    with pytest.raises(BookError, match="sliders without a static twin"):
        stage.collect(project)


def test_of_sliders_with_a_twin_the_twin_is_shown(project):
    spoil(project, slider(**{"image/png": "AA=="}))
    text = stage.collect(project).pages["lessons/00_k2_in_one_hour"]
    assert stage.WIDGET not in text and '"image/png": "AA=="' in text


def test_a_page_without_a_place_is_a_sentence():
    with pytest.raises(BookError, match="No part of the book names stray"):
        list(stage.order({"index", "stray"}))


def test_a_figure_that_no_page_shows_is_among_the_measurements(project):
    before = stage.collect(project)
    shutil.copy(project / "figures/decode.png", project / "figures/gpu_new.png")
    after = stage.collect(project)
    assert before.pictures | {"figures/gpu_new.png"} == after.pictures
    assert after.pages["measurements"].endswith("![gpu new](figures/gpu_new.png)\n")


def test_pages_and_their_pictures_are_written(book, tmp_path):
    stage.write(book, tmp_path / "pages")
    assert (tmp_path / "pages/figures/decode.png").read_bytes() == (
        ROOT / "figures/decode.png").read_bytes()
    assert (tmp_path / "pages/lab-notes.md").read_text() == book.pages["lab-notes"]
    assert (tmp_path / "pages/_static/book.css").exists()
