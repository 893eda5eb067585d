"""A function that Numba compiles may take longer at first, in a process of its own as well."""

import dataclasses
import os

import pytest

from minik2.checks import find
from minik2.checks.ladder import climb
from minik2.checks.notebooks import Cell
from minik2.checks.sandbox import GRACE, Borrowed, Sandbox

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the sandbox needs Linux or macOS")

# What Numba's functions look like from outside, with a compiler of a known speed.
COMPILED = f"""
import time

class Compiled:
    ready = False

    @staticmethod
    def py_func(size):
        return [*range(0, size, 2), *range(1, size, 2)]

    def __call__(self, size):
        if not self.ready:
            time.sleep({GRACE + 1})
            self.ready = True
        return self.py_func(size)

to_halves = Compiled()
"""


def result(folder, source: str):
    quick = dataclasses.replace(find("rope.to_halves"), seconds=0.3)
    with Sandbox([Cell(1, source)], folder) as box:
        box.run(["to_halves"])
        assert box.troubles == {}
        return climb(quick, Borrowed(box, "to_halves"), seed=1)


def test_compiling_is_not_taken_for_an_endless_loop(tmp_path):
    made = result(tmp_path, COMPILED)
    assert made.passed, made.message


def test_without_a_compiler_the_same_wait_is_too_long(tmp_path):
    made = result(tmp_path, COMPILED.replace("py_func", "plain"))
    assert "still running after 0.3 s" in made.seen
