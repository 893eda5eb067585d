"""Many training runs, each in a process of its own, as many at a time as there are cores.

Unusual here: a run is found again by what it is. Its directory is named by a checksum of config,
settings and text, so a run is made once, whichever experiments want it; an interrupted one goes on,
and a changed setting is another run. Of a finished run the lines stay and the checkpoints go.
"""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from minik2.config import ModelConfig
from minik2.experiments.one import DIVERGED
from minik2.experiments.scales import Scale
from minik2.training import Corpus, Settings, identity, metrics

Lines = list[dict[str, Any]]
# tell(steps made, steps in all, what is being done): of the runs that were still to be made.
Tell = Callable[[int, int, str], None]

PAUSE = 0.2  # seconds between two looks at the processes
TAIL = 2**16  # bytes at a file's end that surely hold a whole line


@dataclass(frozen=True)
class Run:
    """What decides a run's weights, the text apart."""

    cfg: ModelConfig
    settings: Settings


class RunFailed(ValueError):
    """A run that ended with an error; the message is its own sentence."""


@functools.cache
def corpus(data: str | Path | None) -> Corpus:
    """The text: a path's, or the standard library's."""
    return Corpus.from_path(data) if data else Corpus.standard_library()


def place(scale: Scale, run: Run) -> Path:
    """The run's directory."""
    digest = identity.digest(identity.of(run.cfg, run.settings, corpus(scale.data)))
    return scale.runs / f"{run.settings.optimizer}-{digest[:16]}"


def forget_without(scale: Scale, run: Run, fact: str) -> None:
    """Remove a run that was made before steps told `fact`, so that `finish` makes it again."""
    path = place(scale, run)
    if (path / metrics.NAME).is_file():
        lines = metrics.read(path)
        if any(line["kind"] == "step" and fact not in line for line in lines):
            shutil.rmtree(path)


def finish(scale: Scale, runs: Sequence[Run], what: str, tell: Tell) -> list[Lines]:
    """The lines of every run, in the order given, once all are trained.

    what: the name of this batch of runs, for `tell`. A run that diverged has its lines up to there.
    Raises RunFailed for any other error of a run, KeyboardInterrupt once those at work are saved.
    """
    places = {run: place(scale, run) for run in runs}
    waiting = [run for run in places if not _is_finished(places[run], run)]
    begun = {run: _steps(places[run]) for run in waiting}
    total = sum(run.settings.steps - begun[run] for run in waiting)
    made = 0
    at_work: dict[Run, _Child] = {}
    tell(0, total, what)
    with _children() as start:
        while waiting or at_work:
            while waiting and len(at_work) < scale.at_once:
                run = waiting.pop(0)
                at_work[run] = start(_job(scale, run, places[run]))
            time.sleep(PAUSE)
            for run, child in list(at_work.items()):
                if child.poll() is None:
                    continue
                del at_work[run]
                if child.returncode not in (0, DIVERGED):
                    raise RunFailed(
                        f"A run of `{what}` failed: {child.complaint()} Its directory is "
                        f"{places[run]}; the same command tries it again."
                    )
                made += run.settings.steps - begun[run]
                shutil.rmtree(places[run] / "checkpoints", ignore_errors=True)
            under_way = sum(max(0, _steps(places[run]) - begun[run]) for run in at_work)
            tell(made + under_way, total, what)
    return [metrics.read(places[run]) for run in runs]


class _Child:
    """A process of `one`, with what it says for a sentence if it fails."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed by _children
        # A session of its own: the terminal's Ctrl-C comes to us, and we end it, once.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "minik2.experiments.one"], stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL, stderr=self.errors, start_new_session=True,
        )  # fmt: skip
        assert self.process.stdin is not None
        self.input = self.process.stdin
        with contextlib.suppress(OSError):  # one that dies at once says why itself
            self.input.write(json.dumps(job).encode() + b"\n")
            self.input.flush()

    def poll(self) -> int | None:
        return self.process.poll()

    @property
    def returncode(self) -> int | None:
        return self.process.returncode

    def complaint(self) -> str:
        self.errors.seek(0)
        said = self.errors.read().decode(errors="replace").strip().splitlines()
        return said[-1] if said else f"it ended with status {self.returncode} and said nothing."

    def leave(self) -> None:
        with contextlib.suppress(OSError):
            self.input.close()


@contextlib.contextmanager
def _children() -> Iterator[Callable[[dict[str, Any]], _Child]]:
    """Starts children; on the way out, whatever the reason, those alive are told to save and end.

    Ctrl-C while they are saving ends them at once.
    """
    started: list[_Child] = []

    def start(job: dict[str, Any]) -> _Child:
        started.append(_Child(job))
        return started[-1]

    try:
        yield start
    finally:
        try:
            for child in started:
                child.leave()
            for child in started:
                child.process.wait()
        finally:
            for child in started:
                if child.poll() is None:
                    child.process.kill()
                    child.process.wait()
                child.errors.close()


def _job(scale: Scale, run: Run, out: Path) -> dict[str, Any]:
    habits = {"device": scale.device, "threads": scale.threads, "save_every": scale.save_every,
              "evaluate_every": scale.evaluate_every}  # fmt: skip
    return {"config": run.cfg.to_json(), "settings": run.settings.to_json(), "out": str(out),
            "data": scale.data and str(scale.data), "habits": habits}  # fmt: skip


def _steps(path: Path) -> int:
    """The step of a run's last whole line, read from the end of the file; 0 without one."""
    try:
        with (path / metrics.NAME).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL))
            whole = file.read().split(b"\n")[:-1]
        return int(json.loads(whole[-1])["step"])
    except (OSError, ValueError, LookupError):
        return 0


def _is_finished(path: Path, run: Run) -> bool:
    """The evaluation after the last step is the last line of a run that needs nothing more."""
    if _steps(path) < run.settings.steps:
        return False
    last = metrics.read(path)[-1]
    return bool(last["kind"] == "evaluation")
