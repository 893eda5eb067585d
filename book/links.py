"""The link check: every address in the built pages leads to a file and an anchor that is there.

Unusual here: nothing is asked of the network. A web address must be well formed and is never needed
to show a page: scripts, styles, pictures and fonts that would be fetched are broken links as well.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What a browser fetches by itself, against what a reader may follow.
FETCHED = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"),
           ("video", "src"), ("audio", "src"), ("object", "data"), ("embed", "src")}
STYLES = {"stylesheet", "preload", "prefetch", "preconnect", "dns-prefetch", "modulepreload",
          "icon"}
HOST = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)*(:\d+)?", re.I)
OWN = "_static"  # the theme's files, which no reader opens


class Page(HTMLParser):
    """One page's anchors, its links, and what it would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, pairs: list[tuple[str, str | None]]) -> None:
        found = {key: value or "" for key, value in pairs}
        self.anchors |= {found[key] for key in ("id", "name") if key in found}
        for key, value in found.items():
            if (tag, key) in FETCHED:
                self.fetched.append(value)
        if "href" in found:
            fetches = tag == "link" and STYLES & set(found.get("rel", "").split())
            (self.fetched if fetches else self.links).append(found["href"])


def well_formed(address: str) -> bool:
    """Whether a web or mail address could lead anywhere."""
    parts = urlsplit(address)
    if parts.scheme == "mailto":
        return "@" in parts.path
    return parts.scheme in ("http", "https") and bool(HOST.fullmatch(parts.netloc))


def broken(html: Path) -> list[str]:
    """A line for each link that leads nowhere, and for each that would fetch from the web."""
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8"))
             for path in sorted(html.rglob("*.html")) if OWN not in path.parts}
    out = []
    for path, page in pages.items():
        for target in dict.fromkeys([*page.fetched, *page.links]):
            if problem := why_broken(html, pages, path, target, target in page.fetched):
                out.append(f"{path.relative_to(html.resolve())}: {target} {problem}")
    return out


def why_broken(html: Path, pages: dict[Path, Page], path: Path, target: str,
               fetched: bool) -> str:
    """What is wrong with a link that stands on the page at `path`; "" where nothing is."""
    parts = urlsplit(target)
    if parts.scheme == "data":
        return ""
    if parts.scheme or parts.netloc:
        if fetched:
            return "would be fetched from the web"
        return "" if well_formed(target) else "is no address"
    file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if not file.is_relative_to(html.resolve()) or not file.is_file():
        return "is not there"
    anchor = unquote(parts.fragment)
    if anchor and file in pages and anchor not in pages[file].anchors:
        return "has no such place"
    return ""
