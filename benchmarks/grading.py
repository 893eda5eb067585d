"""How long grading takes: thirty learners who hand in every lesson, right, wrong, half or hostile.

    python -m benchmarks.grading              print it
    python -m benchmarks.grading --record     and write results/grading.json

A submission is a learner's folder with the worksheet of every lesson. Each is graded by itself, on
all cores, then the whole class at once; what comes out is held against what must. The time limit
is the command's own. Processor seconds stand beside the wall's: they tell a busy machine from slow
grading. Fails where a submission that runs into no limit takes longer than promised.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from tqdm import tqdm

from benchmarks import records
from minik2.checks import exercises
from minik2.checks.exercise import Exercise
from minik2.checks.grade import Row, grade
from minik2.doctor import machine

LIMIT = 5.0  # seconds a submission, on two cores
TIME_LIMIT = 60.0  # of one notebook, as `minik2 grade` sets it
COUNTS = {"right": 9, "wrong": 6, "half done": 6}  # and one of each kind below

# Takes the known mistakes from the course's own files, past the stand-in that submissions get.
MISTAKE = """\
import sys
if "find" not in globals():
    kept = {{name: sys.modules.pop(name) for name in list(sys.modules)
            if name.startswith("minik2.checks")}}
    from minik2.checks.exercise import exercises, find
    exercises()
    sys.modules.update(kept)
{function} = find("{id}").wrong[{number}].functions[0]
"""
# Each stands where the answer to a lesson's first exercise would; the others' answers are right.
HOSTILE = {
    "endless loop": "while True:\n    pass",
    "endless call": "def {function}(*arguments):\n    while True:\n        pass",
    "memory": "hoard = []\nwhile True:\n    hoard.append(b'x' * 50_000_000)",
    "exit": "import os\nos._exit(0)",
    "forks": "import os, time\nfor _ in range(7):\n    os.fork()\ntime.sleep(60)",
    "output": "for _ in range(100_000):\n    print('x' * 1000)",
    "writes files": (
        "import pathlib, sys\nfor path in pathlib.Path(sys.path[-1]).glob('*'):\n"
        "    path.write_text('gone')\nopen('large', 'wb').write(bytes(2**29))"
    ),
}
BROKEN = {"not JSON": b'{"cells": [', "no notebook": b"[1, 2, 3]"}
NAMES = ["名前 é", "<b>bold", "=1+1"]  # of learners whose answers are right


@dataclass
class Learner:
    """kind: what its submission is like; files: the bytes of each; expected: by exercise."""

    kind: str
    name: str
    files: dict[str, bytes]
    expected: dict[str, Callable[[Row], bool]]


def passed(row: Row) -> bool:
    return row.mark.outcome == "passed"


def not_attempted(row: Row) -> bool:
    return row.mark.outcome == "not attempted"


def not_passed(row: Row) -> bool:
    return row.mark.outcome in ("failed", "stopped", "missing")


def solved() -> dict[str, str]:
    """The source of every answer in solutions/."""
    cells = [c for path in sorted((records.ROOT / "solutions").glob("*.ipynb"))
             for c in json.loads(path.read_text(encoding="utf-8"))["cells"]]  # fmt: skip
    marks = [(c["metadata"].get("minik2", {}), "".join(c["source"])) for c in cells]
    return {m["exercise"]: source for m, source in marks if m.get("role") == "answer"}


def worksheets(lessons: Sequence[str], answers: dict[str, str]) -> dict[str, bytes]:
    """The exercises' notebooks of these lessons with the answers filled in, by file name."""
    made = {}
    for path in sorted((records.ROOT / "exercises").glob("*.ipynb")):
        if path.name[:2] in lessons:
            notebook = json.loads(path.read_text(encoding="utf-8"))
            for cell in notebook["cells"]:
                marks = cell["metadata"].get("minik2", {})
                if marks.get("role") == "answer" and marks["exercise"] in answers:
                    cell["source"] = answers[marks["exercise"]]
            made[path.name] = json.dumps(notebook).encode()
    return made


def classroom(lessons: Sequence[str], counts: dict[str, int] = COUNTS) -> list[Learner]:
    """The learners, each with what must come out for every exercise of these lessons."""
    asked = [e for e in exercises() if e.lesson in lessons]
    answers = solved()
    right = dict.fromkeys((e.id for e in asked), passed)
    learners = [
        Learner("right", f"right {n}", worksheets(lessons, answers), right)
        for n in range(counts["right"] - len(NAMES))
    ]
    learners += [Learner("right", name, worksheets(lessons, answers), right) for name in NAMES]
    learners += [_wrong(n, lessons, asked) for n in range(counts["wrong"])]
    for n in range(counts["half done"]):
        # An answer may lean on earlier ones of its lesson, so the last ones are left out.
        ids = [[e.id for e in asked if e.lesson == lesson] for lesson in lessons]
        left = {id for mine in ids for id in mine[1 + n % 2 :]}
        given = {id: source for id, source in answers.items() if id not in left}
        learners.append(Learner("half done", f"half {n}", worksheets(lessons, given),
                                right | dict.fromkeys(left, not_attempted)))  # fmt: skip
    first = asked[0]
    for name, source in HOSTILE.items():
        bad = answers | {first.id: source.replace("{function}", first.function)}
        expected = right | {first.id: not_passed}
        learners.append(Learner(name, name, worksheets(lessons, bad), expected))
    for name, content in BROKEN.items():
        files = worksheets(lessons, answers)
        files[next(iter(files))] = content
        kept = {e.id: passed for e in asked if e.lesson != first.lesson}
        learners.append(Learner(name, name, files, kept))
    return learners


def _wrong(n: int, lessons: Sequence[str], asked: list[Exercise]) -> Learner:
    """A learner who makes the n-th known mistake in every exercise."""
    numbers = {e.id: n % len(e.wrong) for e in asked}
    answers = {e.id: MISTAKE.format(id=e.id, function=e.function, number=numbers[e.id])
               for e in asked}  # fmt: skip
    expected = {e.id: _diagnosed(e.wrong[numbers[e.id]].id) for e in asked}
    return Learner("wrong", f"wrong {n}", worksheets(lessons, answers), expected)


def _diagnosed(mistake: str) -> Callable[[Row], bool]:
    return lambda row: row.mark.outcome == "failed" and row.mark.looks_like == mistake


def write(folder: Path, learner: Learner) -> None:
    for name, content in learner.files.items():
        path = folder / learner.name / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def hold(learner: Learner, rows: list[Row]) -> None:
    """Raises RuntimeError where an exercise has another outcome than it must."""
    by_id = {row.mark.exercise: row for row in rows}
    for exercise, right in learner.expected.items():
        if exercise not in by_id or not right(by_id[exercise]):
            raise RuntimeError(f"{learner.name}, {exercise}: {by_id.get(exercise, 'no row')}")


def processor() -> float:
    """Seconds that this process and those it has waited for have had of a core."""
    used = psutil.Process().cpu_times()
    return used.user + used.system + used.children_user + used.children_system


def timed(learners: list[Learner], time_limit: float) -> tuple[float, float, list[Row]]:
    """Wall and processor seconds of grading a fresh folder of these, and the rows."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for learner in learners:
            write(folder, learner)
        begin, used = time.perf_counter(), processor()
        rows = [row for made in grade(folder, time_limit=time_limit) for row in made]
        return time.perf_counter() - begin, processor() - used, rows


def measure(learners: list[Learner], time_limit: float) -> dict[str, Any]:
    """Seconds by learner graded alone, in groups of a kind, and of all of them at once."""
    timed(learners[:1], time_limit)  # to be warm
    took: dict[str, list[tuple[float, float]]] = {}
    for learner in tqdm(learners, desc="submissions", disable=None):
        seconds, used, rows = timed([learner], time_limit)
        hold(learner, rows)
        took.setdefault(learner.kind, []).append((seconds, used))
    together, used, rows = timed(learners, time_limit)
    for learner in learners:
        hold(learner, [row for row in rows if row.learner == learner.name])
    return {
        "submissions": len(learners), "exercises": len(learners[0].expected),
        "time_limit": time_limit, "class_seconds": together, "class_processor": used,
        "kinds": {kind: {
            "submissions": len(times), "median": statistics.median(wall for wall, _ in times),
            "most": max(wall for wall, _ in times),
            "processor": statistics.median(used for _, used in times),
        } for kind, times in took.items()},
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write results/grading.json")
    chosen = parser.parse_args(arguments)
    lessons = sorted({e.lesson for e in exercises()})
    found = measure(classroom(lessons), TIME_LIMIT)
    print(f"{found['submissions']} submissions of {len(lessons)} lessons, {found['exercises']} "
          f"exercises each: {found['class_seconds']:.1f} s together, "
          f"{found['class_seconds'] / found['submissions']:.1f} s each")  # fmt: skip
    print(f"{'one by itself':<14} median    most  processor  (at most {LIMIT:g} s where no limit "
          "is met)")  # fmt: skip
    for kind, took in found["kinds"].items():
        print(f"{kind:<14} {took['median']:6.2f}  {took['most']:6.2f}  {took['processor']:9.2f}")
    if chosen.record:
        record = {**machine.stamp(), "lessons": len(lessons), **found}
        records.write_json(records.RESULTS / "grading.json", record)
    slow = [kind for kind in COUNTS if found["kinds"][kind]["most"] > LIMIT]
    for kind in slow:
        print(f"A submission takes longer than is promised: {kind}; was the machine quiet?",
              file=sys.stderr)  # fmt: skip
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
