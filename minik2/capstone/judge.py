"""The judge: a rehearsal, five minutes by the clock, one evaluation.

Unusual here: everything runs twice. The first time is two steps long and thrown away: Numba has
compiled its loops by then, and a spelling mistake in the last line shows in seconds rather than
after five minutes. What counts as time is `train` from its call to its return, and nothing else:
neither reading the text nor the rehearsal nor the evaluation.
"""

from __future__ import annotations

import _thread
import contextlib
import datetime
import itertools
import math
import os
import platform
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from minik2 import __version__, sizing
from minik2.capstone import held_out
from minik2.capstone.entry import Entry, EntryError, guarded, load, model_of
from minik2.capstone.run import Run, Tell
from minik2.doctor import machine
from minik2.training import engines
from minik2.training.corpus import Corpus
from minik2.training.settings import ENGINES

MINUTES = 5.0
# Seconds over the time, for the step in hand and what an entry does after its last one.
GRACE = 5.0
# Steps of the rehearsal, and seconds that it may take: compiling is in it.
REHEARSED, REHEARSAL = 2, 300.0


def judge(
    path: Path,
    corpus: Corpus,
    minutes: float = MINUTES,
    seed: int = 0,
    threads: int = 1,
    tell: Tell = lambda what, facts: None,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[dict[str, Any], Entry]:
    """Train an entry and ask its model: the trial, plain values for `results`, and what ran.

    The trial's `nats` is the held-out loss in nats a byte, `seconds` the time of `train`, and
    `cpu_seconds` what the process computed meanwhile. tell(what, facts): "rehearsal"; "step" with
    seconds, made and loss; "evaluation" with done and of. clock: the time in seconds; any but the
    default is for tests and trials. Raises EntryError for an entry without a score, ValueError for
    settings that make no sense, OSError for a file that cannot be read. What the entry prints goes
    to standard error.
    """
    if isinstance(minutes, bool) or not math.isfinite(minutes) or minutes <= 0:
        raise ValueError(f"The minutes must be a number above 0, not {minutes!r}.")
    for name, value, least in (("seed", seed, 0), ("threads", threads, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be a whole number, {least} up, not {value!r}.")
    tokens, targets = held_out.windows(corpus)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        for engine in ENGINES:
            stack.enter_context(engines.threads(engine, threads))
        entry = load(path)
        tell("rehearsal", {})
        counted = Run(corpus, seed, threads, REHEARSED + 1, itertools.count().__next__)
        model = _trained(entry, counted, REHEARSAL)
        _asked(entry, model, tokens[:2], targets[:2], None)
        run = Run(corpus, seed, threads, 60 * minutes, clock, tell)
        busy = time.process_time()
        model = _trained(entry, run, run.seconds + GRACE)
        seconds, busy = run.used(), time.process_time() - busy
        if seconds > run.seconds + GRACE:
            raise EntryError(
                f"{path}: `train` came back after {seconds:.0f} s of the {run.seconds:.0f} s that "
                "it had; let the loop over run.steps() end it, and make steps short."
            )
        nats = _asked(entry, model, tokens, targets, lambda done, of: tell(
            "evaluation", {"done": done, "of": of}))  # fmt: skip
    counts = sizing.parameters(model.cfg)
    return {
        "entry": entry.name, "title": entry.title, "source": entry.digest, "seed": seed,
        "minutes": minutes, "threads": threads, "device": str(getattr(model, "device", "cpu")),
        "nats": nats, "steps": run.made, "tokens": run.tokens, "seconds": seconds,
        "cpu_seconds": busy, "parameters": counts.total, "active": counts.active,
        "text": held_out.digest(corpus), "date": datetime.date.today().isoformat(),
        "machine": conditions(),
    }, entry  # fmt: skip


def conditions() -> dict[str, Any]:
    """The machine and the versions that a score hangs on; nothing personal."""
    packages = {name: machine.version(name) for name in ("numpy", "numba", "torch")}
    return {
        "processor": machine.processor(), "cores": os.cpu_count() or 1,  # pinned or not
        "gpus": [gpu["name"] for gpu in machine.gpus()],
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(), **packages, "minik2": __version__,
    }  # fmt: skip


def _trained(entry: Entry, run: Run, seconds: float) -> Any:
    """The model of one call of `train`, which has so many seconds to come back."""
    np.random.seed(run.seed % 2**32)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(run.seed)
    try:
        made = _within(seconds, lambda: guarded(entry.path, entry.text, lambda: entry.train(run)))
    except TimeoutError:
        raise EntryError(
            f"{entry.path}: `train` was stopped after {seconds:.0f} s, because it goes on when its "
            "time is over; let the loop over run.steps() end it, and make steps short."
        ) from None
    model = model_of(entry.path, made)
    if not run.made:
        raise EntryError(f"{entry.path}: `train` made no step; loop over run.steps().")
    return model


def _asked(entry: Entry, model: Any, tokens: Any, targets: Any, tell: Any) -> float:
    try:
        return held_out.nats_a_byte(model, tokens, targets, tell)
    except ValueError as error:
        raise EntryError(f"{entry.path}: {error}") from None


def _within(seconds: float, do: Callable[[], Any]) -> Any:
    """do(), or TimeoutError once it has run for so long; Ctrl-C stays Ctrl-C.

    The alarm is the interrupt that Ctrl-C raises too, which works on every system; where a process
    was started with Ctrl-C switched off, nothing is stopped.
    """
    rang = False

    def ring() -> None:
        nonlocal rang
        rang = True
        _thread.interrupt_main()

    timer = threading.Timer(seconds, ring)
    timer.daemon = True
    timer.start()
    try:
        try:
            return do()
        finally:
            timer.cancel()
            timer.join()
    except KeyboardInterrupt:
        if rang:
            raise TimeoutError from None
        raise
