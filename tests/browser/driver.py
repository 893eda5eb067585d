"""Chromium, Node and the driver for the tests that look at pages as a reader does.

Unusual here: the driver is playwright-core out of npm, in this folder, for every such test; two
workers may want it in the same moment, so one installs it and the other waits.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def found(*names: str) -> str:
    """The first of these programs on the PATH; without any, skip, but on CI fail."""
    for name in names:
        if path := shutil.which(name):
            return path
    reason = f"the browser test needs {names[0]} on the PATH (see README.md)"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def node() -> str:
    """Node, with the driver installed beside drive.mjs."""
    program, npm = found("node"), found("npm")
    lock = ROOT / ".artifacts" / "npm.lock"
    lock.parent.mkdir(exist_ok=True)
    with FileLock(lock):
        if (HERE / "node_modules" / "playwright-core" / "package.json").exists():
            return program
        done = subprocess.run([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=HERE,
                              capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode and os.environ.get("CI") != "true":
        pytest.skip("npm could not have playwright-core: is there a network?")
    assert done.returncode == 0, done.stderr
    return program
