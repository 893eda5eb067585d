"""Progress: recomputed where anything it follows from has changed, and from nothing else."""

import json
import os

import pytest

from minik2.checks import progress as module
from minik2.checks.exercise import exercises
from minik2.checks.marking import Mark
from minik2.checks.progress import CACHE, course_folder, fingerprint, progress
from tests.checks.worksheets import CACHE as CACHED
from tests.checks.worksheets import COUNT, READ, RIGHT, code, save, worksheet

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the sandbox needs Linux or macOS")

WRONG = {COUNT: "def count_expert(config):\n    return 0"}


@pytest.fixture
def course(tmp_path):
    """A course of one lesson; nothing is answered yet."""
    for folder in ("notebooks", "exercises"):
        save(tmp_path / folder / "00_lesson.ipynb", worksheet({}))
    return tmp_path


@pytest.fixture
def runs(monkeypatch):
    """Which notebooks were really checked."""
    seen = []

    def counted(notebook, **named):
        seen.append(notebook.path.parent.name)
        return mark(notebook, **named)

    mark = module.mark
    monkeypatch.setattr(module, "mark", counted)
    return seen


def states(course) -> dict[str, str]:
    return {step.exercise.id: step.state for step in progress(course).steps}


def test_nothing_answered(course):
    seen = progress(course)
    assert [step.exercise for step in seen.steps] == exercises()
    assert {step.state for step in seen.steps} == {"not attempted"}
    assert (seen.passed, seen.next.exercise.id) == (0, READ)
    assert str(seen.next.notebook) == os.path.join("notebooks", "00_lesson.ipynb")
    assert seen.steps[-1].notebook is None  # a lesson that this course lacks


def test_the_best_of_the_copies_counts(course):
    save(course / "notebooks" / "00_lesson.ipynb", worksheet({READ: RIGHT[READ], **WRONG}))
    save(course / "exercises" / "00_lesson.ipynb", worksheet({COUNT: RIGHT[COUNT]}))
    save(course / "exercises" / "00_lesson-Copy1.ipynb", worksheet({CACHED: "1 / 0"}))
    seen = progress(course)
    found = {s.exercise.id: (s.state, s.notebook and s.notebook.parts[0]) for s in seen.steps}
    assert found[READ] == ("passed", "notebooks")
    assert found[COUNT] == ("passed", "exercises")
    assert found[CACHED] == ("not yet", "exercises")
    assert (seen.passed, seen.next.exercise.id) == (2, CACHED)


def test_what_has_not_changed_is_not_run_again(course, runs):
    save(course / "notebooks" / "00_lesson.ipynb", worksheet(RIGHT))
    first = states(course)
    assert runs == ["notebooks", "exercises"]
    assert states(course) == first
    assert runs == ["notebooks", "exercises"]


def test_outputs_and_lesson_cells_change_nothing(course, runs):
    path = course / "notebooks" / "00_lesson.ipynb"
    save(path, worksheet(RIGHT))
    states(course)
    raw = json.loads(path.read_text())
    for cell in raw["cells"]:
        cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "passed"}]
    raw["cells"].append(code("plot()", "lesson"))
    path.write_text(json.dumps(raw))
    states(course)
    assert len(runs) == 2


@pytest.mark.parametrize("change", ["answer", "own cell", "helper", "version", "checks"])
def test_what_the_outcome_follows_from_has_it_checked_again(course, runs, change, monkeypatch,
                                                            tmp_path_factory):
    path = course / "notebooks" / "00_lesson.ipynb"
    save(path, worksheet(RIGHT))
    assert states(course)[COUNT] == "passed"
    runs.clear()
    if change == "answer":
        save(path, worksheet(RIGHT | WRONG))
    elif change == "own cell":
        save(path, [*worksheet(RIGHT), code("count_expert = lambda config: 0")])
    elif change == "helper":
        (course / "notebooks" / "helper.py").write_text("x = 1")
    elif change == "version":
        monkeypatch.setattr(module, "__version__", "0.0.0")
    else:
        other = tmp_path_factory.mktemp("checks")
        (other / "lesson00.py").write_text("# a case more")
        monkeypatch.setattr(module, "__file__", str(other / "progress.py"))
    now = states(course)
    assert runs[0] == "notebooks"
    assert now[COUNT] == ("not yet" if change in ("answer", "own cell") else "passed")


def test_a_stopped_process_gets_another_try(course, runs):
    path = course / "notebooks" / "00_lesson.ipynb"
    save(path, worksheet({COUNT: "import os\nos._exit(1)"}))
    assert states(course)[COUNT] == "not yet"
    states(course)
    assert runs.count("notebooks") == 2 and runs.count("exercises") == 1


@pytest.mark.parametrize("junk", [
    "", "{", "[]", "null", '{"a": 1}', '{"a": [1]}', '{"a": [{"exercise": "x"}]}', "[" * 10**5,
    '{"a": [{"exercise": "x", "outcome": "won", "message": ""}]}'])
def test_a_broken_cache_is_made_anew(course, junk):
    (course / CACHE).parent.mkdir()
    (course / CACHE).write_text(junk)
    assert states(course)[READ] == "not attempted"
    assert len(json.loads((course / CACHE).read_text())) == 1  # the two copies are the same


def test_the_cache_forgets_what_is_no_longer_there(course):
    for n in range(3):
        save(course / "notebooks" / "00_lesson.ipynb",
             worksheet({COUNT: f"def count_expert(config):\n    return {n}"}))
        states(course)
    assert len(json.loads((course / CACHE).read_text())) == 2


def test_a_folder_that_cannot_be_written_to_costs_nothing_but_time(course, monkeypatch):
    def refuse(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module, "write_whole", refuse)
    assert states(course)[READ] == "not attempted"
    assert not (course / CACHE).exists()


def test_an_interruption_keeps_what_was_checked(course, runs, monkeypatch):
    save(course / "notebooks" / "00_lesson.ipynb", worksheet(RIGHT))
    counted = module.mark

    def interrupted(notebook, **named):
        if notebook.path.parent.name == "exercises":
            raise KeyboardInterrupt
        return counted(notebook, **named)

    monkeypatch.setattr(module, "mark", interrupted)
    with pytest.raises(KeyboardInterrupt):
        progress(course)
    monkeypatch.setattr(module, "mark", counted)
    assert states(course)[COUNT] == "passed"
    assert runs == ["notebooks", "exercises"]


def test_an_unreadable_copy_is_said_and_the_other_counts(course):
    (course / "notebooks" / "00_lesson.ipynb").write_text("<<<<<<< mine")
    save(course / "exercises" / "00_lesson.ipynb", worksheet(RIGHT))
    seen = progress(course)
    assert seen.passed == 3
    assert seen.troubles == ["notebooks: 00_lesson.ipynb is no notebook: it does not hold JSON."]


def test_the_course_is_found_from_inside_it(course, tmp_path_factory):
    assert course_folder(course / "notebooks") == course.resolve()
    with pytest.raises(FileNotFoundError, match="There are no lessons in"):
        course_folder(tmp_path_factory.mktemp("elsewhere"))


def test_as_json(course):
    told = json.loads(json.dumps(progress(course).to_dict()))
    assert (told["passed"], told["of"]) == (0, len(exercises()))
    lessons = [lesson["lesson"] for lesson in told["lessons"]]
    assert lessons[:2] == ["00", "01"] and lessons == sorted({e.lesson for e in exercises()})
    first = told["lessons"][0]["exercises"][0]
    assert first["exercise"] == READ and first["state"] == "not attempted"
    assert set(first) == {"state", "notebook", *Mark("", "", "").to_dict()}


def test_a_fingerprint_is_the_same_wherever_the_course_lies(course, tmp_path_factory):
    other = tmp_path_factory.mktemp("moved")
    path = save(other / "notebooks" / "00_lesson.ipynb", worksheet({}))
    assert fingerprint(module.read(path)) == fingerprint(
        module.read(course / "exercises" / "00_lesson.ipynb"))
