"""A safetensors file written tensor by tensor, for tensors that are never all in memory.

Unusual here: the layout is told first, because the file begins with it: eight bytes that say how
long the header is, the header as JSON, then the numbers of one tensor after the other. So each
array can be let go as soon as it is written, and what is given must be what was told.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minik2.checkpoint.tensor import PARTS

Array = np.ndarray[Any, np.dtype[Any]]
Layout = Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]

NAMES = {dtype: name for name, dtype in PARTS.items()}


def write(path: Path, layout: Layout, arrays: Iterator[tuple[str, Array]]) -> None:
    """Write a new file at `path`, flushed: the next len(layout) of `arrays`, in that order.

    layout: dtype and shape by name, wider dtypes first, so that every tensor begins at a multiple
    of its numbers' size. Raises ValueError for another array than the layout's next, OSError where
    the disk refuses. Source: the format's description, github.com/huggingface/safetensors.
    """
    # "format": transformers refuses a file that does not say which framework's layout it has.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape) in layout.items():
        end = offset + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": NAMES[dtype], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, (dtype, shape) in layout.items():
            given, array = next(arrays)
            if (given, array.dtype, array.shape) != (name, dtype, shape):
                raise ValueError(
                    f"{path.name} is to hold {name}, {dtype} of shape {shape}, but {given}, "
                    f"{array.dtype} of shape {array.shape}, came; give tensors as the layout says."
                )
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            del array  # before the next one is made
        file.flush()
        os.fsync(file.fileno())
