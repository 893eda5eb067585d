"""The builder: the same source makes the same bytes, drift is seen, and no answer is ever lost."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from lessons import build, views
from minik2 import checks
from minik2.checks import notebooks

ROOT = Path(__file__).parents[2]
SOURCES = build.sources()
EVERY = pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
LESSON = next(path for path in SOURCES if path.stem.startswith("01"))
NAME = f"{LESSON.stem}.ipynb"
ANSWER = "def rotate(x, positions, theta):\n    return x"


@pytest.fixture
def lesson() -> views.Source:
    return views.read(LESSON)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def change(path: Path, edit) -> None:
    """Apply `edit` to the list of cells of a notebook file."""
    notebook = read(path)
    edit(notebook.cells)
    path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


def cell(cells: list, name: str):
    return next(c for c in cells if c.id == name)


def set_source(name: str, source: str):
    def edit(cells):
        cell(cells, name).source = source
    return edit


def fill(cells: list) -> None:
    """As after a run: outputs and counts."""
    for n, code in enumerate((c for c in cells if c.cell_type == "code"), 1):
        code.execution_count = n
        code.outputs = [nbformat.v4.new_output("stream", text=f"line {n}\n")]


def contents(root: Path) -> dict[str, bytes]:
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): p.read_bytes() for p in files}


def test_three_folders_are_made(lesson, tmp_path):
    build.build(lesson, tmp_path)
    assert sorted(contents(tmp_path)) == [f"{f}/{NAME}" for f in sorted(views.FOLDERS)]
    assert build.check(lesson, tmp_path) == []


def test_a_rebuild_changes_no_byte_and_writes_nothing(lesson, tmp_path):
    build.build(lesson, tmp_path)
    before = contents(tmp_path)
    times = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.ipynb")}
    build.build(views.read(LESSON), tmp_path)
    assert contents(tmp_path) == before
    assert times == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.ipynb")}


def test_another_process_makes_the_same_bytes(lesson, tmp_path):
    for seed in ("1", "2"):
        (tmp_path / seed).mkdir()
        code = ("import sys; from pathlib import Path; from lessons import build, views; "
                "build.build(views.read(Path(sys.argv[1])), Path(sys.argv[2]))")
        subprocess.run([sys.executable, "-c", code, str(LESSON), str(tmp_path / seed)], cwd=ROOT,
                       env=os.environ | {"PYTHONHASHSEED": seed}, check=True)
    assert len(contents(tmp_path / "1")) == 3
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_a_rebuild_keeps_outputs_and_is_else_the_same(lesson, tmp_path):
    build.build(lesson, tmp_path)
    bare = contents(tmp_path)
    for path in tmp_path.rglob("*.ipynb"):
        change(path, fill)
    filled = contents(tmp_path)
    assert build.check(lesson, tmp_path) == [], "outputs are no drift"
    build.build(lesson, tmp_path)
    assert contents(tmp_path) == filled != bare

    def empty(cells):
        for code in (c for c in cells if c.cell_type == "code"):
            code.execution_count, code.outputs = None, []

    for path in tmp_path.rglob("*.ipynb"):
        change(path, empty)
    assert contents(tmp_path) == bare


def test_a_rebuild_keeps_the_python_that_a_notebook_names(lesson, tmp_path):
    (path, *_) = build.build(lesson, tmp_path)
    notebook = read(path)
    notebook.metadata.language_info.version = "3.99.1"
    build.write(path, notebook)
    before = contents(tmp_path)
    build.build(lesson, tmp_path)
    assert contents(tmp_path) == before


def test_a_changed_cell_loses_its_outputs_and_the_others_keep_theirs(lesson, tmp_path):
    build.build(lesson, tmp_path)
    path = tmp_path / "solutions" / NAME
    change(path, fill)
    change(path, set_source("rope-rotate-answer", ANSWER))
    build.build(lesson, tmp_path)
    cells = read(path).cells
    assert cell(cells, "rope-rotate-answer").outputs == []
    assert cell(cells, "rope-rotate-check").outputs


def test_cells_of_the_same_source_keep_their_own_outputs():
    def two():
        return nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell("draw()", id=f"c{n}") for n in range(2)])

    old, built = two(), two()
    fill(old.cells)
    build.keep_outputs(built, old)
    assert [c.outputs[0].text for c in built.cells] == ["line 1\n", "line 2\n"]
    assert [c.execution_count for c in built.cells] == [1, 2]


def removed(cells):
    del cells[3]


def swapped(cells):
    cells[3], cells[4] = cells[4], cells[3]


def added(cells):
    cells.insert(3, nbformat.v4.new_code_cell("print('mine')"))


def retyped(cells):
    old = cells[0]
    cells[0] = nbformat.v4.new_code_cell(old.source, id=old.id)


def role_lost(cells):
    next(c for c in cells if c.metadata.get("minik2")).metadata = {}


@pytest.mark.parametrize("folder", views.FOLDERS)
@pytest.mark.parametrize("edit", [
    set_source("attention-causal-task", "Something else"), set_source("rope-rotate-check", "pass"),
    removed, swapped, retyped, role_lost,
], ids=["task changed", "check changed", "removed", "swapped", "retyped", "role lost"])
def test_drift_is_seen(lesson, tmp_path, folder, edit):
    build.build(lesson, tmp_path)
    change(tmp_path / folder / NAME, edit)
    said = build.check(lesson, tmp_path)
    assert len(said) == 1 and said[0].startswith(f"{folder}/{NAME} is not what its source makes")
    assert "make lessons" in said[0]


@pytest.mark.parametrize("edit", [added, set_source("rope-rotate-answer", ANSWER)],
                         ids=["cell added", "answer"])
def test_what_a_learner_does_is_drift_in_the_solutions_only(lesson, tmp_path, edit):
    build.build(lesson, tmp_path)
    for folder in views.FOLDERS:
        change(tmp_path / folder / NAME, edit)
    said = build.check(lesson, tmp_path)
    assert [s.split("/")[0] for s in said] == ["solutions"]
    assert len(build.check(lesson, tmp_path, answers=False)) == 3


def test_what_an_editor_marks_is_drift_in_the_solutions_only(lesson, tmp_path):
    def marked(cells):
        cells[2].metadata["collapsed"] = True

    build.build(lesson, tmp_path)
    for folder in views.FOLDERS:
        change(tmp_path / folder / NAME, marked)
    assert [s.split("/")[0] for s in build.check(lesson, tmp_path)] == ["solutions"]


def test_a_missing_notebook_is_drift(lesson, tmp_path):
    build.build(lesson, tmp_path)
    (tmp_path / "exercises" / NAME).unlink()
    assert build.check(lesson, tmp_path) == [f"exercises/{NAME} is missing; run make lessons."]


@pytest.mark.parametrize("folder", ["notebooks", "exercises"])
@pytest.mark.parametrize(("edit", "told"), [
    (set_source("rope-rotate-answer", ANSWER), "rope.rotate"), (added, "1 cell of your own"),
], ids=["answer", "cell added"])
def test_what_a_learner_wrote_is_never_overwritten(lesson, tmp_path, folder, edit, told):
    build.build(lesson, tmp_path)
    change(tmp_path / folder / NAME, edit)
    (tmp_path / "solutions" / NAME).unlink()
    before = contents(tmp_path)
    with pytest.raises(views.LessonError, match=f"{folder}/{NAME} holds .*--overwrite") as said:
        build.build(lesson, tmp_path)
    assert told in str(said.value)
    assert contents(tmp_path) == before, "nothing at all is written"
    build.build(lesson, tmp_path, overwrite=True)
    assert build.check(lesson, tmp_path, answers=False) == []


def test_a_duplicated_answer_counts_as_well(lesson, tmp_path):
    build.build(lesson, tmp_path)

    def copied(cells):
        twin = nbformat.from_dict(cell(cells, "rope-rotate-answer"))
        twin.id, twin.source = "0f3a", ANSWER
        cells.append(twin)

    change(tmp_path / "exercises" / NAME, copied)
    with pytest.raises(views.LessonError, match=r"rope\.rotate"):
        build.build(lesson, tmp_path)


def test_an_untouched_notebook_saved_by_an_editor_is_no_answer(lesson, tmp_path):
    build.build(lesson, tmp_path)

    def saved(cells):
        fill(cells)
        for c in cells:
            c.metadata["editable"] = True
            if c.cell_type == "code":
                c.source += "\n"

    change(tmp_path / "exercises" / NAME, saved)
    build.build(lesson, tmp_path)


def test_cells_without_ids_are_nobodys_but_the_learners(lesson, tmp_path):
    build.build(lesson, tmp_path)
    path = tmp_path / "exercises" / NAME
    text = re.sub(r'   "id": "[^"]*",\n', "", path.read_text(encoding="utf-8"))
    path.write_text(text.replace('"nbformat_minor": 5', '"nbformat_minor": 4'), encoding="utf-8")
    assert build.check(lesson, tmp_path)
    with pytest.raises(views.LessonError, match="of your own"):
        build.build(lesson, tmp_path)


@pytest.mark.parametrize("junk", [
    b"", b"[]", b"{}", b"null", b"\xff\xfe", b'{"cells": 3, "nbformat": 4, "nbformat_minor": 5}',
    b'{"cells": [3], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}',
])
@pytest.mark.filterwarnings("ignore")  # nbformat warns about what it then refuses
def test_a_file_that_is_no_notebook_is_a_sentence_and_stays(lesson, tmp_path, junk):
    path = tmp_path / "notebooks" / NAME
    path.parent.mkdir()
    path.write_bytes(junk)
    for use in (build.build, build.check):
        with pytest.raises(views.LessonError, match="is no notebook that can be read"):
            use(lesson, tmp_path)
    assert contents(tmp_path) == {f"notebooks/{NAME}": junk}


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(lesson, tmp_path, monkeypatch):
    build.build(lesson, tmp_path)
    before = contents(tmp_path)
    change(tmp_path / "solutions" / NAME, removed)
    damaged = contents(tmp_path)

    def full(self, target):
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        build.build(lesson, tmp_path)
    assert contents(tmp_path) == damaged != before


# What a lesson source may get wrong, each told in a sentence that names the exercise or the place.

HINTS = '# %% [markdown] hints="rope.to_halves"'


def without_a_hint(text: str) -> str:
    head, tail = text.split(HINTS)
    return head + HINTS + tail.replace("# ---\n", "", 1)


def with_an_empty_hint(text: str) -> str:
    head, tail = text.split(HINTS)
    return f"{head}{HINTS}\n#\n# ---\n{tail.partition('# ---')[2]}"


MISTAKES = {
    "a hint too few": (without_a_hint, r"rope\.to_halves needs three hints .* four parts"),
    "an empty hint": (with_an_empty_hint, r"rope\.to_halves needs three hints .* four parts"),
    "no hints": (lambda t: t.replace(HINTS, "# %% [markdown]"), r"rope\.to_halves .*not both"),
    "no task": (lambda t: t.replace('# %% [markdown] exercise="rope.rotate"', "# %% [markdown]"),
                r"rope\.rotate .*not both"),
    "unknown id": (lambda t: t.replace("rope.to_halves\"", "rope.quarter\""), r"rope\.quarter"),
    "exercise first": (lambda t: t[t.index("# %% [markdown] exercise="):], "begin it with the imp"),
    "no set-up first": (lambda t: t.replace('# %% role="setup"', "# %%", 1), 'marked role="setup"'),
    "unknown role": (lambda t: t.replace('role="setup"', 'role="helper"', 1),
                     "the role 'helper'; a source knows"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_source_is_refused_in_a_sentence(tmp_path, mistake):
    edit, said = MISTAKES[mistake]
    text = LESSON.read_text(encoding="utf-8")
    edited = edit(text)
    assert edited != text
    path = tmp_path / LESSON.name
    path.write_text(edited, encoding="utf-8")
    with pytest.raises(views.LessonError, match=said):
        views.read(path)


@pytest.mark.parametrize(("solved", "said"), [
    ("rotate = 3", "one function named rotate"),
    ("def turn(x: int) -> int:\n    'd'", "one function named rotate"),
    ("import numpy\ndef rotate(x: int) -> int:\n    'd'", "one function named rotate"),
    ("def rotate(x) -> int:\n    'd'", "needs types"),
    ("def rotate(x: int):\n    'd'", "needs types"),
    ("def rotate(x: int) -> int:\n    return x", "docstring"),
    ("def rotate(x: int\n", "is no Python"),
])
def test_a_solved_cell_that_makes_no_stub_is_refused(solved, said):
    with pytest.raises(views.LessonError, match=said):
        views.stub("rope.rotate", solved)


def test_the_stub_is_the_head_and_the_docstring():
    solved = 'def rotate(\n    x: int,\n) -> int:\n    """T..\n\n    x.\n    """\n    return 1'
    assert views.stub("rope.rotate", solved) == solved.replace("return 1", "...")


# The command.

def test_the_command_says_what_is_wrong_and_fails(monkeypatch, tmp_path, capsys):
    assert build.main(["77"]) == 1
    assert capsys.readouterr().err == "There is no lesson 77.\n"
    monkeypatch.setattr(build.build, "__defaults__", (tmp_path, False))
    monkeypatch.setattr(build.check, "__defaults__", (tmp_path, True))
    assert build.main(["--check", "01"]) == 1
    assert capsys.readouterr().err.count("is missing; run make lessons.") == 3
    assert build.main(["01"]) == 0
    assert build.main(["--check", "01"]) == 0
    change(tmp_path / "notebooks" / NAME, set_source("rope-rotate-answer", ANSWER))
    assert build.main(["01"]) == 1
    assert "holds rope.rotate" in capsys.readouterr().err
    assert build.main(["01", "--overwrite"]) == 0


# The lessons that are there.

@EVERY
def test_every_code_cell_carries_its_role(path, tmp_path):
    lesson = views.read(path)
    for made in build.build(lesson, tmp_path):
        notebook = notebooks.read(made)
        roles = [c.role for c in notebook.cells]
        assert all(role in notebooks.ROLES for role in roles)
        marked = path.read_text(encoding="utf-8").count('# %% role="setup"')
        assert roles[0] == "setup" and roles.count("setup") == marked
        wanted = [e.id for e in checks.exercises() if e.lesson == lesson.number]
        assert sorted(notebook.answers) == sorted(wanted)
        for id, answer in notebook.answers.items():
            assert answer.edited == (made.parent.name == "solutions")
            after = notebook.cells[notebook.cells.index(answer) + 1]
            assert (after.role, after.exercise) == ("check", id)
            assert after.source == notebooks.check_call(id, checks.find(id).function)
        assert notebook.untouched == (made.parent.name != "solutions")
        others = set(roles) - {"setup", "answer", "check"}
        assert others == ({"lesson"} if made.parent.name == "notebooks" else set())


@EVERY
def test_setup_cells_need_nothing_but_each_other(path):
    """A check of the file runs them and the answers alone, and the worksheets hold them alone."""
    lesson = views.views(views.read(path))
    cells = {folder: [c.source for c in notebook.cells
                      if c.metadata.get("minik2", {}).get("role") == "setup"]
             for folder, notebook in lesson.items()}
    assert cells["notebooks"] == cells["exercises"] == cells["solutions"]
    names: dict = {}
    for source in cells["notebooks"]:
        exec(source, names)


def test_a_helper_of_the_lesson_stands_before_the_exercise_that_names_it(lesson):
    ids = [(c.id, c.source) for c in views.views(lesson)["exercises"].cells]
    for helper, exercise in (("causal_slow", "attention-causal"), ("rotate_slow", "rope-rotate")):
        defined = [n for n, (_, text) in enumerate(ids) if f"def {helper}(" in text]
        task = [n for n, (id, _) in enumerate(ids) if id == f"{exercise}-task"]
        assert len(defined) == len(task) == 1 and defined[0] < task[0]
        assert helper in ids[task[0]][1]


@EVERY
def test_code_fits_a_narrow_window(path):
    for notebook in views.views(views.read(path)).values():
        wide = [line for c in notebook.cells if c.cell_type == "code"
                for line in c.source.splitlines() if len(line) > 76]
        assert not wide, "longer than 76 columns"


@EVERY
def test_a_lesson_has_what_every_lesson_has(path):
    lesson = views.read(path)
    notebook = views.views(lesson)["notebooks"]
    text = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    assert text.startswith(f"# {lesson.number} · ")
    for part in ("After this lesson you can", "**In K2**", "<summary>Answer</summary>",
                 "**Takeaway.**", "## Sources"):
        assert text.count(part) >= 1, part
    assert text.count("<details>") == text.count("</details>")
    code = [line for c in notebook.cells if c.cell_type == "code"
            for line in c.source.splitlines() if line.strip()]
    assert len(code) <= 260, "at most about 250 lines of code"
    # Lesson 11 is where everything is counted: a sixth, of ten minutes, is for the cache.
    assert 2 <= len(lesson.solved) <= (6 if lesson.number == "11" else 5)


@EVERY
def test_the_text_names_no_python_file_by_its_path(path):
    """A reader of the notebook has no such file open; names of modules and functions will do."""
    for notebook in views.views(views.read(path)).values():
        for c in notebook.cells:
            assert not re.search(r"\b(lessons|minik2|tests)/[\w/]*\.py\b", c.source), c.id
