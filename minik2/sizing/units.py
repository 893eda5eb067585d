"""What every sheet shares: sizes of number formats, checked arguments, amounts and tables as text.

Unusual here: counts stay whole numbers of any length from end to end, and a number format may be
half a byte or, with its scales, a fraction; bytes are rounded up once, at the end.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

# Bits of one number.
BITS = {"float64": 64, "float32": 32, "bfloat16": 16, "float16": 16, "float8": 8, "int8": 8,
        "int4": 4}  # fmt: skip
PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")


def bits(dtype: str) -> int:
    """Bits of one number of this format. Raises ValueError for a name that is not in BITS."""
    return BITS[pick("number format", dtype, BITS)]


def choose(given: Any, names: Iterable[str]) -> str:
    """The end of a sentence about a wrong name: what was meant perhaps, or all there is."""
    names = list(names)
    near = difflib.get_close_matches(str(given), names, 1)
    return f"; did you mean {near[0]!r}?" if near else f"; choose one of {', '.join(names)}."


def pick(kind: str, value: Any, names: Iterable[str]) -> str:
    """`value`, if it is one of `names`. Raises ValueError otherwise."""
    if not isinstance(value, str) or value not in names:
        raise ValueError(f"There is no {kind} {value!r}{choose(value, names)}")
    return value


def size(numbers: int | Fraction, dtype: str) -> int:
    """Bytes that so many numbers of this format take, rounded up to whole bytes."""
    return math.ceil(Fraction(numbers * bits(dtype), 8))


def whole(name: str, value: Any, least: int = 1) -> int:
    """`value`, if it is a whole number of at least `least`. Raises ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(
            f"{name} must be a whole number of at least {least}, but it is {value!r}; change it."
        )
    return value


def share(name: str, value: Any) -> float:
    """`value`, if it is a number above 0 and at most 1. Raises ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ValueError(f"{name} must be above 0 and at most 1, but it is {value!r}; change it.")
    return float(value)


def amount(value: float | Fraction, unit: str = "") -> str:
    """Three digits and a decimal prefix: amount(9.21e9, "B") is "9.21 GB" (10⁹ bytes)."""
    size, step = float(value), 0
    while abs(size) >= 999.5 and step < len(PREFIXES) - 1:
        size, step = size / 1000, step + 1
    digits = 0 if size == int(size) and not step else 2 if abs(size) < 9.995 else 1
    text = f"{size:.{digits}f}" if abs(size) < 99.95 else f"{size:.0f}"
    return f"{text} {PREFIXES[step]}{unit}".rstrip()


def digits(value: float) -> str:
    """Three significant digits, thousands set apart: 2,170 and 34.8."""
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:.3g}"


def gib(count: int) -> str:
    """Bytes in both kinds of unit: "9.21 GB (8.58 GiB)"."""
    return f"{amount(count, 'B')} ({count / 2**30:,.2f} GiB)"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Aligned text: the first column to the left, the others to the right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(w) if not i else cell.rjust(w)
                  for i, (cell, w) in enumerate(zip(line, widths, strict=True))).rstrip()
        for line in lines)  # fmt: skip
