"""The link check finds what leads nowhere, and nothing else."""

import pytest

from book import links

GOOD = """<h1 id="top">x</h1><a href="#top">a</a><a href="sub/other.html#there">b</a>
<a href="https://arxiv.org/abs/2507.20534">c</a><img src="data:image/png;base64,AA=="/>
<link rel="stylesheet" href="_static/a.css?v=1"/><link rel="next" href="sub/other.html"/>"""


@pytest.fixture
def site(tmp_path):
    for name, text in {"index.html": GOOD, "sub/other.html": '<p id="there"></p>',
                       "_static/a.css": "", "_static/inside.html": '<a href="nowhere">'}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_whole_site_has_no_broken_link(site):
    assert links.broken(site) == []


@pytest.mark.parametrize("line, said", [
    ('<a href="gone.html">', "gone.html is not there"),
    ('<a href="sub/other.html#elsewhere">', "has no such place"),
    ('<a href="#elsewhere">', "has no such place"),
    ('<a href="../outside.html">', "is not there"),
    ('<img src="gone.png">', "is not there"),
    ('<a href="https:///x">', "is no address"),
    ('<a href="javascript:alert(1)">', "is no address"),
    ('<a href="mailto:nobody">', "is no address"),
    ('<script src="https://a.example/x.js"></script>', "would be fetched from the web"),
    ('<script src="//a.example/x.js"></script>', "would be fetched from the web"),
    ('<link rel="preload" href="https://a.example/f.woff2">', "would be fetched from the web"),
])
def test_what_is_broken_is_named(site, line, said):
    (site / "index.html").write_text(GOOD + line)
    (problem,) = links.broken(site)
    assert problem.startswith("index.html: ") and problem.endswith(said)
