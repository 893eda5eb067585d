"""Reading notebooks that anybody may have written: roles, stubs, and what is not a notebook."""

import json

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from minik2.checks import marking, notebooks
from minik2.checks.notebooks import NotebookError, read, stub_hash
from tests.checks.worksheets import COUNT, READ, RIGHT, answer, check, code, save, stub, worksheet

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(
        st.sampled_from(["cells", "cell_type", "source", "metadata", "minik2", "role",
                         "exercise", "stub_sha256"]), inner, max_size=5)), max_leaves=25)


def test_roles_say_what_runs(tmp_path):
    cells = [code("s", "setup"), answer(READ), check(READ), code("l", "lesson"), code("mine"),
             code("x", "invented")]
    notebook = read(save(tmp_path / "a.ipynb", cells))
    assert [cell.runs for cell in notebook.cells] == [True, True, False, False, True, True]
    assert [cell.number for cell in notebook.cells] == [1, 2, 3, 4, 5, 6]


def test_an_answer_is_edited_when_it_differs_from_its_stub(tmp_path):
    empty = stub(READ)
    for source, edited in ((empty, False), (empty + "\n\n", False), (empty + " 1", True)):
        notebook = read(save(tmp_path / "a.ipynb", [answer(READ, source)]))
        assert notebook.answers[READ].edited == edited
        assert notebook.untouched != edited
    assert stub_hash("a \n") == stub_hash("a") != stub_hash(" a")


def test_a_cell_of_ones_own_is_a_touch_and_an_empty_one_is_not(tmp_path):
    assert read(save(tmp_path / "a.ipynb", [*worksheet({}), code("  \n")])).untouched
    assert not read(save(tmp_path / "b.ipynb", [*worksheet({}), code("x = 1")])).untouched


def test_of_a_cell_pasted_twice_the_edited_one_counts(tmp_path):
    cells = [answer(READ), answer(READ, RIGHT[READ]), answer(READ)]
    assert read(save(tmp_path / "a.ipynb", cells)).answers[READ].number == 2


def test_sources_as_lists_of_lines_and_a_byte_order_mark(tmp_path):
    text = json.dumps({"cells": [{"cell_type": "code", "source": ["a = 1\n", "b = 2"]}]})
    (tmp_path / "a.ipynb").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read(tmp_path / "a.ipynb").cells[0].source == "a = 1\nb = 2"


def test_the_lesson_follows_from_the_answers_and_else_from_the_name(tmp_path):
    notebook = read(save(tmp_path / "anna.ipynb", [answer(COUNT)]))
    assert {e.lesson for e in marking.expected(notebook)} == {"00"}
    assert len(marking.expected(notebook)) == 3  # those whose cells are gone as well
    named = read(save(tmp_path / "01_x.ipynb", [code("x")]))
    assert {e.lesson for e in marking.expected(named)} == {"01"}
    assert marking.expected(read(save(tmp_path / "x.ipynb", [code("x")]))) == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cells=st.lists(JSON, max_size=5), whole=JSON)
def test_any_json_is_read_or_refused_in_a_sentence(tmp_path, cells, whole):
    for raw in ({"cells": cells}, whole):
        path = tmp_path / "00_any.ipynb"
        path.write_text(json.dumps(raw), encoding="utf-8")
        try:
            notebook = read(path)
        except NotebookError as error:
            assert str(error).startswith("00_any.ipynb is no notebook")
        else:
            assert all(isinstance(c.source, str) and isinstance(c.exercise, str)
                       for c in notebook.cells)
            assert len(marking.expected(notebook)) == 3


def test_what_cannot_be_read_is_said(tmp_path, monkeypatch):
    with pytest.raises(NotebookError, match="There is no notebook at"):
        read(tmp_path / "absent.ipynb")
    with pytest.raises(NotebookError, match="There is no notebook at"):
        read(tmp_path)
    path = save(tmp_path / "a.ipynb", [])
    monkeypatch.setattr(notebooks, "MAX_BYTES", 10)
    with pytest.raises(NotebookError, match="clear its outputs"):
        read(path)

    def refuse(*arguments, **named):
        raise PermissionError(13, "Permission denied")

    monkeypatch.undo()
    monkeypatch.setattr(notebooks.Path, "read_text", refuse)
    with pytest.raises(NotebookError, match=r"a\.ipynb cannot be read: Permission denied"):
        read(path)
