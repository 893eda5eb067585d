"""A training program keeps memory that it has freed; each in a process, since it is for life."""

import io
import json
import platform
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from minik2 import ModelConfig, cli, heap, training
from minik2.experiments import one

# How many new pages the system had to give out for ten arrays, made and freed one after the other.
PAGES = """
import resource
from minik2 import heap
{before}
def given_out():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
bytearray(40 << 20)
start = given_out()
for _ in range(10):
    bytearray(40 << 20)
print(given_out() - start)
"""


def pages(before: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PAGES.format(before=before)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator is spoken to")
def test_the_same_pages_serve_again():
    assert pages("assert heap.keep()") * 10 < pages("")


def test_another_allocator_is_left_alone(monkeypatch):
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: object())
    assert not heap.keep()


@pytest.mark.parametrize("program", ["train", "experiment"])
def test_programs_that_train_call_it_before_they_do(program, tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(heap, "keep", lambda: called.append("keep"))

    def stop(*given, **named):
        called.append("train")
        raise ValueError("far enough")

    monkeypatch.setattr(training, "train", stop)
    if program == "train":
        assert CliRunner().invoke(cli.app, ["train", "--out", str(tmp_path)]).exit_code == 1
    else:
        job = {"config": ModelConfig.preset("tiny").to_json(),
               "settings": training.Settings().to_json(),
               "data": None, "out": str(tmp_path), "habits": {}}  # fmt: skip
        monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(job)))
        monkeypatch.setattr(one, "_stop_when_left", lambda: None)
        assert one.main() == 1
    assert called == ["keep", "train"]
