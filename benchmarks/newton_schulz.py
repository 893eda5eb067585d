"""Muon's Newton–Schulz: torch.optim.Muon over a stack's experts beside ours, and plain beside ours.

    python -m benchmarks.newton_schulz              print it
    python -m benchmarks.newton_schulz --record     and write results/newton_schulz.json

In torch whole optimizer steps are timed, on float32 parameters, the iteration in bfloat16, on a GPU
where there is one: torch.optim.Muon on the experts one by one, ours on their stack. The reference's
iteration is timed beside its own definition in float32. Rounds A B, B A, A B …, ratios are taken
within a round. Shares are of the fastest product measured before and after; two are shown, of
operations done and of operations that the plain iteration would have needed, which is where saving
them shows. Fails where ours is slower than the project promises.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import torch
from tqdm import tqdm

from benchmarks import records
from minik2 import host, pytorch, reference
from minik2.doctor import machine, measure
from minik2.pytorch import newton_schulz as in_torch
from minik2.reference import newton_schulz as by_hand

STEPS = 5
# Seconds in which threads that spun after the last product go to sleep.
PAUSE = 0.2
# Bytes for each number of a stack: in float32, for two optimizers, its weight, gradient and
# momentum, and half as much again for what a step makes.
BYTES = 2 * 4 * 4.5


@dataclass(frozen=True)
class Case:
    """Two ways to one result: the other's and ours, with the operations of each and a promise."""

    name: str
    other: Callable[[], Any]
    ours: Callable[[], Any]
    plain_flops: int
    our_flops: int
    peak: Callable[[], float]
    promised: float


def torch_case(shape: tuple[int, int, int], promised: float, device: str) -> Case:
    experts, rows, columns = shape
    generator = torch.Generator(device).manual_seed(0)
    stack = torch.nn.Parameter(torch.randn(shape, device=device, generator=generator))
    stack.grad = torch.randn(shape, device=device, generator=generator)
    apart = [torch.nn.Parameter(expert.clone()) for expert in stack.detach()]
    for one, grad in zip(apart, stack.grad, strict=True):
        one.grad = grad.clone()
    theirs = torch.optim.Muon(apart, lr=1e-3, adjust_lr_fn="match_rms_adamw")
    ours = pytorch.Muon([stack], lr=1e-3, iteration_dtype=torch.bfloat16)

    def finished(step: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            step()
            if device == "cuda":
                torch.cuda.synchronize()

        return run

    lengths = in_torch.segments(rows, columns, STEPS)
    return Case(
        f"pytorch.Muon, {device}, bfloat16, {experts} x {rows} x {columns}",
        finished(theirs.step), finished(ours.step),
        experts * in_torch.flops(rows, columns, [1] * STEPS),
        experts * in_torch.flops(rows, columns, lengths),
        lambda: torch_gflops(device), promised,
    )  # fmt: skip


def reference_case(shape: tuple[int, ...], promised: float) -> Case:
    G = np.random.default_rng(0).standard_normal(shape, np.float32)
    *stack, rows, columns = shape
    experts = int(np.prod(stack))
    lengths = by_hand.segments(rows, columns, STEPS)
    # The definition's R R has no transpose in it by which NumPy could see that it is symmetric.
    short = min(rows, columns)
    plain = by_hand.flops(rows, columns, [1] * STEPS) + STEPS * short**3
    return Case(
        f"reference, float32, {' x '.join(map(str, shape))}",
        lambda: reference.muon.plain(G, STEPS), lambda: reference.muon.newton_schulz(G, STEPS),
        experts * plain, experts * by_hand.flops(rows, columns, lengths),
        lambda: measure.gflops("numpy", "float32", 2048, 1.0), promised,
    )  # fmt: skip


def torch_gflops(device: str, size: int = 2048) -> float:
    """10⁹ operations a second of a product in bfloat16."""
    if device == "cuda":
        return measure.gpu_gflops("bfloat16")
    a = torch.randn(size, size).bfloat16()
    out = torch.empty_like(a)
    return 2 * size**3 / measure.best(lambda: torch.mm(a, a, out=out), 1.0) / 1e9


def cases() -> list[Callable[[], Case]]:
    """Each made only when it is its turn, for the sake of memory."""
    gpu = torch.cuda.is_available()
    device = "cuda" if gpu else "cpu"
    free = torch.cuda.mem_get_info()[0] if gpu else host.memory()[1]
    many = 64 if free / 2 > 64 * 1408 * 2048 * BYTES else 8
    return [
        lambda: torch_case((32, 512, 256), 3.0 if gpu else 1.6, device),
        lambda: torch_case((many, 1408, 2048), 1.5 if gpu else 1.0, device),
        lambda: reference_case((32, 512, 256), 1.3),
        lambda: reference_case((2048, 7168), 1.3),
    ]


def timed(run: Callable[[], Any]) -> float:
    time.sleep(PAUSE)
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def measured(case: Case, rounds: int) -> dict[str, Any]:
    case.other(), case.ours()
    peak = case.peak()
    pairs = []
    for number in tqdm(range(rounds), desc=case.name, disable=None):
        order = [case.other, case.ours] if number % 2 == 0 else [case.ours, case.other]
        taken = {run: timed(run) for run in order}
        pairs.append((taken[case.other], taken[case.ours]))
    other, ours = (statistics.median(seconds) for seconds in zip(*pairs, strict=True))
    peak = max(peak, case.peak()) * 1e9
    return {
        "case": case.name, "promised": case.promised, "seconds": ours, "other_seconds": other,
        "times": records.times(*zip(*pairs, strict=True)),
        "flops": case.our_flops, "plain_flops": case.plain_flops, "peak_gflops": peak / 1e9,
        "share_of_peak": case.our_flops / ours / peak,
        "plain_share_of_peak": case.plain_flops / ours / peak,
        "other_share_of_peak": case.plain_flops / other / peak,
    }  # fmt: skip


def table(found: Sequence[dict[str, Any]]) -> str:
    lines = []
    for one in found:
        times, saved = one["times"], one["plain_flops"] / one["flops"]
        lines.append(
            f"{one['case']}\n"
            f"  {one['other_seconds'] * 1e3:9.1f} ms theirs or plain, "
            f"{one['seconds'] * 1e3:.1f} ms ours: {times['median']:.2f} times as fast "
            f"({times['least']:.2f} to {times['most']:.2f}), promised {one['promised']}\n"
            f"  {one['plain_flops'] / 1e9:9.1f} GFLOP plain, {one['flops'] / 1e9:.1f} done, "
            f"{saved:.2f} times fewer\n"
            f"  {one['peak_gflops']:9,.0f} GFLOP/s peak: ours {one['share_of_peak']:.0%} of it, "
            f"{one['plain_share_of_peak']:.0%} counting what was saved; theirs or plain "
            f"{one['other_share_of_peak']:.0%}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--record", action="store_true", help="write results/newton_schulz.json")
    chosen = parser.parse_args(arguments)
    load = psutil.getloadavg()[0]
    found = [measured(make(), chosen.rounds) for make in cases()]
    print(f"{machine.cores()} cores, medians of {chosen.rounds}, load {load:.2f} before\n\n"
          f"{table(found)}")  # fmt: skip
    if chosen.record:
        record = {**machine.stamp(), "rounds": chosen.rounds, "load_before": load, "cases": found}
        records.write_json(records.RESULTS / "newton_schulz.json", record)
    short = [one for one in found if one["times"]["median"] < one["promised"]]
    for one in short:
        print(f"\n{one['case']} is short of the {one['promised']} times that are promised; was the "
              "machine quiet?", file=sys.stderr)  # fmt: skip
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
