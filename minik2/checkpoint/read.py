"""A checkpoint as a mapping from names to arrays that are read when they are asked for.

Unusual here: opening compares every header with the config, so that a wrong size is a sentence
before any memory is taken; and asking for a tensor looks at the exponent of each number, because a
single NaN in a weight makes every later answer NaN without saying where it came from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from minik2.checkpoint import files
from minik2.checkpoint.errors import CheckpointError
from minik2.checkpoint.files import Stored
from minik2.config import ModelConfig

Array = np.ndarray[Any, np.dtype[Any]]

DTYPES: dict[str, Any] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
# The bits of the exponent; all of them set means infinity or NaN.
EXPONENT: dict[str, Any] = {
    "F64": np.uint64(0x7FF0000000000000),
    "F32": np.uint32(0x7F800000),
    "F16": np.uint16(0x7C00),
    "BF16": np.uint16(0x7F80),
}
# Released files of K2 hold this buffer, of the wrong length and never used.
STRAYS = ("rotary_emb.inv_freq",)
AT_ONCE = 2**22


def open_checkpoint(directory: str | Path, cfg: ModelConfig) -> Checkpoint:
    """The weights in `directory`, checked against `cfg`, not yet read.

    Raises CheckpointError, one sentence that names file and tensor: missing, surplus or misshapen
    tensors, dtypes other than float64, float32, float16 and bfloat16, damaged or absent files,
    pickles. Raises OSError for what the file system refuses.
    """
    directory = Path(directory)
    found = files.stored_tensors(directory)
    _compare(directory, found, cfg)
    return Checkpoint(found)


class Checkpoint(Mapping[str, Array]):
    """Tensors by name, mapped from their files; each a fresh, private view, any of DTYPES.

    Asking for a tensor with an infinity or a NaN in it raises CheckpointError.
    """

    def __init__(self, stored: Mapping[str, Stored]) -> None:
        self.stored = dict(stored)

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, name: str) -> Array:
        tensor = self.stored[name]
        # Mode "c": pages come from the file, and writing to the array would never reach it.
        array = np.memmap(tensor.path, DTYPES[tensor.dtype], "c", tensor.offset, tensor.shape)
        _must_be_finite(name, array, tensor)
        return array.view(np.ndarray)


def _must_be_finite(name: str, array: Array, tensor: Stored) -> None:
    mask = EXPONENT[tensor.dtype]
    bits = array.reshape(-1).view(mask.dtype)
    for start in range(0, len(bits), AT_ONCE):
        strange = (bits[start : start + AT_ONCE] & mask) == mask
        if strange.any():
            place = np.unravel_index(start + int(strange.argmax()), tensor.shape)
            index = [int(i) for i in place]
            raise CheckpointError(
                f"{name} in {tensor.path} holds {float(array[place])} at {index}; weights must be "
                "finite, so fetch the file again or mend the run that wrote it."
            )


def _compare(directory: Path, found: Mapping[str, Stored], cfg: ModelConfig) -> None:
    """The headers against the config. Stops at the first contradiction, so that a config with
    absurd sizes costs no more time or memory than the files that are really there."""
    missing: list[str] = []
    expected: set[str] = set()
    for name, shape in cfg.tensors():
        expected.add(name)
        stored = found.get(name)
        if stored is None:
            missing.append(name)
            if len(missing) == 4:
                break
            continue
        if stored.dtype not in DTYPES:
            raise CheckpointError(
                f"{name} in {stored.path} is stored as {stored.dtype}; minik2 reads "
                f"{', '.join(DTYPES)}, so convert the checkpoint to bfloat16 first."
            )
        if stored.shape != shape:
            raise CheckpointError(
                f"{name} in {stored.path} has the shape {stored.shape}, but config.json asks for "
                f"{shape}; the two belong to different models."
            )
    surplus = [name for name in found if name not in expected and not _ignored(name, cfg)]
    if missing:
        more = " and more" if len(missing) == 4 else ""
        have = f"; it has {surplus[0]} instead" if surplus and len(missing) < 4 else ""
        raise CheckpointError(
            f"{directory} lacks {', '.join(missing[:3])}{more}{have}; fetch the missing files, or "
            "mend config.json if it is of another model."
        )
    if surplus:
        raise CheckpointError(
            f"{found[surplus[0]].path} holds {surplus[0]}, which a model of this config.json does "
            f"not have ({len(surplus)} such in all); the two belong to different models."
        )


def _ignored(name: str, cfg: ModelConfig) -> bool:
    """Known strays, and the layers beyond the last that predict further tokens (V3 has one)."""
    if name.endswith(STRAYS):
        return True
    beyond = cfg.num_hidden_layers + cfg.num_nextn_predict_layers
    return any(name.startswith(f"model.layers.{layer}.")
               for layer in range(cfg.num_hidden_layers, min(beyond, cfg.num_hidden_layers + 8)))
