"""The benchmark of several processes: every layout measured once, on real ones, and its table."""

import os

import pytest

from benchmarks import ranks


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(os.name != "posix", reason="starts processes by torchrun")
def test_every_layout_is_measured():
    found = ranks.measure(2, ["tiny"], 1)
    assert list(found) == ["tiny"]
    assert list(found["tiny"]) == ["one process", "data", "experts"]
    for layout in found["tiny"].values():
        assert layout["rounds"] == [layout["seconds"]] and layout["seconds"] > 0
    assert found["tiny"]["one process"]["times"]["median"] == 1
    _, line = ranks.table(found, 2).splitlines()
    assert line.startswith("tiny ") and line.count(" times)") == 2


def test_an_error_in_a_process_is_shown():
    with pytest.raises(RuntimeError, match="nosuch"):
        ranks.launched(1, 1, ["nosuch"])
