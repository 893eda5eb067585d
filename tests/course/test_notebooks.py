"""Every lesson runs from top to bottom in a fresh kernel, as a learner finds it and as solved.

What runs is what the sources make, in an empty folder: a learner's own answers cannot fail these
tests, and that the stored notebooks hold the same cells is a test of its own. Where MINIK2_SHORT is
set lessons take fewer steps; without it they run at full length and are slow tests.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from lessons import build, execute, views
from minik2 import checks

SHORT = bool(os.environ.get("MINIK2_SHORT"))
# Seconds for one notebook. Lesson 00 is to take 150 on two quiet cores; here it may have one.
LIMIT = 240 if SHORT else 900
SOURCES = build.sources()
LESSONS = {path.stem[:2]: views.read(path) for path in SOURCES}
EVERY = pytest.mark.parametrize("number", LESSONS)
FOLDER = Path(build.ROOT)


def run(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    made = execute.run(notebook, folder, LIMIT)
    assert list(folder.iterdir()) == [], "a lesson leaves no files behind"
    return made


def said(notebook: nbformat.NotebookNode) -> dict[str, str]:
    """The first line of each check's outcome, as a terminal shows it, by exercise."""
    out = {}
    for cell in notebook.cells:
        mark = cell.metadata.get("minik2", {})
        if mark.get("role") == "check":
            (result,) = (o for o in cell.outputs if o.output_type == "execute_result")
            assert "border-left" in result.data["text/html"]
            out[mark["exercise"]] = result.data["text/plain"].splitlines()[0]
    return out


def expected(number: str, outcome: str) -> dict[str, str]:
    return {e.id: f"{outcome[0]} {e.id}: {outcome[2:]}"
            for e in checks.exercises() if e.lesson == number}


def filled(number: str) -> nbformat.NotebookNode:
    """The worksheet with the answers of the solutions copied in, as a learner would."""
    made = views.views(LESSONS[number])
    answers = {c.id: c.source for c in made["solutions"].cells if c.id.endswith("-answer")}
    for cell in made["exercises"].cells:
        cell.source = answers.get(cell.id, cell.source)
    return made["exercises"]


def test_there_are_lessons():
    assert {"00", "01"} <= set(LESSONS)


@EVERY
def test_nothing_drifted(number):
    """With CI=true no answer may stand in the notebooks either: there is no learner to protect."""
    strict = os.environ.get("CI") == "true"
    assert build.check(LESSONS[number], answers=not strict) == []


@pytest.mark.timeout(LIMIT + 60)
@pytest.mark.parametrize("number", [
    pytest.param(n, marks=[] if SHORT else [pytest.mark.slow]) for n in LESSONS])
def test_the_lesson_runs(number, tmp_path):
    made = run(views.views(LESSONS[number])["notebooks"], tmp_path)
    assert said(made) == expected(number, "○ not attempted yet")
    kinds = [kind for c in made.cells if c.cell_type == "code" for o in c.outputs
             for kind in o.get("data", {})]
    assert kinds.count("image/png") + kinds.count("image/svg+xml") >= 3, "at least three figures"
    for cell in made.cells:
        for output in cell.get("outputs", []):
            assert output.get("name") != "stderr" or "Warning" not in output.text, output.text


@pytest.mark.timeout(LIMIT + 60)
@EVERY
def test_the_solutions_run_and_are_green(number, tmp_path):
    assert said(run(views.views(LESSONS[number])["solutions"], tmp_path)) == expected(
        number, "✓ passed")


@pytest.mark.timeout(LIMIT + 60)
@EVERY
def test_the_untouched_worksheet_runs_and_is_neither_red_nor_green(number, tmp_path):
    assert said(run(views.views(LESSONS[number])["exercises"], tmp_path)) == expected(
        number, "○ not attempted yet")


@pytest.mark.timeout(LIMIT + 60)
@EVERY
def test_the_worksheet_filled_in_is_green(number, tmp_path):
    assert said(run(filled(number), tmp_path)) == expected(number, "✓ passed")


WRONG = {
    "attention-causal-answer": '''def causal(q, k, v):
    scores = np.where(np.tri(len(q), dtype=bool), q @ k.T, -np.inf)
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True) @ v''',
    "rope-rotate-answer": "def rotate(x, positions, theta):\n    while True:\n        pass",
    "rope-to-halves-answer": "def to_halves(size):\n    p = np.arange(size)\n    return p[99]",
    "attention-one-head-answer": "import os\n\nprint('I will do this later')",
}


def test_wrong_answers_in_a_notebook_are_told_what_is_wrong(tmp_path):
    worksheet = views.views(LESSONS["01"])["exercises"]
    for cell in worksheet.cells:
        cell.source = WRONG.get(cell.id, cell.source)
    worksheet.cells = [c for c in worksheet.cells if c.id != "attention-one-head-check"]
    made = {c.id: c.outputs for c in run(worksheet, tmp_path).cells if c.cell_type == "code"}

    def text(name):
        return made[name][-1].data["text/plain"]

    causal = text("attention-causal-check")
    assert "✗ attention.causal: not yet (rung 4 of 4: the values)" in causal
    assert "This looks like “no_scale”" in causal
    html = made["attention-causal-check"][-1].data["text/html"]
    assert "<table" in html and "no_scale" in html
    rotate = text("rope-rotate-check")
    assert re.search(r"still running after 5 s, so it was stopped at line [23] of your code: "
                     r"`(while True:|pass)`", rotate), rotate
    halves = text("rope-to-halves-check")
    assert "raised IndexError at line 3 of your code: `return p[99]`" in halves, halves


# What is stored is what a reader sees on the web, and opens first.

def stored(folder: str, number: str) -> nbformat.NotebookNode:
    """The notebook as it stands in the repository; skipped where somebody has worked in it."""
    path = FOLDER / folder / f"{LESSONS[number].name}.ipynb"
    changed = subprocess.run(["git", "status", "--porcelain", "--", str(path)], cwd=FOLDER,
                             capture_output=True, text=True)
    if changed.stdout.strip() and os.environ.get("CI") != "true":
        pytest.skip(f"{folder}/{path.name} is not as committed; this is about what is committed")
    return build.load(path)


@pytest.mark.parametrize("folder", views.FOLDERS)
@EVERY
def test_stored_outputs_are_those_of_one_whole_run(folder, number):
    code = [c for c in stored(folder, number).cells if c.cell_type == "code"]
    if folder == "exercises":
        assert all(c.execution_count is None and not c.outputs for c in code)
        return
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1))
    assert not any(o.output_type == "error" for c in code for o in c.outputs)
    assert said(stored(folder, number)) == expected(
        number, "✓ passed" if folder == "solutions" else "○ not attempted yet")


@pytest.mark.parametrize("folder", views.FOLDERS)
@EVERY
def test_stored_notebooks_name_no_file_of_the_machine_that_made_them(folder, number):
    path = FOLDER / folder / f"{LESSONS[number].name}.ipynb"
    text = nbformat.writes(stored(folder, number))
    for private in (str(FOLDER), sys.prefix, str(Path.home()), "site-packages", "ipykernel_",
                    "Traceback"):
        assert private not in text, f"{private} in {path.name}"
    assert not re.search(r"(?<![\w.:/])/(home|root|tmp|usr|var|Users|opt|mnt)/[\w./-]+", text)
    assert not re.search(r"[A-Z]:\\\\Users", text)
