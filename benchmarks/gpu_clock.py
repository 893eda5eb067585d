"""Timing on a GPU: events, medians, and the two rates that everything is held against."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from minik2.doctor import machine

# Written over before every timing, so that nothing is found in the last-level cache.
FLUSH = 2**28


def stamp() -> dict[str, Any]:
    """Date, machine, driver and versions, and how fast this GPU copies and multiplies now."""
    import triton

    return machine.stamp() | {
        "device": torch.cuda.get_device_name(), "cuda": torch.version.cuda,
        "triton": triton.__version__, "copy_bytes_a_second": copy_rate(),
        "bfloat16_flops_a_second": product_rate(),
    }  # fmt: skip


def rates(stamped: dict[str, Any]) -> str:
    """The device and its two rates in a line."""
    copy, product = stamped["copy_bytes_a_second"], stamped["bfloat16_flops_a_second"]
    return (f"{stamped['device']}: copies {copy / 1e12:.2f} TB/s, multiplies "
            f"{product / 1e12:.0f} TFLOP/s in bfloat16")  # fmt: skip


def share(found: dict[str, Any], stamped: dict[str, Any]) -> float:
    """The least time that there could be, by the measured rates, over the time taken."""
    moving = found["bytes"] / stamped["copy_bytes_a_second"]
    computing = found["flops"] / stamped["bfloat16_flops_a_second"]
    return max(moving, computing) / found["milliseconds"] * 1e3


def milliseconds(run: Callable[[], Any], rounds: int = 30, warm: int = 5) -> float:
    """The median of `rounds` calls, from event to event, each with a cold cache."""
    flush = torch.empty(FLUSH, dtype=torch.uint8, device="cuda")
    for _ in range(warm):
        run()
    taken = []
    for _ in range(rounds):
        flush.zero_()
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        stop.record()
        taken.append((start, stop))
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(stop) for start, stop in taken)


def seconds(run: Callable[[], Any]) -> float:
    """One call by the host's clock, the device idle before and after."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def copy_rate() -> float:
    """Bytes read and written a second by a copy of 2 GiB."""
    source = torch.empty(2**31, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return 2 * source.nbytes / milliseconds(lambda: target.copy_(source)) * 1e3


def product_rate(size: int = 8192) -> float:
    """Operations a second of a product of random bfloat16 matrices."""
    left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / milliseconds(lambda: left @ right) * 1e3


def need_a_gpu() -> str | None:
    """What is missing, as a sentence."""
    if not torch.cuda.is_available():
        return "PyTorch finds no GPU here; this benchmark needs one of NVIDIA's."
    if torch.cuda.get_device_capability() < (8, 0):
        return "This GPU does not multiply bfloat16; the benchmark needs one of 2020 or newer."
    return None
