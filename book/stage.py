"""The book's pages put together in a folder of their own, from files that stand elsewhere.

Unusual here: nothing is written twice. A page in this folder is a frame; a line such as

    <!-- include README.md#Speed -->      puts a section of another document there, `#` alone what
                                          stands before its first section, `#*` every section
                                          that no page names, no `#` all of it
    <!-- make exercises -->               puts there what a function of this package makes

and links that lead to project files come out as links to the page that holds them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from book import api, exercises, measurements, sources
from book.text import BookError, headings, relink, section, slug

ROOT = Path(__file__).resolve().parents[1]
HERE = Path(__file__).resolve().parent

INCLUDE = re.compile(r"^<!-- include (\S+?)(?:(#)(.*?))? -->$", re.M)
MAKE = re.compile(r"^<!-- make (\w+) -->$", re.M)
PICTURES = {".png", ".svg", ".jpg", ".jpeg"}
WIDGET = "application/vnd.jupyter.widget-view+json"

# The order of the pages. A page stands under the part that names it first.
CONTENTS = {
    "The course": ["lessons/*", "capstone", "exercises", "glossary", "sources"],
    "What was measured": ["measurements", "proof", "experiments", "lab-notes", "errata"],
    "The engine": ["using", "training", "serving", "fullsize", "house", "api/*"],
    "Around it": ["teaching", "assistants", "contributing", "changes"],
}
WHOLE = {  # pages that are a document of the project and nothing else
    "glossary": "GLOSSARY.md", "lab-notes": "LAB_NOTES.md", "errata": "ERRATA.md",
    "contributing": "CONTRIBUTING.md", "changes": "CHANGELOG.md",
    "capstone": "capstone/README.md", "assistants": "AGENTS.md",
}


@dataclass
class Book:
    """Pages and pictures before they are written, and where each project file has its page.

    pages: name without ending -> text (Markdown, or a notebook's JSON for lessons); pictures:
    paths within the project; places: a project path, or "path#anchor", -> a page's name.
    """

    root: Path = ROOT
    pages: dict[str, str] = field(default_factory=dict)
    pictures: set[str] = field(default_factory=set)
    places: dict[str, str] = field(default_factory=dict)

    def read(self, path: str) -> str:
        file = self.root / path
        if not file.is_file():
            raise BookError(f"The book shows {path}, which is not there; write it, or take its "
                            "page out of book/stage.py.")
        return file.read_text(encoding="utf-8")


def relative(page: str, target: str) -> str:
    """How the page `page` names the file `target`; both are paths within the book."""
    return os.path.relpath(target, os.path.dirname(page) or ".").replace(os.sep, "/")


def place_of(book: Book, page: str, document: str) -> Callable[[str], str | None]:
    """What becomes of a link that stands in `document` (a project path) and is shown on `page`."""

    def place(target: str) -> str | None:
        path, _, anchor = target.partition("#")
        path = os.path.normpath(os.path.join(os.path.dirname(document), path or os.path.basename(
            document))).replace(os.sep, "/")
        if (book.root / path).suffix in PICTURES and (book.root / path).is_file():
            book.pictures.add(path)
            return relative(page, path)
        there = book.places.get(f"{path}#{anchor}" if anchor else path)
        if there:
            ending = ".ipynb" if there.startswith("lessons/") else ".md"
            shown = relative(page, there + ending)
            return shown + (f"#{anchor}" if anchor else "")
        if not (book.root / path).exists() or anchor:
            raise BookError(f"{document} links to {target}, which is not in the book.")
        return None

    return place


def include(book: Book, page: str, text: str) -> str:
    """The page with the documents that it includes put in, their links as this book has them."""

    def put(match: re.Match[str]) -> str:
        document, mark, title = match.groups()
        found = book.read(document)
        return relink(section(found, title) if mark else found, place_of(book, page, document))

    return INCLUDE.sub(put, text)


def name_the_rest(book: Book, frames: dict[str, str]) -> None:
    """Replace `include X#*` by lines for those sections of X that no other page includes."""
    named = [(document, title) for text in frames.values()
             for document, _, title in INCLUDE.findall(text)]
    for page, text in frames.items():
        for document, mark, title in INCLUDE.findall(text):
            if mark and title == "*":
                rest = [t for t in headings(book.read(document), 2) if (document, t) not in named]
                lines = "\n\n".join(f"<!-- include {document}#{t} -->" for t in rest)
                text = text.replace(f"<!-- include {document}#* -->", lines)
        frames[page] = text


def note_places(book: Book, frames: dict[str, str]) -> None:
    """Where every frame, every included document and each of its sections can be found."""
    for page, text in frames.items():
        book.places[f"book/{page}.md"] = page
        for document, mark, title in INCLUDE.findall(text):
            whole = book.read(document)
            found = section(whole, title) if mark else whole
            for heading in headings(found):
                book.places.setdefault(f"{document}#{slug(heading)}", page)
            if not mark or not title:
                book.places[document] = page
    for path in lesson_files(book.root):
        for folder in ("notebooks", "exercises", "solutions"):
            book.places[f"{folder}/{path.name}"] = f"lessons/{path.stem}"


def lesson_files(root: Path) -> list[Path]:
    return sorted(root.glob("notebooks/[0-9][0-9]_*.ipynb"))


def lesson(book: Book, path: Path) -> str:
    """A stored lesson as the book shows it: links of its own, and static twins only."""
    page = f"lessons/{path.stem}"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    notebook["metadata"].pop("widgets", None)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            source = relink("".join(cell["source"]),
                            place_of(book, page, f"notebooks/{path.name}"))
            cell["source"] = source
        for output in cell.get("outputs", []):
            if output.get("data", {}).pop(WIDGET, None) and not (
                    {"image/png", "text/html"} & set(output["data"])):
                raise BookError(f"{path.name} holds sliders without a static twin (cell "
                                f"{cell['id']}); show the figure as well.")
        if cell["cell_type"] == "code" and not cell["outputs"] and (
                cell["execution_count"] is None):
            raise BookError(f"{path.name} has not been run (cell {cell['id']}); "
                            "run `make lessons` first.")
    return json.dumps(notebook, ensure_ascii=False, indent=1) + "\n"


def makers(book: Book) -> dict[str, Callable[[], str]]:
    return {"exercises": exercises.page, "sources": lambda: sources.page(book.root),
            "measurements": lambda: measurements.page(book.root)}


def order(pages: set[str]) -> Iterator[tuple[str, list[str]]]:
    """The parts of the book with their pages. BookError for a page that no part names."""
    left = pages - {"index"}
    for part, patterns in CONTENTS.items():
        names = []
        for pattern in patterns:
            found = sorted(n for n in left if n.startswith(pattern[:-1])) if (
                pattern.endswith("*")) else [pattern] * (pattern in left)
            names += found
            left -= set(found)
        if names:
            yield part, names
    if left:
        raise BookError(f"No part of the book names {', '.join(sorted(left))}: give it a place in "
                        "CONTENTS of book/stage.py.")


def contents(pages: set[str]) -> str:
    """The tables of contents of the first page, which the sidebar shows."""
    return "\n".join(f"```{{toctree}}\n:hidden:\n:caption: {part}\n\n" + "\n".join(names)
                     + "\n```\n" for part, names in order(pages))


def other_figures(book: Book) -> str:
    """A section with every figure of the project that no page shows yet, named by its file."""
    found = {path.relative_to(book.root).as_posix() for path in book.root.glob("figures/**/*.png")}
    new = sorted(found - book.pictures)
    book.pictures |= set(new)
    shown = [f"![{Path(path).stem.replace('_', ' ')}]({path})\n" for path in new]
    return "\n## Further figures\n\n" + "\n".join(shown) if new else ""


def collect(root: Path = ROOT) -> Book:
    """All pages of the book. Raises BookError, a sentence, for what is missing or leads nowhere."""
    book = Book(root)
    frames = {path.stem: path.read_text(encoding="utf-8") for path in sorted(HERE.glob("*.md"))}
    frames |= {name: f"<!-- include {document} -->\n" for name, document in WHOLE.items()}
    name_the_rest(book, frames)
    note_places(book, frames)
    make = makers(book)
    for name, text in frames.items():
        text = relink(text, place_of(book, name, f"book/{name}.md"))
        text = include(book, name, text)
        book.pages[name] = MAKE.sub(lambda m: make[m.group(1)](), text)
    book.pages["measurements"] += other_figures(book)
    book.pages |= {f"api/{name}": text for name, text in api.pages().items()}
    for path in lesson_files(root):
        book.pages[f"lessons/{path.stem}"] = lesson(book, path)
    book.pages["index"] += "\n" + contents(set(book.pages))
    return book


def write(book: Book, folder: Path) -> None:
    """Write the pages into a new folder, with the pictures that they show and the book's style."""
    shutil.copytree(HERE / "_static", folder / "_static")
    for path in book.pictures:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(book.root / path, folder / path)
    for name, text in book.pages.items():
        file = folder / f"{name}.{'ipynb' if name.startswith('lessons/') else 'md'}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
