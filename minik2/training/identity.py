"""What a run is: its config, its settings and its text, written down when it begins.

Unusual here: a run is recognised by content. The same command goes on with it; any other is refused
with what differs, because a run that changed half way is two experiments that look like one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock

from minik2 import __version__
from minik2.config import ModelConfig
from minik2.files import write_whole
from minik2.training.corpus import Corpus
from minik2.training.settings import Settings
from minik2.training.store import RunError

NAME = "run.json"
SHOWN = 5


def of(cfg: ModelConfig, settings: Settings, corpus: Corpus) -> dict[str, Any]:
    """The three as they come back from JSON."""
    held = {"minik2": __version__, "config": cfg.to_json(), "settings": settings.to_json(),
            "text": corpus.checksums}  # fmt: skip
    plain: dict[str, Any] = json.loads(json.dumps(held))
    return plain


def digest(identity: Mapping[str, Any]) -> str:
    """A name for the run, which its checkpoints carry: one number for config, settings and text."""
    held = {part: identity[part] for part in ("config", "settings", "text")}
    return hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def held(run: Path, identity: Mapping[str, Any]) -> Iterator[None]:
    """Inside, `run` is this run's directory and no other process's.

    Raises RunError for a directory that another process trains in, that holds another run, or other
    things; OSError where it cannot be made. Nothing is changed there then.
    """
    lock = filelock.FileLock(run / ".lock", timeout=0)
    try:
        check(run, identity)
        run.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout:
        raise RunError(
            f"Another process is training in {run}; wait for it, or name another --out."
        ) from None
    except OSError as error:
        raise OSError(
            f"{run} cannot be a run's directory ({error.strerror or error}); name another --out."
        ) from error
    try:
        claim(run, identity)  # again, now that nobody else does
        yield
    finally:
        lock.release()


def claim(run: Path, identity: Mapping[str, Any]) -> None:
    """Make `run` this run's directory, or find that it is. Raises as `check`, and OSError."""
    check(run, identity)
    run.mkdir(parents=True, exist_ok=True)
    if not (run / NAME).is_file():
        write_whole(run / NAME, json.dumps(identity, indent=1) + "\n")


def check(run: Path, identity: Mapping[str, Any]) -> None:
    """Raises RunError for a directory that holds another run, or other things; changes nothing."""
    if run.exists() and not run.is_dir():
        raise RunError(f"{run} is a file; a run needs a directory, so name another --out.")
    if not run.is_dir():
        return
    if (run / NAME).is_file():
        found = differences(read(run), identity)
        if found:
            listed = "\n".join(f"  {line}" for line in found)
            raise RunError(
                f"{run} holds a run with other settings, and is left as it is:\n{listed}\nGive "
                "those of the run to go on with it, or another --out to begin a new one."
            )
        return
    strangers = sorted(path.name for path in run.iterdir() if not path.name.startswith("."))
    if strangers:
        raise RunError(
            f"{run} holds {', '.join(strangers[:SHOWN])} and is no run of minik2's; name an empty "
            "directory, or one that does not exist yet, as --out."
        )


def read(run: Path) -> dict[str, Any]:
    """What `claim` wrote. Raises RunError where there is no such thing."""
    try:
        raw = json.loads((run / NAME).read_text(encoding="utf-8"))
        if not all(isinstance(raw[key], dict) for key in ("config", "settings", "text")):
            raise ValueError("it does not hold config, settings and text")
    except FileNotFoundError:
        raise RunError(
            f"{run} is no run: it has no {NAME}. A run is the directory that `minik2 train` was "
            "given as --out."
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{run / NAME} cannot be read ({error}). The checkpoints beside it are models as "
            "`from_pretrained` takes them; to train on, begin a new run in another --out."
        ) from None
    return raw


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line for each thing that is not as it was; [] for the same run."""
    lines = []
    for part in ("config", "settings"):
        then, today = before[part], now[part]
        for key in [*then, *(key for key in today if key not in then)]:
            a, b = then.get(key, "absent"), today.get(key, "absent")
            if a != b:
                lines.append(f"{part} {key}: {a} in the run, {b} now")
    then, today = before["text"], now["text"]
    for what, names in (
        ("gone", [name for name in then if name not in today]),
        ("new", [name for name in today if name not in then]),
        ("changed", [name for name in then if name in today and then[name] != today[name]]),
    ):
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            lines.append(f"text, {what}: {', '.join(names[:SHOWN])}{more}")
    return lines
