"""A process and all that it starts: measured, counted, and killed together.

Unusual here: memory is the resident size of the whole family, because torch and Numba reserve far
more address space than they use. It is watched from outside, and measured once more when a cell or
a call is done, so that the one that used too much is blamed and not the one after it.
"""

import os
import signal
import subprocess
import threading
from contextlib import suppress

import psutil

EVERY = 0.05  # seconds between two looks
PROCESSES = 64


class Family:
    """leader: the process, in a session of its own; mark: a variable (name, value) of its
    environment, by which those are found that left the session and lost their parent; stop: once
    it is set, from any thread, all of it is killed.
    """

    def __init__(self, leader: "subprocess.Popen[bytes]", mark: tuple[str, str], memory_mb: int,
                 stop: threading.Event):
        self.leader, self.mark, self.limit = leader, mark, memory_mb * 2**20
        self.stop = stop
        self.members = {psutil.Process(leader.pid)}
        self.reason = ""
        self.lock = threading.Lock()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        while not self.done.wait(EVERY):
            if self.measure():
                return

    def measure(self) -> str:
        """The limit that is broken, "" where none is; the family is killed where one is."""
        with self.lock:
            if not self.reason:
                total = self._look()
                if total > self.limit:
                    self.reason = f"used more than {self.limit >> 20} MB of memory"
                elif len(self.members) > PROCESSES:
                    self.reason = f"started more than {PROCESSES} processes"
                elif self.stop.is_set():
                    self.reason = "was stopped, as all of them were"
                if self.reason:
                    self._kill()
            return self.reason

    def _look(self) -> int:
        """Bring the members up to date; their resident bytes together."""
        for member in list(self.members):
            # Descendants of a member are found from the eldest that is left.
            with suppress(psutil.Error):
                if member.parent() not in self.members:
                    self.members.update(member.children(recursive=True))
        total = 0
        for member in list(self.members):
            try:
                total += member.memory_info().rss
            except psutil.Error:
                self.members.discard(member)
        return total

    def _kill(self) -> None:
        # The group first: the kernel does it in one step, so that nothing forks meanwhile.
        if self.leader.returncode is None:
            with suppress(OSError):
                os.killpg(self.leader.pid, signal.SIGKILL)
        doomed = [*self.members, *self._detached()]
        while doomed:
            for member in doomed:
                with suppress(psutil.Error):
                    member.kill()
            doomed = [d for d in self._detached() if d not in doomed]

    def _detached(self) -> list[psutil.Process]:
        name, value = self.mark
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.environ().get(name) == value:
                    found.append(process)
        return found

    def end(self) -> None:
        """Kill all of it and stop watching."""
        self.done.set()
        self.thread.join()
        with self.lock:
            self._kill()
