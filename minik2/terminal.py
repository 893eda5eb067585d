"""What all commands do alike towards a terminal: text that does not steer it, Ctrl-C's status, and
the command that was given.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

INTERRUPTED = 130  # what a shell reports of a command that Ctrl-C ended


def plain(text: str) -> str:
    """Text from a model or a file, its control characters replaced, line ends and tabs kept.

    >>> plain("a\\x1b[2Jb\\n")
    'a\\ufffd[2Jb\\n'
    """
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def command() -> str:
    """This command as it can be typed again, by the shortest name that finds it."""
    program, *words = sys.argv
    if program.endswith(".py"):  # called as python -m minik2
        program, words = sys.executable, ["-m", "minik2", *words]
    if shutil.which(Path(program).name) == program:
        program = Path(program).name
    join = subprocess.list2cmdline if os.name == "nt" else shlex.join
    return join([program, *words])
