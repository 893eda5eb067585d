"""A checkpoint as a mapping from names to arrays that are read when they are asked for.

Unusual here: opening compares every header with the config, so that a wrong size is a sentence
before any memory is taken; and asking for a tensor looks at the exponent of each number, because a
single NaN in a weight makes every later answer NaN without saying where it came from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minik2.checkpoint import files, int4, quantization
from minik2.checkpoint.errors import CheckpointError
from minik2.checkpoint.files import Stored
from minik2.checkpoint.quantization import INVERSE, PACKED, SCALES, SIDES, Quantization
from minik2.checkpoint.tensor import DTYPES, Tensor
from minik2.config import ModelConfig

Array = np.ndarray[Any, np.dtype[Any]]

# Released files of K2 hold this buffer, of the wrong length and never used.
STRAYS = ("rotary_emb.inv_freq",)


def open_checkpoint(directory: str | Path, cfg: ModelConfig) -> Checkpoint:
    """The weights in `directory`, checked against `cfg`, not yet read.

    Tensors are float64, float32, float16 or bfloat16, and matrices also FP8 with a scale for each
    block or packed INT4, as the quantization_config of config.json says. Raises CheckpointError,
    one sentence that names file and tensor: missing, surplus or misshapen tensors and scales, other
    dtypes, a quantization_config that contradicts the tensors, damaged or absent files, pickles.
    Raises OSError for what the file system refuses.
    """
    directory = Path(directory)
    found = files.stored_tensors(directory)
    return Checkpoint(compare(directory, found, cfg, read_quantization(directory)))


class Checkpoint(Mapping[str, Array]):
    """Tensors by name, mapped from their files; each a fresh, private view, any of DTYPES.

    What is narrowed to FP8 or INT4 comes as float32. Asking for a tensor with an infinity or a NaN
    in it raises CheckpointError. tensors: the same by name, left in their files.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __getitem__(self, name: str) -> Array:
        return self.tensors[name].read()


def read_quantization(directory: Path) -> Quantization | None:
    """What the directory's config.json says about narrowed weights; None where there is none."""
    path = directory / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); restore the file.") from None
    return quantization.from_config(raw, str(path)) if isinstance(raw, Mapping) else None


def compare(
    directory: Path, found: Mapping[str, Stored], cfg: ModelConfig, said: Quantization | None
) -> dict[str, Tensor]:
    """The headers against the config. Stops at the first contradiction, so that a config with
    absurd sizes costs no more time or memory than the files that are really there."""
    missing: list[str] = []
    tensors: dict[str, Tensor] = {}
    used: set[str] = set()
    for name, shape in cfg.tensors():
        packed = name.removesuffix("weight") + PACKED
        if name in found:
            tensors[name] = _plain_or_fp8(found, name, shape, said)
            used |= {name} | ({f"{name}{INVERSE}"} if tensors[name].scales else set())
        elif packed in found:
            tensors[name] = _int4(found, name, shape, said)
            used |= {packed.replace(PACKED, part) for part in (PACKED, SCALES, SIDES)}
        else:
            missing.append(name)
            if len(missing) == 4:
                break
    surplus = [name for name in found if name not in used and not _ignored(name, cfg)]
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
    if said is not None and all(tensor.quantization is None for tensor in tensors.values()):
        raise CheckpointError(
            f"{directory / 'config.json'} has a quantization_config, but none of the tensors is "
            "narrowed; remove it if the checkpoint was converted."
        )
    return tensors


def _plain_or_fp8(
    found: Mapping[str, Stored], name: str, shape: tuple[int, ...], said: Quantization | None
) -> Tensor:
    stored = found[name]
    if stored.dtype in DTYPES:
        _must_have(name, stored, shape)
        return Tensor(name, shape, stored)
    if stored.dtype != "F8_E4M3" or len(shape) != 2:
        raise CheckpointError(
            f"{name} in {stored.path} is stored as {stored.dtype}; minik2 reads "
            f"{', '.join(DTYPES)}, and matrices in F8_E4M3, so convert the checkpoint to bfloat16 "
            "first."
        )
    if said is None or not said.float8:
        raise CheckpointError(_unsaid(name, stored, "FP8", "fp8", said))
    _must_have(name, stored, shape)
    blocks = tuple(-(-side // size) for side, size in zip(shape, said.block, strict=True))
    scales = _part(found, name, f"{name}{INVERSE}", blocks, ("F32", "F8_E8M0"))
    return Tensor(name, shape, stored, said, scales)


def _int4(
    found: Mapping[str, Stored], name: str, shape: tuple[int, ...], said: Quantization | None
) -> Tensor:
    base = name.removesuffix("weight")
    stored = found[base + PACKED]
    if said is None or said.float8:
        raise CheckpointError(_unsaid(name, stored, "INT4", "compressed-tensors", said))
    group = said.block[1]
    if len(shape) != 2 or shape[1] % group:
        raise CheckpointError(
            f"{name} in {stored.path} is packed INT4, but rows of its shape {shape} are no whole "
            f"groups of {group}, as config.json says; the two belong to different models."
        )
    words = _part(found, name, base + PACKED, (shape[0], shape[1] // int4.WORD), ("I32",))
    scales = _part(found, name, base + SCALES, (shape[0], shape[1] // group), tuple(DTYPES))
    sides = _part(found, name, base + SIDES, (2,), ("I32", "I64"))
    return Tensor(name, shape, words, said, scales, sides)


def _part(
    found: Mapping[str, Stored], name: str, part: str, shape: tuple[int, ...],
    dtypes: tuple[str, ...],
) -> Stored:
    """What is stored beside a narrowed tensor, if it is there and of the right kind."""
    stored = found.get(part)
    if stored is None:
        raise CheckpointError(
            f"{name} is narrowed, but {part}, without which it cannot be read, is in no file; "
            "fetch the missing one."
        )
    if stored.dtype not in dtypes:
        raise CheckpointError(
            f"{part} in {stored.path} is stored as {stored.dtype}; minik2 reads it as "
            f"{' or '.join(dtypes)}, so convert the checkpoint to bfloat16 first."
        )
    _must_have(part, stored, shape)
    return stored


def _must_have(name: str, stored: Stored, shape: tuple[int, ...]) -> None:
    if stored.shape != shape:
        raise CheckpointError(
            f"{name} in {stored.path} has the shape {stored.shape}, but config.json asks for "
            f"{shape}; the two belong to different models."
        )


def _unsaid(name: str, stored: Stored, what: str, method: str, said: Quantization | None) -> str:
    instead = f"says that weights are {said.format}" if said else "has no quantization_config"
    return (
        f"{name} in {stored.path} is {what}, but config.json {instead}; what it needs is the "
        f"quantization_config of method {method!r} that the checkpoint came with."
    )


def _ignored(name: str, cfg: ModelConfig) -> bool:
    """Known strays, and the layers beyond the last that predict further tokens (V3 has one)."""
    if name.endswith(STRAYS):
        return True
    beyond = cfg.num_hidden_layers + cfg.num_nextn_predict_layers
    return any(name.startswith(f"model.layers.{layer}.")
               for layer in range(cfg.num_hidden_layers, min(beyond, cfg.num_hidden_layers + 8)))
