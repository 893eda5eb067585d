"""A function on several processes: what comes back, what is said when one fails, and that nothing
outlives the call, however it ends.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist

from minik2.training import processes

pytestmark = [pytest.mark.skipif(os.name != "posix", reason="starts processes and kills them"),
              pytest.mark.timeout(300)]  # fmt: skip
ROOT = Path(__file__).parents[2]


def started() -> list[psutil.Process]:
    """Children of this process that `run` started."""
    return [p for p in psutil.Process().children(recursive=True)
            if any(word.endswith("ranks.py") for word in p.cmdline())]


def twice(x):
    return 2 * x


def talk(group, rows, name, count, flag):
    total = torch.tensor(rows[group.rank])
    dist.all_reduce(total)
    print(f"{name}, one of {group.count}")
    return {"total": twice(total), "name": name, "count": count + 1, "flag": not flag,
            "empty": np.zeros((0, 3))}


def test_arguments_go_there_and_results_come_back(capsys):
    rows = np.arange(6.0).reshape(2, 3)
    found = processes.run(talk, 2, uses=[twice], rows=rows, name="é", count=3, flag=True)
    for one in found:
        np.testing.assert_array_equal(one["total"], 2 * rows.sum(0))
        assert (one["name"], one["count"], one["flag"]) == ("é", 4, False)
        assert one["empty"].shape == (0, 3)
        assert type(one["count"]) is int and type(one["name"]) is str
    assert capsys.readouterr().out == "rank 0: é, one of 2\nrank 1: é, one of 2\n"
    assert not started()


def fails_on_one(group):
    if group.rank == 1:
        _ = [][3]
    dist.barrier()
    return {}


def is_killed(group):
    import os
    import signal
    if group.rank == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()
    return {}


def leaves(group):
    import os
    import sys
    if group.rank == 0:
        print("no more room", file=sys.stderr)
        sys.stderr.flush()
        os._exit(3)
    dist.barrier()
    return {}


def gives_a_set(group):
    return {"a": {1}}


def gives_nothing(group):
    dist.barrier()


def test_nothing_given_is_nothing():
    assert processes.run(gives_nothing, 2) == [{}, {}]


@pytest.mark.parametrize(("function", "count", "said"), [
    (fails_on_one, 3, r"^Rank 1 of 3 failed at `_ = \[\]\[3\]` with IndexError: list index out of "
                      r"range; all were stopped\.$"),
    (is_killed, 3, r"^Rank 2 of 3 was ended by SIGKILL( \(.*\))?; all were stopped\.$"),
    (leaves, 2, r"^Rank 0 of 2 ended with status 3 \(no more room\); all were stopped\.$"),
    (gives_a_set, 2, r"^Rank \d of 2 failed.* ValueError: a is set, which is not sent"),
], ids=lambda x: getattr(x, "__name__", ""))  # fmt: skip
def test_the_rank_that_failed_is_named_and_all_end(function, count, said):
    start = time.monotonic()
    with pytest.raises(processes.ProcessError, match=said):
        processes.run(function, count)
    assert time.monotonic() - start < 100
    assert not started()


def waits_alone(group):
    if group.rank == 0:
        dist.barrier()
    else:
        import time
        time.sleep(1000)
    return {}


@pytest.mark.slow
def test_a_collective_that_not_all_call_ends_when_time_is_up():
    start = time.monotonic()
    with pytest.raises(processes.ProcessError, match=r"^After 8 s rank 0, 1 of 2 had not come to "
                                                     r"an end, .*the same collectives\?$"):
        processes.run(waits_alone, 2, seconds=8)
    assert 8 <= time.monotonic() - start < 30
    assert not started()


CALLER = """\
import time
import torch.distributed as dist
from minik2.training import processes
def sleeps(group):
    import time
    dist.barrier()
    print("here", flush=True)
    time.sleep(1000)
    return {}
processes.run(sleeps, 2, seconds=1000)
"""


@pytest.fixture
def caller(tmp_path):
    """A process whose two ranks have met and sleep; and the ranks."""
    script = tmp_path / "caller.py"
    script.write_text(CALLER)
    process = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE, text=True,
                               env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)})
    end = time.monotonic() + 100
    while len(list(tmp_path.glob("minik2-*/?.said"))) < 2 or not all(
            path.read_text() for path in tmp_path.glob("minik2-*/?.said")):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.1)
    ranks = psutil.Process(process.pid).children()
    assert len(ranks) == 2
    yield process, ranks
    for one in (process, *ranks):
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=lambda s: s.name)
def test_nothing_outlives_a_caller_that_is_interrupted_or_killed(caller, how, tmp_path):
    process, ranks = caller
    os.kill(process.pid, how)
    process.wait(30)
    _, alive = psutil.wait_procs(ranks, 20)
    assert not alive and not list(tmp_path.glob("minik2-*"))
    if how == signal.SIGINT:
        assert "KeyboardInterrupt" in process.stderr.read()


@pytest.mark.slow
def test_nobody_listens_beyond_this_machine(caller):
    process, ranks = caller
    found = [connection for one in (psutil.Process(process.pid), *ranks)
             for connection in one.net_connections() if connection.status == "LISTEN"]
    assert found and all(c.laddr.ip in ("127.0.0.1", "::1") for c in found), found


def test_what_cannot_be_sent_is_refused_before_anything_starts():
    scale = 3

    def uses_another_functions_variable(group):
        return {"a": scale}

    for function in (uses_another_functions_variable, lambda group: {}, print):
        with pytest.raises(ValueError, match="cannot be sent to other processes; give a function"):
            processes.run(function, 2)
    for value in ([1, "a", None], object(), {"a": 1}, [[1], [1, 2]]):
        with pytest.raises(ValueError, match=r"^a is .*, which is not sent"):
            processes.run(fails_on_one, 2, a=value)
    for count in (1, 0, -2, 65, 2.0, "2", True):
        with pytest.raises(ValueError, match=r"^count is a number of processes from 2 to 64, not"):
            processes.run(fails_on_one, count)
