"""A process that runs a notebook's cells under limits, and lends its functions to the ladder.

Unusual here: time and memory are watched from outside (family.py). A cell that kills the process
is skipped and the rest run again, so that one bad answer costs no other.

What a reply can do. A submission can find the socket, read what it is asked and answer in its own
words. It gains nothing: an outcome follows from values alone, and those that pass are the right
values of cases drawn afterwards in the grader's process. The ticket only tells a late reply from
the one that is due. A reply of the wrong form ends the process, never the grader.

What it cannot do. This keeps a submission from harming the grading by accident or by a plain
trick; it is no jail. What runs here has the rights of whoever runs it: it can read the course's
right answers and other submissions, write files, use the network, and, if it means to, detach a
process from all that is watched here. Grade strangers in a container, or as a user without rights.
"""

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from minik2.checks import wire
from minik2.checks.family import Family
from minik2.checks.notebooks import Cell
from minik2.checks.subject import COMPILING, Outcome, Trouble

# What a submission gets to see of the environment: enough to find libraries, no secrets.
PASSED_ON = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH",
             "DYLD_LIBRARY_PATH", "PYTHONPATH", "NUMBA_CACHE_DIR", "NUMBA_NUM_THREADS",
             "OMP_NUM_THREADS")
MARK = "MINIK2_SANDBOX"
BROKEN = "did not keep to the grader's protocol"
QUICK = 0.01  # seconds of a request after which memory and processes need no look of their own
GRACE = 2.0  # seconds between the limit inside the process and the one from outside


_T = TypeVar("_T")


class Stopped(Exception):
    """The process is gone; the text, a sentence without a subject, says why."""


def clean(text: str) -> str:
    """Text from a submission without control characters, and not endless."""
    return "".join(c if c.isprintable() else " " for c in text[:1000])


class Sandbox:
    """The cells of one notebook in a process of their own; a context manager.

    time_limit: seconds for everything together; memory_mb: resident, all processes together;
    folder: where modules beside the notebook are found; stop: once it is set, from any thread, the
    process is killed and none is started again; core: the only one that its processes get, where
    the system can hold them to it, None for all. `troubles` holds a sentence (without a subject)
    for each cell number that failed. Raises OSError on Windows, which lacks what it needs.
    """

    def __init__(self, cells: Sequence[Cell], folder: Path, time_limit: float = 60.0,
                 memory_mb: int = 4096, stop: threading.Event | None = None,
                 core: int | None = None):
        if os.name != "posix":
            raise OSError("Running notebooks under limits needs Linux or macOS; on Windows use "
                          "WSL, or the checks inside the notebooks, which work anywhere.")
        self.cells = [cell for cell in cells if cell.runs and cell.source.strip()]
        self.folder, self.memory_mb, self.time_limit = folder, memory_mb, time_limit
        self.deadline = time.monotonic() + time_limit
        self.stop = stop or threading.Event()
        self.core = core
        self.troubles: dict[int, str] = {}
        self.skipped: set[int] = set()
        self.scratch = Path(tempfile.mkdtemp(prefix="minik2-"))
        self.process: subprocess.Popen[bytes] | None = None
        self.family: Family | None = None
        self.found: dict[str, str] = {}
        self.functions: list[str] = []
        self.replaced = False

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._end()
        # Not shutil.rmtree, which gives up on a thousand folders inside each other.
        subprocess.run(["rm", "-rf", self.scratch], stderr=subprocess.DEVNULL, check=False)

    def run(self, names: Sequence[str]) -> None:
        """Run the cells and look at `names`; again, without the cell that killed the process.

        Raises Stopped when the time is up or no run comes to its end.
        """
        while True:
            running = 0
            try:
                self._start()
                for cell in self.cells:
                    running = cell.number
                    if running not in self.skipped:
                        self._cell(cell)
                running = 0
                seen = self._ask(5.0, action="look", names=list(names))
                self._read(seen)
                return
            except Stopped as stopped:
                self._end()
                if not running or running in self.skipped or self._left() <= 0:
                    raise
                self.skipped.add(running)
                self.troubles[running] = str(stopped)

    def _cell(self, cell: Cell) -> None:
        # Half of what is left at most, so that an endless loop leaves time for the others.
        seconds = max(0.1, round(min(self._left() / 2, max(10.0, self.time_limit / 4)), 1))
        reply = self._ask(seconds, action="cell", number=cell.number, source=cell.source,
                          seconds=seconds)
        trouble = _expect(reply, "trouble", str)
        if trouble:
            self.troubles[cell.number] = clean(trouble)

    def _read(self, seen: dict[str, Any]) -> None:
        found, functions = _expect(seen, "found", dict), _expect(seen, "functions", list)
        self.found = {name: clean(str(kind)) for name, kind in found.items()}
        self.functions = [clean(str(name)) for name in functions]
        self.replaced = _expect(seen, "replaced", bool) or self.replaced

    def call(self, name: str, args: tuple[Any, ...], seconds: float) -> Outcome:
        """What the learner's function does with args; Trouble "stopped" where the process dies."""
        try:
            seconds = round(min(seconds, self._left()), 1)
            if seconds <= 0:
                raise Stopped(self._used_up())
            limit = seconds
            if self.found.get(name) == "compiled":  # and compiling cannot be interrupted
                limit = max(seconds, min(seconds + COMPILING, self._left() / 2))
            reply = self._ask(limit, action="call", name=name, args=args, seconds=seconds)
            if reply.get("trouble") is None:
                return Outcome(reply.get("value"), mutated=_expect(reply, "mutated", bool))
            trouble = _expect(reply, "trouble", list)
            if len(trouble) != 3 or not all(isinstance(part, str) for part in trouble):
                raise Stopped(BROKEN)
            return Outcome(trouble=Trouble(*map(clean, trouble)))
        except Stopped as stopped:
            self._end()
            return Outcome(trouble=Trouble("stopped", f"It {stopped}."))

    @property
    def alive(self) -> bool:
        return self.process is not None

    def _left(self) -> float:
        return 0.0 if self.stop.is_set() else self.deadline - time.monotonic()

    def _used_up(self) -> str:
        return f"had used up its {self.time_limit:g} s"

    def _start(self) -> None:
        if self._left() <= 0:
            raise Stopped(self._used_up())
        self._end()
        mark = secrets.token_hex(8)
        environment = {k: os.environ[k] for k in PASSED_ON if k in os.environ}
        environment |= {MARK: mark, "HOME": str(self.scratch), "MPLBACKEND": "agg",
                        "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self.sock, other = socket.socketpair()
        with other:
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(Path(__file__).with_name("worker.py")),
                 str(other.fileno()), str(self.folder.resolve())],
                cwd=self.scratch, env=environment, pass_fds=[other.fileno()],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                start_new_session=True)
        if self.core is not None and hasattr(os, "sched_setaffinity"):
            with suppress(OSError):  # it may have ended already
                os.sched_setaffinity(self.process.pid, {self.core})
        self.family = Family(self.process, (MARK, mark), self.memory_mb, self.stop)

    def _end(self) -> None:
        if self.process is None or self.family is None:
            return
        self.family.end()
        self.process.wait()
        self.sock.close()
        self.process = self.family = None

    def _ask(self, limit: float, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its reply. Raises Stopped, having found out why."""
        assert self.family is not None
        ticket = secrets.token_hex(8)
        begin = time.monotonic()
        deadline = min(time.monotonic() + limit, self.deadline) + GRACE
        try:
            self.sock.settimeout(max(0.1, deadline - time.monotonic()))
            wire.send(self.sock, {"ticket": ticket, **request})
        except wire.WireError as error:
            raise Stopped(f"is too large: {error}") from None
        except (TimeoutError, wire.WireClosed):
            pass  # the reply, or its absence, says why
        try:
            reply = wire.receive(self.sock, deadline)
        except wire.WireError as error:
            why = f"wrote to the grader's own channel ({error})"
        except TimeoutError:
            why = f"took more than {limit:.0f} s and could not be interrupted"
        except wire.WireClosed:
            why = self._how_it_ended()
        else:
            given = reply.get("ticket")
            why = "" if isinstance(given, str) and given == ticket else (
                "wrote to the grader's own channel")
        # Within milliseconds nothing much is used, and looking at all processes takes as long.
        quick = time.monotonic() - begin < QUICK and not why
        if why := (self.family.reason if quick else self.family.measure()) or why:
            raise Stopped(why)
        return reply

    def _how_it_ended(self) -> str:
        assert self.process is not None
        try:
            status = self.process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "closed the grader's own channel"
        return f"ended the process (exit status {status})" if status >= 0 else (
            f"was killed by signal {-status}")


def _expect(reply: dict[str, Any], key: str, kind: type[_T]) -> _T:
    """reply[key] if it is of that kind; Stopped otherwise."""
    value = reply.get(key)
    if not isinstance(value, kind):
        raise Stopped(BROKEN)
    return value


class Borrowed:
    """A function inside a Sandbox, as the ladder wants to see it."""

    def __init__(self, sandbox: Sandbox, name: str):
        self.sandbox, self.name = sandbox, name

    def is_stub(self) -> bool:
        return self.sandbox.found.get(self.name) == "stub"

    def call(self, args: tuple[Any, ...], seconds: float) -> Outcome:
        return self.sandbox.call(self.name, args, seconds)
