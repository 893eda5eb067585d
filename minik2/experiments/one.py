"""One training run in a process of its own, described by a line of JSON on standard input.

Unusual here: the process lives while its standard input stays open. When whoever started it closes
it, or is killed, the run is saved and ends, so nothing is left running and nothing is lost.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading

from minik2.terminal import INTERRUPTED

DIVERGED = 3  # the exit status of a run that did


def main() -> int:
    """Train what the line says; returns the process's exit status."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_stop_when_left, daemon=True).start()
    try:
        from minik2 import heap
        from minik2.config import ModelConfig
        from minik2.experiments.runs import corpus
        from minik2.training import Habits, Settings, train
        from minik2.training.trainer import Diverged

        heap.keep()
        cfg, settings = ModelConfig.from_json(job["config"]), Settings.from_json(job["settings"])
        try:
            outcome = train(cfg, settings, corpus(job["data"]), job["out"], Habits(**job["habits"]))
        except Diverged as error:
            print(error, file=sys.stderr)
            return DIVERGED
        except (ValueError, OSError) as error:
            print(error, file=sys.stderr)
            return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return INTERRUPTED if outcome.interrupted else 0


def _stop_when_left() -> None:
    # Not sys.stdin.read, whose lock the interpreter would wait for when it ends.
    while os.read(0, 1):
        pass
    signal.raise_signal(signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main())
