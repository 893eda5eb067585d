"""The page of sources and the citations in lessons and code say the same."""

from pathlib import Path

import pytest

from book import sources

ROOT = Path(__file__).parents[2]
WORKS = (*sources.PAPERS, *sources.OTHERS)


def test_every_paper_that_is_cited_has_its_line():
    missing = sources.cited(ROOT) - {work.key for work in sources.PAPERS}
    assert not missing, f"give these a line in PAPERS of book/sources.py: {sorted(missing)}"


@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.key)
def test_every_work_on_the_page_is_cited(work):
    assert sources.citing(ROOT, work), f"nobody cites {work.key} any more: take its line out"


def test_the_lessons_lists_are_there_as_they_stand():
    page = sources.page(ROOT)
    lessons = sorted(ROOT.glob("notebooks/[0-9][0-9]_*.ipynb"))
    assert page.count("[The lesson](lessons/") == len(lessons)
    assert "The latent cache, absorption, and why the rotary part is decoupled" in page
    assert "**Next:**" not in page


def test_a_paper_without_a_line_is_shown_by_its_number():
    assert sources.Work("2000.01234", "", "x").shown == (
        "[arXiv 2000.01234](https://arxiv.org/abs/2000.01234)")
