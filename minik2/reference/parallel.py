"""Independent pieces of work side by side, each on one thread from its beginning to its end.

Unusual here: Python's threads, not the libraries'. Cut in two, a small product leaves both halves
waiting for each other at its end, a hundred times a layer, and for a whole time slice where
another program has one of the cores. Two products side by side do not meet.
"""

import functools
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numba
from threadpoolctl import ThreadpoolController

Item = TypeVar("Item")

# How many threads BLAS uses is one number for the whole process: whoever changes it puts it back
# before the next one looks.
_LOCK = threading.Lock()


def each(work: Callable[[Item], Any], items: Iterable[Item]) -> list[Any]:
    """[work(item) for item in items], as many at a time as BLAS has threads, BLAS held at one.

    work: NumPy and this package's kernels, which then run on one thread each; it writes to places
    that no other item's work reads.
    """
    blas = _blas()
    with _LOCK:
        threads = max((library["num_threads"] for library in blas.info()), default=1)
        if threads == 1:
            return list(map(work, items))
        with blas.limit(limits=1):
            return list(_pool(threads).map(work, items))


@functools.cache
def _blas() -> Any:
    return ThreadpoolController().select(user_api="blas")


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "minik2", lambda: numba.set_num_threads(1))
