"""Every page of the book in headless Chromium, with everything but the book itself refused.

Needs the extra `book`, Chromium, Node and npm. The book is built anew into an empty folder and
opened as files, as a reader without a server does; searching is tried over a local server too.
"""

import functools
import importlib.util
import json
import os
import shutil
import subprocess
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from book import build
from tests.browser.driver import HERE as DRIVER
from tests.browser.driver import ROOT, found, node

PICTURES = ROOT / ".artifacts" / "book"
PHONE = 390
LOOKED_AT = ("index.html", "lessons/03_latent_cache_and_absorption.html", "api/1-reference.html",
             "measurements.html", "exercises.html")

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(900)]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Says nothing: a line a request would bury a failure."""


@pytest.fixture(scope="module")
def html(tmp_path_factory) -> Path:
    if not importlib.util.find_spec("sphinx_book_theme"):
        reason = "the extra `book` is not installed (make book, or make test-all)"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    return build.build(tmp_path_factory.mktemp("book")).parent


@pytest.fixture(scope="module")
def server(html):
    serving = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=html))
    thread = threading.Thread(target=serving.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{serving.server_port}/"
    serving.shutdown()
    serving.server_close()
    thread.join()


@pytest.fixture(scope="module")
def visit(html, server, tmp_path_factory) -> dict:
    program, chromium = node(), found("chromium", "chromium-browser", "google-chrome")
    shutil.rmtree(PICTURES, ignore_errors=True)
    PICTURES.mkdir(parents=True)
    files = f"{html.as_uri()}/"
    job = {
        "driver": str(DRIVER / "package.json"), "chromium": chromium,
        "profile": str(tmp_path_factory.mktemp("profile")), "base": files, "phone": PHONE,
        "pages": [path.relative_to(html).as_posix() for path in sorted(html.rglob("*.html"))
                  if "_static" not in path.parts],
        "searches": [["absorption", files], ["absorption", server]],
        "pictures": {n: str(PICTURES / f"{n.replace('/', '_')}.png") for n in LOOKED_AT},
        "phonePictures": {n: str(PICTURES / f"{n.replace('/', '_')}.phone.png")
                          for n in LOOKED_AT},
    }
    done = subprocess.run([program, Path(__file__).with_name("visit.mjs")], input=json.dumps(job),
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) | {"files": files, "server": server}


def folded() -> dict[str, int]:
    """How many hints and answers each lesson's notebook folds away, by the page's name."""
    return {f"lessons/{path.stem}.html": sum(
                "".join(cell["source"]).count("<details>")
                for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
                if cell["cell_type"] == "markdown")
            for path in ROOT.glob("notebooks/[0-9][0-9]_*.ipynb")}


# One test, so that one worker builds the book once and one browser opens it.
def test_every_page_shows_without_a_network(visit, html):
    seen = visit["seen"]
    assert {"index.html", "search.html", "genindex.html", "glossary.html"} <= set(seen)
    assert sum(name.startswith("lessons/") for name in seen) == len(
        list(ROOT.glob("notebooks/[0-9][0-9]_*.ipynb")))
    trouble = {name: page["problems"] for name, page in seen.items() if page["problems"]}
    assert not trouble, "errors, warnings or requests that left the book"
    raw = {name: page["raw"] for name, page in seen.items() if page["raw"]}
    assert not raw, "LaTeX that MathJax did not draw"
    undrawn = {name: page for name, page in seen.items() if page["formulas"] != page["source"]}
    assert not undrawn and sum(page["formulas"] for page in seen.values()) > 300
    assert not [name for name, page in seen.items() if not page["unfolds"]]
    assert {n: p["folded"] for n, p in seen.items() if n.startswith("lessons/")} == folded()
    wide = {n: (p["width"], p["wide"]) for n, p in seen.items() if p["wide"] or p["width"] > PHONE}
    assert not wide, f"pages wider than a phone's {PHONE} pixels"
    for base in (visit["files"], visit["server"]):
        search = visit["found"][f"absorption {base}"]
        assert not search["problems"]
        assert f"{base}lessons/03_latent_cache_and_absorption.html" in {
            link.split("?")[0].split("#")[0] for link in search["links"][:3]}


@pytest.fixture(scope="module")
def planted(html, tmp_path_factory) -> Path:
    """A copy of one page with everything on it that the visit must notice."""
    folder = tmp_path_factory.mktemp("planted")
    page = html / "glossary.html"
    bad = ("<p>$x_1$ and \\frac{a}{b}</p><div style='width: 800px'>wide</div>"
           "<img src='http://127.0.0.1:9/x.png'><img src='gone.png'>"
           "<script>console.error('planted')</script></article>")
    (folder / "page.html").write_text(page.read_text().replace("</article>", bad, 1))
    shutil.copytree(html / "_static", folder / "_static")
    return folder


def test_the_visit_notices_what_is_planted(planted, tmp_path):
    job = {"driver": str(DRIVER / "package.json"), "profile": str(tmp_path), "phone": PHONE,
           "chromium": found("chromium", "chromium-browser", "google-chrome"),
           "base": f"{planted.as_uri()}/", "pages": ["page.html"], "searches": [],
           "pictures": {}, "phonePictures": {}}
    done = subprocess.run([node(), Path(__file__).with_name("visit.mjs")], input=json.dumps(job),
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = json.loads(done.stdout)["seen"]["page.html"]
    problems = "\n".join(page["problems"])
    for said in ("planted", "asked for http://127.0.0.1:9/x.png", "gone.png"):
        assert said in problems
    assert page["width"] >= 800 and any("wide" in line for line in page["wide"])
    assert any("frac" in line for line in page["raw"])
