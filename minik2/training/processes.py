"""One function on several processes of this machine, and what each of them returned.

Unusual here: the function travels as its text. Each process runs a script made of it, so nothing is
forked (GNU OpenMP does not survive that) and nothing is pickled; numbers come and go as arrays.
torchrun does this for long runs. Here the caller plays its part: it keeps the store where the
processes meet, on the loopback interface only, and ends all of them when one fails, when time is
up, when it is interrupted, and, through a pipe that then closes, when it is killed itself.
"""

from __future__ import annotations

import inspect
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

Array = np.ndarray[Any, np.dtype[Any]]
ROOT = Path(__file__).parents[2]
EVERY = 0.05  # seconds between two looks
MOST = 64  # processes
WORDS = 300  # letters of an error
PREFIX = "sent "  # of names in a file, so that none is one of savez's own

SCRIPT = """\
import sys
from minik2.training.processes import serve
import numpy as np
import torch
import torch.distributed as dist

{functions}

serve({name}, sys.argv[1])
"""


class ProcessError(RuntimeError):
    """Why the processes did not all come to their end, in a sentence that names the first."""


def run(
    function: Callable[..., Mapping[str, Any] | None],
    count: int,
    /,
    *,
    uses: Sequence[Callable[..., Any]] = (),
    seconds: float = 300.0,
    **arguments: Any,
) -> list[dict[str, Any]]:
    """What function(group, **arguments) returned in each of `count` processes, in their order.

    group: a `ranks.Ranks`, with .rank and .count; PyTorch's process group (gloo) is there as well.
    function and the ones it uses are plain ones, written with def: of what stands around them they
    see np, torch and dist (torch.distributed) alone, and import the rest. arguments and what is
    returned, by name: numbers, texts, arrays and tensors; None is nothing. What a process prints is
    printed here when all are done, with its number. Each has one thread.

    Raises ProcessError where a process fails, and after `seconds`; ValueError for what cannot be
    sent and for a count that is not 2 to 64.
    """
    if not isinstance(count, int) or not 2 <= count <= MOST:
        raise ValueError(f"count is a number of processes from 2 to {MOST}, not {count!r}.")
    script = SCRIPT.format(
        functions="\n\n".join(_text(f) for f in (*uses, function)), name=function.__name__
    )
    with tempfile.TemporaryDirectory(prefix="minik2-") as name:
        folder = Path(name)
        (folder / "ranks.py").write_text(script, encoding="utf-8")
        _write(folder / "arguments.npz", arguments)
        _wait(folder, count, seconds)
        for rank in range(count):
            for line in (folder / f"{rank}.said").read_text(errors="replace").splitlines():
                print(f"rank {rank}: {line}")
        return [_read(folder / f"{rank}.npz") for rank in range(count)]


def _text(function: Callable[..., Any]) -> str:
    """The function's source, as it stands at the left margin."""
    try:
        text = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError):
        text = ""
    if not text.startswith("def ") or getattr(function, "__closure__", None):
        raise ValueError(
            f"{getattr(function, '__name__', function)} cannot be sent to other processes; give a "
            "function that is written with def and uses no variable of another function."
        )
    return text


def _write(path: Path, values: Mapping[str, Any]) -> None:
    arrays = {}
    for name, value in values.items():
        if callable(getattr(value, "detach", None)):
            value = value.detach().cpu().numpy()
        try:
            array = np.asarray(value)
        except ValueError:  # rows of different lengths
            array = np.empty(0, object)
        arrays[PREFIX + name] = array
        if array.dtype.kind not in "biufcU":
            raise ValueError(
                f"{name} is {type(value).__name__}, which is not sent between processes; give "
                "numbers, texts, arrays or tensors."
            )
    beside = path.with_suffix(".part")
    with beside.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    beside.replace(path)


def _read(path: Path) -> dict[str, Any]:
    """Arrays as they were, numbers and texts as Python's own."""
    with np.load(path, allow_pickle=False) as held:
        arrays = {name.removeprefix(PREFIX): held[name] for name in held.files}
    return {name: array if array.ndim else array.item() for name, array in arrays.items()}


def _wait(folder: Path, count: int, seconds: float) -> None:
    """Start the processes and see all of them to their end."""
    import torch.distributed as dist

    deadline = time.monotonic() + seconds
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    # The store closes the socket that it is given.
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False,
                          master_listen_fd=listener.detach())  # fmt: skip
    ranks: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(count):
            ranks.append(_start(folder, rank, count, port))
        while None in (state := [rank.poll() for rank in ranks]) or any(state):
            if any(state):
                raise ProcessError(_failed(folder, state))
            if time.monotonic() > deadline:
                busy = [str(r) for r, code in enumerate(state) if code is None]
                raise ProcessError(
                    f"After {seconds:g} s rank {', '.join(busy)} of {count} had not come to an "
                    "end, so all were stopped. Do all of them call the same collectives?"
                )
            time.sleep(EVERY)
    finally:
        for process in ranks:
            process.kill()
            process.wait()
            assert process.stdin is not None
            process.stdin.close()
        del store


def _start(folder: Path, rank: int, count: int, port: int) -> subprocess.Popen[bytes]:
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1",
           "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True, "OMP_NUM_THREADS": 1,
           "NUMBA_NUM_THREADS": 1, "OPENBLAS_NUM_THREADS": 1, "MKL_NUM_THREADS": 1,
           "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
           "GLOO_SOCKET_IFNAME": _loopback()}  # fmt: skip
    with (folder / f"{rank}.said").open("wb") as said, (folder / f"{rank}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, str(folder / "ranks.py"), str(folder)],
            env=os.environ | {name: str(value) for name, value in own.items() if value != ""},
            stdin=subprocess.PIPE, stdout=said, stderr=log,
            # Of its own, so that Ctrl-C reaches the caller alone, who then ends them.
            start_new_session=True,
        )  # fmt: skip


def _loopback() -> str:
    """The name of the interface that leaves no machine; "" where it is not found."""
    return next((name for name, addresses in psutil.net_if_addrs().items()
                 if any(a.address == "127.0.0.1" for a in addresses)), "")  # fmt: skip


def _failed(folder: Path, state: Sequence[int | None]) -> str:
    """Of the processes that failed the first; those that only miss another one come last."""
    told = []
    for rank, code in enumerate(state):
        if code:
            path = folder / f"{rank}.error"
            kind, _, words = path.read_text().partition("\n") if path.exists() else ("", "", "")
            if not words:
                end = (f"was ended by {signal.Signals(-code).name}" if code < 0
                       else f"ended with status {code}")  # fmt: skip
                log = (folder / f"{rank}.log").read_text(errors="replace").split("\n")
                last = next(filter(None, map(str.strip, reversed(log))), "")[:WORDS]
                words = f"{end} ({last})" if last else end
            told.append((kind == "RankError", rank, words))
    _, rank, words = min(told)
    return f"Rank {rank} of {len(state)} {words}; all were stopped."


def serve(function: Callable[..., Mapping[str, Any] | None], folder: str) -> None:
    """In a process that `run` started: do the function, and leave what it returns in `folder`."""
    import torch

    from minik2.training import ranks

    threading.Thread(target=_end_with_the_caller, args=(folder,), daemon=True).start()
    torch.set_num_threads(1)
    path, rank = Path(folder), os.environ["RANK"]
    try:
        with ranks.joined("cpu") as group:
            found = function(group, **_read(path / "arguments.npz"))
            _write(path / f"{rank}.npz", {} if found is None else found)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [f.line for f in frames if f.filename == sys.argv[0] and f.name != "<module>"]
        line = f" at `{own[-1]}`" if own else ""
        words = " ".join(str(error).split())[:WORDS].rstrip(".")
        kind = type(error).__name__
        (path / f"{rank}.error").write_text(f"{kind}\nfailed{line} with {kind}: {words}")
        sys.exit(1)


def _end_with_the_caller(folder: str) -> None:
    """Its end of the pipe closes when it is gone, however it went; then nobody else tidies up."""
    while os.read(0, 1):
        pass
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)
