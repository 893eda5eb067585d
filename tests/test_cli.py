"""The command line: what it prints, where, and with which exit status."""

import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest

import minik2
from tests import commands
from tests.checks.worksheets import COUNT, READ, RIGHT, code, save, worksheet

COMMANDS = ["doctor", "progress", "check", "grade", "size", "generate", "fullsize"]
posix = pytest.mark.skipif(os.name != "posix", reason="the sandbox needs Linux or macOS")


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """call("check", path) -> (exit status, output, errors), run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return partial(commands.call, monkeypatch, capsys)


def python(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, **options)


def test_three_ways_to_call_it():
    for way in (["-m", "minik2"], ["-m", "minik2.cli"]):
        done = python(*way, "--version")
        assert (done.returncode, done.stdout) == (0, f"minik2 {minik2.__version__}\n")
    script = Path(sys.executable).with_name("minik2")
    if script.exists():  # absent where the package was not installed
        done = subprocess.run([script, "--version"], capture_output=True, text=True)
        assert done.stdout == f"minik2 {minik2.__version__}\n"


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_says_what_there_is(call, command):
    status, out, err = call(*filter(None, [command]), "--help")
    assert (status, err) == (0, "")
    expected = COMMANDS if command is None else ["--json"]
    assert all(word in out for word in expected)


def test_help_loads_nothing_heavy():
    heavy = {"torch", "numba", "matplotlib", "numpy", "transformers", "IPython"}
    done = python("-c", "import sys\nfrom minik2 import cli\nsys.argv = ['minik2', '--help']\n"
                        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
                        f"print(sorted({heavy} & set(sys.modules)))")
    assert done.stdout.splitlines()[-1] == "[]"


def test_an_unknown_command_or_option_is_an_error(call):
    for arguments in (["gradee"], ["check", "--fast"], ["check"], ["grade", "x", "--memory", "0"]):
        status, out, err = call(*arguments)
        assert (status, out) == (2, "") and err


@posix
def test_check_shows_each_exercise(call, tmp_path):
    answers = RIGHT | {COUNT: "def count_expert(config):\n"
                              "    return 2 * config['hidden_size'] * "
                              "config['moe_intermediate_size']"}
    path = save(tmp_path / "a.ipynb", worksheet(answers))
    status, out, err = call("check", path)
    assert (status, err) == (1, "")
    assert "✓ config.read: passed" in out
    assert "✗ config.count_expert: not yet (rung 4 of 4: the values)" in out
    assert "This looks like “two_matrices”" in " ".join(out.split())


@posix
def test_check_succeeds_only_when_all_pass(call, tmp_path):
    path = save(tmp_path / "a.ipynb", worksheet(RIGHT))
    status, out, _ = call("check", path)
    assert status == 0 and out.count("✓") == 3
    for cells, shown in ((worksheet({}), "○ config.read: not attempted"),
                         (worksheet(RIGHT)[:3], "? config.count_expert: missing")):
        status, out, _ = call("check", save(tmp_path / "b.ipynb", cells))
        assert status == 1 and shown in out


@posix
def test_check_as_json(call, tmp_path):
    path = save(tmp_path / "a.ipynb", worksheet(RIGHT))
    status, out, err = call("check", path, "--json", "--seed", 5)
    marks = json.loads(out)
    assert (status, err) == (0, "")
    assert [(m["exercise"], m["outcome"], m["seed"]) for m in marks] == [
        (exercise, "passed", 5) for exercise in RIGHT]


@posix
def test_text_of_a_submission_is_never_markup(call, tmp_path):
    source = "def count_expert(config):\n    raise ValueError('[bold]x[/nonsense] [link=a]')"
    path = save(tmp_path / "a.ipynb", worksheet({COUNT: source}))
    status, out, _ = call("check", path)
    assert status == 1 and "[bold]x[/nonsense] [link=a]" in out


@posix
def test_check_shows_the_picture_of_the_error(call, tmp_path):
    source = "def causal(q, k, v):\n    return np.ones((len(q), v.shape[1]))"
    path = save(tmp_path / "a.ipynb", worksheet({"attention.causal": source}, "01"))
    _, out, _ = call("check", path)
    assert "A dot = right, 1 to 9 = wrong" in " ".join(out.split())


@pytest.mark.parametrize("arguments, sentence", [
    (["check", "absent.ipynb"], "There is no file absent.ipynb; give the path of an .ipynb file."),
    (["check", "00_lessson.ipynb"], "There is no file 00_lessson.ipynb; did you mean "
                                    "00_lesson.ipynb?"),
    (["check", "01_other.ipynb"], "There is no file 01_other.ipynb; did you mean "
                                  "{way}?"),
    (["check", "folder"], "folder is a folder, and `minik2 check` takes one notebook; "
                          "`minik2 progress` looks at all of yours."),
    (["check", "00_lesson.py"], "00_lesson.py is a Python file; give the notebook, such as "
                                "notebooks/00_lesson.ipynb."),
    (["check", "text.ipynb"], "text.ipynb is no notebook: it does not hold JSON."),
    (["check", "other.ipynb"], "other.ipynb holds no exercise of this course: none of its cells "
                               "is marked as an answer."),
    (["grade", "absent"], "There is no folder absent."),
    (["grade", "00_lesson.ipynb"], "00_lesson.ipynb is a file, and `minik2 grade` takes a folder "
                                   "of submissions; for one notebook use `minik2 check`."),
    (["grade", "folder"], "There are no notebooks (.ipynb) in folder."),
    (["grade", ".", "-o", "folder"], "folder is no name for a table; give one such as "
                                     "grades.csv."),
    (["grade", ".", "-o", "text.ipynb"], "text.ipynb is no name for a table; give one such as "
                                         "grades.csv."),
    (["grade", ".", "--lessons", "all"], "'all' names no lessons; write numbers and ranges such as "
                                         "00-03,05."),
    (["grade", ".", "--sheets", "text.ipynb"], "text.ipynb is no name for a folder of sheets; give "
                                               "one such as grades-sheets."),
    (["grade", ".", "-o", "absent/g.csv"], "There is no folder absent to write g.csv into."),
    (["progress", "/"], "There are no lessons in / or above it: go to the course's folder, the "
                        "one that holds notebooks/ and exercises/, or name it."),
])
def test_a_slip_is_answered_in_one_sentence(call, tmp_path, arguments, sentence):
    save(tmp_path / "00_lesson.ipynb", worksheet({}))
    save(tmp_path / "other.ipynb", [code("1")])
    (tmp_path / "00_lesson.py").touch()
    (tmp_path / "folder").mkdir()
    way = save(tmp_path / "notebooks" / "01_other.ipynb", []).relative_to(tmp_path)
    (tmp_path / "text.ipynb").write_text("text")
    status, out, err = call(*arguments)
    assert (status, out) == (1, "")
    assert err == sentence.format(way=way)


@posix
def test_progress_shows_the_path(call, tmp_path):
    save(tmp_path / "notebooks" / "00_lesson.ipynb", worksheet(
        {READ: RIGHT[READ], COUNT: "def count_expert(config):\n    return 0"}))
    (tmp_path / "exercises").mkdir()
    (tmp_path / "exercises" / "00_lesson.ipynb").write_text("broken")
    status, out, err = call("progress")
    assert (status, err) == (0, "")
    assert "00  K2 in one hour  ✓✗○  1 of 3" in out
    assert "✗ not yet        config.count_expert" in out
    assert "? exercises: 00_lesson.ipynb is no notebook" in out
    lines = out.rstrip().splitlines()
    assert lines[-1].endswith(f"Next: {COUNT}, in {Path('notebooks', '00_lesson.ipynb')}")
    status, out, _ = call("progress", "notebooks", "--json")
    assert status == 0 and json.loads(out)["passed"] == 1


@posix
def test_grade_writes_a_table_and_shows_it(call, tmp_path):
    save(tmp_path / "class" / "anna.ipynb", worksheet(RIGHT))
    save(tmp_path / "class" / "[bold]bert.ipynb", worksheet({COUNT: "count_expert = 1"}))
    (tmp_path / "class" / "carl.ipynb").write_text("")
    status, out, err = call("grade", "class")
    assert status == 0
    assert re.fullmatch(r"3 of 3 graded in \d+\.\d s, \d+\.\d s each; the rows are in grades\.csv, "
                        r"the sheets in grades-sheets\.\n", err)
    assert sorted(path.name for path in (tmp_path / "grades-sheets").iterdir()) == [
        "anna.html", "bold_bert.html", "carl.html"]
    assert "3 of 3 exercises passed" in (tmp_path / "grades-sheets" / "anna.html").read_text()
    shown = " ".join(out.split())
    assert "anna.ipynb 3 of 3" in shown and "carl.ipynb unreadable" in shown
    assert "[bold]bert.ipynb 0 of 3 config.read not attempted; config.count_expert failed;" in shown
    assert len((tmp_path / "grades.csv").read_text().splitlines()) == 1 + 3 + 3 + 1
    status, out, _ = call("grade", "class", "-o", "other.csv", "--sheets", "pages", "--json")
    rows = json.loads(out)
    assert status == 0 and len(rows) == 7 and (tmp_path / "pages" / "carl.html").exists()
    assert rows[-1] | {"message": ""} == {
        "learner": "carl", "submission": "carl.ipynb", "lesson": "", "exercise": "",
        "outcome": "unreadable", "rung": None, "looks_like": None, "seed": None, "seconds": 0.0,
        "note": "", "message": ""}


@posix
def test_a_table_that_cannot_be_written_is_a_sentence(call, tmp_path, monkeypatch):
    from minik2.checks import grade

    def full(*arguments):
        raise OSError(28, "No space left on device", "grades.csv")

    monkeypatch.setattr(grade, "write_whole", full)
    save(tmp_path / "class" / "anna.ipynb", worksheet(RIGHT))
    assert call("grade", "class") == (1, "", "No space left on device: grades.csv")


def test_doctor_prints_the_report(call, monkeypatch):
    from minik2 import doctor

    class Report:
        problems: ClassVar[list[str]] = []

        def __str__(self) -> str:
            return "all is well"

        def to_dict(self) -> dict[str, str]:
            return {"all": "well"}

    monkeypatch.setattr(doctor, "examine", Report)
    assert call("doctor") == (0, "all is well\n", "")
    status, out, _ = call("doctor", "--json")
    assert (status, json.loads(out)) == (0, {"all": "well"})
    Report.problems.append("No memory is left: close a program.")
    assert call("doctor")[0] == 1


def test_a_terminal_that_lacks_the_signs(tmp_path):
    path = save(tmp_path / "a.ipynb", worksheet({}))
    done = python("-m", "minik2", "check", str(path), env=os.environ | {
        "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 1 and "? config.read: not attempted" in done.stdout


@pytest.mark.parametrize("error", [
    "MemoryError('Unable to allocate 3 TiB for an array')",
    "RuntimeError('[enforce fail] DefaultCPUAllocator: can\\'t allocate memory: you tried')",
    "RuntimeError('CUDA out of memory. Tried to allocate 2 GiB')",
])  # fmt: skip
def test_memory_that_runs_out_is_a_sentence(error):
    done = python("-c", "import sys\nfrom minik2 import cli\n"
                        f"def run(**given): raise {error}\n"
                        "cli.app = run\ncli.main()")  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("Memory ran out (") and done.stderr.count("\n") == 1


def test_other_errors_are_not_taken_for_it():
    done = python("-c", "import sys\nfrom minik2 import cli\n"
                        "def run(**given): raise RuntimeError('a defect')\n"
                        "cli.app = run\ncli.main()")  # fmt: skip
    assert "Traceback" in done.stderr and "a defect" in done.stderr
