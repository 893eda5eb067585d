"""Runs in processes of their own, to be killed by tests.

Unusual here: one process imports everything, once, and then forks for each run that a line of
standard input describes. A fork begins at once, where an import takes seconds; it is safe because
nothing is computed before it.

A line: {"out", "settings", "habits", "log", and perhaps "die_at", "size", "slow", "preset"}.
Answers: the process's id, and when it has ended, its exit status (negative: the signal).
"""

import importlib
import json
import os
import resource
import signal
import sys
import time
import traceback

from minik2 import ModelConfig
from minik2.training import Habits, Settings, engines, store, train
from tests.training.runs import CFG, text

INTERRUPTED, REFUSED = 130, 1


def main() -> None:
    for name in ("reference", "pytorch"):
        importlib.import_module(f"minik2.training.engine_{name}")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os._exit(_run(json.loads(line)))
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _run(job: dict) -> int:
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if "size" in job:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["size"], resource.RLIM_INFINITY))
    if "die_at" in job:
        _die_inside_the_first_save(job["die_at"])
    if "slow" in job:
        _slow_down(job["slow"])

    def tell(kind, facts):
        if kind in ("warning", "begin"):
            print(kind, json.dumps(facts), flush=True)

    try:
        settings, habits = Settings(**job["settings"]), Habits(**job["habits"])
        cfg = ModelConfig.preset(job["preset"]) if "preset" in job else CFG
        outcome = train(cfg, settings, text(), job["out"], habits, tell)
        print("outcome", json.dumps([outcome.step, outcome.interrupted]), flush=True)
        return INTERRUPTED if outcome.interrupted else 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except (ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        return REFUSED
    except BaseException:
        traceback.print_exc()
        return 2


def _die_inside_the_first_save(moment: int) -> None:
    """Killed just before Python's file operation number `moment` (from 1) of the first save."""
    save, left = store.save, 0

    def watched(*arguments, **keywords):
        nonlocal left
        left = moment
        path = save(*arguments, **keywords)
        left = 0
        store.save = save
        return path

    def hook(event, arguments):
        nonlocal left
        if left and event.partition(".")[0] in ("open", "os", "shutil", "pathlib"):
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    store.save = watched
    sys.addaudithook(hook)


def _slow_down(seconds: float) -> None:
    """A pause in the middle of each step, between gradients and update."""
    make = engines.make

    def slowed(*arguments, **keywords):
        engine = make(*arguments, **keywords)
        norm = engine.norm

        def waits():
            time.sleep(seconds)
            return norm()

        engine.norm = waits
        return engine

    engines.make = slowed


if __name__ == "__main__":
    main()
