"""Markdown taken apart as far as the book needs: sections, links, and what is code and stays.

Unusual here: nothing is parsed for meaning. A document is cut at its headings and at its fences,
and links are found by their brackets; the project's own documents are plain enough for that.
"""

from __future__ import annotations

import re
from collections.abc import Callable

# A fenced block, a span of code, or a comment: text in which nothing is a heading or a link.
LEAVE = re.compile(r"(^(`{3,}|~{3,}).*?^\2`*[ \t]*$|`[^`\n]+`|<!--.*?-->)", re.S | re.M)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
HEADING = re.compile(r"^(#{1,6}) +(.+?) *$", re.M)


class BookError(ValueError):
    """What keeps the book from being built, in one sentence."""


def slug(title: str) -> str:
    """A heading's anchor, as GitHub and MyST make it: "The proof sheet" -> "the-proof-sheet"."""
    return re.sub(r"[^\w -]", "", title.strip().lower()).replace(" ", "-")


def hide(text: str) -> tuple[str, list[str]]:
    """The text with code and comments replaced by marks, and what they stood for."""
    kept: list[str] = []

    def mark(match: re.Match[str]) -> str:
        kept.append(match.group(0))
        return f"\0{len(kept) - 1}\0"

    return LEAVE.sub(mark, text), kept


def show(text: str, kept: list[str]) -> str:
    """What `hide` replaced, put back."""
    return re.sub(r"\0(\d+)\0", lambda m: kept[int(m.group(1))], text)


def headings(text: str, level: int = 0) -> list[str]:
    """Titles of the headings outside code, in order: all of them, or those of one level."""
    bare, kept = hide(text)
    return [show(title, kept) for marks, title in HEADING.findall(bare)
            if level in (0, len(marks))]


def section(text: str, title: str) -> str:
    """The section of that title with its heading and subsections; "" is what stands before the
    first heading of the second level. BookError where there is none."""
    bare, kept = hide(text)
    marks = [(m.start(), len(m.group(1)), show(m.group(2), kept)) for m in HEADING.finditer(bare)]
    if not title:
        end = next((start for start, level, _ in marks if level > 1), len(bare))
        return show(bare[:end].strip(), kept)
    for index, (start, level, name) in enumerate(marks):
        if name == title:
            end = next((s for s, lower, _ in marks[index + 1:] if lower <= level), len(bare))
            return show(bare[start:end].strip(), kept)
    raise BookError(f"There is no section {title!r}; the headings are: "
                    f"{', '.join(name for *_, name in marks)}.")


def relink(text: str, place: Callable[[str], str | None]) -> str:
    """Every link's target as `place` gives it; where it gives None, only the link's words stay.

    Web addresses and code are left as they are.
    """
    bare, kept = hide(text)

    def one(match: re.Match[str]) -> str:
        image, label, target = match.groups()
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            return match.group(0)
        new = place(target)
        return label if new is None else f"{image}[{label}]({new})"

    return show(LINK.sub(one, bare), kept)


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; numbers are set to the right by the first row's look."""
    def right(cell: str) -> bool:
        return bool(re.match(r"[-−+]?[\d.,]+", cell))

    first = rows[0] if rows else header
    rule = ["--:" if right(cell) else "---" for cell in first]
    lines = [header, rule, *rows]
    return "\n".join("| " + " | ".join(c.replace("|", r"\|") for c in line) + " |"
                     for line in lines)
