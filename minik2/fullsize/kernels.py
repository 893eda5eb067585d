"""The Numba loops that make weights: whole rows to look at, and products that keep none of them.

Unusual here: a weight is a hash of where it stands. Its row has a key of 64 bits, which one 64-bit
mixer makes from the tensor's base and the row's number; the lower half of the key is where the row
starts on a walk through all 32-bit numbers, the upper half goes into the mixing of each. All of a
weight is done in 32 bits, since that is what vector units multiply fast: eight or sixteen weights
at a time. What comes out is a whole number in [-2^31, 2^31), each as likely as the others.
"""

import numpy as np
from numba import njit, prange

from minik2.reference.kernels import FAST, kernel

part = njit(cache=True, fastmath=FAST, error_model="numpy", nogil=True)

# Numbers of a row that are made together, and rows: four sums go side by side in registers, and
# 16 kB of weights wait in the first-level cache for all tokens to meet them.
BLOCK, ROWS = 1024, 4


@part
def row_key(base, row):
    """A row's key of 64 bits, another for each base + row (mod 2^64): a bijection.

    Source: splitmix64, Steele, Lea and Flood, OOPSLA 2014, with variant 13 of Stafford's mixers.
    """
    z = (base + np.uint64(row)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@part
def element(at, high, turned):
    """The weight at place `at` of the walk, in the row whose key has this upper half.

    Source: `triple32` of Chris Wellons' hash-prospector, which stirs `at` in three multiplications.
    `high` comes in before the second; since a multiplication stirs the bits above one and none
    below, it has come in before the first too, turned by 16 bits. The last shift is left out, which
    only reaches bits that are too low to be seen. (To become vector code that stays in 32 bits, it
    must be a function by itself, and take `turned` in by a sum.)
    """
    h = np.uint32(at ^ (at >> np.uint32(17)))
    h = np.uint32(h + turned)
    h = np.uint32(h * np.uint32(0xED5AD4BB))
    h = np.uint32(h ^ (h >> np.uint32(11)) ^ high)
    h = np.uint32(h * np.uint32(0xAC4C1B51))
    h = np.uint32(h ^ (h >> np.uint32(15)))
    return np.int32(np.uint32(h * np.uint32(0x31848BAB)))


@part
def make(key, start, count, y, g, r):
    """y[g, r, i] = the weight at column start + i of the row with this key, for i < count.

    A step of the walk is 2^32 over the golden ratio: Knuth, vol. 3, §6.4.
    """
    at = np.uint32(np.uint32(start) * np.uint32(0x9E3779B9) + np.uint32(key))
    high = np.uint32(key >> np.uint64(32))
    turned = np.uint32((high << np.uint32(16)) | (high >> np.uint32(16)))
    for i in range(count):
        y[g, r, i] = element(at, high, turned)
        at = np.uint32(at + np.uint32(0x9E3779B9))


@kernel
def fill(base, rows, y):
    """y[0, r] = the tensor's row rows[r], all of it. rows (n,), y (1, n, width)."""
    for r in prange(len(rows)):
        make(row_key(base, rows[r]), 0, y.shape[2], y, 0, r)


@part
def dots(weights, p, count, x, g, b, start, y, r, some):
    """y[g, b, r + j] += weights[p, j] · x[g, b, start:], `count` numbers of each, for j < some."""
    one = two = three = four = x.dtype.type(0)
    for i in range(count):
        number = x[g, b, start + i]
        one += weights[p, 0, i] * number
        two += weights[p, 1, i] * number
        three += weights[p, 2, i] * number
        four += weights[p, 3, i] * number
    y[g, b, r] += one
    if some > 1:
        y[g, b, r + 1] += two
    if some > 2:
        y[g, b, r + 2] += three
    if some > 3:
        y[g, b, r + 3] += four


@kernel
def product(base, first, stride, x, y, weights):
    """y[g, b, r] = row first + g stride + r of the tensor · x[g, b], for every group g.

    x (G, B, width), y (G, B, rows). Each row is made once, whatever B is. The tiles of ROWS rows
    are dealt to the pieces in equal shares; weights (pieces, ROWS, BLOCK) is their room.
    """
    groups, batch, rows = y.shape
    tiles, pieces = (rows + ROWS - 1) // ROWS, len(weights)
    for p in prange(pieces):
        for tile in range(groups * tiles * p // pieces, groups * tiles * (p + 1) // pieces):
            g, r = tile // tiles, tile % tiles * ROWS
            some = min(ROWS, rows - r)
            for b in range(batch):
                for j in range(some):
                    y[g, b, r + j] = 0
            for start in range(0, x.shape[2], BLOCK):
                count = min(BLOCK, x.shape[2] - start)
                for j in range(some):
                    key = row_key(base, first + g * stride + r + j)
                    make(key, start, count, weights, p, j)
                for b in range(batch):
                    dots(weights, p, count, x, g, b, start, y, r, some)


@kernel
def product_from_left(base, first, stride, x, y, weights):
    """y[g, b] = Σ_r x[g, b, r] row first + g stride + r of the tensor, for every group g.

    x (G, B, rows), y (G, B, width). Each row is made once. The groups are dealt to the pieces in
    equal shares; weights (pieces, ROWS, BLOCK) is their room, of which one row is taken.
    """
    groups, batch, rows = x.shape
    pieces = len(weights)
    for p in prange(pieces):
        for g in range(groups * p // pieces, groups * (p + 1) // pieces):
            for b in range(batch):
                for i in range(y.shape[2]):
                    y[g, b, i] = 0
            for r in range(rows):
                key = row_key(base, first + g * stride + r)
                for start in range(0, y.shape[2], BLOCK):
                    count = min(BLOCK, y.shape[2] - start)
                    make(key, start, count, weights, p, 0)
                    for b in range(batch):
                        number = x[g, b, r]
                        for i in range(count):
                            y[g, b, start + i] += number * weights[p, 0, i]
