"""NumPy's work in independent pieces side by side, each on one thread from beginning to end.

Unusual here: Python's threads, not the libraries'. Cut in two, a small product leaves both halves
waiting for each other at its end, a hundred times a layer, and for a whole time slice where
another program has one of the cores. Two products side by side do not meet.
"""

import functools
import itertools
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
    that no other item's work reads. Of several errors, that of the first item is raised.
    """
    todo = list(items)
    with _LOCK:
        threads = thread_count()
        if threads == 1 or not _kernels_may_meet():
            return list(map(work, todo))
        with _blas().limit(limits=1):
            return _share(work, todo, threads)


def _share(work: Callable[[Item], Any], todo: list[Item], threads: int) -> list[Any]:
    """The caller works from the start: to wake a thread takes longer than a small product."""
    results: list[Any] = [None] * len(todo)
    errors: list[tuple[int, Exception]] = []
    numbers = itertools.count()

    def some() -> None:
        while (n := next(numbers)) < len(todo):
            try:
                results[n] = work(todo[n])
            except Exception as error:
                errors.append((n, error))
                return

    others = [_pool(threads).submit(some) for _ in range(min(threads, len(todo)) - 1)]
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        some()
    finally:
        numba.set_num_threads(before)
        for other in others:
            # Whoever has not woken up by now is not needed any more.
            other.cancel() or other.result()
    if errors:
        raise min(errors, key=lambda pair: pair[0])[1]
    return results


def each_rows(work: Callable[[slice], Any], count: int) -> None:
    """work(own) for slices that together are rows 0 to count, one slice a thread."""
    pieces = max(1, min(thread_count(), count))
    ends = [count * n // pieces for n in range(pieces + 1)]
    each(work, [slice(a, b) for a, b in itertools.pairwise(ends)])


def thread_count() -> int:
    """How many pieces of work go side by side: as many as BLAS has threads."""
    return max((library["num_threads"] for library in _blas().info()), default=1)


@functools.cache
def _kernels_may_meet() -> bool:
    """False under workqueue, Numba's own threads: it ends the process where two kernels meet."""
    numba.get_num_threads()  # loads the layer, whose name is not known before
    return numba.threading_layer() != "workqueue"


@functools.cache
def _blas() -> Any:
    return ThreadpoolController().select(user_api="blas")


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "minik2", lambda: numba.set_num_threads(1))
