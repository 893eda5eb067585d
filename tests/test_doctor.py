"""The doctor: what it finds is true of this machine, and each trouble gets its sentence."""

import functools
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from minik2 import doctor
from minik2.doctor import machine, measure, report


@pytest.fixture(scope="module")
def found():
    return machine.describe()


@pytest.fixture
def quick(monkeypatch):
    """The same measurements on small operands: what is tested is not how fast this machine is."""
    fast = functools.partial(measure.gflops, size=128, seconds=0.01)
    monkeypatch.setattr(measure, "gflops", fast)
    monkeypatch.setattr(measure, "bandwidth", functools.partial(measure.bandwidth, seconds=0.01))


def test_a_report_holds_and_shows_what_was_found(quick, capsys):
    seen = doctor.examine()
    values = json.loads(json.dumps(seen.to_dict()))
    assert set(values["gflops"]) == {f"{library} {dtype}" for library in ("numpy", "torch")
                                     for dtype in ("float32", "float64")}
    assert all(rate > 0 for rate in values["gflops"].values())
    assert values["bandwidth"]["bytes"] >= min(256 * 10**6, seen.machine["memory_free"] // 9)
    text = str(seen)
    for wanted in ("processor", f"numpy {np.__version__}", "GB/s", "GFLOP/s", "lesson 01"):
        assert wanted in text
    assert all(len(line) <= 120 for line in text.splitlines())
    assert capsys.readouterr().out == ""  # progress goes to stderr, the report is the caller's


def test_the_machine_is_this_one(found):
    import numba

    assert found["python"] == sys.version.split()[0]
    assert found["packages"]["numba"] == numba.__version__
    assert found["numba_layer"] == numba.threading_layer()
    assert 0 < found["memory_free"] <= found["memory"]
    assert 1 <= found["cores"] <= os.cpu_count()


def healthy(found, **changes):
    sound = {"torch_threads": found["cores"], "gpus": [], "numba_layer": "omp",
             "memory_free": 8 * 2**30, "load": 0.1, "cuda": {"version": None, "usable": False},
             "blas": [{"name": "openblas", "version": "1", "threads": found["cores"]}],
             "packages": found["packages"] | {"torch": "2.13.0+cpu"}}
    return found | sound | changes


GPU = {"name": "H100", "memory": 80 * 2**30, "driver": "580.1"}
TROUBLES = [
    ({"numba_layer": "workqueue"}, "libgomp1"),
    ({"torch_threads": None, "cuda": None, "packages": {"torch": None}}, "not installed"),
    ({"torch_threads": None, "cuda": None, "packages": {"torch": "2.13.0"}}, "does not load"),
    ({"packages": {"torch": "2.8.0+cu126"}}, "older than 2.9"),
    ({"gpus": [GPU]}, "for the CPU alone"),
    ({"gpus": [GPU], "cuda": {"version": "13.0", "usable": False}}, "CUDA 13.0 cannot use"),
    ({"memory_free": 2**28}, "256 MiB of memory are free"),
    ({"load": 1000.0}, "load 1000.0"),
    ({"cores": 8, "torch_threads": 8, "blas": [{"threads": 2}]}, "2 of 8 cores"),
    ({"cores": 8, "torch_threads": 4, "blas": []}, "4 of 8 cores"),
]


@pytest.mark.parametrize(("changes", "sentence"), TROUBLES)
def test_each_trouble_has_one_sentence(found, changes, sentence):
    (problem,) = report.problems(healthy(found, **changes))
    assert sentence in problem


@pytest.mark.parametrize("changes", [{}, {"gpus": [GPU], "cuda": {"version": "13", "usable": True}},
                                     {"blas": []}])
def test_a_healthy_machine_has_no_trouble(found, changes):
    assert report.problems(healthy(found, **changes)) == []


def test_a_limit_on_threads_is_named(found, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (problem,) = report.problems(healthy(found, cores=8, torch_threads=1, blas=[]))
    assert "OMP_NUM_THREADS=1" in problem


def test_it_works_without_pytorch():
    code = ("import sys; sys.modules['torch'] = None\n"
            "from minik2.doctor import machine, report\n"
            "found = machine.describe()\n"
            "assert found['torch_threads'] is None and found['cuda'] is None\n"
            "assert 'PyTorch' in report.problems(found)[0]\n"
            "seen = report.Report([], found, {'numpy float32': 1.0},"
            " {'gigabytes_per_second': 1.0, 'reader': 'numba', 'bytes': 8}, [], None)\n"
            "assert 'PyTorch\\'s' not in str(seen)\n"
            "assert 'transformers' not in sys.modules\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_times_of_lessons_are_scaled_by_speed(tmp_path, monkeypatch):
    (tmp_path / "00_k2_in_one_hour.py").write_text("# %% [markdown]\n# # 00 · K2 in one hour\n")
    (tmp_path / "07_untitled_one.py").write_text("import numpy\n")
    times = {"machine": {"processor": "Some CPU", "cores": 2}, "date": "2026-01-01",
             "gflops": {"torch float32": 200.0, "numpy float32": 150.0}, "seconds": {"00": 90.0}}
    (tmp_path / "lessons.json").write_text(json.dumps(times))
    monkeypatch.setattr(report, "SOURCES", tmp_path)
    monkeypatch.setattr(report, "TIMES", tmp_path / "lessons.json")
    lessons, whence = report.expected_times({"torch float32": 100.0, "numpy float32": 150.0})
    assert lessons == [doctor.Lesson("00", "K2 in one hour", 180.0),
                       doctor.Lesson("07", "untitled one", None)]
    assert "Some CPU" in whence
    (first, _), _ = report.expected_times({"numpy float32": 300.0})
    assert first.seconds == 45.0
    monkeypatch.setattr(report, "TIMES", tmp_path / "absent.json")
    assert report.expected_times({"numpy float32": 1.0})[0][0].seconds is None


@pytest.mark.skipif(os.name != "posix", reason="the stand-in for nvidia-smi is a shell script")
@pytest.mark.parametrize(("script", "expected"), [
    ("echo 'NVIDIA H100 80GB HBM3, 81559, 580.159.04'",
     [{"name": "NVIDIA H100 80GB HBM3", "memory": 81559 * 2**20, "driver": "580.159.04"}]),
    ("echo 'Failed to initialize NVML'; exit 9", []),
    ("echo 'No devices were found'", []),
])
def test_gpus_are_those_the_driver_lists(tmp_path, monkeypatch, script, expected):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.gpus() == expected


def test_the_best_of_several_calls_is_taken(monkeypatch):
    clock = iter([0, 0, 5, 5, 6, 6, 9, 9, 99])  # its end, then start and stop of calls
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    assert measure.best(lambda: None, seconds=0) == 1


def test_the_numba_reader_reads_everything():
    x = np.arange(100_003, dtype=np.float64)
    assert measure.read(x) == pytest.approx(x.sum(), rel=1e-12)


def test_a_gpu_is_measured_where_pytorch_can_use_one(quick, found, monkeypatch):
    import torch

    waits = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(1))
    on_cpu = functools.partial(measure.gpu_gflops, device="cpu", size=64, seconds=0.01)
    monkeypatch.setattr(measure, "gpu_gflops", on_cpu)
    usable = found | {"gpus": [GPU], "cuda": {"version": "13.0", "usable": True}}
    monkeypatch.setattr(machine, "describe", lambda: usable)
    before = torch.get_float32_matmul_precision()
    seen = doctor.examine()
    assert seen.gflops["torch bfloat16 on the GPU"] > 0 and waits
    assert "H100, 80.0 GiB, driver 580.1" in str(seen) and "13.0, usable" in str(seen)
    assert torch.get_float32_matmul_precision() == before
