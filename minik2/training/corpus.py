"""The text that the lessons train on: bytes as tokens, split into training and validation by file.

Unusual here: nothing is downloaded. Every Python brings its own standard library as source, about
ten megabytes of text that the reader knows how to judge. A file is wholly in one split, chosen by
a hash of its name: a passage copied within a file cannot be in both, and a file added later moves
no other. A zero byte, which source text never holds, ends each file.
"""

from __future__ import annotations

import codecs
import hashlib
import sysconfig
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

SPLITS = ("train", "validation")
VOCABULARY = 256
END_OF_FILE = 0

# What lies among the standard library's files without being its hand-written source: installed
# packages, tests, and tables or texts that a program wrote.
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings",
             "pydoc_data", "__pycache__"}  # fmt: skip
# Bytes at its beginning by which a file is judged to be text.
_HEAD = 8192
# How the file begins that training writes into a run's directory.
_RUN = b'{\n "minik2":'


class Corpus:
    """Bytes of many files, joined, in two splits; make one by `standard_library` or `from_path`.

    files: {"train" or "validation": names in the order in which they were joined}.
    bytes: {"train" or "validation": (bytes,) uint8}, each file followed by one zero byte.
    checksums: {name: SHA-256 of the content}, by which a run knows its text again.
    left_out: how many files below the directory were passed over, being no text.
    """

    def __init__(self, files: Iterable[tuple[str, bytes]], left_out: int = 0) -> None:
        """files: (name, content) pairs, in any order. Raises ValueError when there is no text."""
        self.left_out = left_out
        texts = sorted((name, content) for name, content in files if content)
        if not texts:
            raise ValueError("A corpus needs at least one file with text in it, but there is none.")
        parts: dict[str, list[tuple[str, bytes]]] = {"train": [], "validation": []}
        for name, content in texts:
            parts[split_of(name)].append((name, content))
        if len(texts) == 1:
            parts = _cut_in_two(*texts[0])
        elif not all(parts.values()):
            # Few files may all fall on one side: the last one changes over.
            full, empty = sorted(SPLITS, key=lambda split: -len(parts[split]))
            parts[empty].append(parts[full].pop())
        self.checksums = {name: hashlib.sha256(content).hexdigest() for name, content in texts}
        self.files = {split: [name for name, _ in parts[split]] for split in SPLITS}
        self.bytes = {split: _join(content for _, content in parts[split]) for split in SPLITS}

    @classmethod
    def standard_library(cls) -> Corpus:
        """The source of the running interpreter's standard library.

        Installed packages, the interpreter's tests, and generated tables (`encodings`,
        `pydoc_data`, build settings) are left out. Raises OSError where a Python keeps no source.
        """
        root = Path(sysconfig.get_path("stdlib"))
        paths = [p for p in root.rglob("*.py") if _is_hand_written(p.relative_to(root))]
        if not paths:
            raise FileNotFoundError(
                f"This Python keeps no source of its standard library in {root}; "
                "give text of your own to Corpus.from_path."
            )
        return cls(_read(root, paths))

    @classmethod
    def from_path(cls, path: str | Path) -> Corpus:
        """A text file, or every text file below a directory.

        Text is UTF-8 without a zero byte, whatever the file's name ends in; hidden files are left
        out. A single file cannot be split by file: its last twentieth is the validation text. What
        lies in the directory of a run is left out, or a run below its own text could not go on with
        it. Raises OSError for a path that is not there, ValueError where there is no text.
        """
        root = Path(path)
        if root.is_file():
            if not root.stat().st_size:
                raise ValueError(f"{root} is empty; name a file or a directory with text in it.")
            if not _is_text(root):
                raise ValueError(
                    f"{root} is no text in UTF-8; name another, or convert it first "
                    "(iconv -t UTF-8)."
                )
            return cls(_read(root.parent, [root]))
        if not root.is_dir():
            raise FileNotFoundError(
                f"{root} is neither a file nor a directory; save its text in a file first."
                if root.exists()
                else f"There is no file or directory {root}; name one with text."
            )
        found = [p for p in root.rglob("*") if p.is_file() and not _is_hidden(p.relative_to(root))]
        runs = {p.parent for p in found if p.name == "run.json" and _head(p).startswith(_RUN)}
        found = [p for p in found if runs.isdisjoint(p.parents)]
        texts = [p for p in found if _is_text(p)]
        if not any(p.stat().st_size for p in texts):
            raise ValueError(
                f"There is no text below {root}: of {len(found)} files none holds UTF-8 without "
                "zero bytes; name another directory, or a file."
            )
        return cls(_read(root, texts), left_out=len(found) - len(texts))

    def size(self, split: str) -> int:
        """How many tokens (bytes) a split holds."""
        return len(self._of(split))

    def sample(
        self, split: str, batch: int, tokens: int, rng: np.random.Generator
    ) -> tuple[Array, Array]:
        """`batch` windows of `tokens` tokens from random places: (tokens, targets), int64 (B, T).

        targets[b, t] is the token that follows tokens[b, t]. A window may run from one file into
        the next, past the zero byte that ends it. Raises ValueError where a split is too short.
        """
        places = self._places(split, tokens)
        return self._windows(split, rng.integers(0, places, batch), tokens)

    def spread(self, split: str, batch: int, tokens: int) -> tuple[Array, Array]:
        """As `sample`, from evenly spread places: the same windows at every call."""
        places = self._places(split, tokens)
        return self._windows(split, np.arange(batch) * places // max(batch, 1), tokens)

    def _windows(self, split: str, starts: Array, tokens: int) -> tuple[Array, Array]:
        windows = self._of(split)[starts[:, None] + np.arange(tokens + 1)].astype(np.int64)
        return windows[:, :-1], windows[:, 1:]

    def _places(self, split: str, tokens: int) -> int:
        """At how many places a window and its last target fit."""
        if tokens < 1:
            raise ValueError(f"A window needs at least one token, but {tokens} were asked for.")
        places = self.size(split) - tokens
        if places < 1:
            raise ValueError(
                f"The {split} text has {self.size(split)} tokens, too few for windows of {tokens} "
                "and the token after; ask for shorter windows or bring more text."
            )
        return places

    def _of(self, split: str) -> Array:
        if split not in SPLITS:
            raise ValueError(f"A split is 'train' or 'validation', but {split!r} was asked for.")
        return self.bytes[split]

    def __str__(self) -> str:
        train, held_out = (f"{self.size(split):,}" for split in SPLITS)
        files = len(self.checksums)
        said = (f"{files:,} {'file' if files == 1 else 'files'}, {train} bytes to train on, "
                f"{held_out} held out")  # fmt: skip
        return f"{said}, {self.left_out:,} left out, being no text" if self.left_out else said

    def __repr__(self) -> str:
        return f"Corpus({self})"


def split_of(name: str) -> str:
    """Which split the file called `name` belongs to: validation for one name in twenty."""
    return "validation" if zlib.crc32(name.encode()) % 20 == 0 else "train"


def encode(text: str) -> Array:
    """Text as tokens: its UTF-8 bytes, int64 (T,).

    >>> encode("def").tolist()
    [100, 101, 102]
    """
    return np.frombuffer(text.encode(), np.uint8).astype(np.int64)


def decode(tokens: Any) -> str:
    """Tokens (T,) as text; bytes that are no UTF-8 become the replacement sign.

    >>> decode([100, 101, 102])
    'def'
    """
    return bytes(np.asarray(tokens, np.uint8)).decode(errors="replace")


def _is_hand_written(relative: Path) -> bool:
    return not (
        _LEFT_OUT & set(relative.parts[:-1])
        or relative.parts[0].startswith("config-")
        or relative.name.startswith("_sysconfigdata")
    )


def _is_hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _is_text(path: Path) -> bool:
    head = _head(path)
    whole = len(head) < _HEAD  # or its last letter may be cut
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head, final=whole)
    except UnicodeDecodeError:
        return False
    return END_OF_FILE not in head


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD)


def _read(root: Path, paths: Iterable[Path]) -> list[tuple[str, bytes]]:
    return [(p.relative_to(root).as_posix(), p.read_bytes()) for p in paths]


def _cut_in_two(name: str, content: bytes) -> dict[str, list[tuple[str, bytes]]]:
    cut = len(content) - max(len(content) // 20, 1)
    return {"train": [(name, content[:cut])], "validation": [(name, content[cut:])]}


def _join(contents: Iterable[bytes]) -> Array:
    end = bytes([END_OF_FILE])
    return np.frombuffer(b"".join(content + end for content in contents), np.uint8)
