"""tools/bootstrap.py: what it says when it cannot go on, and that it does go on afterwards."""

import ast
import importlib.util
import json
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tools" / "bootstrap.py"


@pytest.fixture
def bootstrap():
    spec = importlib.util.spec_from_file_location("bootstrap", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(clone: Path, *extras: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The script of a clone, as make calls it."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")}
    return subprocess.run([sys.executable, clone / "tools" / "bootstrap.py", *extras],
                          env=environment | variables, capture_output=True, text=True)


@pytest.fixture
def clone(tmp_path):
    """The least that the script needs of a clone: a package without dependencies, and pins."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "bootstrap.py").write_bytes(SCRIPT.read_bytes())
    (tmp_path / "requirements.lock").write_text("numpy==2.0\n")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "minik2"\nversion = "0"\n')
    (tmp_path / "minik2" / "reference").mkdir(parents=True)
    (tmp_path / "minik2" / "reference" / "prepare.py").write_text("print('loops compiled')\n")
    return tmp_path


def last_line(result) -> str:
    return result.stderr.strip().splitlines()[-1]


def test_too_old_a_python_is_told_which_newer_one_is_there(bootstrap, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(bootstrap.Sentence, match=r"needs Python 3\.11 .*, and /p is 3\.9; install"):
        bootstrap.check_python((3, 9, 2), "/p")
    program = tmp_path / "python3.12"
    program.write_text("#!/bin/sh\nexit 127\n")  # what a version manager puts there
    program.chmod(0o755)
    with pytest.raises(bootstrap.Sentence, match="install a newer one"):
        bootstrap.check_python((3, 9, 2), "/p")
    program.write_text("#!/bin/sh\n")
    with pytest.raises(bootstrap.Sentence, match=r"add PYTHON=python3\.12 to the make command"):
        bootstrap.check_python((2, 7, 18), "/p")
    bootstrap.check_python((3, 11, 0), "/p")


def test_an_old_python_can_read_the_script():
    """No syntax younger than Python 3.0, so that even 2.7 gets as far as the sentence."""
    tree = ast.parse(SCRIPT.read_text(encoding="ascii"))
    young = (ast.JoinedStr, ast.NamedExpr, ast.AnnAssign, ast.Nonlocal, ast.Match,
             ast.AsyncFunctionDef, ast.YieldFrom, ast.Starred)
    for node in ast.walk(tree):
        assert not isinstance(node, young), ast.dump(node)
        if isinstance(node, ast.Raise):
            assert node.cause is None, "raise … from is younger than 2.7"
        if isinstance(node, ast.FunctionDef):
            assert node.returns is None and not node.args.kwonlyargs
            assert all(argument.annotation is None for argument in node.args.args)


def test_a_full_disk_is_said_before_anything_is_written(bootstrap, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(bootstrap.shutil, "disk_usage", lambda _: usage(10**12, 10**12, 3 * 10**8))
    with pytest.raises(bootstrap.Sentence, match=r"about 4\.0 GB of disk .* 0\.3 GB free: make"):
        bootstrap.set_up(["course"], [], venv=str(tmp_path / "venv"))
    assert not (tmp_path / "venv").exists()


def test_a_python_without_the_venv_module(bootstrap, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(bootstrap.Sentence, match=r"cannot make a virtual environment .*-venv\)"):
        bootstrap.make_venv(str(tmp_path / "venv"))


def test_a_folder_of_the_users_own_is_not_cleared(bootstrap, tmp_path):
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(bootstrap.Sentence, match="is in the way and is no virtual environment"):
        bootstrap.make_venv(str(tmp_path))
    assert (tmp_path / "letter.txt").read_text() == "mine"


@pytest.mark.parametrize("errors, sentence", [
    ("OSError: [Errno 28] No space left on device", "The disk is full"),
    ("NewConnectionError('…')\nERROR: No matching distribution found for numpy>=2.0\n",
     "pip could not have numpy>=2.0 because the package index was not reached"),
    ("ERROR: No matching distribution found for torch==9 (from x)", "could not have torch==9 from"),
    ("ERROR: ResolutionImpossible: see below", "no set of versions that fits requirements.lock"),
    ("ReadTimeoutError: read timed out", "could not have a package because the package index"),
    ("something else", "pip failed; its message stands above"),
])
def test_what_pip_says_becomes_one_sentence(bootstrap, errors, sentence):
    said = bootstrap.explain(errors, "make course")
    assert said.startswith(sentence) or sentence in said
    assert "\n" not in said
    assert "make course" in said or "CONTRIBUTING" in said


def test_without_a_network_then_with_what_was_missing(clone):
    """Fails in a sentence, leaves no stamp, and the same command goes on in the same .venv."""
    failed = run(clone, "course", PIP_ARGS="--no-index --disable-pip-version-check",
                 MINIK2_COMMAND="make course")
    assert failed.returncode == 1
    assert last_line(failed).startswith("pip could not have setuptools")
    assert last_line(failed).endswith("Run `make course` again afterwards: it goes on where it "
                                      "stopped.")
    assert "Traceback" not in failed.stderr
    assert (clone / ".venv" / "pyvenv.cfg").exists()
    assert not (clone / ".venv" / "minik2-stamp.json").exists()

    # A build backend of a few lines stands in for the download.
    loops = clone / "minik2" / "reference" / "prepare.py"
    (clone / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "minik2"\nversion = "0"\n')
    (clone / "backend.py").write_text(BACKEND)
    made = (clone / ".venv" / "pyvenv.cfg").stat().st_mtime_ns
    done = run(clone, "course", PIP_ARGS="--no-index")
    assert done.returncode == 0, done.stderr
    assert "the set-up is complete" in done.stdout and "loops compiled" in done.stdout
    assert (clone / ".venv" / "pyvenv.cfg").stat().st_mtime_ns == made

    again = run(clone, "course")
    assert (again.returncode, again.stdout) == (0, "")
    loops.write_text("raise SystemExit(1)\n")
    more = run(clone, "test")
    assert more.returncode == 0, more.stderr
    assert "they failed, see above; each is compiled when" in more.stdout
    stamp = json.loads((clone / ".venv" / "minik2-stamp.json").read_text())
    assert stamp["extras"] == ["course", "test"]  # they add up
    assert stamp["pip_args"] == ["--no-index"]  # and the choice of an index is remembered
    assert run(clone, "course").stdout == ""

    (clone / "requirements.lock").write_text("numpy==2.1\n")
    assert "pip install" in run(clone, "course").stdout  # new pins are installed


BACKEND = '''
import zipfile

def build_editable(folder, config_settings=None, metadata_directory=None):
    name = "minik2-0-py3-none-any.whl"
    info = "minik2-0.dist-info/"
    with zipfile.ZipFile(folder + "/" + name, "w") as wheel:
        wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: minik2\\nVersion: 0\\n"
                       "Provides-Extra: course\\nProvides-Extra: test\\n")
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nGenerator: x\\n"
                       "Root-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(info + "RECORD", info + "METADATA,,\\n" + info + "WHEEL,,\\n"
                       + info + "RECORD,,\\n")
    return name

def get_requires_for_build_editable(config_settings=None):
    return []
'''


def test_what_compiles_the_loops_ends_with_the_set_up(bootstrap, clone, monkeypatch):
    """pip may fail, or somebody press Ctrl-C, while the loops are being compiled."""
    monkeypatch.setattr(bootstrap, "ROOT", str(clone))
    monkeypatch.setattr(bootstrap, "python_of", lambda venv: sys.executable)
    monkeypatch.setattr(bootstrap, "make_venv", lambda venv: None)
    (clone / "minik2" / "reference" / "prepare.py").write_text("import time\ntime.sleep(60)\n")
    begun = []

    def pip(venv, extras, *rest):
        if extras:
            raise bootstrap.Sentence("pip failed")

    class Loops(bootstrap.Loops):
        def __init__(self, venv):
            super().__init__(venv)
            begun.append(self.process)

    monkeypatch.setattr(bootstrap, "pip_install", pip)
    monkeypatch.setattr(bootstrap, "Loops", Loops)
    with pytest.raises(bootstrap.Sentence, match="pip failed"):
        bootstrap.set_up(["course"], [], venv=str(clone / ".venv"))
    (process,) = begun
    assert process.returncode not in (0, None)
    assert not (clone / ".venv" / "minik2-stamp.json").exists()


def test_an_environment_left_without_pip_is_made_anew(bootstrap, tmp_path):
    venv = tmp_path / "venv"
    venv.mkdir()
    (venv / "pyvenv.cfg").write_text("home = /nowhere\n")
    assert not bootstrap.has_pip(str(venv))
    bootstrap.make_venv(str(venv))
    assert bootstrap.has_pip(str(venv))


def test_half_written_packages_are_forgotten_and_whole_ones_kept(bootstrap, tmp_path):
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    for name in ("half-1.0.dist-info", "whole-1.0.dist-info", "~orch", "whole"):
        (site / name).mkdir(parents=True)
    (site / "whole-1.0.dist-info" / "RECORD").touch()
    bootstrap.repair(str(tmp_path))
    assert sorted(p.name for p in site.iterdir()) == ["whole", "whole-1.0.dist-info"]
