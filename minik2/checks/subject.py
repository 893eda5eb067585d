"""Running somebody else's function safely: what came, or what went wrong and on which line.

Unusual here: the time limit works inside a notebook. On the main thread of Linux and macOS it is
an alarm signal (an alarm that was set before, such as a test runner's, is put back afterwards);
elsewhere the function runs in a thread that is told to stop. Both raise OutOfTime inside the
learner's own code, so that the line where it was is known. Neither can stop a single call into
compiled code, a Numba loop for one: that takes another process, as `minik2 check` has.
"""

import copy
import ctypes
import dis
import linecache
import signal
import threading
import time
import types
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import Any

from minik2.checks.values import identical, plain

# Seconds more for the first call of a function that Numba compiles then.
COMPILING = 60.0


class OutOfTime(BaseException):
    """Raised inside a function that outran its limit; no `except Exception` eats it."""


@dataclass(frozen=True)
class Trouble:
    """Why a call gave nothing. kind: "raised", "arguments", "time", "stub" or "stopped".

    "arguments" is a TypeError before the function's first line, "stopped" means that the process
    which ran the function is gone. text: sentences; error: the name of the exception's type.
    """

    kind: str
    text: str
    error: str = ""


@dataclass(frozen=True)
class Outcome:
    """What one call did: a plain value or a trouble, and whether an argument was changed."""

    value: Any = None
    trouble: Trouble | None = None
    mutated: bool = False


def run_limited(function: Callable[[], Any], seconds: float) -> Any:
    """function(), or OutOfTime once it has run for `seconds`."""
    on_main = threading.current_thread() is threading.main_thread()
    if on_main and hasattr(signal, "setitimer"):
        return _run_under_alarm(function, seconds)
    return _run_in_thread(function, seconds)


def _run_under_alarm(function: Callable[[], Any], seconds: float) -> Any:
    armed, start = True, time.monotonic()

    def ring(signum: int, frame: types.FrameType | None) -> None:
        # Not in this function itself: the lines that put the old alarm back must all run.
        if armed and frame is not None and frame.f_code is not _run_under_alarm.__code__:
            raise OutOfTime

    handler = signal.signal(signal.SIGALRM, ring)
    # Rings again, because code that catches everything may swallow the first.
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, 0.1)
    try:
        return function()
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler if handler is not None else signal.SIG_DFL)
        if left:
            left = max(0.001, left - (time.monotonic() - start))
            signal.setitimer(signal.ITIMER_REAL, left, interval)


def _run_in_thread(function: Callable[[], Any], seconds: float) -> Any:
    box: dict[str, Any] = {}

    def work() -> None:
        try:
            box["value"] = function()
        except BaseException as error:
            box["error"] = error

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        for _ in range(20):
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread.ident or 0), ctypes.py_object(OutOfTime))
            thread.join(0.1)
            if not thread.is_alive():
                break
        raise box.get("error") or OutOfTime()
    if "error" in box:
        raise box["error"]
    return box["value"]


# What the bytecode of a body such as `...`, `pass` or `raise NotImplementedError("…")` is made of.
_STUB_STEPS = {
    "RESUME", "NOP", "CACHE", "NOT_TAKEN", "PUSH_NULL", "PRECALL", "CALL", "POP_TOP",
    "LOAD_CONST", "LOAD_GLOBAL", "LOAD_COMMON_CONSTANT", "RAISE_VARARGS", "RETURN_VALUE",
    "RETURN_CONST",
}


def python_of(function: Any) -> types.FunctionType | None:
    """The plain function inside Numba's and functools' wrappers, methods and callable objects."""
    for name in ("py_func", "__wrapped__", "func", "__func__"):
        inner = getattr(function, name, None)
        if inner is not None and callable(inner):
            function = inner
    for holder in [function] + [type(function).__call__] * callable(function):
        if isinstance(holder, types.FunctionType):
            return holder
    return None


def compiles(function: Any) -> bool:
    """True for a function that Numba compiles at its first call."""
    return hasattr(function, "py_func")


def is_stub(function: Any) -> bool:
    """True where the body is a docstring and `...`, `pass`, or a NotImplemented of some kind."""
    if function is None or function is ... or function is NotImplemented:
        return True
    own = python_of(function)
    if own is None:
        return False
    steps = list(dis.get_instructions(own))
    if not {step.opname for step in steps} <= _STUB_STEPS:
        return False
    names = {str(step.argval) for step in steps if step.opname == "LOAD_GLOBAL"}
    if not names <= {"NotImplementedError", "NotImplemented"}:
        return False
    if any(step.opname == "RAISE_VARARGS" for step in steps) or names:
        return True
    constants = [s.argval for s in steps if s.opname in ("LOAD_CONST", "RETURN_CONST")]
    return bool(constants) and constants[-1] in (None, ...)


class Local:
    """A function of this process, as the ladder wants to see it."""

    def __init__(self, function: Any):
        self.function = function
        self._called = False

    def is_stub(self) -> bool:
        return is_stub(self.function)

    def call(self, args: tuple[Any, ...], seconds: float) -> Outcome:
        """Call it on a copy of args. What it prints is shown the first time only."""
        given = copy.deepcopy(args)
        quiet, self._called = self._called, True
        if compiles(self.function) and not quiet:
            seconds += COMPILING

        def run() -> Any:
            if quiet:
                with redirect_stdout(StringIO()):
                    return self.function(*given)
            return self.function(*given)

        try:
            value = run_limited(run, seconds)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            return Outcome(trouble=self._trouble(error, seconds))
        if value is NotImplemented:
            return Outcome(trouble=Trouble("stub", "It returned NotImplemented."))
        return Outcome(plain(value), mutated=not identical(given, args))

    def _trouble(self, error: BaseException, seconds: float) -> Trouble:
        own = python_of(self.function)
        line = learners_line(error, own.__code__.co_filename, own.__globals__) if own else ""
        if isinstance(error, OutOfTime):
            text = f"It was still running after {seconds:g} s, so it was stopped{line}."
            return Trouble("time", text + " Is there a loop that never ends?")
        if isinstance(error, NotImplementedError) and own and raised_in(error) is own.__code__:
            return Trouble("stub", "It raises NotImplementedError.")
        name, said = type(error).__name__, said_by(error)
        kind = "arguments" if isinstance(error, TypeError) and not line else "raised"
        text = f"It raised {name}{line}. {name} says: {said or 'nothing'}"
        for stub in unfinished(own) if own else []:
            text = f"`{stub}`, which it uses, is not written yet. {text}"
        return Trouble(kind, text, name)


def unfinished(function: types.FunctionType) -> list[str]:
    """Names of the functions that this one uses and that are stubs themselves."""
    used = {name: function.__globals__.get(name) for name in function.__code__.co_names}
    return [name for name, value in used.items()
            if isinstance(value, types.FunctionType) and is_stub(value)]


def said_by(error: BaseException) -> str:
    """The error's own words on one line, not endless."""
    try:
        return " ".join(str(error).split())[:300]
    except Exception:
        return "something that cannot be shown"


def raised_in(error: BaseException) -> types.CodeType | None:
    """The code that raised the error, which is not always the code that was called."""
    code, step = None, error.__traceback__
    while step is not None:
        code, step = step.tb_frame.f_code, step.tb_next
    return code


def learners_line(
    error: BaseException, filename: str, names: dict[str, Any] | None = None
) -> str:
    """" at line 3 of your code: `…`", the innermost frame that is the learner's own.

    It is in the file, or sees the same global names: a notebook's cells are a file each.
    """
    found, step = None, error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename == filename or step.tb_frame.f_globals is names:
            found = step
        step = step.tb_next
    if found is None:
        return ""
    source = linecache.getline(found.tb_frame.f_code.co_filename, found.tb_lineno).strip()
    shown = f": `{source}`" if source else ""
    return f" at line {found.tb_lineno} of your code{shown}"
