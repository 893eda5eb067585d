"""Matrices in every layout; as a program, random products with the tiles of this processor."""

import numpy as np

LAYOUTS = ["rows", "columns", "part of rows", "part of columns", "every other"]


def laid_out(x, layout):
    """The same numbers, otherwise in memory."""
    rows, columns = x.shape
    if layout == "rows":
        return np.ascontiguousarray(x)
    if layout == "columns":
        return np.asfortranarray(x)
    around = np.full((2 * rows + 3, 2 * columns + 3), np.nan, x.dtype)
    if layout == "part of columns":
        around = np.asfortranarray(around)
    step = 2 if layout == "every other" else 1
    part = around[1 : 1 + step * rows : step, 2 : 2 + step * columns : step]
    part[...] = x
    return part


def bound(a, b):
    """How far a sum of K rounded products may be off, each rounded at most K times."""
    return (a.shape[1] + 1) * np.finfo(a.dtype).eps * (abs(a) @ abs(b))


def main() -> None:
    from minik2.reference import instructions, products

    rng = np.random.default_rng(0)
    for n in range(200):
        tall, deep, wide = rng.integers(1, 90, 3)
        dtype = (np.float32, np.float64)[n % 2]
        a, b, c = (laid_out(rng.standard_normal(shape).astype(dtype), rng.choice(LAYOUTS))
                   for shape in ((tall, deep), (deep, wide), (tall, wide)))  # fmt: skip
        products.multiply(a, b, c)
        assert (abs(c - a.astype(np.longdouble) @ b) <= bound(a, b)).all()
    print(f"widest tile {instructions.WIDEST}, 200 products right")


if __name__ == "__main__":
    main()
