"""ruff, mypy, the doctests of the public examples, and house rules that no linter knows."""

import doctest
import importlib
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "minik2").rglob("*.py"))

# Files of about 300 lines or fewer; those that may be longer, each with its reason.
ABOUT_300 = 320
LONGER = {
    "minik2/checks/lesson*.py": "one module a lesson: many short answers, right and wrong",
}


def tool(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff():
    tool("ruff", "check", ".")


def test_mypy():
    tool("mypy")


def with_examples() -> list[str]:
    return [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            for path in MODULES if re.search(r"^\s*>>> ", path.read_text(encoding="utf-8"), re.M)]


@pytest.mark.parametrize("module", with_examples())
def test_examples_in_docstrings(module):
    failed, attempted = doctest.testmod(importlib.import_module(module),
                                        optionflags=doctest.NORMALIZE_WHITESPACE)
    assert attempted and not failed


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_is_short_and_opens_by_saying_what_it_is(path):
    text = path.read_text(encoding="utf-8")
    name, lines = str(path.relative_to(ROOT)), text.count("\n")
    allowed = any(fnmatch(name, pattern) for pattern in LONGER)
    assert lines <= ABOUT_300 or allowed, f"{name} has {lines} lines: one idea a file"
    assert text.startswith(('"""', 'r"""')), f"{name} does not open with what it is"


def committed() -> list[Path]:
    """Files that git tracks here; none outside a clone."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_committed_text_is_at_home_on_every_machine():
    """No host of a package index (mirrors differ), no path of the machine that wrote the file."""
    if not committed():
        pytest.skip("not a git clone")
    # Written in halves, so that this file passes its own test.
    hosts = ["py" "pi.org", "python" "hosted.org", "npm" "js.org", "npm" "js.com",
             "download.py" "torch.org", "conda.ana" "conda.org", "deb.deb" "ian.org"]
    strays = re.compile("|".join(map(re.escape, [*hosts, f"{ROOT}/"])).encode())
    found = [f"{path.relative_to(ROOT)}: {match.group().decode()}"
             for path in committed() if (match := strays.search(path.read_bytes()))]
    assert not found, found


def test_no_caches_or_build_results_are_committed():
    parts = {part for path in committed() for part in path.relative_to(ROOT).parts}
    assert not parts & {"__pycache__", ".venv", "node_modules", ".ipynb_checkpoints"}


def test_the_makefile_explains_every_command():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.search(r"^\.PHONY: (.+)$", makefile, re.M)[1].split()) - {"help"}
    shown = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True).stdout
    assert targets == set(re.findall(r"^  make (\S+) ", shown, re.M))


def test_the_ci_script_is_valid_and_executable():
    script = ROOT / ".ci" / "run"
    subprocess.run(["bash", "-n", script], check=True)
    assert script.stat().st_mode & 0o111
