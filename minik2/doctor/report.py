"""The report: problems first, each with its remedy, then what was found and measured.

Unusual here: how long a lesson takes is an estimate and says so. It is the time that the lesson
took on the machine of `lessons.json`, scaled by the two machines' speed in matrix products.
"""

from __future__ import annotations

import json
import os
import re
import sys
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from minik2.doctor import machine, measure

TIMES = Path(__file__).with_name("lessons.json")
SOURCES = Path(__file__).parents[2] / "lessons"
LEAST_TORCH = (2, 9)
# What JupyterLab, a kernel with PyTorch, and a lesson's model need together, with some room.
LEAST_MEMORY = 2 * 2**30
PRODUCTS = (("numpy", "float32"), ("numpy", "float64"), ("torch", "float32"), ("torch", "float64"))


@dataclass(frozen=True)
class Lesson:
    """A lesson and its expected seconds on this machine; None where it was never timed."""

    number: str
    title: str
    seconds: float | None


@dataclass(frozen=True)
class Report:
    """What `examine` found.

    problems: sentences, each with what to do. machine: as `machine.describe` returns it. gflops:
    {"numpy float32": 10⁹ operations a second, …}. bandwidth: as `measure.bandwidth` returns it.
    lessons_from: on what machine and when the lessons' times were taken; None without any.
    """

    problems: list[str]
    machine: dict[str, Any]
    gflops: dict[str, float]
    bandwidth: dict[str, Any]
    lessons: list[Lesson]
    lessons_from: str | None

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values that JSON can hold."""
        return asdict(self)

    def __str__(self) -> str:
        sections = [_problems(self), _rows(_found(self.machine)), _rows(_measured(self)),
                    _lessons(self)]  # fmt: skip
        return "\n\n".join(sections)


def examine() -> Report:
    """Look at this machine and measure it: about ten seconds, with a progress bar on a terminal.

    Works without PyTorch, and then says so.
    """
    with tqdm(total=2 + len(PRODUCTS), desc="examining", file=sys.stderr, disable=None,
              leave=False, bar_format="{desc} {bar} {n_fmt}/{total_fmt}") as bar:  # fmt: skip
        found = machine.describe()
        bar.update()
        gflops = {}
        for library, dtype in PRODUCTS:
            if library == "numpy" or found["torch_threads"] is not None:
                gflops[f"{library} {dtype}"] = measure.gflops(library, dtype)
            bar.update()
        if found["cuda"] and found["cuda"]["usable"]:
            for dtype in ("float32", "bfloat16"):
                gflops[f"torch {dtype} on the GPU"] = measure.gpu_gflops(dtype)
        bandwidth = measure.bandwidth()
        bar.update()
    lessons, lessons_from = expected_times(gflops)
    return Report(problems(found), found, gflops, bandwidth, lessons, lessons_from)


def problems(found: dict[str, Any]) -> list[str]:
    """What is in the way of the course, each in a sentence with its remedy."""
    out = []
    torch = found["packages"]["torch"]
    if found["torch_threads"] is None:
        state = "is not installed" if torch is None else f"{torch} is installed but does not load"
        out.append(f"PyTorch {state}; the lessons need it: run `make course`.")
    elif tuple(int(n) for n in re.findall(r"\d+", torch or "")[:2]) < LEAST_TORCH:
        least = ".".join(map(str, LEAST_TORCH))
        out.append(f"PyTorch {torch} is older than {least}, the first with torch.optim.Muon: "
                   "install a newer one.")  # fmt: skip
    if found["numba_layer"] == "workqueue":
        out.append(
            "Numba starts its threads through its own workqueue, many times slower than OpenMP: "
            "install GNU OpenMP (Debian and Ubuntu: `apt-get install libgomp1`) or, with pip, tbb."
        )
    if found["gpus"] and found["cuda"] and not found["cuda"]["usable"]:
        built = found["cuda"]["version"]
        state = f"for CUDA {built} cannot use" if built else "for the CPU alone does not use"
        out.append(
            f"There is a GPU ({found['gpus'][0]['name']}, driver {found['gpus'][0]['driver']}), "
            f"but this build of PyTorch {state} it: README.md, \"With a GPU\", says how to choose."
        )
    if found["memory_free"] < LEAST_MEMORY:
        out.append(
            f"Only {_size(found['memory_free'])} of memory are free, and a lesson wants "
            f"{_size(LEAST_MEMORY)}: close something."
        )
    if found["load"] > 0.75 * found["cores"]:
        out.append(
            f"Other programs were busy in the last minute (load {found['load']:.1f} on "
            f"{found['cores']} cores), which makes the speeds below too low: try again when they "
            "are done."
        )
    threads = [found["torch_threads"], *(pool["threads"] for pool in found["blas"])]
    fewest = min((count for count in threads if count), default=found["cores"])
    if fewest < found["cores"]:
        limits = [f"{name}={os.environ[name]}" for name in sorted(os.environ)
                  if re.fullmatch(r"(OMP|OPENBLAS|MKL)_NUM_THREADS", name)]  # fmt: skip
        blame = f": unset {' and '.join(limits)}" if limits else ""
        out.append(f"Products use {fewest} of {found['cores']} cores{blame}, unless you mean it.")
    return out


def expected_times(gflops: dict[str, float]) -> tuple[list[Lesson], str | None]:
    """The lessons of this clone with their expected seconds, and whence the estimate comes."""
    lessons = []
    for path in sorted(SOURCES.glob("[0-9][0-9]_*.py")):
        title = re.search(r"^# # (?:\d\d)?\W*(.+)$", path.read_text(encoding="utf-8"), re.M)
        lessons.append((path.name[:2], title[1] if title else path.stem[3:].replace("_", " ")))
    if not TIMES.is_file():
        return [Lesson(number, title, None) for number, title in lessons], None
    times = json.loads(TIMES.read_text(encoding="utf-8"))
    # Lessons mostly multiply matrices in PyTorch; without it, NumPy's speed is what is known.
    by = "torch float32" if "torch float32" in gflops else "numpy float32"
    slower = times["gflops"][by] / gflops[by]
    known = {number: seconds * slower for number, seconds in times["seconds"].items()}
    whence = f"{times['machine']['processor']}, {times['machine']['cores']} cores, {times['date']}"
    return [Lesson(number, title, known.get(number)) for number, title in lessons], whence


def _problems(report: Report) -> str:
    if not report.problems:
        return "Nothing is in the way of the course."
    return "\n".join(textwrap.fill(sentence, 96, initial_indent="! ", subsequent_indent="  ")
                     for sentence in report.problems)  # fmt: skip


def _rows(rows: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _found(found: dict[str, Any]) -> list[tuple[str, str]]:
    versions = [f"{name} {version or '(not installed)'}"
                for name, version in found["packages"].items()]  # fmt: skip
    cores = f"{found['cores']} core{'s' * (found['cores'] != 1)}"
    kept = f", last-level cache {_size(found['cache'])}" if found["cache"] else ""
    multiplies = [f"{pool['name']} {pool['version'] or 'of no known version'}, "
                  f"{pool['threads']} threads" for pool in found["blas"]]  # fmt: skip
    rows = [
        ("processor", f"{found['processor']}, {cores}{kept}"),
        ("memory", f"{_size(found['memory_free'])} free of {_size(found['memory'])}"),
        ("system", f"{found['system']}, Python {found['python']}"),
        ("packages", ", ".join(versions[:3])),
        ("", ", ".join(versions[3:])),
        ("NumPy's products", "; ".join(multiplies) or "by a library that does not say its name"),
        ("Numba's threads", f"started through {found['numba_layer']}"),
    ]
    if found["torch_threads"] is not None:
        rows.append(("PyTorch's threads", f"{found['torch_threads']} on the CPU"))
    for gpu in found["gpus"]:
        rows.append(("GPU", f"{gpu['name']}, {_size(gpu['memory'])}, driver {gpu['driver']}"))
    if not found["gpus"]:
        rows.append(("GPU", "none by NVIDIA; the lessons run on the CPU"))
    if found["cuda"]:
        usable = "usable" if found["cuda"]["usable"] else "not usable here"
        built = found["cuda"]["version"]
        rows.append(("PyTorch's CUDA", f"{built}, {usable}" if built else "none: a CPU build"))
    return rows


def _measured(report: Report) -> list[tuple[str, str]]:
    rows = [(f"product by {name}", f"{rate:7,.0f} GFLOP/s")
            for name, rate in report.gflops.items()]  # fmt: skip
    read = report.bandwidth
    held = report.machine["cache"] and report.machine["cache"] >= read["bytes"]
    note = "; the cache may hold all of it" if held else ""
    rows.append(("reading memory", f"{read['gigabytes_per_second']:7,.1f} GB/s "
                 f"(by {read['reader']}, {_size(read['bytes'])}{note})"))  # fmt: skip
    return rows


def _lessons(report: Report) -> str:
    if not report.lessons:
        return "The lessons are not here: this is not a clone of the course."
    rows = []
    for lesson in report.lessons:
        time = "not timed yet" if lesson.seconds is None else f"about {_duration(lesson.seconds)}"
        rows.append((f"lesson {lesson.number}", f"{time:<16}{lesson.title}"))
    if report.lessons_from is None:
        return _rows(rows)
    source = ("Estimates for running every cell without a pause: times taken on "
              f"{report.lessons_from}, scaled by the speed of products.")  # fmt: skip
    return f"{_rows(rows)}\n{textwrap.fill(source, 96)}"


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
