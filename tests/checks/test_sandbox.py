"""What a cell finds around it when it is run for grading, and what is left when it is over."""

import json
import os
import time
from pathlib import Path

import psutil
import pytest

from minik2.checks import sandbox as sandbox_module
from minik2.checks.notebooks import Cell
from minik2.checks.sandbox import Sandbox, Stopped

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the sandbox needs Linux or macOS")


def run(tmp_path: Path, *sources: str, **limits) -> Sandbox:
    box = Sandbox([Cell(n, source) for n, source in enumerate(sources, 1)], tmp_path, **limits)
    box.run(["look"])
    return box


def look(tmp_path: Path, source: str):
    """What `look()` returns, as a cell would see it."""
    with run(tmp_path, source) as box:
        assert box.troubles == {}
        outcome = box.call("look", (), 5.0)
        assert outcome.trouble is None, outcome
        return outcome.value


def test_the_right_answers_are_not_in_the_process(tmp_path):
    """They lie on the disk, where no process can hide them; but nothing here has loaded them."""
    found = look(tmp_path, '''\
import gc, sys

def look():
    kinds = {type(thing).__name__ for thing in gc.get_objects()}
    loaded = [name for name in sys.modules if name.startswith("minik2.checks")]
    return sorted(kinds & {"Exercise", "Wrong", "Invariant"}), loaded
''')
    assert found == ([], ["minik2.checks"])


def test_the_checks_that_a_notebook_imports_do_nothing(tmp_path):
    found = look(tmp_path, '''\
import minik2
from minik2.checks import check, exercises

def look():
    return check("config.read", look), exercises(), minik2.checks.check is check
''')
    assert found == (None, None, True)


def test_a_cell_sees_little_of_the_grader(tmp_path, monkeypatch):
    monkeypatch.setenv("A_SECRET_TOKEN", "hush")
    names, home, here, arguments, given = look(tmp_path, '''\
import os, sys

def look():
    text = sys.stdin.read()
    return sorted(os.environ), os.environ["HOME"], os.getcwd(), sys.argv, text
''')
    assert "A_SECRET_TOKEN" not in names and "PATH" in names
    assert home == here and not Path(here).exists()  # a folder of its own, gone by now
    assert arguments == ["notebook"] and given == ""


def test_a_cell_has_no_terminal_and_prints_into_nothing(tmp_path, capfd):
    tty = look(tmp_path, '''\
import os, sys
print("to the teacher")
os.write(1, b"to the teacher")
os.write(2, b"to the teacher")

def look():
    try:
        os.open("/dev/tty", os.O_RDWR)
    except OSError:
        return "none"
''')
    assert tty == "none"
    assert capfd.readouterr() == ("", "")


def test_modules_beside_the_notebook_are_found_and_shadow_nothing(tmp_path):
    (tmp_path / "helper.py").write_text("n = 5")
    (tmp_path / "json.py").write_text("1 / 0")
    assert look(tmp_path, "import json, helper\ndef look():\n    return helper.n") == 5


def test_cells_share_names_and_an_error_stops_only_its_own_cell(tmp_path):
    with run(tmp_path, "a = 1\n1 / 0\na = 2", "def look():\n    return a") as box:
        assert box.call("look", (), 5.0).value == 1
        assert box.troubles == {1: "raised ZeroDivisionError at line 2 of your code: `1 / 0`: "
                                   "division by zero"}


def test_a_cell_that_kills_the_process_is_skipped_and_the_rest_run_again(tmp_path):
    marker = tmp_path / "runs"
    with run(tmp_path, f"open({str(marker)!r}, 'a').write('x')", "import os\nos._exit(4)",
             "def look():\n    return 3") as box:
        assert box.call("look", (), 5.0).value == 3
        assert box.troubles == {2: "ended the process (exit status 4)"}
    assert marker.read_text() == "xx"


def test_a_process_that_a_call_killed_is_started_again(tmp_path):
    cells = "import os\ndef look():\n    os._exit(1)", "def other():\n    return 2"
    with run(tmp_path, *cells) as box:
        died = box.call("look", (), 5.0)
        assert (died.trouble.kind, died.trouble.text) == (
            "stopped", "It ended the process (exit status 1).")
        assert not box.alive
        box.run(["other"])
        assert box.call("other", (), 5.0).value == 2


def test_memory_is_blamed_on_the_cell_that_used_it(tmp_path):
    """It is too quick for the watch, and lets go at once after it; the next cell is innocent."""
    greedy = "hoard = b'x' * 300_000_000"
    with run(tmp_path, greedy, "del hoard\ndef look():\n    return 1", memory_mb=200) as box:
        assert list(box.skipped) == [1]
        assert box.troubles[1] == "used more than 200 MB of memory"


def test_address_space_is_not_memory(tmp_path):
    assert look(tmp_path, "import mmap\nroom = mmap.mmap(-1, 20 * 2**30)\n"
                          "def look():\n    return len(room) >> 30") == 20


def test_an_object_that_answers_no_question_costs_only_itself(tmp_path):
    with run(tmp_path, '''\
class Odd:
    def __getattribute__(self, name):
        raise RuntimeError("no")

look = Odd()
''') as box:
        assert box.found == {"look": "an object of type Odd"}


def test_time_that_is_used_up_is_said(tmp_path):
    box = Sandbox([Cell(1, "def look():\n    return 1")], tmp_path, time_limit=30)
    with box:
        box.run(["look"])
        box.deadline = time.monotonic() - 1
        assert box.call("look", (), 5.0).trouble.text == "It had used up its 30 s."
        with pytest.raises(Stopped, match="had used up its 30 s"):
            box.run(["look"])


def test_a_cell_beyond_the_channel_is_skipped(tmp_path):
    with run(tmp_path, f"x = {'1' * 5_000_000!r}", "def look():\n    return 1") as box:
        assert box.call("look", (), 5.0).value == 1
        assert box.troubles[1].startswith("is too large")


def test_a_child_does_not_hold_the_channel(tmp_path):
    """A process that a cell started keeps no copy of the socket to answer on."""
    sockets = look(tmp_path, '''\
import json, os, subprocess, sys

COUNT = """
import json, os, stat
kinds = []
for fd in range(3, 64):
    try:
        kinds.append(stat.S_ISSOCK(os.fstat(fd).st_mode))
    except OSError:
        pass
print(json.dumps(sum(kinds)))
"""

def look():
    plain = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, close_fds=False)
    read, write = os.pipe()
    if os.fork() == 0:
        os.dup2(write, 1)
        exec(COUNT)
        sys.stdout.flush()
        os._exit(0)
    os.wait()
    return json.loads(plain.stdout), json.loads(os.read(read, 100))
''')
    assert sockets == (0, 0)


LEAVES = {
    "a child": "import subprocess\npid = subprocess.Popen(['sleep', '300']).pid",
    "a fork": "import os, time\npid = os.fork()\nif pid == 0:\n    time.sleep(300)",
    # In a session of its own, and its parent is gone.
    "a detached process": '''
import subprocess, sys
program = "import os, time; os.setsid(); pid = os.fork(); pid and print(pid)"
program += "; os.close(1) if pid == 0 else None; time.sleep(300 * (pid == 0))"
pid = int(subprocess.check_output([sys.executable, "-c", program]).split()[0])
''',
}


@pytest.mark.parametrize("what", LEAVES)
def test_nothing_is_left_running(tmp_path, what):
    with run(tmp_path, LEAVES[what], "def look():\n    return pid") as box:
        assert box.troubles == {}
        left = psutil.Process(box.call("look", (), 5.0).value)
        assert left.is_running()
    assert psutil.wait_procs([left], timeout=5)[1] == []


def test_on_windows_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox_module.os, "name", "nt")
    error = None
    try:
        Sandbox([], tmp_path)
    except OSError as raised:
        error = raised
    monkeypatch.undo()
    assert "on Windows use WSL" in str(error)


def test_scratch_folders_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox_module.tempfile, "tempdir", str(tmp_path))
    (tmp_path / "class").mkdir()
    nested = "import os\nfor _ in range(1500):\n    os.mkdir('d')\n    os.chdir('d')"
    with run(tmp_path / "class", "open('left', 'w').write('x')", nested, "look = int") as box:
        assert (box.scratch / "left").exists() and (box.scratch / "d" / "d").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["class"]
    assert json.dumps(box.found) == '{"look": "function"}'
