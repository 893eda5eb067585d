"""The Numba loop of a product with a matrix as a checkpoint stores it.

Unusual here: no weight is ever written out. A row is widened into a thread's own line of the first
cache, multiplied with all tokens, and forgotten. What the numbers are is told by their dtype: int8
are FP8's bytes, uint8 holds two INT4 each, uint16 is bfloat16, floats are themselves.
"""

import numpy as np
from numba import prange, types
from numba.extending import overload

from minik2.reference.kernels import kernel
from minik2.reference.kernels_serial import dot, part

# Where a float32 has its sign, the last four bits of its exponent and the first three of its
# mantissa. An e4m3 number moved there is 2^120 too small, subnormal ones too.
PLACES, LIFT = np.int32(0x87F00000 - 2**32), np.float32(2.0**120)


def _widen(row, scales, wide, line):
    """line = the numbers of one stored row, each times its block's scale."""


@overload(_widen, jit_options={"fastmath": {"contract"}})
def _widen_overload(row, scales, wide, line):
    # Blocks are cut out: counted from 0, their loops become vector code.
    if row.dtype == types.int8:

        def float8(row, scales, wide, line):
            for block in range(len(scales)):
                scale = scales[block]
                own = row[block * wide : (block + 1) * wide]
                out = line[block * wide : (block + 1) * wide]
                for i in range(len(own)):
                    bits = np.int32(np.int32(np.int32(own[i]) << np.int32(20)) & PLACES)
                    # All bits of exponent and mantissa set: NaN, and no infinity.
                    sound = np.int32(own[i]) & np.int32(0x7F) != np.int32(0x7F)
                    number = bits.view(np.float32) * LIFT * scale
                    out[i] = number if sound else np.float32(np.nan)

        return float8
    if row.dtype == types.uint8:

        def int4(row, scales, wide, line):
            for block in range(len(scales)):
                scale = scales[block]
                own = row[block * wide // 2 : (block + 1) * wide // 2]
                out = line[block * wide : (block + 1) * wide]
                for j in range(len(own)):
                    both = np.int32(own[j])
                    low, high = np.int32(both & np.int32(15)), np.int32(both >> np.int32(4))
                    out[2 * j] = np.float32(low - np.int32(8)) * scale
                    out[2 * j + 1] = np.float32(high - np.int32(8)) * scale

        return int4
    if row.dtype == types.uint16:

        def bfloat16(row, scales, wide, line):
            for i in range(len(line)):
                line[i] = np.uint32(np.uint32(row[i]) << np.uint32(16)).view(np.float32)

        return bfloat16

    def floats(row, scales, wide, line):
        for i in range(len(line)):
            line[i] = row[i]

    return floats


@part
def _multiply(lines, p, x, y, place):
    """y[t, place] = line p · x[t], four tokens a pass over the line."""
    whole = len(x) - len(x) % 4
    for t in range(0, whole, 4):
        a = b = c = d = x.dtype.type(0)
        for i in range(x.shape[1]):
            w = lines[p, i]
            a += w * x[t, i]
            b += w * x[t + 1, i]
            c += w * x[t + 2, i]
            d += w * x[t + 3, i]
        y[t, place], y[t + 1, place], y[t + 2, place], y[t + 3, place] = a, b, c, d
    for t in range(whole, len(x)):
        y[t, place] = dot(lines, p, x, t)


@kernel
def stored_product(values, scales, start, tall, wide, x, y, lines):
    """y[:, start + r] = x · row r of values, the rows of a stored matrix from number `start` on.

    x (tokens, columns), y (tokens, rows of the whole matrix); values (rows, columns, or bytes of
    two columns); scales, float32, one for `tall` rows and `wide` columns, from the block that row
    `start` is in; (0, 0) of a plain matrix. lines (pieces, columns): each thread's room for a row.
    """
    pieces, rows = len(lines), len(values)
    for p in prange(pieces):
        for r in range(rows * p // pieces, rows * (p + 1) // pieces):
            if len(scales):
                _widen(values[r], scales[(start % tall + r) // tall], wide, lines[p])
            else:
                _widen(values[r], scales[:0, 0], wide, lines[p])
            _multiply(lines, p, x, y, start + r)
