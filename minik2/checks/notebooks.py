"""Reading lesson notebooks: which cells are answers, and which are run to check them.

The contract with the lessons' builder. A code cell's metadata {"minik2": {"role": ...}} is one of

    setup    imports and helpers that answers may use                                    run
    answer   with "exercise": its id, and "stub_sha256": the stub's hash as built        run
    check    with "exercise"; exactly `check("rope.rotate", rotate)`                     not run
    lesson   every other code cell of the lesson: figures, training, cross-checks        not run

and a code cell without a mark was added by the learner and is run. Cells run in their order, and
an error in one does not stop the next. Nothing printed counts: an answer is the function of that
name once all cells have run, and it is checked from outside.

Unusual here: a notebook is plain JSON that anyone may have written, so nothing in it is trusted to
have the right type; nbformat's validation would cost more than running a worksheet.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_BYTES = 32 * 2**20
ROLES = ("setup", "answer", "check", "lesson")
NUMBER = re.compile(r"^(\d\d)_")


class NotebookError(ValueError):
    """A file that holds no notebook of this course."""


def stub_hash(source: str) -> str:
    """sha256 of a cell's source as utf-8, without trailing white space."""
    return hashlib.sha256(source.rstrip().encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Cell:
    """One code cell. number: counts code cells from 1; role: "" for a learner's own cell."""

    number: int
    source: str
    role: str = ""
    exercise: str = ""
    stub: str = ""

    @property
    def edited(self) -> bool:
        """True for an answer that differs from the stub as built."""
        return self.role == "answer" and stub_hash(self.source) != self.stub

    @property
    def runs(self) -> bool:
        return self.role in ("setup", "answer", "")


@dataclass(frozen=True)
class Notebook:
    """The code cells of one notebook file."""

    path: Path
    cells: tuple[Cell, ...]

    @property
    def answers(self) -> dict[str, Cell]:
        """The answer cell of each exercise id; the edited one where a cell was duplicated."""
        cells: dict[str, Cell] = {}
        for cell in self.cells:
            if cell.role == "answer" and (cell.edited or cell.exercise not in cells):
                cells[cell.exercise] = cell
        return cells

    @property
    def untouched(self) -> bool:
        """True where no answer differs from its stub and no cell was added."""
        return not any(cell.edited or (cell.role == "" and cell.source.strip())
                       for cell in self.cells)

    @property
    def lesson(self) -> str | None:
        """The two digits that the file's name begins with."""
        match = NUMBER.match(self.path.name)
        return match[1] if match else None


def read(path: str | Path) -> Notebook:
    """The notebook at `path`. Raises NotebookError, one sentence."""
    path = Path(path)
    if not path.is_file():
        raise NotebookError(f"There is no notebook at {path}: give the path of an .ipynb file.")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise NotebookError(f"{path.name} is larger than {MAX_BYTES >> 20} MB: clear its "
                                "outputs.")
        raw = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise NotebookError(f"{path.name} cannot be read: {error.strerror}.") from None
    except NotebookError:
        raise
    except (ValueError, RecursionError):
        raise NotebookError(f"{path.name} is no notebook: it does not hold JSON.") from None
    if not isinstance(raw, dict) or not isinstance(raw.get("cells"), list):
        raise NotebookError(f"{path.name} is no notebook of format 4: it has no list of cells; "
                            "open it in JupyterLab and save it again.")
    code = [c for c in raw["cells"] if isinstance(c, dict) and c.get("cell_type") == "code"]
    return Notebook(path, tuple(_cell(n, cell) for n, cell in enumerate(code, 1)))


def _cell(number: int, raw: dict[str, Any]) -> Cell:
    source = raw.get("source", "")
    if isinstance(source, list):
        source = "".join(line for line in source if isinstance(line, str))
    metadata = raw.get("metadata")
    marks = metadata.get("minik2") if isinstance(metadata, dict) else None
    marks = marks if isinstance(marks, dict) else {}
    role, exercise, stub = (
        value if isinstance(value := marks.get(key), str) else ""
        for key in ("role", "exercise", "stub_sha256"))
    return Cell(number, source if isinstance(source, str) else "",
                role if role in ROLES else "", exercise, stub)


def check_call(exercise: str, function: str) -> str:
    """The source of a check cell as built.

    >>> check_call("rope.rotate", "rotate")
    'check("rope.rotate", rotate)'
    """
    return f'check("{exercise}", {function})'
