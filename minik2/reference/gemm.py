"""General matrix multiply: our own c = a b, on one thread, for matrices of any strides.

Unusual here: the routed experts are why it exists. An expert's matrices are large and its tokens
few, and a BLAS first copies the matrix into an order that it likes, which pays when hundreds of
columns use the copy. Here the few columns are copied, and every row of `a` is read once, where it
lies. Every number of c is one sum, k after k: what a token gets depends on no other token. (Numba's
caches of callers do not notice changes made here or in instructions.py: delete
minik2/reference/__pycache__ after one.)
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import carray, njit, types

from minik2.reference.instructions import ROWS, VECTOR, WIDEST, address, make_tile, turn

# So many rows more than there are may be written by a panel's last tile.
MARGIN = max(ROWS)


def compiled(signature: Callable[[Any, Any, Any], Any], **options: Any) -> Any:
    """Compiled for both dtypes, and once for arrays of any strides, not for each way they lie.

    signature(read, written, line): of a matrix that may be read-only, as in a checkpoint's files,
    of one that is written, and of a row of numbers; options are njit's. With parallel=True each is
    compiled when it is first called, not before: that brings Numba's threads to life, and a process
    that has them cannot fork.
    """
    kinds = {
        number: signature(types.Array(number, 2, "A", readonly=True), types.Array(number, 2, "A"),
                          types.Array(number, 1, "C"))
        for number in (types.float32, types.float64)
    }  # fmt: skip
    compiler = functools.partial(njit, cache=True, nogil=True, error_model="numpy", **options)
    if options.get("parallel"):
        return functools.partial(_Later, kinds, compiler)
    return compiler(list(kinds.values()))


class _Later:
    """A function that is compiled for a dtype when it is first called with an array of it."""

    def __init__(self, kinds: Any, compiler: Any, function: Callable[..., None]) -> None:
        self.kinds, self.compiler, self.function = kinds, compiler, function
        self.kernels: dict[Any, Callable[..., None]] = {}

    def __call__(self, first: Any, *others: Any) -> None:
        number = types.float64 if first.dtype == np.float64 else types.float32
        if number not in self.kernels:
            self.kernels[number] = self.compiler(self.kinds[number])(self.function)
        self.kernels[number](first, *others)


@compiled(lambda read, written, line: types.void(read, written))
def move(x, y):
    """y = x (rows, columns), by whole vectors where the numbers of a row or a column are close."""
    size = x.itemsize
    rows, columns = x.shape
    if x.strides[1] == size == y.strides[1]:
        for r in range(rows):
            source, target = carray(address(x, r, 0), columns), carray(address(y, r, 0), columns)
            for i in range(columns):
                target[i] = source[i]
        return
    lanes = VECTOR // size
    tall, wide = rows - rows % lanes, columns - columns % lanes
    if x.strides[0] == size == y.strides[1]:
        for r in range(0, tall, lanes):
            for i in range(0, wide, lanes):
                turn(address(x, r, i), x.strides[1] // size, address(y, r, i), y.strides[0] // size)
    elif x.strides[1] == size == y.strides[0]:
        for r in range(0, tall, lanes):
            for i in range(0, wide, lanes):
                turn(address(x, r, i), x.strides[0] // size, address(y, r, i), y.strides[1] // size)
    else:
        wide = 0
    for r in range(rows):
        for i in range(wide if r < tall else 0, columns):
            y[r, i] = x[r, i]


_tile_1, _tile_2, _tile_3, _tile_4 = (make_tile(ROWS[n], n) for n in (1, 2, 3, 4))


@njit(error_model="numpy")
def _tiles(width, a, row, last, b, count, c, stride):
    if width == 4:
        _tile_4(a, row, last, b, count, c, stride)
    elif width == 3:
        _tile_3(a, row, last, b, count, c, stride)
    elif width == 2:
        _tile_2(a, row, last, b, count, c, stride)
    else:
        _tile_1(a, row, last, b, count, c, stride)


@compiled(lambda read, written, line: read(read))
def in_lines(a):
    """`a`, or a copy of it whose rows have no gaps between their numbers."""
    if a.strides[1] == a.itemsize:
        return a
    lined = np.empty(a.shape, a.dtype)
    move(a, lined)
    return lined


@compiled(lambda read, written, line: types.void(read, read, written, line))
def panel(a, b, c, beside):
    """c = a b for at most WIDEST vectors of columns. a: rows without gaps.

    b: (K, whole vectors) without any gap, of which c (M, N) takes the first columns. beside: room
    for (M + MARGIN) rows of b, used where c cannot take whole vectors side by side.
    """
    size = a.itemsize
    height, count = a.shape
    full = b.shape[1]
    width = full * size // VECTOR
    rows = ROWS[width]
    out = beside[: (height + MARGIN) * full].reshape(height + MARGIN, full)
    direct = c.shape[1] == full and height >= rows and c.strides[1] == size
    for r in range(0, height, rows):
        if direct:
            # The last tile is moved up to end with the rows, some of which are made twice.
            r = min(r, height - rows)
            place, stride = address(c, r, 0), c.strides[0] // size
        else:
            place, stride = address(out, r, 0), full
        last = height - 1 - r
        _tiles(width, address(a, r, 0), a.strides[0] // size, last, address(b, 0, 0), count,
               place, stride)  # fmt: skip
    if not direct:
        move(out[:height, : c.shape[1]], c)


@compiled(lambda read, written, line: types.void(read, read, written))
def gemm(a, b, c):
    """c = a b on one thread: a (M, K), b (K, N), c (M, N), float32 or float64, c apart from both.

    b is copied, a panel of columns at a time; `a` only where its rows have gaps.
    """
    lanes = VECTOR // a.itemsize
    count, columns = b.shape
    lined = in_lines(a)
    memory = np.empty(count * WIDEST * lanes, c.dtype)
    beside = np.empty((len(a) + MARGIN) * WIDEST * lanes, c.dtype)
    start, left = 0, -(-columns // lanes)
    while left > 0:
        # Panels as equal as can be: of five vectors three and two, since one alone is slow.
        width = -(-left // -(-left // WIDEST))
        stop = min(start + width * lanes, columns)
        packed = memory[: count * width * lanes].reshape(count, width * lanes)
        move(b[:, start:stop], packed[:, : stop - start])
        packed[:, stop - start :] = 0
        panel(lined, packed, c[:, start:stop], beside)
        start, left = stop, left - width
