"""The benchmarks of what a learner waits for: imports, checks, lessons."""

import json
import subprocess
import time

import nbformat
import pytest

from benchmarks import imports, lessons, records
from minik2 import checks


def test_an_import_is_timed_over_bare_python_round_by_round(monkeypatch):
    times = {"pass": iter([1.0, 2.0, 6.0]), "import minik2": iter([1.5, 2.25, 6.125])}
    monkeypatch.setattr(imports, "start", lambda code: next(times[code]))
    assert imports.import_seconds(3) == {"bare": 2.0, "minik2": 2.25, "over_bare": 0.25}


def test_a_fresh_interpreter_runs_the_code_to_its_end():
    assert imports.start("import time; time.sleep(0.2)") > 0.2
    with pytest.raises(subprocess.CalledProcessError):
        imports.start("import minik2.no_such_part")


def test_a_slow_import_or_check_fails(monkeypatch, capsys):
    monkeypatch.setattr(imports, "import_seconds", lambda rounds: {"bare": 0.02, "over_bare": 0.31})
    answers = {"quick": {"first": 9.0, "median": 0.1}, "slow": {"first": 0.1, "median": 1.1}}
    monkeypatch.setattr(imports, "check_seconds", lambda rounds: answers)
    assert imports.main([]) == 1
    err = capsys.readouterr().err
    assert "import minik2 takes longer" in err and "slow takes longer" in err
    assert "quick" not in err


def test_every_check_is_timed_on_its_right_answer():
    assert set(imports.check_seconds(1)) == {exercise.id for exercise in checks.exercises()}


def test_a_check_that_refuses_its_right_answer_is_not_timed(monkeypatch):
    result = type("Result", (), {"passed": False, "message": "no"})()
    monkeypatch.setattr(checks, "check", lambda *_, **__: result)
    with pytest.raises(RuntimeError, match="refuses its own right answer"):
        imports.check_seconds(1)


@pytest.fixture
def one_notebook(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "ROOT", tmp_path)
    monkeypatch.setattr(lessons.report, "TIMES", tmp_path / "lessons.json")
    monkeypatch.setattr(lessons.measure, "gflops", lambda library, dtype: 100.0)
    folder = tmp_path / "notebooks"
    folder.mkdir()
    nbformat.write(nbformat.v4.new_notebook(), folder / "00_one.ipynb")

    def run(notebook, path, seconds):
        assert "MINIK2_SHORT" not in lessons.os.environ
        time.sleep(0.05)

    monkeypatch.setattr(lessons.execute, "run", run)
    monkeypatch.setenv("MINIK2_SHORT", "1")
    return tmp_path


def test_lessons_are_timed_at_full_length_for_the_doctor(one_notebook):
    assert lessons.main(["--record"]) == 0
    times = json.loads((one_notebook / "lessons.json").read_text())
    assert 0.05 <= times["seconds"]["00"] < 5
    expected, whence = lessons.report.expected_times({"torch float32": 50.0})
    assert all(lesson.seconds is None or lesson.number == "00" for lesson in expected)
    assert times["date"] in whence


def test_a_slow_lesson_fails(one_notebook, monkeypatch, capsys):
    monkeypatch.setattr(lessons, "LIMITS", {"00": 0.01})
    assert lessons.main([]) == 1
    assert "Lesson 00 takes longer" in capsys.readouterr().err
