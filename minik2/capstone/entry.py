"""An entry: one Python file with a function `train(run)`, and the sentences for those that fail.

Unusual here: whatever goes wrong inside is told with the learner's own line, the last one of that
file on the way to the mistake, however deep in a library it came out. The text that runs is the
text that is digested, read once.
"""

from __future__ import annotations

import ast
import hashlib
import traceback
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minik2.capstone.held_out import WINDOW
from minik2.terminal import plain
from minik2.training.corpus import VOCABULARY


class EntryError(ValueError):
    """An entry that has no score; the message says why, and where."""


@dataclass(frozen=True)
class Entry:
    """A file as it was read: its name without .py, the first line of its docstring, its text, the
    text's `digest_of`, and its `train`."""

    path: Path
    name: str
    title: str
    text: str
    digest: str
    train: Callable[[Any], Any]


def load(path: Path) -> Entry:
    """Read and run a file up to its definitions. Raises EntryError, and OSError if it is not there.

    It runs as a module named `entry`, so that what stands under `if __name__ == "__main__"` rests.
    """
    if path.suffix != ".py":
        raise EntryError(f"An entry is one Python file, and {path} does not end in .py; "
                         "capstone/my_entry.py is there to begin with.")  # fmt: skip
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise EntryError(f"{path} is no text: byte {error.start} is not UTF-8.") from None
    except OSError as error:
        raise OSError(f"{path} cannot be read: {error.strerror or error}.") from None
    try:
        tree = ast.parse(text)
        code = compile(tree, str(path), "exec")
    except (SyntaxError, ValueError) as error:  # ValueError: a zero byte in the text
        line, what = getattr(error, "lineno", None), getattr(error, "msg", None) or str(error)
        where = f"{path}, line {line}," if line else f"{path}"
        raise EntryError(f"{where} is not Python: {what}.") from None
    module = types.ModuleType("entry")
    module.__file__ = str(path)
    guarded(path, text, lambda: exec(code, vars(module)))
    train = getattr(module, "train", None)
    if not callable(train):
        raise EntryError(f"{path} has no function `train`; define `train(run)`, which trains a "
                         "model while there is time, and returns it.")  # fmt: skip
    title = (ast.get_docstring(tree) or "").partition("\n")[0]
    return Entry(path, path.stem, plain(title), text, digest_of(text), train)


def digest_of(text: str) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of all lines but empty ones and comments.

    So what came of an entry can be written into it without making another entry of it.

    >>> digest_of("x = 1") == digest_of("x = 1  ") != digest_of("x = 2")
    True
    """
    lines = (line.rstrip() for line in text.splitlines())
    code = "\n".join(line for line in lines if line and not line.lstrip().startswith("#"))
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def guarded(path: Path, text: str, do: Callable[[], Any]) -> Any:
    """do(), whose mistakes become an EntryError with the file's own line. Ctrl-C stays Ctrl-C."""
    try:
        return do()
    except KeyboardInterrupt:
        raise
    except SystemExit as error:
        raise EntryError(f"{_place(path, text, error)} ended the whole process; "
                         "return the model instead.") from None  # fmt: skip
    except Exception as error:
        said = f"{type(error).__name__}: {error}".rstrip(": ")
        raise EntryError(f"{_place(path, text, error)}: {plain(said)}") from error


def _place(path: Path, text: str, error: BaseException) -> str:
    """Where in the file it was; the beginning of a sentence."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path) and frame.lineno]
    if not lines:
        return f"{path} failed when it was called, before its first line"
    return f"{path}, line {lines[-1]}, `{plain(text.splitlines()[lines[-1] - 1].strip())}`"


def model_of(path: Path, returned: Any) -> Any:
    """What `train` returned, if it is a model that the judge can ask. Raises EntryError if not."""
    from minik2 import pytorch, reference

    if not isinstance(returned, (pytorch.Model, reference.Model)):
        got = "nothing" if returned is None else f"a {type(returned).__name__}"
        raise EntryError(f"{path}: `train` returned {got}; the judge takes a minik2.pytorch.Model "
                         "or a minik2.reference.Model.")  # fmt: skip
    if returned.cfg.max_position_embeddings < WINDOW:
        raise EntryError(
            f"{path}: the model has {returned.cfg.max_position_embeddings} positions, and the "
            f"judge asks with windows of {WINDOW} bytes; set max_position_embeddings to {WINDOW} "
            "or more.")  # fmt: skip
    if returned.cfg.vocab_size < VOCABULARY:
        raise EntryError(
            f"{path}: the model knows {returned.cfg.vocab_size} tokens, and the text is bytes; set "
            f"vocab_size to {VOCABULARY} or more.")  # fmt: skip
    return returned
