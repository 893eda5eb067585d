"""Build the book: `python -m book.build`, or `make book`. Nothing is fetched, nothing is run.

Unusual here: MathJax is not linked to but copied, one file out of a package that pip installed, and
only if it is byte for byte the released one.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from book import links, stage
from book.text import BookError

OUT = stage.ROOT / "build" / "book"
# MathJax 3.2.2's es5/tex-svg.js, as its makers released it; sphinx-mathjax-offline carries it.
MATHJAX = "sphinx-mathjax-offline/static/mathjax/tex-svg.js"
MATHJAX_SHA256 = "d4295dc33744836935c1399feece5159577b34c5c8ffb9f1c6324cd82e03a882"


def mathjax() -> Path:
    """The one file that draws mathematics; BookError where it is missing or another one."""
    try:
        path = Path(str(metadata.distribution("sphinx-mathjax-offline").locate_file(MATHJAX)))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except (metadata.PackageNotFoundError, OSError):
        raise BookError("MathJax is missing: `make book` installs it, and so does "
                        "`pip install -e '.[course,book]' -c requirements.lock`.") from None
    if digest != MATHJAX_SHA256:
        raise BookError(f"{path} is not MathJax 3.2.2 as released (SHA-256 {digest}); install "
                        "sphinx-mathjax-offline 0.0.2 again.")
    return path


def sphinx(work: Path) -> None:
    """Make work/html of work/pages. Raises BookError for any warning; it stands on the screen."""
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-c", str(stage.HERE), "-d",
               str(work / "doctrees"), "-W", "--keep-going", "-q", str(work / "pages"),
               str(work / "html")]
    if subprocess.run(command, cwd=stage.ROOT, check=False).returncode:
        raise BookError("Sphinx could not build the book without warnings; they stand above.")


def build(out: Path = OUT, root: Path = stage.ROOT) -> Path:
    """Stage the pages, build them, check their links; returns the first page.

    out: the folder for the book, whose old pages stay until the new ones are whole; root: the
    project. Raises BookError, a sentence.
    """
    work = out / "work"
    shutil.rmtree(work, ignore_errors=True)
    stage.write(stage.collect(root), work / "pages")
    shutil.copyfile(mathjax(), work / "pages" / "_static" / "tex-svg.js")
    sphinx(work)
    if broken := links.broken(work / "html"):
        raise BookError("The book has links that lead nowhere:\n  " + "\n  ".join(broken))
    shutil.rmtree(out / "html", ignore_errors=True)
    (work / "html").rename(out / "html")
    shutil.rmtree(work)
    return out / "html" / "index.html"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m book.build",
                                     description=(__doc__ or "").splitlines()[0])
    parser.parse_args(arguments)
    start = time.monotonic()
    try:
        first = build()
    except (BookError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    count = sum(1 for _ in first.parent.rglob("*.html"))
    print(f"The book is built: {count} pages in {time.monotonic() - start:.0f} s. Open\n"
          f"  {first.as_uri()}\n"
          "in a browser, or serve it on this machine with\n"
          f"  python3 -m http.server -b 127.0.0.1 -d {first.parent.relative_to(stage.ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
