"""A hostile class: what each submission does, and the row that it gets.

The whole class is graded once, in one folder, so that every row also says that the submissions
before it did no harm. Those that must run into a time limit have a class of their own.
"""

import csv
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from minik2.checks import grade
from tests.checks.worksheets import (
    CACHE,
    COUNT,
    READ,
    RIGHT,
    check,
    code,
    save,
    worksheet,
)

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the sandbox needs Linux or macOS")

LIMIT_MB = 400
PASSED = {READ: "passed", COUNT: "passed", CACHE: "passed"}


def answers(**changed: str) -> dict[str, str]:
    """Right answers, some replaced: read=…, count_expert=…, cache_numbers=…"""
    return RIGHT | {f"config.{name}": source for name, source in changed.items()}


def with_cell(source: str, at: int = 1, **changed: str):
    """A worksheet with a cell that the learner added, after the set-up unless said."""
    cells = worksheet(answers(**changed))
    return [*cells[:at], code(source), *cells[at:]]


DIES = "def count_expert(config):\n    import os, signal\n    "
LIES = '''\
import os, socket, sys, json, struct, threading
frame = sys._getframe()
while "ticket" not in frame.f_locals:
    frame = frame.f_back
sock, ticket = frame.f_locals["sock"], frame.f_locals["ticket"]

def tell(message):
    text = json.dumps({"ticket": ticket} | message).encode()
    sock.sendall(struct.pack(">4sII", b"mk2\\n", len(text), 0) + text)
'''
# Speaks the whole protocol in the worker's place: every cell ran, every function is there, and
# every call gave the same number.
TAKE_OVER = LIES + '''
wire = frame.f_globals["wire"]
tell({"trouble": ""})
while True:
    request = wire.receive(sock)
    reply = {"cell": {"trouble": ""},
             "look": {"found": {name: "function" for name in request.get("names", [])},
                      "functions": [], "replaced": False},
             "call": {"value": 42, "mutated": False, "trouble": None}}[request["action"]]
    wire.send(sock, {"ticket": request["ticket"], **reply})
'''
LYING_ANSWERS = '''\
class Equal(dict):
    __eq__ = lambda self, other: True
    __ne__ = lambda self, other: False
    __getitem__ = lambda self, key: self
    __len__ = lambda self: 7

def read(config):
    return Equal()
'''
PATCHED = '''\
import builtins, math
import numpy as np
yes = lambda *a, **k: True
for name in ("allclose", "array_equal", "isclose", "isfinite", "equal", "less_equal", "all"):
    setattr(np, name, yes)
np.testing.assert_allclose = yes
builtins.all = yes
math.isclose = yes
'''
REPLACED = '''\
import sys, types
import minik2, minik2.checks
fake = types.ModuleType("minik2.checks")
fake.check = lambda *a, **k: print("passed")
sys.modules["minik2.checks"] = minik2.checks = fake
check = fake.check
'''
FORK_BOMB = "import os, time\nfor _ in range(7):\n    os.fork()\ntime.sleep(5)"
CROWD = '''\
import subprocess, time
for _ in range(100):
    subprocess.Popen(["sleep", "30"])
time.sleep(5)
'''
# No more than 2 GB, in case the limit fails.
MEMORY = "hoard = []\nfor _ in range(400):\n    hoard.append(b'x' * 5_000_000)\n"


@dataclass
class Pupil:
    """cells of a notebook, or the raw bytes of a file; the outcomes expected of it."""

    cells: list | bytes
    outcomes: dict[str, str]
    looks_like: str = ""
    said: str = ""
    note: str = ""
    never: str = ""


def one_bad(exercise: str, outcome: str) -> dict[str, str]:
    return PASSED | {exercise: outcome}


UNREADABLE = {"": "unreadable"}
# What ends or misleads quickly.
CLASS = {
    "right": Pupil(worksheet(RIGHT), PASSED),
    "wrong": Pupil(
        worksheet(answers(count_expert="def count_expert(c):\n"
                                       "    return 2 * c['hidden_size'] * "
                                       "c['moe_intermediate_size']")),
        one_bad(COUNT, "failed"), looks_like="two_matrices", said="three: the gate"),
    "untouched": Pupil(worksheet({}), dict.fromkeys(PASSED, "not attempted")),
    "half_done": Pupil(worksheet({READ: RIGHT[READ]}),
                       {READ: "passed", COUNT: "not attempted", CACHE: "not attempted"}),
    "sys_exit_in_a_cell": Pupil(
        with_cell("import sys\nsys.exit(0)"), PASSED),
    "sys_exit_in_the_answer": Pupil(
        worksheet(answers(count_expert="import sys\nsys.exit(0)")),
        one_bad(COUNT, "failed"), said="raised SystemExit at line 2"),
    "sys_exit_in_the_function": Pupil(
        worksheet(answers(count_expert="def count_expert(config):\n    raise SystemExit(0)")),
        one_bad(COUNT, "failed"), said="SystemExit at line 2"),
    "os_exit_in_a_cell": Pupil(with_cell("import os\nos._exit(0)"), PASSED),
    "os_exit_in_the_answer": Pupil(
        worksheet(answers(count_expert="import os\nos._exit(7)")),
        one_bad(COUNT, "stopped"), said="ended the process (exit status 7)"),
    "os_exit_in_the_function": Pupil(
        worksheet(answers(count_expert=DIES + "os._exit(0)")),
        one_bad(COUNT, "stopped"), said="ended the process (exit status 0)"),
    "kills_itself": Pupil(
        worksheet(answers(count_expert=DIES + "os.kill(os.getpid(), signal.SIGKILL)")),
        one_bad(COUNT, "stopped"), said="killed by signal 9"),
    "interrupts_itself": Pupil(
        worksheet(answers(count_expert=DIES + "raise KeyboardInterrupt")),
        one_bad(COUNT, "stopped"), said="killed by signal 2"),
    "memory_in_a_cell": Pupil(with_cell(MEMORY), PASSED),
    "memory_in_the_answer": Pupil(
        worksheet(answers(cache_numbers=MEMORY)), one_bad(CACHE, "stopped"),
        said=f"used more than {LIMIT_MB} MB of memory"),
    "memory_in_the_function": Pupil(
        worksheet(answers(cache_numbers="def cache_numbers(config):\n    "
                          + MEMORY.replace("\n", "\n    "))),
        one_bad(CACHE, "stopped"), said=f"used more than {LIMIT_MB} MB of memory"),
    "memory_in_a_child": Pupil(
        worksheet(answers(cache_numbers="import subprocess, sys\n"
                          f"subprocess.run([sys.executable, '-c', {MEMORY!r} "
                          "+ 'import time; time.sleep(9)'])")),
        one_bad(CACHE, "stopped"), said=f"used more than {LIMIT_MB} MB of memory"),
    "fork_bomb": Pupil(  # 128 processes, or as many as the memory allows
        worksheet(answers(read=FORK_BOMB)), one_bad(READ, "stopped"), said="more than"),
    "starts_a_crowd": Pupil(
        worksheet(answers(read=CROWD)), one_bad(READ, "stopped"),
        said="started more than 64 processes"),
    "forks_and_both_go_on": Pupil(with_cell("import os\nchild = os.fork()"), PASSED),
    "leaves_a_thread": Pupil(
        with_cell("import threading, time\n"
                  "threading.Thread(target=lambda: [time.sleep(0.001) for _ in range(10**9)])"
                  ".start()"), PASSED),
    "prints_passed": Pupil(
        worksheet(answers(count_expert="print('config.count_expert: passed')\n"
                                       "def count_expert(config):\n"
                                       "    print('passed', flush=True)\n    return 0")),
        one_bad(COUNT, "failed")),
    "replaces_the_checks": Pupil(
        with_cell(REPLACED, count_expert="def count_expert(config):\n    return 0"),
        one_bad(COUNT, "failed"), note="minik2.checks was replaced, without effect"),
    "patches_numpy": Pupil(
        with_cell(PATCHED, count_expert="def count_expert(config):\n    return 1"),
        one_bad(COUNT, "failed")),
    "answers_equal_to_all": Pupil(
        worksheet(answers(read=LYING_ANSWERS)), one_bad(READ, "failed")),
    "answers_for_the_grader": Pupil(with_cell(TAKE_OVER), dict.fromkeys(PASSED, "failed")),
    "answers_twice": Pupil(
        with_cell(LIES + "tell({'trouble': ''})"), dict.fromkeys(PASSED, "stopped"),
        said="wrote to the grader's own channel"),
    "lies_about_each_call": Pupil(
        worksheet(answers(count_expert=LIES.replace("\n", "\n    ").join(
            ["def count_expert(config):\n    ",
             "tell({'value': 1, 'mutated': False, 'trouble': None})\n    os._exit(0)"]))),
        one_bad(COUNT, "stopped")),
    "breaks_the_protocol": Pupil(
        worksheet(answers(count_expert=LIES.replace("\n", "\n    ").join(
            ["def count_expert(config):\n    ", "tell({'trouble': {'l': [1] * 5}})\n    "]))),
        one_bad(COUNT, "stopped"), said="did not keep to the grader's protocol"),
    "writes_garbage_to_the_socket": Pupil(
        worksheet(answers(count_expert=LIES + "sock.sendall(b'passed' * 1000)")),
        one_bad(COUNT, "stopped"), said="wrote to the grader's own channel"),
    "closes_the_socket": Pupil(
        worksheet(answers(count_expert=LIES + "os.closerange(3, 100)")),
        one_bad(COUNT, "stopped")),
    "returns_too_much": Pupil(
        worksheet(answers(count_expert="def count_expert(config):\n"
                                       "    return np.zeros(2**23 + 1)")),
        one_bad(COUNT, "failed"), said="more than 64 MB"),
    "returns_control_characters": Pupil(
        worksheet(answers(count_expert="def count_expert(config):\n"
                                       "    return type('\\x1b[2Jpassed\\n' * 9, (), {})()")),
        one_bad(COUNT, "failed"), never="\x1b"),
    "edited_check": Pupil(
        [*worksheet(answers(count_expert="def count_expert(config):\n    return 0"))[:4],
         check(COUNT, "print('config.count_expert: passed')"),
         *worksheet(RIGHT)[5:]],
        one_bad(COUNT, "failed"), note="the check's cell was edited, without effect"),
    "without_checks": Pupil(
        [cell for cell in worksheet(RIGHT) if not cell["source"].startswith("check(")],
        PASSED, note="the check's cell is gone"),
    "missing_cell": Pupil(
        worksheet(RIGHT)[:3] + worksheet(RIGHT)[5:], one_bad(COUNT, "missing"),
        said="no answer cell for it, and no function named count_expert"),
    "cell_without_its_mark": Pupil(
        worksheet(RIGHT)[:3] + [code(RIGHT[COUNT])] + worksheet(RIGHT)[5:], PASSED,
        note="the answer cell's mark is missing"),
    "renamed_function": Pupil(
        worksheet(answers(count_expert="def count_experts(config):\n    return 0")),
        one_bad(COUNT, "missing"),
        said="No function is named count_expert; the notebook defines count_experts"),
    "no_function_at_all": Pupil(
        worksheet(answers(count_expert="count_expert = 44040192")), one_bad(COUNT, "failed")),
    "syntax_error": Pupil(
        worksheet(answers(count_expert="def count_expert(config):\n    return 3 *")),
        one_bad(COUNT, "failed"), said="is no valid Python at line 2"),
    "error_in_another_cell": Pupil(
        with_cell("1 / 0\nnever = 1"), PASSED),
    "uses_a_cell_that_is_not_run": Pupil(
        [*worksheet(answers(count_expert="def count_expert(config):\n    return helper(config)")),
         code("helper = lambda config: 0", "lesson")],
        one_bad(COUNT, "failed"), note="`helper` stands in a lesson cell, and those are not run "
                                       "here: copy what defines it into your answer"),
    "uses_a_name_that_is_nowhere": Pupil(
        worksheet(answers(count_expert="def count_expert(config):\n    return helper(config)")),
        one_bad(COUNT, "failed"), note="only set-up cells, answers and cells you added are run: "
                                       "define `helper` in one of them"),
    "magics_and_display": Pupil(
        with_cell("%matplotlib inline\nif True:\n    !ls\ndisplay('shown')\nn = 3",
                  count_expert=RIGHT[COUNT].replace("3 *", "n *")), PASSED),
    "copies_the_engine": Pupil(
        worksheet(answers(count_expert="from minik2.config import ModelConfig\n" + RIGHT[COUNT])),
        PASSED, note="the answer uses minik2's own engine"),
    "prints_without_end": Pupil(
        with_cell("for _ in range(20_000):\n    print('x' * 1000)",
                  count_expert="def count_expert(config):\n    print('y' * 10**7)\n"
                               "    return 3 * config['hidden_size'] * "
                               "config['moe_intermediate_size']"), PASSED),
    "changes_its_argument": Pupil(
        worksheet(answers(count_expert="def count_expert(config):\n"
                                       "    return 3 * config.pop('hidden_size') * "
                                       "config['moe_intermediate_size']")),
        one_bad(COUNT, "failed"), said="changed one of its arguments"),
    "marks_of_wrong_types": Pupil(
        [{"cell_type": "code", "source": ["x = 1\n", 2, None], "metadata": {"minik2": [1]}},
         {"cell_type": "code", "source": {"a": 1}, "metadata": None},
         {"cell_type": "code", "metadata": {"minik2": {"role": ["answer"], "exercise": 3}}},
         *worksheet(RIGHT)], PASSED),
    "hides_its_answer": Pupil(  # forged marks: the answer is a cell that is not run
        [code(c["source"], "lesson", exercise=COUNT) if c["source"] == RIGHT[COUNT] else c
         for c in worksheet(RIGHT)], one_bad(COUNT, "missing")),
    "no_exercise": Pupil([code("print(1)")], UNREADABLE, said="holds no exercise of this course"),
    "not_json": Pupil(b"import numpy", UNREADABLE, said="is no notebook"),
    "empty": Pupil(b"", UNREADABLE, said="is no notebook"),
    "binary": Pupil(bytes(range(256)), UNREADABLE, said="is no notebook"),
    "nested": Pupil(b'{"cells": ' + b"[" * 10**6, UNREADABLE, said="is no notebook"),
    "a_list": Pupil(b"[]", UNREADABLE, said="has no list of cells"),
    "old_format": Pupil(b'{"worksheets": []}', UNREADABLE, said="has no list of cells"),
    "=formula": Pupil(worksheet(RIGHT), PASSED),
}
HARMS_THE_NEXT = '''\
import pathlib, sys
for path in pathlib.Path(sys.path[-1]).glob("*.ipynb"):
    path.write_text("gone")
'''
CLASS["changes_the_others"] = Pupil(with_cell(HARMS_THE_NEXT), PASSED)
CLASS["zz_right_again"] = Pupil(worksheet(RIGHT), PASSED)

# What runs into a limit: half of what is left for a cell, 5 s for a call.
SLOW_LIMIT = 8
ENDLESS = "def read(config):\n    while True:\n        pass"
SLOW = {
    "endless_cell": Pupil(worksheet(answers(read="while True:\n    pass")), one_bad(READ, "failed"),
                          said=" s at line "),
    "endless_function": Pupil(worksheet(answers(read=ENDLESS)), {READ: "failed"},
                              said="at line"),
    "cannot_be_interrupted": Pupil(
        worksheet(answers(read="import signal\nsignal.signal(signal.SIGALRM, signal.SIG_IGN)\n"
                               "signal.setitimer = signal.signal = lambda *a: None\n"
                               "while True:\n    pass")),
        {READ: "stopped"}, said="could not be interrupted"),
    "zz_right_again": Pupil(worksheet(RIGHT), PASSED),
}


def graded(folder: Path, pupils: dict[str, Pupil], seconds: float) -> dict[str, list[dict]]:
    """The rows of the written table, by submission."""
    for name, pupil in pupils.items():
        path = folder / "class" / f"{name}.ipynb"
        if isinstance(pupil.cells, bytes):
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(pupil.cells)
        else:
            save(path, pupil.cells)
    made = grade.grade(folder / "class", time_limit=seconds, memory_mb=LIMIT_MB)
    grade.write_table(folder / "grades.csv", [row for mine in made for row in mine])
    rows: dict[str, list[dict]] = {}
    with open(folder / "grades.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            rows.setdefault(row["submission"].removesuffix(".ipynb"), []).append(row)
    return rows


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return graded(tmp_path_factory.mktemp("quick"), CLASS, 60)


@pytest.fixture(scope="module")
def slow_rows(tmp_path_factory):
    return graded(tmp_path_factory.mktemp("slow"), SLOW, SLOW_LIMIT)


def hold(pupil: Pupil, mine: list[dict]) -> None:
    outcomes = {row["exercise"]: row["outcome"] for row in mine}
    assert {name: outcomes[name] for name in pupil.outcomes} == pupil.outcomes, mine
    bad = [row for row in mine if row["outcome"] != "passed"]
    if pupil.said:
        assert any(pupil.said in row["message"] for row in bad), bad
    if pupil.looks_like:
        assert [row["looks_like"] for row in bad] == [pupil.looks_like]
    if pupil.note:
        assert any(pupil.note in row["note"] for row in mine), mine
    else:
        assert not any("replaced" in row["note"] or "edited" in row["note"] for row in mine)
    assert not pupil.never or not any(pupil.never in "".join(row.values()) for row in mine)
    assert all(row["seed"] for row in mine if row["outcome"] == "passed")


@pytest.mark.parametrize("name", CLASS)
def test_each_submission_gets_its_row(rows, name):
    hold(CLASS[name], rows[name if name[0] != "=" else f"'{name}"])


@pytest.mark.parametrize("name", SLOW)
def test_time_limits(slow_rows, name):
    hold(SLOW[name], slow_rows[name])


def test_one_row_an_exercise_and_nobody_left_out(rows):
    assert {name.lstrip("'") for name in rows} == set(CLASS)
    assert {len(mine) for mine in rows.values()} == {1, 3}


def test_seeds_are_fresh(rows):
    seeds = [row["seed"] for mine in rows.values() for row in mine if row["outcome"] == "passed"]
    assert len(set(seeds)) > 0.9 * len(seeds) > 50
