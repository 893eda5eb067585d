"""The project's docstrings, which are plain English, as the markup that Sphinx reads.

Unusual here: a docstring has no markup but backticks for code, so everything else that Sphinx would
take for markup (stars, bars, trailing underscores) is written so that it stays what it is. Blocks
between blank lines are of three kinds: all of it indented (shown as it stands), items with hanging
lines (a list), and running text.
"""

from __future__ import annotations

import builtins
import re
import textwrap
from collections.abc import Iterable


def escape(text: str) -> str:
    """Text with `code` in it as reStructuredText: the code as code, every other sign as itself."""
    parts = re.split(r"(``?)([^`]+)\1", text)
    out = []
    for plain, code in zip(parts[::3], [*parts[2::3], ""], strict=True):
        out.append(re.sub(r"([\\*_|`])", r"\\\1", plain))
        if code:
            # A code word may touch a letter or a bracket only with an (invisible) escaped space.
            out.append(rf"\ ``{code}``\ ")
    return "".join(out)


def blocks(lines: Iterable[str]) -> list[list[str]]:
    """The runs of lines between blank lines."""
    out: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            out[-1].append(line.rstrip())
        elif out[-1]:
            out.append([])
    return [block for block in out if block]


def items(block: list[str]) -> list[str]:
    """Each line that begins at the left with the indented lines below it, joined."""
    out: list[str] = []
    for line in block:
        if line.startswith(" ") and out:
            out[-1] += " " + line.strip()
        else:
            out.append(line.strip())
    return out


def convert(lines: Iterable[str]) -> list[str]:
    """A docstring's lines, without their common indent, as lines of reStructuredText."""
    out: list[str] = []
    for block in blocks(lines):
        if block[0].startswith(">>>"):
            out += block
        elif all(line.startswith(" ") for line in block):
            body = textwrap.dedent("\n".join(block)).splitlines()
            out += ["::", "", *("    " + line for line in body)]
        elif any(line.startswith(" ") for line in block):
            out += [f"* {escape(item)}" for item in items(block)]
        else:
            out.append(escape(" ".join(block)))
        out.append("")
    return out


def to_rst(app, what, name, obj, options, lines: list[str]) -> None:
    """Sphinx's hook `autodoc-process-docstring`: changes `lines` in place."""
    lines[:] = convert(lines)


def unlink_builtins(app, doctree) -> None:
    """Sphinx's hook `doctree-read`: an annotation such as `bytes` means Python's own, and is not to
    be linked to whatever here has a field of that name."""
    from sphinx.addnodes import pending_xref

    for node in list(doctree.findall(pending_xref)):
        if node.get("refdomain") == "py" and hasattr(builtins, node.get("reftarget", "")):
            node.replace_self(node.children)
