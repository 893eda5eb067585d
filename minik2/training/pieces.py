"""What an optimizer keeps, in files: whole arrays, or the rows that each rank of several had.

Unusual here: a rank saves its own rows as they are, without a word to the others, and whoever goes
on, with whatever number of ranks, reads the rows that it needs, from as many files as hold them.

Names in the files: NAME/KIND, or NAME/KIND/FIRST for the rows from number FIRST on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minik2.checkpoint.files import Stored, header
from minik2.checkpoint.tensor import PARTS, mapped

Array = np.ndarray[Any, np.dtype[Any]]


class Pieces(Mapping[str, Array]):
    """Arrays by NAME/KIND, read when they are asked for, each a copy in memory of its own.

    Raises CheckpointError for a file that is no safetensors file, ValueError for rows that are
    missing between others, or there twice.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._found: dict[str, list[tuple[int, Stored]]] = {}
        for path in paths:
            for key, stored in header(path).items():
                name, kind, *first = key.split("/")
                own = self._found.setdefault(f"{name}/{kind}", [])
                own.append((int(first[0]) if first else 0, stored))
        for key, own in self._found.items():
            own.sort(key=lambda piece: piece[0])
            ends = [first + stored.shape[0] for first, stored in own if stored.shape]
            if [first for first, _ in own] != [0, *ends][: len(own)]:
                raise ValueError(f"the rows of {key} are not there once each")

    def __getitem__(self, key: str) -> Array:
        own = self._found[key]
        if len(own) == 1:
            return np.array(mapped(own[0][1], "r"))
        first, last = own[-1]
        return self.rows(key, slice(0, first + last.shape[0]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def rows(self, key: str, wanted: slice) -> Array:
        """Rows wanted.start to wanted.stop of an array, and of the files no more than these."""
        own = self._found[key]
        kind = own[0][1]
        shape = (wanted.stop - wanted.start, *kind.shape[1:])
        out = np.empty(shape, PARTS[kind.dtype])
        for first, stored in own:
            start = max(wanted.start, first)
            stop = min(wanted.stop, first + stored.shape[0])
            if start < stop:
                part = mapped(stored, "r", slice(start - first, stop - first))
                out[start - wanted.start : stop - wanted.start] = part
        return out
