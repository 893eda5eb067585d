"""Memory that a training program keeps from one step to the next.

Unusual here: this tells C's allocator something about the whole process, so a program calls it
(`minik2 train`, an experiment's run), and never the library that others import.
"""

import ctypes
import os

# Names and numbers of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep() -> bool:
    """Have what is freed stay with the process, for the next tensor; False where it cannot be told.

    glibc gives every array of more than 32 MiB back to the system when it is freed and asks for new
    memory the next time, which the system clears page by page: in a training step that makes the
    same large gradients again and again, a tenth of the time. The peak stays what it is; what the
    process has taken, it holds until it ends. Source: mallopt(3).
    """
    everything = ctypes.CDLL(None) if os.name == "posix" else None
    mallopt = getattr(everything, "mallopt", None)
    if mallopt is None:  # macOS, Windows, musl: other allocators, which have no such thing
        return False
    no_own_mapping, never = 0, -1
    return bool(mallopt(M_MMAP_MAX, no_own_mapping) and mallopt(M_TRIM_THRESHOLD, never))
