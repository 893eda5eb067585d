"""Comparing what a function returned with what was expected: structure first, then numbers.

Unusual here: anything array-like is taken (torch tensors, lists, NumPy scalars), and an answer in
float32 is compared with the tolerance that float32 deserves. Trees of dicts, lists and tuples are
walked leaf by leaf.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

DEPTH = 20


@dataclass(frozen=True)
class Foreign:
    """A value that no exercise asks for, reduced to what a message needs."""

    name: str


class Misfit(Exception):
    """Structure, shape or dtype is not as expected; the text is a sentence for the learner."""


def plain(value: Any, depth: int = 0) -> Any:
    """The value as NumPy arrays and Python scalars in dicts, lists and tuples.

    torch tensors become arrays; what cannot be converted becomes Foreign.
    """
    if depth > DEPTH:
        return Foreign("structure nested too deeply")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value if type(value) in (bool, int, float, str, type(None)) else _scalar(value)
    if isinstance(value, dict):
        return {key if isinstance(key, str) else repr(key): plain(item, depth + 1)
                for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [plain(item, depth + 1) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    try:
        if callable(getattr(value, "detach", None)):  # a torch tensor, perhaps with gradients
            value = value.detach().cpu().numpy()
        if isinstance(value, (np.ndarray, np.generic)) or hasattr(value, "__array__"):
            array = np.array(value)
            return array if array.dtype.kind in "biufc" else Foreign(f"array of {array.dtype}")
    except Exception:
        return Foreign(f"{_name(value)} that NumPy cannot read")
    return Foreign(_name(value))


def _scalar(value: Any) -> Any:
    """np.float64 is a float, and an IntEnum an int: back to the plain type, or an array of one."""
    if isinstance(value, np.generic) and not isinstance(value, str):
        return np.array(value)
    return next((kind(value) for kind in (int, float, str) if isinstance(value, kind)), value)


def _name(value: Any) -> str:
    name = type(value).__name__
    try:
        return f"{name} ({value.dtype})"
    except Exception:
        return name


def says(value: Any) -> str:
    """What a value is, in a few words, for a message."""
    if isinstance(value, np.ndarray):
        if value.ndim == 0:
            return f"the number {value} ({value.dtype})"
        return f"an array of shape {value.shape} ({value.dtype})"
    if value is None:
        return "None"
    if isinstance(value, Foreign):
        return f"an object of type {value.name}"
    if isinstance(value, (bool, int, float, str)):
        text = repr(value)
        return f"{type(value).__name__} {text if len(text) < 60 else text[:57] + '...'}"
    return f"a {type(value).__name__} of length {len(value)}"


def fit(expected: Any, got: Any, where: str = "the result") -> Any:
    """`got` in the structure of `expected`, leaves as arrays where expected has arrays.

    Raises Misfit, a sentence, where structure, shape or dtype differ.
    """
    if isinstance(expected, dict):
        return _fit_dict(expected, got, where)
    if isinstance(expected, (list, tuple)):
        kind = type(expected).__name__
        if not isinstance(got, (list, tuple)) or len(got) != len(expected):
            raise Misfit(f"Expected {where} to be a {kind} of {len(expected)}; came {says(got)}.")
        return [fit(e, g, f"{where}[{i}]") for i, (e, g) in enumerate(zip(expected, got,
                                                                           strict=True))]
    if isinstance(expected, np.ndarray):
        return _fit_array(expected, got, where)
    if expected is None or isinstance(expected, str):
        return got
    return _fit_number(expected, got, where)


def _fit_dict(expected: dict[str, Any], got: Any, where: str) -> dict[str, Any]:
    if not isinstance(got, dict):
        raise Misfit(f"Expected {where} to be a dict with the keys {', '.join(expected)}; "
                     f"came {says(got)}.")
    missing = [key for key in expected if key not in got]
    surplus = [key for key in got if key not in expected]
    if missing or surplus:
        parts = [f"lacks {', '.join(missing)}"] if missing else []
        parts += [f"has {', '.join(surplus)} too much"] if surplus else []
        raise Misfit(f"The dict {' and '.join(parts)}; expected the keys {', '.join(expected)}.")
    return {key: fit(item, got[key], f"{where}[{key!r}]") for key, item in expected.items()}


def _fit_array(expected: np.ndarray, got: Any, where: str) -> np.ndarray:
    came = says(got)
    if isinstance(got, tuple) and any(
            isinstance(item, np.ndarray) and item.ndim >= expected.ndim for item in got):
        raise Misfit(f"Expected {where} to be an array of shape {expected.shape}; came {came}; "
                     "return the output alone.")
    if isinstance(got, (bool, int, float, list, tuple)):
        try:
            got = np.array(got)
        except ValueError:
            came = "a list whose rows differ in length"
        else:
            came += "" if got.dtype.kind in "biufc" else " that does not hold numbers alone"
    if not isinstance(got, np.ndarray) or got.dtype.kind not in "biufc":
        raise Misfit(f"Expected {where} to be an array of shape {expected.shape}; came {came}.")
    if got.shape != expected.shape:
        turned = " That is the transpose." if got.T.shape == expected.shape else ""
        raise Misfit(f"Expected {where} to have shape {expected.shape}; came {got.shape}.{turned}")
    _check_dtype(expected.dtype.kind, got.dtype, where)
    return got


def _fit_number(expected: float, got: Any, where: str) -> Any:
    if isinstance(got, np.ndarray) and got.ndim == 0:
        number: Any = got
    elif isinstance(got, (bool, int, float)):
        # An int may be too big for NumPy's own integers.
        number = got if isinstance(got, int) else np.array(got)
    else:
        raise Misfit(f"Expected {where} to be one number ({type(expected).__name__}); "
                     f"came {says(got)}.")
    if isinstance(number, np.ndarray):
        _check_dtype(np.asarray(expected).dtype.kind, number.dtype, where, scalar=True)
        number = number.item() if number.dtype.kind in "biu" else number
    if isinstance(expected, float) and isinstance(number, int):
        try:
            number = float(number)
        except OverflowError:
            number = math.inf
    return number


def _check_dtype(kind: str, dtype: np.dtype[Any], where: str, scalar: bool = False) -> None:
    """Floats may be float64 or float32 (a scalar also whole), integers any integer, bools bool."""
    if kind == "f":
        right = dtype.kind in "iu" if scalar and dtype.kind != "f" else (
            dtype.kind == "f" and dtype.itemsize >= 4)
        asked = "floating-point numbers (float64 or float32)"
    elif kind in "iu":
        right, asked = dtype.kind in "iu", "whole numbers (an integer type)"
    else:
        right, asked = dtype.kind == kind, {"b": "booleans", "c": "complex numbers"}[kind]
    if not right:
        raise Misfit(f"Expected {where} to hold {asked}; came {dtype}.")


@dataclass(frozen=True)
class Difference:
    """The first leaf that differs: where, the first index, and the error of every element.

    path: "" or like "['sparsity']"; index: () for one number; got, expected: the two values there;
    error: |got - expected|, 2-D or more flattened nowhere; wrong: which elements are outside the
    tolerance; largest: the largest finite error.
    """

    path: str
    index: tuple[int, ...]
    got: Any
    expected: Any
    error: np.ndarray
    wrong: np.ndarray


def tolerance(dtype: np.dtype[Any], longest: int) -> float:
    """Relative to the largest expected number: rounding of sums of `longest` terms, with room.

    A sum of n rounded terms is off by at most n eps; a handful of such steps follow each other.
    """
    return 16 * float(np.finfo(dtype).eps) * max(64, longest)


def compare(expected: Any, fitted: Any, path: str = "") -> tuple[Difference | None, float]:
    """The first difference beyond float32's tolerance, and the largest relative error seen.

    `fitted` comes from `fit(expected, ...)`.
    """
    if isinstance(expected, (dict, list, tuple)):
        keys: Any = expected if isinstance(expected, dict) else range(len(expected))
        largest = 0.0
        for key in keys:
            found, error = compare(expected[key], fitted[key], f"{path}[{key!r}]")
            if found:
                return found, error
            largest = max(largest, error)
        return None, largest
    if isinstance(expected, (int, str)) or expected is None:
        if type(expected) is type(fitted) and expected == fitted:
            return None, 0.0
        one = np.ones((), bool)
        return Difference(path, (), fitted, expected, one.astype(float), one), math.inf
    return _compare_arrays(np.asarray(expected), np.asarray(fitted), path)


def _compare_arrays(
    expected: np.ndarray, got: np.ndarray, path: str
) -> tuple[Difference | None, float]:
    if expected.dtype.kind in "biu":
        error = (expected != got).astype(np.float64)
        limit, scale = 0.0, 1.0
    else:
        finite = expected[np.isfinite(expected)]
        scale = float(np.abs(finite).max()) if finite.size else 1.0
        scale = scale or 1.0
        with np.errstate(all="ignore"):
            error = np.abs(got.astype(np.float64) - expected.astype(np.float64))
        same = (expected == got) | (np.isnan(expected) & np.isnan(got))
        error = np.where(same, 0.0, error)
        limit = scale * tolerance(np.dtype(np.float32), max((1, *expected.shape)))
    bad = ~(error <= limit)  # so that nan counts as wrong
    finite_error = error[np.isfinite(error)]
    relative = float(finite_error.max()) / scale if finite_error.size else 0.0
    if not bad.any():
        return None, relative
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(bad)), bad.shape))
    return Difference(path, index, got[index].item(), expected[index].item(), error, bad), relative


def same(one: Any, other: Any) -> bool:
    """True where the two agree in structure and, to float32's rounding, in numbers."""
    try:
        return compare(one, fit(one, other))[0] is None
    except Misfit:
        return False


def identical(one: Any, other: Any) -> bool:
    """True where no bit differs: the test of whether arguments were changed."""
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and (
            one.tobytes() == other.tobytes())
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(identical(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(identical, one, other))
    return type(one) is type(other) and (one is other or one == other)


def not_finite(value: Any, path: str = "") -> str | None:
    """A sentence about the first nan or infinity anywhere in the value; None where there is none.

    >>> not_finite(np.array([1.0, np.nan]))
    '1 of 2 numbers is not finite, the first at [1]: nan.'
    """
    if isinstance(value, dict):
        return next(filter(None, (not_finite(v, f"{path}[{k!r}]") for k, v in value.items())), None)
    if isinstance(value, (list, tuple)):
        return next(filter(None, (not_finite(v, f"{path}[{i}]") for i, v in enumerate(value))),
                    None)
    if isinstance(value, float):
        value = np.array(value)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fc":
        return None
    bad = ~np.isfinite(value)
    if not bad.any():
        return None
    index = [int(i) for i in np.unravel_index(int(np.argmax(bad)), bad.shape)]
    count = int(bad.sum())
    at = f"{path}{index if index else ''}" or "the result itself"
    return (f"{count} of {bad.size} numbers {'is' if count == 1 else 'are'} not finite, "
            f"the first at {at}: {value[tuple(index)]}.")
