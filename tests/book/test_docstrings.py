"""Docstrings become markup that shows what they say, and nothing that they do not mean."""

import pytest

from book.docstrings import convert


def test_text_is_one_paragraph_and_no_sign_of_it_is_markup():
    assert convert(["Numbers *args, kv_ and a|b \\ of", "two lines."]) == [
        r"Numbers \*args, kv\_ and a\|b \\ of two lines.", ""]


@pytest.mark.parametrize("text", ["`x_y`", "``x_y``"])
def test_code_is_code(text):
    assert convert([f"the {text}'s rows"]) == [r"the \ ``x_y``\ 's rows", ""]


def test_hanging_lines_are_items():
    assert convert(["a: first", "    goes on", "b: second"]) == [
        "* a: first goes on", "* b: second", ""]


def test_an_indented_block_is_shown_as_it_stands():
    assert convert(["Text", "", "    a   b_", "      c", ""]) == [
        "Text", "", "::", "", "    a   b_", "      c", ""]


def test_examples_stay():
    assert convert([">>> f(*a)", "1"]) == [">>> f(*a)", "1", ""]
