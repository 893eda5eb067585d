"""A checkpoint written by all ranks at once, each its share, in the Hugging Face layout.

Unusual here: no rank gathers the model. An expert's matrices lie whole on one rank, which writes
them. Any other tensor is gathered by itself to the rank that writes it, goes to the disk and is let
go. Of the optimizer every rank writes its own rows, which nobody else needs to see. Who writes what
follows from the config and the ranks' layout, so it is not discussed either.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from minik2.checkpoint import stream, write
from minik2.checkpoint.stream import Layout
from minik2.pytorch.distributed import ShardedModel
from minik2.pytorch.model import to_numpy

Array = np.ndarray[Any, np.dtype[Any]]
# A file's rank and the tensors in it, in their order.
File = tuple[int, list[str]]


def save_model(
    folder: Path, model: ShardedModel, shard_bytes: int = write.SHARD_BYTES
) -> list[Path]:
    """Write config.json and the weights; every rank calls it, and gets the files that it wrote.

    shard_bytes: a rank's share is one file up to this size, above it several. Raises OSError where
    the disk refuses this rank; the others are not kept waiting then.
    """
    layout, rank = _layout(model), model.mesh.rank
    keepers = who_writes(model, layout)
    files = _files(keepers, layout, model.mesh.ranks, shard_bytes)
    arrays = _arrays(model, keepers)
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, (writer, names) in enumerate(files):
            if writer == rank:
                path = folder / write.shard_name(number, len(files))
                stream.write(path, {name: layout[name] for name in names}, arrays)
                written.append(path)
        if rank == 0:
            dtype = layout["lm_head.weight"][0].name
            written.append(write.write_config(folder, model.cfg, dtype, {}))
            if len(files) > 1:
                total = sum(_bytes(layout, name) for name in layout)
                written.append(write.write_index(folder, [names for _, names in files], total))
    finally:
        # The other ranks wait for this one's rows, whatever befell its disk.
        for _ in arrays:
            pass
    return written


def save_rows(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write arrays that are in memory, by the names that `pieces` reads."""
    held = dict(sorted(arrays.items(), key=lambda item: -item[1].itemsize))
    layout = {name: (array.dtype, array.shape) for name, array in held.items()}
    stream.write(path, layout, iter(held.items()))


def who_writes(model: ShardedModel, layout: Layout) -> dict[str, int]:
    """The rank that writes each tensor, in the order in which a rank writes its own.

    Experts stay where they are; the rest goes, largest first, to whoever has least to write.
    """
    home = {n: rank for rank in range(model.mesh.ranks) for n in model.experts_of(rank)}
    keepers = {name: home[int(name.rsplit(".", 3)[1])] for name in layout if ".experts." in name}
    load = [0] * model.mesh.ranks
    for name, rank in keepers.items():
        load[rank] += _bytes(layout, name)
    others = [name for name in layout if name not in keepers]
    given = {}
    for name in sorted(others, key=lambda name: -_bytes(layout, name)):
        given[name] = load.index(min(load))
        load[given[name]] += _bytes(layout, name)
    # What has more bytes to a number first, as `stream` wants it: the biases of a 16-bit model.
    biases = {name: given[name] for name in others if name.endswith("e_score_correction_bias")}
    gathered = {name: given[name] for name in others if name not in biases}
    return biases | keepers | gathered


def gather(own: Tensor, size: int, to: int) -> Tensor | None:
    """All `size` rows of what the ranks have rows of, on the CPU of rank `to`; None on others."""
    ranks = dist.get_world_size()
    each = -(-size // ranks)
    mine = torch.zeros(each, *own.shape[1:], dtype=own.dtype)
    mine[: len(own)] = own.detach()
    if dist.get_rank() != to:
        dist.gather(mine, None, to)
        return None
    whole = torch.empty(ranks * each, *own.shape[1:], dtype=own.dtype)
    dist.gather(mine, list(whole.split(each)), to)
    return whole[:size]


def _arrays(model: ShardedModel, keepers: Mapping[str, int]) -> Iterator[tuple[str, Array]]:
    """This rank's tensors; all ranks run through it at once, since some take part in others'."""
    held, shapes, rank = model.own_weights, model.cfg.tensor_shapes(), model.mesh.rank
    whole = {name for name, _ in model.named_buffers()}
    for name, keeper in keepers.items():
        if name in whole or ".experts." in name:
            if keeper == rank:
                yield name, to_numpy(held[name])
            continue
        found = gather(held[name], shapes[name][0], keeper)
        if found is not None:
            yield name, to_numpy(found)
        del found  # before the next is gathered


def _layout(model: ShardedModel) -> Layout:
    """What dtype and shape every tensor of the checkpoint has."""
    own = {name: buffer.dtype for name, buffer in model.named_buffers()}
    kinds = {kind: to_numpy(torch.empty(0, dtype=kind)).dtype
             for kind in {*own.values(), model.lm_head.weight.dtype}}  # fmt: skip
    return {name: (kinds[own.get(name, model.lm_head.weight.dtype)], shape)
            for name, shape in model.cfg.tensor_shapes().items()}  # fmt: skip


def _files(keepers: Mapping[str, int], layout: Layout, ranks: int, shard_bytes: int) -> list[File]:
    """Every file of the model, the ranks' in turn."""
    files: list[File] = []
    for rank in range(ranks):
        names, size = list[str](), 0
        for name in (name for name, keeper in keepers.items() if keeper == rank):
            more = _bytes(layout, name)
            if not names or size + more > shard_bytes:
                names, size = [], 0
                files.append((rank, names))
            names.append(name)
            size += more
    return files


def _bytes(layout: Layout, name: str) -> int:
    dtype, shape = layout[name]
    return dtype.itemsize * math.prod(shape)
