"""Documents cut at headings, links replaced, and what is code left alone."""

import pytest

from book.text import BookError, headings, relink, section, slug, table

DOCUMENT = """# Title

Intro with `# no heading`.

## First part

Text.

```
## in code
[a](b.md)
```

### Below

More.

## Second part

End.
"""


def test_headings_are_those_outside_code():
    assert headings(DOCUMENT) == ["Title", "First part", "Below", "Second part"]
    assert headings(DOCUMENT, 2) == ["First part", "Second part"]


def test_a_section_ends_where_another_of_its_level_begins():
    first = section(DOCUMENT, "First part")
    assert first.startswith("## First part") and first.endswith("More.")
    assert "## in code" in first
    assert section(DOCUMENT, "Below") == "### Below\n\nMore."
    assert section(DOCUMENT, "Second part").endswith("End.")


def test_no_title_is_what_stands_before_the_first_section():
    assert section(DOCUMENT, "") == "# Title\n\nIntro with `# no heading`."


def test_a_missing_section_is_a_sentence_with_those_there_are():
    with pytest.raises(BookError, match=r"no section 'Third'.*First part, Below"):
        section(DOCUMENT, "Third")


def test_links_are_replaced_outside_code_only():
    text = "[x](a.md) `[x](a.md)` ![p](a.md) [w](https://a.example/b) [gone](c.md)\n\n" + (
        "```\n[x](a.md)\n```\n<!-- [x](a.md) -->")
    out = relink(text, {"a.md": "z.html", "c.md": None}.__getitem__)
    assert out == ("[x](z.html) `[x](a.md)` ![p](z.html) [w](https://a.example/b) gone\n\n"
                   "```\n[x](a.md)\n```\n<!-- [x](a.md) -->")


@pytest.mark.parametrize("title, anchor", [
    ("The proof sheet", "the-proof-sheet"), ("K2's claims, tried small", "k2s-claims-tried-small"),
    ("03 · The cache", "03--the-cache")])
def test_anchors_are_those_of_github(title, anchor):
    assert slug(title) == anchor


def test_a_table_sets_numbers_to_the_right_and_keeps_bars():
    assert table(["a", "b"], [["x|y", "1,024"], ["z", "2"]]).splitlines() == [
        "| a | b |", "| --- | --: |", r"| x\|y | 1,024 |", "| z | 2 |"]
