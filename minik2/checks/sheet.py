"""One HTML page a learner: every exercise handed in, what its check said, and what is left to do.

Unusual here: much of the text comes from submissions, so all of it is escaped, and the page forbids
its reader's browser to run or load anything. It is one file that can be mailed and printed.
"""

import re
from collections.abc import Collection, Iterable
from datetime import date
from html import escape
from itertools import groupby

from minik2 import __version__
from minik2.checks.exercise import exercises, find, lesson_title
from minik2.checks.grade import Row
from minik2.checks.marking import OUTCOMES
from minik2.checks.result import marked_up
from minik2.checks.sandbox import clean

LONGEST = 60  # letters of a file's name, of four bytes each; most systems allow 255 bytes

# Okabe and Ito's colours for the edge; every outcome has a sign and its word too.
SIGNS = {"passed": ("✓", "#009e73"), "failed": ("✗", "#d55e00"), "stopped": ("■", "#d55e00"),
         "not attempted": ("○", "#8a8a8a")}
UNKNOWN = ("?", "#e69f00")

HEAD = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem;
  overflow-wrap: anywhere; }}
h1 {{ margin-bottom: 0; }} h2 {{ margin: 2rem 0 .5rem; }} h3 {{ margin: 0; font-size: 1rem; }}
p {{ margin: .3rem 0; }} .quiet {{ opacity: .75; font-size: .9rem; }}
article {{ border-left: 5px solid; padding: .2rem 0 .2rem .9rem; margin: .8rem 0; }}
pre {{ overflow-x: auto; line-height: 1.2; margin: .5rem 0; }}
@media print {{ body {{ font-size: 11pt; margin: 0; max-width: none; }}
  article {{ break-inside: avoid; }} h2 {{ break-after: avoid; }} }}
</style>
"""


def names(learners: Iterable[str]) -> dict[str, str]:
    """A file name for each learner, of letters, digits and ._- alone, no two of them alike."""
    found: dict[str, str] = {}
    taken = {""}
    for learner in dict.fromkeys(learners):
        plain = stem = re.sub(r"[^\w.-]+", "_", clean(learner)).strip("._")[:LONGEST]
        number = 1
        while plain.casefold() in taken:  # some systems do not tell A from a
            number += 1
            plain = f"{stem or 'learner'}-{number}"
        taken.add(plain.casefold())
        found[learner] = f"{plain}.html"
    return found


def sheet(learner: str, rows: Collection[Row], lessons: Collection[str] = ()) -> str:
    """The page of one learner as HTML; of an exercise that came several times, the best outcome.

    lessons: the numbers of those that were asked for; those of which nothing can be read are named.
    """
    marked = [row for row in rows if row.mark.exercise]
    best = {row.mark.exercise: row for row in sorted(marked, key=_rank, reverse=True)}
    shown = [best[e.id] for e in exercises() if e.id in best]
    passed = sum(row.mark.outcome == "passed" for row in shown)
    files = len({row.submission for row in rows})
    seconds = sum(row.mark.seconds for row in rows)
    parts = [
        HEAD.format(title=escape(clean(learner))),
        f"<h1>{escape(clean(learner))}</h1>",
        f"<p>{passed} of {len(shown)} exercises passed. {_many(files, 'notebook')}, checked in "
        f"{seconds:.1f} s by minik2 {__version__} on {date.today().isoformat()}.</p>",
    ]
    if absent := sorted(set(lessons) - {row.lesson for row in shown}):
        said = ", ".join(f"lesson {number}" for number in absent)
        parts.append(f"<p>No readable notebook for: {said}.</p>")
    parts += [_file(row) for row in rows if not row.mark.exercise]
    for lesson, group in groupby(shown, lambda row: row.lesson):
        inside = list(group)
        done = sum(row.mark.outcome == "passed" for row in inside)
        parts.append(f"<h2>{lesson}&ensp;{escape(lesson_title(lesson))}</h2>\n"
                     f'<p class="quiet">{done} of {len(inside)} passed</p>')
        parts += [_exercise(row, sum(other.mark.exercise == row.mark.exercise for other in marked))
                  for row in inside]
    parts.append('<p class="quiet">Every check draws fresh numbers; where one names a seed, '
                 "<code>minik2 check NOTEBOOK --seed SEED</code> draws the same again.</p>")
    return "\n".join([*parts, "</html>", ""])


def _rank(row: Row) -> int:
    return OUTCOMES.index(row.mark.outcome)


def _many(count: int, what: str) -> str:
    return f"{count} {what}" + "s" * (count != 1)


def _file(row: Row) -> str:
    """A file in which no exercise could be read."""
    return _box(*UNKNOWN, f"{row.submission}: {row.mark.outcome}", [row.mark.message], "", [])


def _exercise(row: Row, copies: int) -> str:
    exercise, mark = find(row.mark.exercise), row.mark
    sign, colour = SIGNS.get(mark.outcome, UNKNOWN)
    first, *more = mark.message.split("\n")
    said = more if first.startswith(f"{exercise.id}: ") else [first, *more]
    quiet = [f"{exercise.id}, difficulty {exercise.difficulty} of 5, in {row.submission}"
             + (f", the best of {copies} answers" if copies > 1 else "")
             + (f"; {mark.seconds:.1f} s" if mark.seconds else "")]
    if mark.note:
        quiet.insert(0, f"Note: {mark.note}.")
    return _box(sign, colour, f"{exercise.title}: {mark.outcome}", said, mark.picture, quiet)


def _box(sign: str, colour: str, title: str, said: list[str], picture: str,
         quiet: list[str]) -> str:
    lines = [f'<article style="border-color:{colour}">',
             f'<h3><span aria-hidden="true">{sign} </span>{escape(title)}</h3>',
             *(f"<p>{marked_up(text)}</p>" for text in said)]
    if picture:
        grid, _, caption = picture.rpartition("\n")
        lines.append(f"<pre>{escape(grid)}</pre>")
        quiet = [caption.strip(), *quiet]
    lines += [f'<p class="quiet">{escape(text)}</p>' for text in quiet]
    return "\n".join([*lines, "</article>"])
