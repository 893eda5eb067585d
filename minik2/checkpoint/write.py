"""Writing a checkpoint: the whole directory, or nothing.

Unusual here: weights come as a stream of (name, array) pairs and leave as shards of bounded size,
so that a model need not be in memory twice; and everything is written into a new directory beside
the target, flushed, and put in its place by renaming. A save that breaks off leaves the old one.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from minik2.checkpoint import float8, int4, quantization
from minik2.checkpoint.errors import CheckpointError
from minik2.checkpoint.files import INDEX, SINGLE
from minik2.checkpoint.quantization import INVERSE, PACKED, SCALES, SIDES
from minik2.config import ModelConfig

Array = np.ndarray[Any, np.dtype[Any]]
Weights = Mapping[str, Array] | Iterable[tuple[str, Array]]

SHARD_BYTES = 4 * 2**30


def save(
    directory: str | Path, cfg: ModelConfig, weights: Weights, shard_bytes: int = SHARD_BYTES,
    format: str | None = None,
) -> None:
    """Write config.json and the weights in the Hugging Face layout.

    weights: every tensor of `cfg.tensor_shapes()`, experts one by one, as a mapping or as pairs;
    shard_bytes: one file up to this size, above it several with an index. format: None keeps the
    weights' own dtypes; "float8" (Kimi K2's and DeepSeek-V3's files), "float8_ue8m0" (V3.1's) and
    "int4" (K2-Thinking's) narrow the matrices that those files narrow, and make all else bfloat16,
    the correction bias float32. An older checkpoint in the directory is replaced as a whole; other
    files there stay. Raises CheckpointError for tensors that do not fit the config or the format,
    ValueError for other formats, OSError where the disk or a permission refuses.
    """
    if format is not None:
        quantization.named(format)
    target = Path(directory).resolve()
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"{target} is a file; name a directory to save into.")
    beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.new")
    try:
        beside.mkdir(parents=True)
        dtype = _write_weights(beside, cfg, weights, shard_bytes, format)
        narrow = {} if format is None else {"quantization_config": quantization.to_config(format)}
        write_config(beside, cfg, dtype, narrow)
        _put_in_place(beside, target)
    except OSError as error:
        raise OSError(
            f"{directory} could not be saved ({error.strerror or error}); what was there before is "
            "untouched. Make room or choose another place, and save again."
        ) from error
    except safetensors.SafetensorError as error:
        raise OSError(f"{directory} could not be saved ({error}); try again.") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _write_weights(
    beside: Path, cfg: ModelConfig, weights: Weights, shard_bytes: int, format: str | None
) -> str:
    """The shards and, if there are several, an index; returns the dtype of the first tensor."""
    expected = cfg.tensor_shapes()
    shards: list[list[str]] = []
    waiting: dict[str, Array] = {}
    size = total = 0
    dtype = ""

    def flush() -> None:
        nonlocal size
        _write_shard(beside / f"{len(shards):05}", waiting)
        shards.append(list(waiting))
        waiting.clear()
        size = 0

    for name, array in weights.items() if isinstance(weights, Mapping) else weights:
        if expected.pop(name, None) != array.shape:
            raise CheckpointError(
                f"{name} of shape {array.shape} is no tensor of this config, or came twice; give "
                "every tensor of cfg.tensor_shapes() once."
            )
        tensors = {name: array} if format is None else narrowed(name, array, format)
        dtype = dtype or next(iter(tensors.values())).dtype.name
        more = sum(part.nbytes for part in tensors.values())
        if waiting and size + more > shard_bytes:
            flush()
        waiting |= {part: np.ascontiguousarray(array) for part, array in tensors.items()}
        size, total = size + more, total + more
    if expected:
        raise CheckpointError(
            f"{len(expected)} tensors were not given, {next(iter(expected))} among them; give "
            "every tensor of cfg.tensor_shapes()."
        )
    flush()
    for number in range(len(shards)):
        (beside / f"{number:05}").rename(beside / shard_name(number, len(shards)))
    if len(shards) > 1:
        write_index(beside, shards, total)
    return dtype


def shard_name(number: int, count: int) -> str:
    """The file of shard `number`, from 0, of `count`."""
    return SINGLE if count == 1 else f"model-{number + 1:05}-of-{count:05}.safetensors"


def write_index(folder: Path, shards: Sequence[Iterable[str]], total: int) -> Path:
    """Say in which of several shards each tensor is; total: bytes of all tensors."""
    weight_map = {
        name: shard_name(number, len(shards))
        for number, names in enumerate(shards) for name in names
    }  # fmt: skip
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_text(folder / INDEX, json.dumps(index, indent=2) + "\n")
    return folder / INDEX


def write_config(folder: Path, cfg: ModelConfig, dtype: str, more: Mapping[str, Any]) -> Path:
    """config.json, with the dtype in which transformers is to open the model."""
    held = cfg.to_json() | {"torch_dtype": dtype, **more}
    _write_text(folder / "config.json", json.dumps(held, indent=2) + "\n")
    return folder / "config.json"


def narrowed(name: str, array: Array, format: str) -> dict[str, Array]:
    """What the files of a format hold of one tensor, by name.

    Raises CheckpointError for what the format cannot hold.
    """
    if not quantization.narrows(format, name):
        bias = name.endswith("e_score_correction_bias")
        return {name: array.astype(np.float32 if bias else ml_dtypes.bfloat16)}
    try:
        if format != "int4":
            values, scales = float8.quantize(array, power_of_two=format == "float8_ue8m0")
            return {name: values, f"{name}{INVERSE}": scales}
        words, scales = int4.quantize(array)
    except CheckpointError as error:
        raise CheckpointError(f"{name} cannot be saved as {format}. {error}") from None
    base, sides = name.removesuffix("weight"), np.array(array.shape, np.int64)
    return {f"{base}{PACKED}": words, f"{base}{SCALES}": scales, f"{base}{SIDES}": sides}


def _write_shard(path: Path, tensors: dict[str, Array]) -> None:
    # "format": transformers refuses a file that does not say which framework's layout it has.
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _put_in_place(beside: Path, target: Path) -> None:
    """Make `beside` the directory `target`; what else lay there (a tokenizer, notes) goes along."""
    if not target.exists():
        beside.rename(target)
        return
    old = beside.with_suffix(".old")
    shutil.copytree(target, beside, ignore=_checkpoint_files, copy_function=_link,
                    dirs_exist_ok=True)
    target.rename(old)
    try:
        beside.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _checkpoint_files(folder: str, names: list[str]) -> set[str]:
    return {n for n in names if n in ("config.json", INDEX) or n.endswith(".safetensors")}


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
