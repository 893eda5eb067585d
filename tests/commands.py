"""The command line called in this process, as a person calls it in a shell."""

import sys

import pytest

from minik2 import cli


def call(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    """`minik2` with these arguments -> (exit status, output, errors)."""
    monkeypatch.setattr(sys, "argv", ["minik2", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    out, err = capsys.readouterr()
    # sys.exit("text") prints the text and exits with 1.
    code = end.value.code
    return (1, out, err + code) if isinstance(code, str) else (code or 0, out, err)
