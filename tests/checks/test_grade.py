"""The table of grades: what is in it, and that no end of the grading takes it away."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from minik2.checks import grade as module
from minik2.checks import marking
from minik2.checks.grade import COLUMNS, Row, grade, lessons_of, submissions, write_table
from minik2.checks.marking import Mark
from minik2.doctor.machine import cores
from minik2.files import write_whole
from tests.checks.worksheets import COUNT, READ, RIGHT, answer, code, save, worksheet

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the sandbox needs Linux or macOS")

WAITS = [*worksheet(RIGHT), code("import sys, time\nopen(sys.path[-1] + '/waits', 'w').close()\n"
                                 "time.sleep(30)")]


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_files_are_found_below_and_hidden_ones_are_not(tmp_path):
    for name in ("b.ipynb", "a/x.ipynb", "A.IPYNB", ".ipynb_checkpoints/b.ipynb", "a/.x.ipynb"):
        save(tmp_path / name, [])
    (tmp_path / "notes.txt").touch()
    (tmp_path / "folder.ipynb").mkdir()
    (tmp_path / "dangling.ipynb").symlink_to(tmp_path / "nowhere")
    found = [str(path.relative_to(tmp_path)) for path in submissions(tmp_path)]
    assert found == ["A.IPYNB", os.path.join("a", "x.ipynb"), "b.ipynb", "dangling.ipynb"]


@pytest.mark.parametrize("text, cell", [
    ("=1+1", "'=1+1"), ("+1", "'+1"), ("-1", "'-1"), ("@x", "'@x"), ("a=1", "a=1"),
    ("two\nlines, \"quoted\"", "two lines, \"quoted\"")])
def test_a_row_is_one_line_and_no_formula(tmp_path, text, cell):
    path = tmp_path / "grades.csv"
    write_table(path, [Row("anna.ipynb", Mark(READ, "failed", text, 2, "x", 7))] * 2)
    assert len(path.read_text().splitlines()) == 3
    (row, _) = table(path)
    assert tuple(row) == COLUMNS
    assert row["message"] == cell
    assert (row["lesson"], row["outcome"], row["rung"], row["seed"]) == ("00", "failed", "2", "7")


def test_a_name_that_is_no_text(tmp_path):
    folder = tmp_path / "class"
    save(folder / "a.ipynb", worksheet({}))
    try:
        os.rename(folder / "a.ipynb", os.fsencode(folder) + b"/\xff\n.ipynb")
    except OSError:
        pytest.skip("this file system takes only names that are text")
    (rows,) = grade(folder)
    assert {row.submission for row in rows} == {"  .ipynb"}
    write_table(tmp_path / "grades.csv", rows)
    assert len(table(tmp_path / "grades.csv")) == 3


def test_our_own_mistake_costs_one_exercise_of_one_submission(tmp_path, monkeypatch):
    def broken(exercise, *arguments, **named):
        if exercise.id == COUNT:
            raise RuntimeError("a bug in a check")
        return climb(exercise, *arguments, **named)

    climb = marking.climb
    monkeypatch.setattr(marking, "climb", broken)
    save(tmp_path / "class" / "a.ipynb", worksheet(RIGHT))
    (rows,) = grade(tmp_path / "class")
    assert [row.mark.outcome for row in rows] == ["passed", "not graded", "passed"]
    assert "RuntimeError: a bug in a check" in rows[1].mark.message


def test_a_seed_gives_the_same_numbers_again(tmp_path):
    wrong = {COUNT: "def count_expert(config):\n    return 2 * config['hidden_size']"}
    save(tmp_path / "class" / "a.ipynb", worksheet(RIGHT | wrong))
    (rows,) = grade(tmp_path / "class")
    made = rows[1].mark
    again = marking.mark(module.read(tmp_path / "class" / "a.ipynb"), seed=made.seed)[1]
    assert (again.message, again.rung) == (made.message, made.rung)


# Each leaves a file beside the notebook and waits for the other's; the answer is right if it came.
MEETS = """\
import pathlib, sys, time
here = pathlib.Path(sys.path[-1])
(here / "{mine}").touch()
until = time.monotonic() + {wait}
while not (here / "{other}").exists() and time.monotonic() < until:
    time.sleep(0.02)
met = (here / "{other}").exists()
"""


@pytest.mark.parametrize("workers, met", [(2, [3, 3]), (1, [2, 3])])
def test_as_many_run_at_a_time_as_there_are_workers(tmp_path, workers, met):
    source = RIGHT[COUNT].replace("return 3", "return met and 3")
    for mine, other in ("ab", "ba"):
        waits = code(MEETS.format(mine=mine, other=other, wait=20 if workers > 1 else 1))
        save(tmp_path / "class" / f"{mine}.ipynb", [waits, *worksheet(RIGHT | {COUNT: source})])
    rows = {made[0].submission: made for made in grade(tmp_path / "class", workers=workers)}
    assert [sum(row.mark.outcome == "passed" for row in rows[name])
            for name in ("a.ipynb", "b.ipynb")] == met


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity") or cores() < 2,
                    reason="there is one core, or the system holds nobody to a core")
def test_each_has_a_core_of_its_own(tmp_path):
    """Its children as well, so that a crowd of them cannot starve the submission beside it."""
    counts = ("import os, subprocess, sys\nmine = os.sched_getaffinity(0)\n"
              "child = subprocess.run([sys.executable, '-c', 'import os; "
              "print(len(os.sched_getaffinity(0)))'], capture_output=True, text=True).stdout")
    alone = RIGHT[COUNT].replace("return 3", "return (len(mine) == 1 and int(child) == 1) and 3")
    for name in "ab":
        save(tmp_path / "class" / f"{name}.ipynb",
             [code(counts), *worksheet(RIGHT | {COUNT: alone})])
    for workers, outcome in ((2, "passed"), (1, "failed")):
        made = [row for rows in grade(tmp_path / "class", workers=workers) for row in rows]
        assert [row.mark.outcome for row in made if row.mark.exercise == COUNT] == [outcome] * 2


def test_lessons_that_are_asked_for(tmp_path):
    save(tmp_path / "class" / "anna" / "a.ipynb", worksheet(RIGHT))
    save(tmp_path / "class" / "anna" / "b.ipynb", [*worksheet(RIGHT), answer("rope.to_halves")])
    (tmp_path / "class" / "anna" / "c.ipynb").write_text("")
    rows = [row for made in grade(tmp_path / "class", lessons=frozenset({"01"})) for row in made]
    assert {row.lesson for row in rows if row.submission.endswith("b.ipynb")} == {"01"}
    assert [row.mark.outcome for row in rows if row.lesson == ""] == ["unreadable"]
    assert {Path(row.submission).name for row in rows} == {"b.ipynb", "c.ipynb"}
    assert {row.learner for row in rows} == {"anna"}


@pytest.mark.parametrize("text, lessons", [
    ("03", "03"), ("3", "03"), ("00-02", "00 01 02"), (" 0 , 4 - 5,4", "00 04 05")])
def test_numbers_and_ranges_name_lessons(text, lessons):
    assert lessons_of(text) == set(lessons.split())


@pytest.mark.parametrize("text, said", [
    ("", "'' names no lessons; write numbers and ranges such as 00-03,05."),
    ("1,", "'1,' names no lessons"), ("one", "'one' names no lessons"), ("1-", "'1-' names no"),
    ("05-03", "The range 05-03 runs backwards; write 03-05."),
    ("00-99", "has no exercises; those that have some are 00, 01,")])
def test_a_slip_in_them_is_a_sentence(text, said):
    with pytest.raises(ValueError) as error:
        lessons_of(text)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_whoever_stops_listening_stops_what_runs(tmp_path):
    save(tmp_path / "class" / "a.ipynb", worksheet(RIGHT))
    for name in "bc":
        save(tmp_path / "class" / f"{name}.ipynb", WAITS)
    begin = time.monotonic()
    rows = grade(tmp_path / "class", workers=3)
    assert [row.mark.outcome for row in next(rows)] == ["passed"] * 3
    rows.close()
    assert time.monotonic() - begin < 14, "b and c have 15 s for their cell"
    assert not [child for child in psutil.Process().children() if is_worker(child)]


def is_worker(process: psutil.Process) -> bool:
    try:
        return "worker.py" in " ".join(process.cmdline())
    except psutil.Error:
        return False  # gone meanwhile


def start(tmp_path: Path) -> subprocess.Popen:
    """`minik2 grade` in a process, once one of two submissions is graded and the other waits."""
    save(tmp_path / "class" / "a.ipynb", worksheet(RIGHT))
    save(tmp_path / "class" / "b.ipynb", WAITS)
    grader = subprocess.Popen(
        [sys.executable, "-m", "minik2", "grade", tmp_path / "class", "-o",
         tmp_path / "grades.csv", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
        # A test run in the background ignores Ctrl-C, and its children would with it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if (tmp_path / "class" / "waits").exists() and table(tmp_path / "grades.csv"):
            return grader
        time.sleep(0.02)
    grader.kill()
    pytest.fail("nothing was graded in 60 s: " + grader.communicate()[1])


def test_ctrl_c_leaves_what_was_graded(tmp_path):
    grader = start(tmp_path)
    grader.send_signal(signal.SIGINT)
    out, err = grader.communicate(timeout=30)
    assert grader.returncode == 130
    assert "1 of 2 graded" in err and "Traceback" not in err
    assert {row["submission"] for row in json.loads(out)} == {"a.ipynb"}
    assert [row["outcome"] for row in table(tmp_path / "grades.csv")] == ["passed"] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "class", "grades-sheets", "grades.csv"]
    assert [path.name for path in (tmp_path / "grades-sheets").iterdir()] == ["a.html"]


def test_so_does_the_grader_being_killed(tmp_path):
    """And the submission that was running ends as well."""
    grader = start(tmp_path)
    workers = psutil.Process(grader.pid).children()
    grader.kill()
    grader.communicate(timeout=30)
    assert [row["submission"] for row in table(tmp_path / "grades.csv")] == ["a.ipynb"] * 3
    # Long before its own limit of 15 s.
    assert workers and psutil.wait_procs(workers, timeout=8)[1] == []


def test_an_old_table_stays_whole_until_the_new_one_is(tmp_path, monkeypatch):
    path = tmp_path / "grades.csv"
    write_whole(path, "old\n")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, "new\n")
    assert path.read_text() == "old\n"
    assert [p.name for p in tmp_path.iterdir()] == ["grades.csv"]


def test_answers_of_two_lessons_in_one_notebook(tmp_path):
    cells = [*worksheet(RIGHT), answer("rope.to_halves")]
    save(tmp_path / "class" / "a.ipynb", cells)
    (rows,) = grade(tmp_path / "class")
    assert {row.to_dict()["lesson"] for row in rows} == {"00", "01"}
    assert {row.mark.exercise: row.mark.outcome for row in rows}["attention.causal"] == "missing"
