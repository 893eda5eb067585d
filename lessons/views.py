"""One lesson source, three notebooks: the guided lesson, the worksheet, the worksheet solved.

Unusual here: the source holds only what no other place knows. It is a py:percent script, and an
exercise is three of its cells:

    # %% [markdown] exercise="rope.rotate"      the task in words
    # %% exercise="rope.rotate"                 the function, solved, with its docstring
    # %% [markdown] hints="rope.rotate"         three hints and the way, between lines of ---

Title, difficulty, minutes and the reason come from `minik2.checks`; the stub is the solved function
without what follows its docstring. Every code cell carries its role, as minik2/checks/notebooks.py
says. Cells that answers may use besides other answers are marked `# %% role="setup"`, the first one
of a lesson among them. They stand in the worksheets too, in their places, and need only each other.
"""

from __future__ import annotations

import ast
import platform
import re
from dataclasses import dataclass, field
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from minik2 import checks
from minik2.checks.exercise import lesson_title
from minik2.checks.notebooks import check_call, stub_hash

FOLDERS = ("notebooks", "exercises", "solutions")


class LessonError(ValueError):
    """What a lesson source has wrong, in one sentence."""


@dataclass
class Source:
    """A lesson source taken apart: plain cells in order, with exercise ids where those stand."""

    name: str
    items: list[NotebookNode | str] = field(default_factory=list)
    task: dict[str, str] = field(default_factory=dict)
    solved: dict[str, str] = field(default_factory=dict)
    hints: dict[str, list[str]] = field(default_factory=dict)

    @property
    def number(self) -> str:
        return self.name[:2]


def read(path: Path) -> Source:
    """Parse lessons/NN_name.py. Raises LessonError, a sentence that names the place."""
    source = Source(path.stem)
    for cell in jupytext.reads(path.read_text(encoding="utf-8"), fmt="py:percent").cells:
        exercise, hints = cell.metadata.get("exercise"), cell.metadata.get("hints")
        if (role := cell.metadata.get("role", "setup")) != "setup":
            raise LessonError(
                f"{source.name} marks a cell with the role {role!r}; a source knows \"setup\" only."
            )
        if hints:
            parts = re.split(r"^---$", cell.source, flags=re.M)
            source.hints[hints] = [part.strip() for part in parts]
        elif exercise and cell.cell_type == "markdown":
            source.task[exercise] = cell.source.strip()
        elif exercise:
            source.solved[exercise] = cell.source.strip()
            source.items.append(exercise)
        else:
            source.items.append(cell)
    _validate(source)
    return source


def _validate(source: Source) -> None:
    known = {e.id for e in checks.exercises() if e.lesson == source.number}
    there = set(source.solved)
    for what, ids in (("a task", source.task), ("hints", source.hints)):
        if there ^ set(ids):
            raise LessonError(
                f"{source.name}: {', '.join(sorted(there ^ set(ids)))} has a solved function or "
                f"{what}, but not both; give it the three cells that views.py describes."
            )
    if there != known:
        raise LessonError(
            f"{source.name} has the exercises {sorted(there)}, but minik2.checks knows "
            f"{sorted(known)} for lesson {source.number}; bring the two in step."
        )
    first = next((i for i in source.items if isinstance(i, str) or i.cell_type == "code"), "")
    if isinstance(first, str) or "role" not in first.metadata:
        raise LessonError(
            f"{source.name} has no set-up cell before its other code; begin it with the imports "
            'that answers may use, in a cell marked role="setup".'
        )
    for exercise, parts in source.hints.items():
        if len(parts) != 4 or not all(parts):
            raise LessonError(
                f"{source.name}: {exercise} needs three hints and the way to the solution, four "
                f"parts between lines of ---, but it has {len(parts)}."
            )


def stub(exercise: str, solved: str) -> str:
    """The solved function with its body after the docstring replaced by three dots."""
    function = checks.find(exercise).function
    try:
        body = ast.parse(solved).body
    except SyntaxError as error:
        raise LessonError(f"{exercise}: the solved cell is no Python ({error}).") from None
    node = body[0] if body else None
    if len(body) != 1 or not isinstance(node, ast.FunctionDef) or node.name != function:
        raise LessonError(f"{exercise}: the solved cell must hold one function named {function}.")
    arguments = [*node.args.args, *node.args.kwonlyargs]
    if not node.returns or not all(a.annotation for a in arguments) or not ast.get_docstring(node):
        raise LessonError(f"{exercise}: {function} needs types and a docstring with its shapes.")
    kept = solved.splitlines()[: node.body[0].end_lineno]
    return "\n".join([*kept, "    ..."])


def views(source: Source) -> dict[str, NotebookNode]:
    """The three notebooks by folder, without outputs."""
    return {"notebooks": _notebook(_cells(source)),
            "exercises": _worksheet(source, solved=False),
            "solutions": _worksheet(source, solved=True)}


def _cells(source: Source, solved: bool = False, setup_only: bool = False) -> list[NotebookNode]:
    """All cells in order; setup_only: of the plain ones those that answers may use."""
    cells, plain = [], 0
    for item in source.items:
        if isinstance(item, str):
            cells += _exercise(source, item, solved)
            continue
        text, name = item.source.strip(), f"l{source.number}-{plain:03}"
        plain += 1
        role = item.metadata.get("role", "lesson")
        if setup_only and role != "setup":
            continue
        if item.cell_type == "code":
            cells.append(new_code_cell(text, id=name, metadata={"minik2": {"role": role}}))
        else:
            cells.append(new_markdown_cell(text, id=name))
    return cells


def _worksheet(source: Source, solved: bool) -> NotebookNode:
    title = lesson_title(source.number)
    lesson = f"[lesson {source.number}](../notebooks/{source.name}.ipynb)"
    what = "Solutions" if solved else "Exercises"
    text = (
        f"The exercises of {lesson}, solved. Try them first: the check tells you more than a "
        "solution can." if solved else
        f"The exercises of {lesson}, without the lesson. Answers may use the code that stands "
        "before them. Answer here or there; `minik2 progress` counts the better of the two."
    )  # fmt: skip
    head = new_markdown_cell(f"# {what} {source.number} · {title}\n\n{text}",
                             id=f"l{source.number}-head")
    return _notebook([head, *_cells(source, solved, setup_only=True)])


def _exercise(source: Source, exercise: str, solved: bool) -> list[NotebookNode]:
    """Task, answer, check, and hints; or, solved, the way before the answer."""
    facts = checks.find(exercise)
    slug = exercise.replace(".", "-").replace("_", "-")
    dots = "●" * facts.difficulty + "○" * (5 - facts.difficulty)
    heading = (
        f"### Exercise: {facts.title}\n\n`{exercise}` · difficulty {dots} · about {facts.minutes} "
        f"minutes\n\n{source.task[exercise]}\n\n**Why it matters.** {facts.why}"
    )
    *hints, way = source.hints[exercise]
    answer, empty = source.solved[exercise], stub(exercise, source.solved[exercise])

    def mark(role: str, **more: str) -> dict[str, dict[str, str]]:
        return {"minik2": {"role": role, "exercise": exercise, **more}}

    cells = [
        new_markdown_cell(heading, id=f"{slug}-task"),
        new_code_cell(answer if solved else empty, id=f"{slug}-answer",
                      metadata=mark("answer", stub_sha256=stub_hash(empty))),
        new_code_cell(check_call(exercise, facts.function), id=f"{slug}-check",
                      metadata=mark("check")),
    ]
    if solved:
        cells.insert(1, new_markdown_cell(way, id=f"{slug}-way"))
        return cells
    names = ("First hint", "Second hint", "Third hint")
    folded = [_folded(name, text) for name, text in zip(names, hints, strict=True)]
    folded.append(_folded("The way to the solution", f"{way}\n\n```python\n{answer}\n```"))
    cells.append(new_markdown_cell("\n\n".join(folded), id=f"{slug}-hints"))
    return cells


def _folded(summary: str, text: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{text}\n\n</details>"


def _notebook(cells: list[NotebookNode]) -> NotebookNode:
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    # What a kernel says of itself: with less, JupyterLab takes the notebook for changed on opening.
    language = {
        "codemirror_mode": {"name": "ipython", "version": 3}, "file_extension": ".py",
        "mimetype": "text/x-python", "name": "python", "nbconvert_exporter": "python",
        "pygments_lexer": "ipython3", "version": platform.python_version(),
    }  # fmt: skip
    metadata = {"kernelspec": kernel, "language_info": language}
    notebook = new_notebook(cells=cells, metadata=metadata)
    nbformat.validate(notebook)
    return notebook
