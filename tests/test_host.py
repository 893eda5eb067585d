"""What a process may use: a container's limits, less what the system would give up at once."""

import os

import psutil
import pytest

from minik2 import host


def test_a_containers_limit_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(host, "GROUP", tmp_path)
    whole = host.memory()[0]
    assert whole == psutil.virtual_memory().total
    (tmp_path / "memory.max").write_text("max\n")
    assert host.memory()[0] == whole
    (tmp_path / "memory.max").write_text(f"{2**20}\n")
    (tmp_path / "memory.current").write_text(f"{2**19}\n")
    assert host.memory() == (2**20, 2**19)


def test_files_that_the_system_holds_are_free_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(host, "GROUP", tmp_path)
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.stat").write_text("anon 300\ninactive_file 600\nactive_file 100\n")
    assert host.memory() == (1000, 600)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads cannot be bound here")
def test_cores_are_those_that_this_process_may_use():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert host.cores() == 1
    finally:
        os.sched_setaffinity(0, before)
