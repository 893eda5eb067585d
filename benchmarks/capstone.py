"""The capstone's worked entries, each with three seeds, five minutes a trial.

    python -m benchmarks.capstone              print the board, and what is still to be run
    python -m benchmarks.capstone --record     run what is missing, and write capstone/results.json
                                               and the board in capstone/README.md
    python -m benchmarks.capstone --redraw     the board again, from results that were recorded
                                               here or elsewhere; nothing is run

Each trial has a process of its own with one thread, pinned to a core of its own where the system
can do that; as many run side by side as --at-once says. Those that are in the results already, of
the same source, seed, minutes, machine and versions, are not run again, so that a call that was
stopped goes on. Fails where an entry has too little of its core, or where the board does not say
what the entries claim: three below the baseline in every seed, one above it.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import records
from minik2.capstone import results
from minik2.capstone.board import ALONE, BASELINE, Row, boards, conditions, table
from minik2.sizing import units

FOLDER = records.ROOT / "capstone"
ENTRIES, STORED, README = FOLDER / "entries", FOLDER / "results.json", FOLDER / "README.md"
# Which of the worked entries are to be below the baseline, which above, and of which nothing is
# claimed: they were lower in one seed and higher in another.
BETTER = ("longer", "longer_muonclip", "lengthened")
WORSE = ("wider",)
UNDECIDED = ("muonclip", "annealed")
WORKED = (BASELINE, *BETTER, *WORSE, *UNDECIDED)
# What each was made from.
STARTS_FROM = {"muonclip": BASELINE, "annealed": "muonclip", "lengthened": "annealed",
               "longer": BASELINE, "longer_muonclip": "annealed", "wider": BASELINE}  # fmt: skip
SEEDS = (0, 1, 2)
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
PAUSE = 0.2  # seconds between two looks at the processes

Trial = dict[str, Any]

ONE = """
import json, sys
from pathlib import Path
from minik2.capstone.judge import judge
from minik2.training.corpus import Corpus
path, minutes, seed = sys.argv[1:]
trial, _ = judge(Path(path), Corpus.standard_library(), float(minutes), int(seed))
print(json.dumps(trial))
"""


def cores() -> list[int]:
    """Processors to pin trials to: one of each core, as far as the system tells which belong
    together, so that no trial shares its core's arithmetic. Empty where nothing can be pinned."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    ours = sorted(os.sched_getaffinity(0))
    return [cpu for cpu in ours if cpu == _siblings(cpu, ours)[0]]


def _siblings(cpu: int, ours: Sequence[int]) -> list[int]:
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    with contextlib.suppress(OSError, ValueError):
        parts = [part.partition("-") for part in path.read_text().strip().split(",")]
        spans = [range(int(first), int(last or first) + 1) for first, _, last in parts]
        found = [one for span in spans for one in span if one in ours]
        return found or [cpu]
    return [cpu]


class Child:
    """A trial in a process of its own, on one thread and, if `core` is given, on that core."""

    def __init__(self, entry: Path, minutes: float, seed: int, core: int | None) -> None:
        self.what, self.core = f"{entry.stem}, seed {seed}", core
        self.out = tempfile.TemporaryFile()  # noqa: SIM115  closed by `leave`
        self.err = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-c", ONE, str(entry), str(minutes), str(seed)], cwd=records.ROOT,
            stdout=self.out, stderr=self.err, env={**os.environ, **ONE_THREAD})  # fmt: skip
        if core is not None:
            with contextlib.suppress(OSError):  # a system that does not pin, or one gone already
                os.sched_setaffinity(self.process.pid, {core})

    def trial(self) -> Trial:
        """What it found, once it is over. Raises ValueError with what it said where it failed."""
        self.out.seek(0)
        self.err.seek(0)
        said = self.err.read().decode(errors="replace").strip().splitlines()
        if self.process.returncode:
            raise ValueError(f"{self.what} failed: {said[-1] if said else 'it said nothing'}")
        return json.loads(self.out.read())

    def leave(self) -> None:
        self.process.kill()
        self.process.wait()
        self.out.close()
        self.err.close()


def run(todo: Sequence[tuple[Path, int]], minutes: float, at_once: int, path: Path) -> None:
    """Run trials, each added to `path` as soon as it is over; on the way out none is left."""
    places: list[int | None] = [*cores()[:at_once]]
    places += [None] * (at_once - len(places))
    waiting, working = list(todo), list[Child]()
    try:
        with tqdm(total=len(todo), desc="trials", disable=None) as bar:
            while waiting or working:
                while waiting and places:
                    entry, seed = waiting.pop(0)
                    working.append(Child(entry, minutes, seed, places.pop(0)))
                time.sleep(PAUSE)
                for child in [c for c in working if c.process.poll() is not None]:
                    results.add(path, [child.trial()])
                    working.remove(child)
                    child.leave()
                    places.append(child.core)
                    bar.update()
    finally:
        for child in working:
            child.leave()


def missing(
    trials: Sequence[Trial], here: Trial, entries: Sequence[Path], seeds: Sequence[int]
) -> list[tuple[Path, int]]:
    """(entry, seed) pairs that have no trial under the conditions of `here`; seed by seed."""
    same = [trial for trial in trials if conditions(trial) == conditions(here)]
    had = {(trial["entry"], trial["seed"]) for trial in current(same, entries)}
    return [(entry, seed) for seed, entry in itertools.product(seeds, entries)
            if (entry.stem, seed) not in had]  # fmt: skip


def current(trials: Sequence[Trial], entries: Sequence[Path]) -> list[Trial]:
    """The trials of these entries as they are now, comments apart."""
    from minik2.capstone.entry import digest_of

    now = {entry.stem: digest_of(entry.read_text(encoding="utf-8")) for entry in entries}
    return [trial for trial in trials if now.get(trial["entry"]) == trial["source"]]


def expected(minutes: float) -> Trial:
    """The conditions that a trial would have here and now."""
    from minik2.capstone import held_out
    from minik2.capstone.judge import conditions as machine
    from minik2.training.corpus import Corpus

    return {"minutes": minutes, "threads": 1, "device": "cpu", "machine": machine(),
            "text": held_out.digest(Corpus.standard_library())}  # fmt: skip


def shortfalls(trials: Sequence[Trial]) -> list[str]:
    """A sentence for everything that the newest board does not bear out."""
    if not trials:
        return ["There are no results yet: --record makes them."]
    rows = {row.entry: row for row in list(boards(trials).values())[-1]}
    gone = [name for name in WORKED if name not in rows]
    if gone:
        return [f"{', '.join(gone)} has no trial on the newest board."]
    short = [f"{row.entry} had less than {ALONE:.0%} of a core; was the machine quiet?"
             for row in rows.values() if row.shared]  # fmt: skip
    short += [f"{row.entry} has {len(row.seeds)} seeds, of {len(SEEDS)}."
              for row in rows.values() if len(row.seeds) < len(SEEDS)]  # fmt: skip
    for name in BETTER:
        if max(rows[name].against, default=0.0) >= 0:
            short.append(f"{name} is not below the baseline in every seed.")
    for name in WORSE:
        if min(rows[name].against, default=0.0) <= 0:
            short.append(f"{name} is below the baseline in some seed.")
    return short


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--record", action="store_true", help="run what is missing, and write it")
    parser.add_argument("--redraw", action="store_true", help="the README's board from the results "
                        "in capstone/results.json, no trials")  # fmt: skip
    parser.add_argument("--at-once", type=int, default=max(1, len(cores()) - 1), metavar="N",
                        help="trials side by side; one less than there are cores")  # fmt: skip
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--results", type=Path, default=STORED, help="another file than "
                        "capstone/results.json; the README is left alone then")  # fmt: skip
    chosen = parser.parse_args(arguments)
    entries = [ENTRIES / f"{name}.py" for name in WORKED]
    try:
        here = expected(chosen.minutes)
        todo = missing(results.read(chosen.results), here, entries, chosen.seeds)
        if chosen.redraw:
            chosen.results = STORED
        elif chosen.record:
            run(todo, chosen.minutes, chosen.at_once, chosen.results)
        elif todo:
            print(f"{len(todo)} trials are not in {chosen.results.name} for this machine.")
        trials = current(results.read(chosen.results), entries)
        for said, rows in boards(trials).items():
            print(f"\n{said}\n\n{table(rows)}\n\n{told(rows)}")
        if (chosen.record or chosen.redraw) and trials and chosen.results == STORED:
            fill(trials)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped; the trials that were over are kept, and the same command goes on.",
              file=sys.stderr)  # fmt: skip
        return 130
    for sentence in (short := shortfalls(trials)):
        print(sentence, file=sys.stderr)
    return 1 if short else 0


def fill(trials: Sequence[Trial]) -> None:
    """Write the newest board into the README."""
    said, rows = list(boards(trials).items())[-1]
    records.fill(README, "board", f"{said}:\n\n```\n{table(rows)}\n```\n\n{told(rows)}")


def told(rows: Sequence[Row]) -> str:
    """What happened: a line for every entry, beside the one that it was made from."""
    by_name = {row.entry: row for row in rows}
    lines = []
    for name, start in STARTS_FROM.items():
        if name not in by_name or start not in by_name:
            continue
        own, theirs = by_name[name], by_name[start]
        gaps = [own.by_seed[seed] - theirs.by_seed[seed] for seed in own.seeds
                if seed in theirs.by_seed]  # fmt: skip
        if gaps:
            lines.append(
                f"- `{name}` beside `{start}`: lower in {sum(gap < 0 for gap in gaps)} of "
                f"{len(gaps)} seeds, {statistics.fmean(gaps):+.3f} nats ({min(gaps):+.3f} to "
                f"{max(gaps):+.3f}); {own.steps:,.0f} steps instead of {theirs.steps:,.0f}, "
                f"{units.amount(own.tokens)} bytes instead of {units.amount(theirs.tokens)}.")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
