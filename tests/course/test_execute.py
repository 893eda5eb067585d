"""Running a notebook: one limit for all of it, whatever it does, and a sentence when it fails."""

import os
import time
from pathlib import Path

import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from lessons import build, views
from lessons.execute import RunError, run


def notebook(*sources: str):
    return new_notebook(cells=[new_markdown_cell("# Words"), *map(new_code_cell, sources)])


def children() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "ipykernel_launcher" in p.cmdline()]


def sleepers() -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", SECONDS]]


def test_outputs_are_kept_and_tidied(tmp_path):
    given = notebook(
        "import sys\nfor n in range(5):\n    print(f'\\r{n} of 4', end='', file=sys.stderr)\n"
        "print('\\rdone', file=sys.stderr)",
        "print('one'); sys.stdout.flush(); print('two')", "6 * 7")
    made = run(given, tmp_path, 60)
    bar, lines, value = (c.outputs for c in made.cells[1:])
    assert [(o.name, o.text) for o in bar] == [("stderr", "done\n")]
    assert [(o.name, o.text) for o in lines] == [("stdout", "one\ntwo\n")]
    assert value[0].data["text/plain"] == "42"
    assert [c.execution_count for c in made.cells[1:]] == [1, 2, 3]
    assert all("execution" not in c.metadata for c in made.cells), "no times of day"
    assert given.cells[1].outputs == [], "the notebook that was given stays as it was"
    assert list(tmp_path.iterdir()) == []


def test_the_kernel_says_of_itself_what_a_notebook_says_before_it_has_run(tmp_path):
    """Or else JupyterLab, which asks it, takes every notebook for changed on opening."""
    before = views.views(views.read(build.sources()[0]))["exercises"].metadata
    assert run(notebook("6 * 7"), tmp_path, 60).metadata.language_info == before.language_info


def test_sliders_are_not_kept_and_the_figure_beside_them_is(tmp_path):
    pytest.importorskip("ipywidgets")
    made = run(notebook("import ipywidgets\nprint('here')\nipywidgets.IntSlider()", "6 * 7"),
               tmp_path, 60)
    assert [o.output_type for o in made.cells[1].outputs] == ["stream"]
    assert made.cells[2].outputs[0].data["text/plain"] == "42"
    assert "widgets" not in made.metadata


SECONDS = f"90.{os.getpid()}"  # a length that no other process sleeps for


# Interrupts are not enough: one ignores them, the other leaves a process behind.
@pytest.mark.parametrize("busy", [
    "while True:\n    try:\n        1 + 1\n    except BaseException:\n        pass",
    f"import subprocess\nsubprocess.run(['sleep', '{SECONDS}'])",
], ids=["ignores interrupts", "waits for a process"])
def test_the_limit_holds_for_the_whole_notebook(tmp_path, busy):
    start = time.monotonic()
    with pytest.raises(RunError, match="not done after 6 s and was stopped"):
        run(notebook("x = 1", busy), tmp_path, 6)
    assert time.monotonic() - start < 20
    deadline = time.monotonic() + 5
    while (alive := children() + sleepers()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive, "nothing runs on"


@pytest.mark.parametrize(("source", "said"), [
    ("def f(x):\n    return 1 / x\nf(0)", "A cell failed:\n(.*\n)*ZeroDivisionError: division by"),
    ("import os\nos._exit(1)", "Its kernel died"),
])
def test_a_failure_is_told(tmp_path, source, said):
    with pytest.raises(RunError, match=said):
        run(notebook(source), tmp_path, 60)


def test_the_folder_is_where_the_notebook_runs(tmp_path):
    made = run(notebook("import os\nprint(os.getcwd())"), tmp_path, 60)
    assert Path(made.cells[1].outputs[0].text.strip()).resolve() == tmp_path.resolve()
