"""Work side by side: in order, with its errors, and with the libraries' threads as they were."""

import os
import subprocess
import sys
import threading
import time

import numba
import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

from minik2.reference import parallel


@pytest.fixture
def two_threads():
    """BLAS with two threads, whatever the test run gives it."""
    with ThreadpoolController().select(user_api="blas").limit(limits=2):
        yield


def blas_threads() -> set[int]:
    return {library["num_threads"] for library in
            ThreadpoolController().select(user_api="blas").info()}


def test_results_come_in_the_order_of_the_items(two_threads):
    def work(item):
        time.sleep(0.02 * (item == 0))
        return item * item

    assert parallel.each(work, range(9)) == [n * n for n in range(9)]


def test_two_at_a_time_on_one_thread_each(two_threads):
    meeting = threading.Barrier(2, timeout=30)

    def work(item):
        meeting.wait()  # would break if one waited for the other to end
        return numba.get_num_threads(), blas_threads()

    before = numba.get_num_threads()
    assert parallel.each(work, range(4)) == [(1, {1})] * 4
    assert blas_threads() == {2}
    assert numba.get_num_threads() == before


def test_an_error_comes_through_and_leaves_no_limit_behind(two_threads):
    def work(item):
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 0"):
        parallel.each(work, range(3))
    assert blas_threads() == {2}


def test_the_first_item_s_error_is_raised_however_late_it_comes(two_threads):
    before = numba.get_num_threads()

    def work(item):
        time.sleep(0.05 * (item == 0))
        raise ValueError(f"item {item}")

    for _ in range(5):
        with pytest.raises(ValueError, match="item 0"):
            parallel.each(work, range(3))
    assert numba.get_num_threads() == before


def test_the_caller_works_too(two_threads):
    meeting = threading.Barrier(2, timeout=30)

    def work(item):
        meeting.wait()
        return threading.current_thread()

    assert threading.current_thread() in parallel.each(work, range(2))


def test_callers_on_several_threads_leave_blas_as_it_was(two_threads):
    def caller():
        for _ in range(50):
            parallel.each(lambda item: item, range(3))

    callers = [threading.Thread(target=caller) for _ in range(4)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join(60)
    assert blas_threads() == {2}


def test_with_one_thread_the_caller_does_it_all():
    with ThreadpoolController().select(user_api="blas").limit(limits=1):
        names = parallel.each(lambda item: threading.current_thread(), range(3))
    assert names == [threading.current_thread()] * 3


def test_rows_are_shared_out_once_each(two_threads):
    for count in (1, 31, 63, 64, 65, 1000):
        seen = np.zeros(count, int)

        def work(own, seen=seen):
            seen[own] += 1

        parallel.each_rows(work, count)
        assert (seen == 1).all()


def test_where_numba_has_only_its_own_threads_kernels_do_not_meet():
    """Without OpenMP Numba falls back to workqueue, which ends the process where they do."""
    code = ("import numba, numpy as np, minik2\n"
            "model = minik2.reference.Model.init(minik2.ModelConfig.preset('tiny'))\n"
            "tokens = np.arange(256).reshape(2, 128)\n"
            "for _ in range(20): model.loss_and_grads(tokens, tokens)\n"
            "print(numba.threading_layer())")  # fmt: skip
    threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS"), "2")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env=os.environ | threads | {"NUMBA_THREADING_LAYER": "workqueue"})
    assert (done.returncode, done.stdout) == (0, "workqueue\n"), done.stderr
