"""Which files of a directory hold the weights, and which tensors each of them holds.

Unusual here: the index is a stranger's text. A shard's name must be a plain file name inside the
directory, so that no checkpoint can point elsewhere, and a pickle is named and refused, never read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors

from minik2.checkpoint.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# What a pickled checkpoint is called; opening one can run any code that it brings.
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


@dataclass(frozen=True)
class Stored:
    """Where one tensor lies: file, safetensors' name of the dtype, shape, first byte, bytes."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def stored_tensors(directory: Path) -> dict[str, Stored]:
    """Every tensor of the directory's safetensors files, headers read, no tensor touched.

    Raises CheckpointError or OSError, one sentence.
    """
    if not directory.is_dir():
        raise FileNotFoundError(
            f"There is no directory {directory}; give one with config.json and *.safetensors."
        )
    if not (directory / INDEX).is_file():
        return _merge(directory, _without_index(directory))
    weight_map = _weight_map(directory / INDEX)
    found = _merge(directory, sorted(set(weight_map.values())))
    for name, shard in weight_map.items():
        if name not in found or found[name].path.name != shard:
            raise CheckpointError(
                f"{directory / INDEX} says that {name} is in {shard}, but it is not there; "
                "fetch both files again."
            )
    return found


def _without_index(directory: Path) -> list[str]:
    names = sorted(p.name for p in directory.glob("*.safetensors") if not p.name.startswith("."))
    if names:
        return names
    pickles = sorted(p.name for p in directory.iterdir() if p.suffix in PICKLES)
    if pickles:
        raise CheckpointError(_pickle(directory / pickles[0]))
    raise CheckpointError(f"{directory} holds no *.safetensors file; is the download complete?")


def _weight_map(path: Path) -> dict[str, str]:
    """{tensor: shard} of an index, every shard a file of the same directory."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(
            f"{path} is not valid JSON ({error}); fetch the file again."
        ) from None
    weight_map = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(weight_map, dict) or not all(
        isinstance(shard, str) for shard in weight_map.values()
    ):
        raise CheckpointError(f"{path} has no weight_map from tensors to files; fetch it again.")
    for shard in sorted(set(weight_map.values())):
        if shard.endswith(PICKLES):
            raise CheckpointError(_pickle(path.with_name(shard) if _plain(shard) else path))
        if not _plain(shard) or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"{path} names the file {shard!r}, but a shard must be a plain *.safetensors name "
                "in the same directory; do not use this checkpoint unless you know its source."
            )
        if not path.with_name(shard).is_file():
            raise CheckpointError(
                f"{path} names {shard}, which is not in the directory; fetch that file too."
            )
    return weight_map


def _plain(name: str) -> bool:
    return bool(name) and not set(name) & set('/\\:\0') and not name.startswith(".")


def _pickle(path: Path) -> str:
    return (
        f"{path} points at a pickle or is one. Opening a pickle can run any code, so minik2 never "
        "does; get the checkpoint as *.safetensors, or convert it on a machine you can lose."
    )


def _merge(directory: Path, names: list[str]) -> dict[str, Stored]:
    found: dict[str, Stored] = {}
    for name in names:
        for tensor, stored in header(directory / name).items():
            if tensor in found:
                raise CheckpointError(
                    f"{tensor} is in both {found[tensor].path} and {stored.path}; remove the file "
                    "that does not belong to this checkpoint."
                )
            found[tensor] = stored
    return found


def header(path: Path) -> dict[str, Stored]:
    """The tensors of one safetensors file.

    The safetensors library checks the file (length, offsets, overlaps); its header, read again as
    JSON, says where each tensor begins, which the library does not tell.
    """
    try:
        with safetensors.safe_open(path, framework="np"):
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            entries: dict[str, Any] = json.loads(file.read(length))
    except safetensors.SafetensorError as error:
        raise CheckpointError(
            f"{path} is truncated or is no safetensors file ({error}); fetch it again."
        ) from None
    except OSError as error:
        raise OSError(f"{path} cannot be read ({error.strerror or error}).") from None
    entries.pop("__metadata__", None)
    stored = {}
    for name, entry in entries.items():
        start, stop = entry["data_offsets"]
        stored[name] = Stored(
            path, entry["dtype"], tuple(entry["shape"]), 8 + length + start, stop - start
        )
    return stored

