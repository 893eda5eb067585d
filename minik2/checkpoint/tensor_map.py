"""What a checkpoint's headers say, on a page: its tensors by kind, and whether they fit the config.

Unusual here: no tensor is touched. K2's 139,644 tensors are forty kinds of line, because layers and
experts that are alike stand together.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from minik2.checkpoint import files
from minik2.checkpoint.errors import CheckpointError
from minik2.checkpoint.files import Stored
from minik2.checkpoint.quantization import Quantization
from minik2.checkpoint.read import compare, read_quantization
from minik2.checkpoint.tensor import Tensor
from minik2.config import ModelConfig

NUMBERS = re.compile(r"\.(layers|experts)\.(\d+)\.")


@dataclass(frozen=True)
class Kind:
    """Tensors alike: name with ranges of layers and experts, one's shape and dtype, count, bytes of
    all."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    count: int
    bytes: int


@dataclass(frozen=True)
class TensorMap:
    """kinds: every tensor of the files; files: how many; bytes_by_dtype: of all tensors;
    quantization: what config.json says; tensors: the model's own, by name, empty if it is not all
    there or does not fit; problem: the first thing that does not, a sentence, or "".
    """

    kinds: list[Kind]
    files: int
    bytes_by_dtype: dict[str, int]
    quantization: Quantization | None
    tensors: dict[str, Tensor]
    problem: str

    @property
    def bytes(self) -> int:
        """Of all tensors."""
        return sum(self.bytes_by_dtype.values())

    @property
    def count(self) -> int:
        """How many tensors there are."""
        return sum(kind.count for kind in self.kinds)


def tensor_map(directory: str | Path, cfg: ModelConfig) -> TensorMap:
    """The map of the checkpoint in `directory`, and what of it contradicts `cfg`.

    Raises CheckpointError and OSError for files that cannot be read at all.
    """
    directory = Path(directory)
    found = files.stored_tensors(directory)
    said, tensors, problem = None, {}, ""
    try:
        said = read_quantization(directory)
        tensors = compare(directory, found, cfg, said)
    except CheckpointError as error:
        problem = str(error)
    by_dtype: Counter[str] = Counter()
    for stored in found.values():
        by_dtype[stored.dtype] += stored.nbytes
    shards = len({stored.path for stored in found.values()})
    return TensorMap(_kinds(found), shards, dict(by_dtype.most_common()), said, tensors, problem)


def _kinds(found: Mapping[str, Stored]) -> list[Kind]:
    """By name, what is in no layer first."""
    groups: dict[tuple[bool, str, str, tuple[int, ...]], list[str]] = {}
    for name, stored in found.items():
        pattern = NUMBERS.sub(r".\1.#.", name)
        key = "#" in pattern, pattern, stored.dtype, stored.shape
        groups.setdefault(key, []).append(name)
    kinds = []
    for (_, pattern, dtype, shape), names in sorted(groups.items()):
        numbers = [[int(n) for _, n in NUMBERS.findall(name)] for name in names]
        for same in zip(*numbers, strict=True):
            pattern = pattern.replace("#", _ranges(same), 1)
        total = sum(found[name].nbytes for name in names)
        kinds.append(Kind(pattern, shape, dtype, len(names), total))
    return kinds


def _ranges(numbers: Iterable[int]) -> str:
    """What numbers these are: "0-60", or "0,3-5" where some are left out."""
    parts: list[list[int]] = []
    for n in sorted(set(numbers)):
        if parts and parts[-1][1] == n - 1:
            parts[-1][1] = n
        else:
            parts.append([n, n])
    return ",".join(f"{a}-{b}" if b > a else f"{a}" for a, b in parts)
