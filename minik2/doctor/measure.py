"""How fast this machine multiplies and reads: the two limits that every estimate starts from.

Unusual here: each figure is the best of several tries, not the mean. A limit is what the machine
can do; whatever else ran meanwhile only ever lowers a reading.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import prange

from minik2.doctor import machine
from minik2.reference.kernels import kernel

Array = np.ndarray[Any, np.dtype[Any]]


@kernel
def read(x):
    """The sum of x, by all threads."""
    total = x.dtype.type(0)
    for i in prange(len(x)):
        total += x[i]
    return total


def best(action: Callable[[], Any], seconds: float, least: int = 3) -> float:
    """Seconds of the fastest of several calls: at least `least`, and for `seconds` in all."""
    action()  # the first call pays for threads, pages and caches
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


def gflops(library: str, dtype: str, size: int = 1024, seconds: float = 0.5) -> float:
    """10⁹ floating-point operations a second of a product of two size x size matrices.

    library: "numpy" or "torch", both on the CPU; a product counts 2 size³ operations.
    """
    a = np.random.default_rng(0).standard_normal((size, size)).astype(dtype)
    if library == "torch":
        torch = importlib.import_module("torch")
        a, out, product = torch.from_numpy(a), torch.from_numpy(np.empty_like(a)), torch.mm
    else:
        out, product = np.empty_like(a), np.matmul
    return 2 * size**3 / best(lambda: product(a, a, out=out), seconds) / 1e9


def gpu_gflops(dtype: str, device: str = "cuda", size: int = 8192, seconds: float = 0.5) -> float:
    """The same on a GPU that PyTorch can use; float32 is true float32, not TF32."""
    torch = importlib.import_module("torch")
    a = torch.randn(size, size, device=device).to(getattr(torch, dtype))
    out = torch.empty_like(a)

    def product() -> None:
        torch.mm(a, a, out=out)
        torch.cuda.synchronize()

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        return 2 * size**3 / best(product, seconds) / 1e9
    finally:
        torch.set_float32_matmul_precision(before)


def bandwidth(seconds: float = 0.5) -> dict[str, Any]:
    """10⁹ bytes read a second, by the best of three readers of one large array of float32.

    The array is twice the last-level cache, from 256 MB to 1 GiB and at most an eighth of what is
    free: smaller ones would be read from the cache. Returns gigabytes_per_second, reader, bytes.
    """
    size = min(max(2 * (machine.cache() or 0), 256 * 10**6), 2**30, machine.memory()[1] // 8)
    x = np.ones(size // 4, np.float32)
    readers: dict[str, Callable[[], Any]] = {
        "numpy.dot": lambda: x @ x, "numpy.sum": x.sum, "numba": lambda: read(x)
    }  # fmt: skip
    rates = {name: x.nbytes / best(reader, seconds) / 1e9 for name, reader in readers.items()}
    reader = max(rates, key=rates.__getitem__)
    return {"gigabytes_per_second": rates[reader], "reader": reader, "bytes": x.nbytes}
