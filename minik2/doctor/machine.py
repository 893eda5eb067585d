"""The machine in words and figures: processor, memory, versions, threads, GPU.

Unusual here: only PyTorch and Numba are imported, for what nothing else can tell. Every other
version is read from the packages' own records, so a broken package cannot stop its diagnosis.
"""

from __future__ import annotations

import datetime
import importlib
import importlib.metadata
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import threadpoolctl

from minik2.host import cores, memory

PACKAGES = ("numpy", "numba", "torch", "transformers", "safetensors", "jupyterlab")
SYSTEM = Path("/sys")
PROCESSOR = Path("/proc/cpuinfo")


def describe() -> dict[str, Any]:
    """Everything about the machine that a measurement should be read with; nothing personal.

    Sizes are bytes. Keys: processor, cores, cache, memory, memory_free, load (threads that wanted
    to run in the last minute), system, python, packages (None for one that is not installed),
    blas, numba_layer, torch_threads, gpus, cuda.
    """
    load = psutil.getloadavg()[0]
    threads, cuda = torch_facts()
    # Threads are set up by the first product and the first parallel loop, so those come first.
    layer = numba_layer()
    total, free = memory()
    return {
        "processor": processor(),
        "cores": cores(),
        "cache": cache(),
        "memory": total,
        "memory_free": free,
        "load": load,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "blas": blas(),
        "numba_layer": layer,
        "torch_threads": threads,
        "gpus": gpus(),
        "cuda": cuda,
    }


def version(package: str) -> str | None:
    """The installed version, without importing the package; None where there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """The processor's name, as well as the system tells it."""
    if PROCESSOR.exists():
        for line in PROCESSOR.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def stamp() -> dict[str, Any]:
    """What every record carries: the date and the machine, without what changes by the minute."""
    described = describe()
    del described["memory_free"], described["load"]
    return {"date": datetime.date.today().isoformat(), "machine": described}


def cache() -> int | None:
    """Bytes of the last-level cache; None where the system does not tell."""
    sizes = []
    for path in SYSTEM.glob("devices/system/cpu/cpu0/cache/index*/size"):
        text = path.read_text().strip()
        unit = {"K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1:], 0)
        if unit and text[:-1].isdigit():
            sizes.append(int(text[:-1]) * unit)
    return max(sizes, default=None)


def blas() -> list[dict[str, Any]]:
    """The libraries that multiply matrices in this process: name, version, threads."""
    np.ones((2, 2)) @ np.ones((2, 2))
    return [{"name": pool["internal_api"], "version": pool["version"],
             "threads": pool["num_threads"]}
            for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]  # fmt: skip


def numba_layer() -> str:
    """What starts Numba's threads: "omp", "tbb" or, slower, "workqueue"."""
    import numba

    from minik2.doctor import measure

    measure.read(np.ones(2, np.float32))  # the layer is chosen by the first parallel loop
    return str(numba.threading_layer())


def torch_facts() -> tuple[int | None, dict[str, Any] | None]:
    """PyTorch's threads on the CPU, and its CUDA: version and usable; None without PyTorch."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return None, None
    cuda = {"version": torch.version.cuda, "usable": bool(torch.cuda.is_available())}
    return int(torch.get_num_threads()), cuda


def gpus() -> list[dict[str, Any]]:
    """NVIDIA's GPUs as the driver lists them, with or without PyTorch: name, memory, driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    fields = "--query-gpu=name,memory.total,driver_version"
    try:
        done = subprocess.run([tool, fields, "--format=csv,noheader,nounits"],
                              capture_output=True, text=True, timeout=20)  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return []
    found = []
    for line in done.stdout.splitlines() if done.returncode == 0 else []:
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 3 and parts[1].isdigit():
            found.append({"name": parts[0], "memory": int(parts[1]) * 2**20, "driver": parts[2]})
    return found
