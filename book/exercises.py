"""The table of all exercises, as the checks know them."""

from __future__ import annotations

from itertools import groupby

from book.text import table
from minik2.checks import exercises
from minik2.checks.exercise import lesson_title


def page() -> str:
    """A table a lesson: what is asked, how hard it is (1 to 5), how long it takes, and why."""
    out = []
    for lesson, group in groupby(exercises(), key=lambda exercise: exercise.lesson):
        rows = [[f"`{e.id}`", e.title, str(e.difficulty), str(e.minutes), e.why] for e in group]
        out += [f"## {lesson} · {lesson_title(lesson)}", "",
                table(["exercise", "what is asked", "difficulty", "minutes", "why"], rows), ""]
    return "\n".join(out)
