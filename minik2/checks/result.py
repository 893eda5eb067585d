"""What a check answers: a value for programs, a box for notebooks, text for terminals.

Unusual here: the first line is the same whatever the numbers were, so that two runs of the same
answer say the same thing first.
"""

import re
from dataclasses import dataclass
from html import escape
from typing import Any

from minik2.checks.picture import LEGEND, Picture

RUNGS = {1: "it ran", 2: "shape and type", 3: "what must hold", 4: "the values"}
# Okabe and Ito's palette; every colour comes with a word and a sign.
LOOKS = {
    "passed": ("#009e73", "✓"),
    "not yet": ("#d55e00", "✗"),
    "not attempted": ("#8a8a8a", "○"),
}


def marked_up(text: str) -> str:
    """Text as HTML, with what stands between backticks as code."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))


@dataclass(frozen=True, repr=False)
class Result:
    """The outcome of one check.

    state: "passed", "not yet" or "not attempted"; rung: the first that failed, 4 after a pass;
    looks_like: the id of the misconception whose numbers these are, or None; seed: draws the same
    cases again; cases: how many were run; seconds: the time it took.
    """

    id: str
    state: str
    rung: int
    seed: int
    cases: int
    seconds: float
    seen: str = ""
    shapes: str = ""
    looks_like: str | None = None
    explanation: str = ""
    question: str = ""
    remark: str = ""
    largest_error: float = 0.0
    picture: Picture | None = None

    @property
    def passed(self) -> bool:
        """True where every rung held."""
        return self.state == "passed"

    @property
    def attempted(self) -> bool:
        """False for a stub."""
        return self.state != "not attempted"

    @property
    def headline(self) -> str:
        """The first line of the message."""
        if self.passed:
            return f"{self.id}: passed"
        if not self.attempted:
            return f"{self.id}: not attempted yet"
        return f"{self.id}: not yet (rung {self.rung} of 4: {RUNGS[self.rung]})"

    @property
    def message(self) -> str:
        """Everything there is to say, as plain text."""
        return "\n".join([self.headline, *(text for _, text in self._paragraphs())])

    def _paragraphs(self) -> list[tuple[str, str]]:
        """(class, text) of what follows the headline."""
        if self.passed:
            error = f"largest relative error {self.largest_error:.1e}" if self.largest_error else (
                "equal to the last digit")
            said = f"{self.cases} cases of fresh numbers (seed {self.seed}), {error}."
            return [("", said)] + ([("quiet", self.remark)] if self.remark else [])
        if not self.attempted:
            return [("quiet", "Write the body of the function, then run this cell again.")]
        out = [("", self.seen)]
        if self.looks_like:
            out += [("", f"This looks like “{self.looks_like}”: {self.explanation}"),
                    ("question", self.question)]
        called = f"Called with {self.shapes}. " if self.shapes else ""
        return [*out, ("quiet", f"{called}The same numbers again: seed={self.seed}.")]

    def to_dict(self) -> dict[str, Any]:
        """The outcome as plain JSON values."""
        return {"id": self.id, "state": self.state, "passed": self.passed, "rung": self.rung,
                "looks_like": self.looks_like, "seed": self.seed, "message": self.message}

    def __repr__(self) -> str:
        _, sign = LOOKS[self.state]
        lines = [f"{sign} {self.headline}"] + [f"  {text}" for _, text in self._paragraphs()]
        if self.picture:
            lines += [self.picture.text(), f"    {self.picture.caption} {LEGEND}"]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        colour, sign = LOOKS[self.state]
        styles = {"": "", "question": "font-style:italic;",
                  "quiet": "opacity:0.75;font-size:90%;"}
        body = "".join(f'<div style="margin-top:4px;{styles[kind]}">{marked_up(text)}</div>'
                       for kind, text in self._paragraphs())
        if self.picture:
            caption = escape(f"{self.picture.caption} {LEGEND}")
            body += f'{self.picture.table()}<div style="{styles["quiet"]}">{caption}</div>'
        # No text colour of its own, and a thin tint: it reads on light and on dark pages.
        return (f'<div style="border-left:5px solid {colour};background:{colour}1a;'
                f'padding:6px 12px;max-width:76ch;line-height:1.4">'
                f'<div style="font-weight:600"><span aria-hidden="true">{sign} </span>'
                f"<span>{escape(self.headline)}</span></div>{body}</div>")
