"""Make notebooks/, exercises/ and solutions/ from the lesson sources beside this file.

    python -m lessons.build              write what changed; outputs of unchanged cells stay
    python -m lessons.build --execute    and run notebooks/ and solutions/, storing their outputs
    python -m lessons.build --check      write nothing; fail where a notebook has drifted

Unusual here: the folders belong to the learner as much as to this program. An answer that somebody
wrote, or a cell that somebody added, is never overwritten unless --overwrite says so.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from lessons import execute, views
from minik2.checks.notebooks import stub_hash
from minik2.files import write_whole

ROOT = Path(__file__).resolve().parents[1]
# Seconds that a whole notebook may take where its outputs are made.
LIMIT = 600


def sources() -> list[Path]:
    """The lesson sources in order."""
    return sorted(ROOT.glob("lessons/[0-9][0-9]_*.py"))


def load(path: Path) -> NotebookNode:
    """Read a notebook; LessonError, a sentence, for a file that is none."""
    try:
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            cell.setdefault("id", "")  # some editors save without ids
        return notebook
    except (ValueError, AttributeError, KeyError, TypeError, nbformat.ValidationError) as error:
        raise views.LessonError(
            f"{path} is no notebook that can be read ({error}); delete it and build again."
        ) from None


def answered(notebook: NotebookNode) -> list[str]:
    """Exercises whose answer cell is no longer the stub that was put there."""
    marks = [(cell.metadata.get("minik2", {}), cell.source) for cell in notebook.cells]
    return [mark.get("exercise", "an answer") for mark, text in marks
            if mark.get("role") == "answer" and stub_hash(text) != mark.get("stub_sha256")]


def added(notebook: NotebookNode, built: NotebookNode) -> int:
    """How many cells somebody added: their ids are none that this program gives."""
    ours = {cell.id for cell in built.cells}
    slugs = {cell.id.rpartition("-")[0] for cell in built.cells}
    return sum(cell.id not in ours and cell.id.rpartition("-")[0] not in slugs
               and bool(cell.source.strip()) for cell in notebook.cells)


def keep_outputs(built: NotebookNode, old: NotebookNode) -> None:
    """Give the built cells the outputs that cells of the same source have in the old notebook.

    The Python that it names stays as well, so that building with another one changes no file.
    """
    language = old.metadata.get("language_info", {})
    if version := language.get("version"):
        built.metadata.language_info.version = version
    kept: dict[str, list[NotebookNode]] = {}
    for cell in old.cells:
        if cell.cell_type == "code":
            kept.setdefault(cell.source, []).append(cell)
    for cell in built.cells:
        if cell.cell_type == "code" and (same := kept.get(cell.source)):
            cell.outputs, cell.execution_count = same[0].outputs, same[0].execution_count
            del same[0]


def drift(notebook: NotebookNode, built: NotebookNode, answers: bool) -> list[str]:
    """Ids of cells that differ from what the source makes; outputs and counts left aside.

    answers: whether a learner may answer in this notebook; then changed answers and cells that
    somebody added are no drift.
    """
    edited = answered(notebook) if answers else []
    ours = {cell.id for cell in built.cells}
    have = [c for c in notebook.cells if not answers or c.id in ours]
    out = [cell.id for cell in built.cells if cell.id not in {c.id for c in have}]
    out += [cell.id for cell in have if cell.id not in ours]
    if not out and [c.id for c in have] != [c.id for c in built.cells]:
        return ["the order of the cells"]
    for cell, new in zip(have, built.cells, strict=False):
        mark = new.metadata.get("minik2", {})
        if cell.id != new.id or (mark.get("role") == "answer" and mark["exercise"] in edited):
            continue
        same = (cell.cell_type, cell.source, cell.metadata.get("minik2")) == (
            new.cell_type, new.source, new.metadata.get("minik2"))
        if not same or (not answers and cell.metadata != new.metadata):
            out.append(cell.id)
    return out


def write(path: Path, notebook: NotebookNode) -> bool:
    """Replace the file if its content changes; True if it did."""
    text = nbformat.writes(notebook) + "\n"
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    path.parent.mkdir(exist_ok=True)
    write_whole(path, text)
    return True


def build(source: views.Source, root: Path = ROOT, overwrite: bool = False) -> list[Path]:
    """Write a lesson's three notebooks; returns the paths. LessonError where answers would go."""
    built = {root / folder / f"{source.name}.ipynb": notebook
             for folder, notebook in views.views(source).items()}
    losses = []
    for path, notebook in built.items():
        if not path.exists():
            continue
        old = load(path)
        if path.parent.name != "solutions":
            names, cells = answered(old), added(old, notebook)
            own = f"{cells} cell{'s' * (cells != 1)} of your own" if cells else ""
            if what := ", ".join([*names, own] if own else names):
                losses.append(f"{path.parent.name}/{path.name} holds {what}")
        keep_outputs(notebook, old)
    if losses and not overwrite:
        raise views.LessonError(
            f"{'; '.join(losses)}: building would overwrite that, so nothing was written. "
            "Copy the notebook elsewhere, or pass --overwrite."
        )
    for path, notebook in built.items():
        if write(path, notebook):
            print(f"{path.parent.name}/{path.name} written")
    return list(built)


def check(source: views.Source, root: Path = ROOT, answers: bool = True) -> list[str]:
    """One sentence for every notebook of the lesson that is not what its source makes.

    answers: whether a learner may have answered outside the solutions.
    """
    out = []
    for folder, built in views.views(source).items():
        path = root / folder / f"{source.name}.ipynb"
        where = f"{folder}/{path.name}"
        if not path.exists():
            out.append(f"{where} is missing; run make lessons.")
        elif cells := drift(load(path), built, answers and folder != "solutions"):
            out.append(f"{where} is not what its source makes ({', '.join(cells)}); "
                       "run make lessons.")  # fmt: skip
    return out


def run(path: Path) -> None:
    """Run the notebook at full length and store its outputs."""
    os.environ.pop("MINIK2_SHORT", None)
    start = time.monotonic()
    write(path, execute.run(load(path), path.parent, LIMIT))
    print(f"{path.parent.name}/{path.name} ran in {time.monotonic() - start:.0f} s", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lessons.build", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lessons", nargs="*", help="numbers such as 00; all if none is given")
    parser.add_argument("--execute", action="store_true", help="run them and store the outputs")
    parser.add_argument("--check", action="store_true", help="write nothing, report drift")
    parser.add_argument("--overwrite", action="store_true", help="even over a learner's answers")
    asked = parser.parse_args(arguments)
    paths = [p for p in sources() if not asked.lessons or p.stem[:2] in asked.lessons]
    try:
        if missing := set(asked.lessons) - {p.stem[:2] for p in paths}:
            raise views.LessonError(f"There is no lesson {', '.join(sorted(missing))}.")
        drifted: list[str] = []
        for path in paths:
            source = views.read(path)
            if asked.check:
                drifted += check(source)
                continue
            for made in build(source, overwrite=asked.overwrite):
                if asked.execute and made.parent.name != "exercises":
                    try:
                        run(made)
                    except execute.RunError as error:
                        raise execute.RunError(
                            f"{made.parent.name}/{made.name}: {error}") from None
    except (views.LessonError, execute.RunError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(*drifted, sep="\n", end="\n" if drifted else "", file=sys.stderr)
    return 1 if drifted else 0


if __name__ == "__main__":
    sys.exit(main())
