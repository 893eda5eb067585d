"""One tensor of a checkpoint, left in its file in whatever form it has there.

Unusual here: nothing is held. Each look maps the rows that are asked for and lets go of them
afterwards, so that what a process has in memory does not grow with the file; rows that are looked
at often stay in the system's own cache, where they are in nobody's way. The scales, a number for
each 16,384 of FP8 or 32 of INT4, are read and judged at each look.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from minik2.checkpoint import float8, int4
from minik2.checkpoint.errors import CheckpointError
from minik2.checkpoint.files import Stored
from minik2.checkpoint.quantization import Quantization

Array = np.ndarray[Any, np.dtype[Any]]

DTYPES: dict[str, Any] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
# What only a narrowed tensor's parts may be stored as.
PARTS: dict[str, Any] = DTYPES | {
    "F8_E4M3": float8.E4M3,
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
}
# The bits of the exponent; all of them set means infinity or NaN. FP8 has NaN alone: all bits set.
EXPONENT: dict[str, Any] = {
    "F64": np.uint64(0x7FF0000000000000),
    "F32": np.uint32(0x7F800000),
    "F16": np.uint16(0x7C00),
    "BF16": np.uint16(0x7F80),
    "F8_E4M3": np.uint8(0x7F),
}
# Numbers looked at together.
AT_ONCE = 2**22
# Bytes of a matrix that a product should map at a time.
PIECE = 2**25


@dataclass(frozen=True)
class Tensor:
    """Where a tensor's numbers are, and how to read them.

    name, shape: the checkpoint's, of the matrix itself; values, scales, sides: what is stored of
    it; quantization: None for plain numbers of DTYPES, which have neither scales nor sides.
    """

    name: str
    shape: tuple[int, ...]
    values: Stored
    quantization: Quantization | None = None
    scales: Stored | None = None
    sides: Stored | None = None

    @property
    def nbytes(self) -> int:
        """Bytes in the file, scales included."""
        return self.values.nbytes + (self.scales.nbytes if self.scales else 0)

    def read(self) -> Array:
        """All of it: plain numbers as a private view of the file, narrowed ones as float32.

        Raises CheckpointError for a number that is not finite, and for scales that are none.
        """
        self.check_finite()
        if self.quantization is None:
            # Mode "c": pages come from the file, and writing to the array would never reach it.
            return mapped(self.values, "c")
        return self.rows(slice(0, self.shape[0]))

    def check_finite(self) -> None:
        """Raise CheckpointError, which names the place, if a number is infinite or NaN."""
        stored = self.values
        if stored.dtype not in EXPONENT:
            return
        mask, array = EXPONENT[stored.dtype], mapped(stored, "r")
        bits = array.reshape(-1).view(mask.dtype)
        for start in range(0, len(bits), AT_ONCE):
            strange = (bits[start : start + AT_ONCE] & mask) == mask
            if strange.any():
                place = np.unravel_index(start + int(strange.argmax()), stored.shape)
                index = [int(i) for i in place]
                raise CheckpointError(
                    f"{self.name} in {stored.path} holds {float(array[place])} at {index}; weights "
                    "must be finite, so fetch the file again or mend the run that wrote it."
                )

    def rows(self, own: slice) -> Array:
        """Rows own.start to own.stop of a matrix: plain numbers, or narrowed ones as float32."""
        values, scales = self.part(own)
        if self.quantization is None:
            return values
        if self.quantization.format == "int4":
            return int4.dequantize(values, scales)
        tall, wide = self.quantization.block
        first = own.start % tall
        every = float8.spread(scales, (first + len(values), values.shape[1]), (tall, wide))
        return float8.VALUES[values.view(np.uint8)] * every[first:]

    def part(self, own: slice) -> tuple[Array, Array]:
        """What is stored of rows own.start to own.stop, mapped, and the float32 scales of the
        blocks that they touch; of a plain matrix no scales, (0, 0)."""
        values = mapped(self.values, "r", own)
        if self.quantization is None or self.scales is None:
            return values, np.empty((0, 0), np.float32)
        if self.sides is not None and own.start == 0:
            self._check_sides(self.sides)
        tall = self.quantization.block[0]
        blocks = slice(own.start // tall, -(-own.stop // tall))
        return values, self._judged(mapped(self.scales, "r", blocks), blocks.start)

    def _judged(self, found: Array, first: int) -> Array:
        """Scales as float32, if every one of them is a positive finite number of the right kind."""
        assert self.scales is not None and self.quantization is not None
        scales = found.astype(np.float32)
        sound = np.isfinite(scales) & (scales > 0)
        wanted = "a positive finite number"
        if self.quantization.format == "float8_ue8m0" and sound.all():
            sound, wanted = np.frexp(scales)[0] == 0.5, "a power of two, says config.json"
        if not sound.all():
            row, column = np.unravel_index(int(sound.argmin()), scales.shape)
            raise CheckpointError(
                f"The scales of {self.name} in {self.scales.path} hold {scales[row, column]} at "
                f"{[first + int(row), int(column)]}, but a scale is {wanted}; fetch the file again."
            )
        return scales

    def _check_sides(self, sides: Stored) -> None:
        found = tuple(mapped(sides, "r").tolist())
        if found != self.shape:
            raise CheckpointError(
                f"{self.name} in {sides.path} was packed as {found}, but config.json asks for "
                f"{self.shape}; the two belong to different models."
            )


def mapped(stored: Stored, mode: Any, own: slice | None = None) -> Array:
    """The numbers themselves where they lie, all or rows own.start to own.stop."""
    dtype, shape, offset = PARTS[stored.dtype], stored.shape, stored.offset
    if own is not None:
        row = dtype.itemsize * int(np.prod(shape[1:]))
        shape, offset = (own.stop - own.start, *shape[1:]), offset + own.start * row
    return np.memmap(stored.path, dtype, mode, offset, shape).view(np.ndarray)
