"""How long a check takes to answer: python -m tests.course.time_checks

The bound is a median of one second. A right answer climbs all the rungs; a mistake that nobody
knows is the slowest miss, because it is compared with every known one.
"""

import statistics
import time
from typing import Any

from minik2.checks import Exercise, check, exercises
from tests.course.test_exercises import slightly_off

RUNS = 15


def seconds(exercise: Exercise, function: Any) -> tuple[float, float]:
    """The median and the largest of RUNS checks, each with fresh numbers and its text made."""
    taken = []
    for _ in range(RUNS):
        start = time.perf_counter()
        check(exercise.id, function)._repr_html_()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken), max(taken)


def main() -> None:
    print(f"milliseconds, median and largest of {RUNS}: right answer, then an unknown mistake")
    for e in exercises():
        right = seconds(e, e.reference)
        miss = seconds(e, lambda *args, e=e: slightly_off(e.reference(*args)))
        print(f"{e.id:<24}" + "".join(f"{1000 * t:9.2f}" for t in (*right, *miss)))


if __name__ == "__main__":
    main()
