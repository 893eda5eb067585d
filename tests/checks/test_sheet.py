"""The sheets: what a learner reads, and that nothing in a submission becomes part of the page."""

import os
from html.parser import HTMLParser

import pytest

from minik2.checks import find
from minik2.checks.grade import Row, grade
from minik2.checks.marking import OUTCOMES, Mark
from minik2.checks.sheet import HEAD, names, sheet
from tests.checks.worksheets import CACHE, COUNT, READ, RIGHT, save, worksheet

HOSTILE = "</pre></p><script>alert(1)</script><img src=x onerror=alert(1)> &lt; \" '"


class Page(HTMLParser):
    """Tags with their attributes, the text, and whether every tag was closed in its turn."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def page(*rows: Row, **more) -> Page:
    return Page(sheet("anna", rows, **more))


def row(exercise: str, outcome: str, file: str = "anna/a.ipynb", **more) -> Row:
    said = more.pop("message", f"{exercise}: {outcome}\nWhat was seen.")
    return Row(file, Mark(exercise, outcome, said, **more))


def test_what_the_check_said_stands_under_its_exercise_lesson_by_lesson():
    made = page(
        row("rope.rotate", "failed", seconds=1.26, picture="    . 9\n    where", note="look here"),
        row(COUNT, "passed", seconds=0.5), row(READ, "not attempted"))
    rest = made.text
    for text in (
        "1 of 3 exercises passed. 1 notebook, checked in 1.8 s by minik2",
        "K2 in one hour", "1 of 2 passed", "○ Read a released config: not attempted",
        "✓ Count one expert: passed", "What was seen.",
        "Attention and rotary positions", "0 of 1 passed",
        f"✗ {find('rope.rotate').title}: failed", "What was seen.", "    . 9", "where",
        "Note: look here.", "rope.rotate, difficulty", "in anna/a.ipynb; 1.3 s",
    ):
        before, found, rest = rest.partition(text)
        assert found, f"{text!r} does not follow {before[-200:]!r}"
    assert made.open == []
    assert "rope.rotate: failed" not in made.text, "the headline says it once"


def test_every_outcome_has_its_place():
    for outcome in OUTCOMES:
        made = page(row(COUNT, outcome))
        assert f"Count one expert: {outcome}" in made.text


@pytest.mark.parametrize("field", ["learner", "file", "message", "note", "picture", "unreadable"])
def test_nothing_from_a_submission_becomes_markup(field):
    marked = {name: HOSTILE for name in ("message", "note", "picture") if name == field}
    file = HOSTILE if field == "file" else "a.ipynb"
    outcome = ("", "unreadable") if field == "unreadable" else (COUNT, "failed")
    rows = [row(*outcome, file=file, **marked, **(
        {"message": HOSTILE} if field == "unreadable" else {}))]
    made = Page(sheet(HOSTILE if field == "learner" else "anna", rows))
    assert HOSTILE in made.text.replace("\n", "")
    plain = page(row(COUNT, "failed", note="x", picture="x"))
    assert {tag for tag, _ in made.tags} <= {tag for tag, _ in plain.tags}
    assert all(set(attributes) <= {"style", "class", "aria-hidden"}
               for tag, attributes in made.tags if tag not in ("meta", "html"))
    assert made.open == []


def test_the_page_may_run_and_load_nothing():
    made = page(row(COUNT, "failed"))
    policies = [a["content"] for tag, a in made.tags if a.get("http-equiv")]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]
    assert not [a for _, a in made.tags if {"src", "href"} & set(a)]
    assert "://" not in HEAD and "@import" not in HEAD and "url(" not in HEAD


def test_the_best_of_several_answers_counts():
    made = page(row(COUNT, "failed", "anna/b.ipynb"), row(COUNT, "passed", "anna/c.ipynb"),
                row(COUNT, "not attempted", "anna/a.ipynb"))
    assert "1 of 1 exercises passed. 3 notebooks" in made.text
    assert "in anna/c.ipynb, the best of 3 answers" in made.text
    assert made.text.count("Count one expert") == 1


def test_lessons_without_a_notebook_are_named_where_lessons_were_asked_for():
    assert "No readable notebook for: lesson 01, lesson 03." in page(
        row(COUNT, "failed"), lessons={"03", "00", "01"}).text
    assert "No readable" not in page(row(COUNT, "failed")).text


def test_a_file_that_cannot_be_read_is_told():
    made = page(row("", "unreadable", "anna/x.ipynb", message="x.ipynb is no notebook."))
    assert "? anna/x.ipynb: unreadable" in made.text and "x.ipynb is no notebook." in made.text
    assert "0 of 0 exercises passed" in made.text


def test_names_of_files_are_plain_and_no_two_alike():
    learners = ["anna", "ANNA", "../../etc", "<b>", "a/b", "", "..", "李明", "x" * 300, "=1+1",
                "a:b"]
    made = names(learners)
    assert list(made) == learners
    assert len({name.casefold() for name in made.values()}) == len(learners)
    for name in made.values():
        assert not set(name) & set("/\\:<>\"'*?| \n\0") and name[0] not in ".-="
        assert name.endswith(".html") and len(os.fsencode(name)) < 255
    assert made["anna"] == "anna.html" and made["李明"] == "李明.html"
    assert names(reversed(learners)).keys() == made.keys()


@pytest.mark.skipif(os.name != "posix", reason="the sandbox needs Linux or macOS")
def test_a_real_submission_from_end_to_end(tmp_path):
    source = f"def count_expert(config):\n    raise ValueError({HOSTILE!r})"
    save(tmp_path / "anna" / "a.ipynb", worksheet({READ: RIGHT[READ], COUNT: source}))
    (rows,) = grade(tmp_path)
    made = page(*rows)
    assert f"ValueError says: {HOSTILE}" in made.text and made.open == []
    assert "1 of 3 exercises passed" in made.text
    assert f"{find(CACHE).title}: not attempted" in made.text
