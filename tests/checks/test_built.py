"""What the builder makes of the lessons keeps the contract of minik2/checks/notebooks.py."""

import os
from pathlib import Path

import nbformat
import pytest

from lessons import views
from minik2.checks.exercise import exercises
from minik2.checks.marking import expected, mark
from minik2.checks.notebooks import ROLES, Notebook, check_call, read

SOURCES = sorted((Path(__file__).parents[2] / "lessons").glob("[0-9][0-9]_*.py"))
posix = pytest.mark.skipif(os.name != "posix", reason="the sandbox needs Linux or macOS")
each_lesson = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem[:2])
each_folder = pytest.mark.parametrize("folder", views.FOLDERS)


def built(source: Path, folder: str, tmp_path: Path, solved: bool = False) -> Notebook:
    """A notebook of a lesson, its answers those of the solutions if `solved`."""
    lesson = views.read(source)
    notebook = views.views(lesson)[folder]
    for cell in notebook.cells:
        if solved and cell.metadata.get("minik2", {}).get("role") == "answer":
            cell.source = lesson.solved[cell.metadata["minik2"]["exercise"]]
    path = tmp_path / f"{source.stem}.ipynb"
    nbformat.write(notebook, path)
    return read(path)


def test_every_exercise_is_in_a_lesson():
    assert {e for path in SOURCES for e in views.read(path).solved} == {e.id for e in exercises()}


@each_folder
@each_lesson
def test_every_code_cell_has_its_role(source, folder, tmp_path):
    notebook = built(source, folder, tmp_path)
    assert {cell.role for cell in notebook.cells} <= set(ROLES)
    assert notebook.cells[0].role == "setup"
    assert expected(notebook) == [e for e in exercises() if e.lesson == source.stem[:2]]
    for exercise in expected(notebook):
        (call,) = [c for c in notebook.cells if c.role == "check" and c.exercise == exercise.id]
        assert call.source == check_call(exercise.id, exercise.function)
        assert notebook.answers[exercise.id].edited == (folder == "solutions")


@pytest.mark.parametrize("folder", ["notebooks", "exercises"])
@each_lesson
def test_what_nobody_has_touched_is_not_attempted(source, folder, tmp_path):
    marks = mark(built(source, folder, tmp_path))
    assert marks and all(m.outcome == "not attempted" and not m.note for m in marks)


@posix
@each_folder
@each_lesson
def test_the_solutions_pass_wherever_they_are_written(source, folder, tmp_path):
    """An answer needs nothing but the set-up cell: the lesson's other cells are not run."""
    marks = mark(built(source, folder, tmp_path, solved=True))
    assert marks and all(m.outcome == "passed" and not m.note for m in marks), marks
