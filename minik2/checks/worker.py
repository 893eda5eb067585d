"""The program that runs a submission's cells, and answers calls of its functions over a socket.

Unusual here: everything after the first cell is in hostile hands, this program included. So it
decides nothing: it holds no expected value, and its answers are only what functions returned. The
exercises' right answers are taken out of reach before the first cell runs, and `check` does
nothing here, because the grader runs its own afterwards. (Whoever reads the installed files finds
them all the same: that is copying, not solving, and no process can prevent it.)

Run as: python worker.py FD FOLDER
"""

import linecache
import os
import re
import socket
import sys
import threading
import time
import types
from typing import Any

# The folder that holds the package: this file is run by its path, from anywhere.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from minik2.checks import subject, wire

CELL = "<code cell "  # how the file name of a cell's code begins
MAGIC = re.compile(r"^([ \t]*)([%!])", re.M)


def stand_in() -> types.ModuleType:
    """A minik2.checks whose every function does nothing, put in place of the real one."""
    for name in [n for n in sys.modules if n.startswith("minik2.checks")]:
        del sys.modules[name]
    module = types.ModuleType("minik2.checks", "Checks are run by the grader, after the cells.")

    def check(id: str, fn: Any, seed: Any = None) -> None:
        """Nothing here: the grader runs its own check."""

    def other(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None

    module.check = check  # type: ignore[attr-defined]
    module.__getattr__ = other  # type: ignore[method-assign]
    sys.modules["minik2.checks"] = module
    sys.modules["minik2"].checks = module  # type: ignore[attr-defined]
    return module


class Cells:
    """The namespace that a notebook's cells share."""

    def __init__(self, checks: types.ModuleType):
        self.checks, self.check = checks, checks.check
        main = types.ModuleType("__main__")
        sys.modules["__main__"] = main
        self.names: dict[str, Any] = main.__dict__
        self.names["display"] = lambda *shown, **how: None  # a notebook has it without an import
        self.subjects: dict[str, subject.Local] = {}

    def cell(self, number: int, source: str, seconds: float) -> dict[str, Any]:
        """Run one cell; {"trouble": ""} or a sentence."""
        name = f"{CELL}{number}>"
        lines = source.splitlines(keepends=True)
        linecache.cache[name] = (len(source), None, lines, name)
        try:
            code = self._compile(source, name)
            subject.run_limited(lambda: exec(code, self.names), seconds)
        except subject.OutOfTime as error:
            where = subject.learners_line(error, name)
            return {"trouble": f"was still running after {seconds:g} s{where}"}
        except SyntaxError as error:
            shown = f": `{error.text.strip()}`" if error.text else ""
            return {"trouble": f"is no valid Python at line {error.lineno}{shown} ({error.msg})"}
        except BaseException as error:
            said = " ".join(str(error).split())[:300]
            where = subject.learners_line(error, name)
            return {"trouble": f"raised {type(error).__name__}{where}: {said}"}
        return {"trouble": ""}

    def _compile(self, source: str, name: str) -> Any:
        try:
            return compile(source, name, "exec", dont_inherit=True)
        except SyntaxError:
            # Lines that only IPython understands (%matplotlib, !ls) are left out.
            plain = MAGIC.sub(r"\1pass  # \2", source)
            if plain == source:
                raise
            return compile(plain, name, "exec", dont_inherit=True)

    def look(self, names: list[str]) -> dict[str, Any]:
        """What each name is now, the functions there are, and whether the checks are the same."""
        found = {}
        for name in names:
            value = self.names.get(name)
            self.subjects[name] = subject.Local(value)
            found[name] = self._kind(value) if name in self.names else "missing"
        # By type(), because isinstance() asks the object.
        functions = [name for name, value in self.names.items() if type(value) is
                     types.FunctionType and value.__code__.co_filename.startswith(CELL)]
        module = sys.modules.get("minik2.checks")
        replaced = (module is not self.checks or getattr(module, "check", None) is not self.check
                    or self.names.get("check", self.check) is not self.check)
        return {"found": found, "functions": functions[:50], "replaced": replaced}

    def _kind(self, value: Any) -> str:
        try:
            if subject.is_stub(value):
                return "stub"
            if callable(value) and subject.compiles(value):
                return "compiled"
        except Exception:
            pass  # an object that answers no question; it costs its own exercise alone
        return "function" if callable(value) else f"an object of type {type(value).__name__}"

    def call(self, name: str, args: tuple[Any, ...], seconds: float) -> dict[str, Any]:
        """Call one function; what came, or the trouble."""
        outcome = self.subjects[name].call(args, seconds)
        trouble = outcome.trouble
        return {"value": outcome.value, "mutated": outcome.mutated,
                "trouble": [trouble.kind, trouble.text, trouble.error] if trouble else None}


def limit_files() -> None:
    """No core dumps, and no file of more than 256 MB."""
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**28, 2**28))


def follow(grader: int) -> None:
    """End when the grader has: nobody would stop what runs here any more."""
    while os.getppid() == grader:
        time.sleep(1)
    os._exit(1)


def main() -> None:
    threading.Thread(target=follow, args=(os.getppid(),), daemon=True).start()
    sock = socket.socket(fileno=int(sys.argv[1]))
    # A process that a cell starts or forks shall not answer as well.
    sock.set_inheritable(False)
    os.register_at_fork(after_in_child=sock.close)
    sys.path.append(sys.argv[2])
    sys.argv = ["notebook"]
    limit_files()
    cells = Cells(stand_in())
    actions: dict[str, Any] = {"cell": cells.cell, "look": cells.look, "call": cells.call}
    while True:
        try:
            request = wire.receive(sock)
        except wire.WireClosed:
            os._exit(0)  # the grader is gone
        ticket, action = request.pop("ticket"), request.pop("action")
        reply = actions[action](**request)
        try:
            wire.send(sock, reply | {"ticket": ticket})
        except wire.WireError as error:
            text = f"It returned {error}."
            wire.send(sock, {"ticket": ticket, "value": None, "mutated": False,
                             "trouble": ["raised", text, "WireError"]})


if __name__ == "__main__":
    main()
