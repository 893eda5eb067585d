"""Being asked to stop: the first Ctrl-C is a request, the second one an order.

Unusual here: nothing is raised into a step in hand. A run looks whether it was asked at the end of
each step, when there is something whole to save.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def stop_when_asked() -> Iterator[Callable[[], bool]]:
    """Inside, the first Ctrl-C or SIGTERM makes the function given true; the next one interrupts.

    Outside the main thread, where Python hands out no signals, it stays false.
    """
    asked = False  # not a threading.Event, whose lock two signals at once would wait for
    if threading.current_thread() is not threading.main_thread():
        yield lambda: asked
        return

    def note(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
