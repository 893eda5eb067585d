"""What this process may use of the machine: processor cores, and memory in bytes.

Unusual here: a container's limits count, not the host's sizes.
"""

from __future__ import annotations

import os
from pathlib import Path

import psutil

GROUP = Path("/sys/fs/cgroup")


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory() -> tuple[int, int]:
    """Bytes in all and free. Copies of files that the system would give up at once are free."""
    whole = psutil.virtual_memory()
    total, free = whole.total, whole.available
    limit = _text("memory.max")
    if limit.isdigit() and int(limit) < total:
        total = int(limit)
        used = int(_text("memory.current") or 0)
        given_up = dict(line.split() for line in _text("memory.stat").splitlines())
        free = min(free, max(0, total - used + int(given_up.get("inactive_file", 0))))
    return total, free


def _text(name: str) -> str:
    try:
        return (GROUP / name).read_text().strip()
    except OSError:
        return ""
