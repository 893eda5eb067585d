"""Training on a GPU: a Moonlight cut to fit, windows of 4,096, beside transformers and the limit.

    python3 -m benchmarks.gpu_training                 print it
    python3 -m benchmarks.gpu_training --record        and write results/gpu_training.json
                                                   and figures/gpu_training.png

Moonlight's first 7 layers of 27: one dense, six with 64 experts; 4.3 billion parameters. A step is
`--accumulate` batches of `--windows` windows. Compute is bfloat16; weights, their gradients, the
optimizer's state and routers are float32. Utilisation: the operations of the products forward and
backward, none counted twice, over those that this GPU makes in a large product, in the same run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks import gpu_clock, gpu_models, records
from minik2 import ModelConfig, pytorch, sizing
from minik2.plots import gpu as picture

LAYERS, WINDOW, ROUNDS = 7, 4096, 5
PROMISED = {"utilisation with adamw": 0.35, "times transformers": 4.0}
MOST_OF_A_STEP = 0.12  # what MuonClip may take, maxima included
# Kernels by name, for the profile; the first that is found in a kernel's name.
KINDS = {
    "experts' products": ("grouped", "GroupProblemShape"),
    "attention": ("fmha", "flash", "sdpa", "attention"),
    "largest logits": ("_largest",),
    "other products": ("gemm", "cutlass", "nvjet", "cublas", "xmma"),
    "optimizer, element by element": ("multi_tensor", "foreach", "lerp"),
    "sorting and gathering": ("sort", "index", "gather", "scatter", "radix"),
}


class Ours:
    """The engine with one of its optimizers; a step's three parts are timed by events."""

    def __init__(self, cfg: ModelConfig, optimizer: str) -> None:
        self.model = gpu_models.ours(cfg, torch.float32)
        self.mixed = pytorch.Mixed(self.model)
        self.mixed.twin.fuse()
        self.clip = optimizer == "muonclip"
        self.watch = pytorch.Watch(cfg, "cuda") if self.clip else None
        self.optimizer: Any = (
            pytorch.MuonClip(self.model, 1e-4) if self.clip
            else torch.optim.AdamW(self.model.parameters(), 1e-4, fused=True)
        )  # fmt: skip

    def passes(self, tokens: torch.Tensor, accumulate: int) -> None:
        if self.watch is not None:
            self.watch.reset()
        for _ in range(accumulate):
            loss = self.mixed.loss(tokens, tokens.roll(-1, 1), watch=self.watch)
            (loss / accumulate).backward()

    def update(self) -> None:
        self.optimizer.step(*([self.watch.max_logits] if self.watch is not None else []))
        self.mixed.refresh()
        self.optimizer.zero_grad()


class Theirs:
    """transformers' model in bfloat16 throughout, with PyTorch's fused AdamW."""

    def __init__(self, cfg: ModelConfig, experts: str) -> None:
        self.model = gpu_models.theirs(cfg, experts).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-4, fused=True)

    def passes(self, tokens: torch.Tensor, accumulate: int) -> None:
        for _ in range(accumulate):
            loss = self.model(tokens, labels=tokens, use_cache=False).loss
            (loss / accumulate).backward()

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()


def measure(side: Any, tokens: torch.Tensor, accumulate: int) -> dict[str, Any]:
    """Seconds of a step and of its update, the maxima's too, and the most memory held."""
    torch.cuda.reset_peak_memory_stats()
    side.passes(tokens, 1)
    side.update()
    passes, updates, maxima = [], [], []
    for _ in range(ROUNDS):
        passes.append(gpu_clock.seconds(lambda: side.passes(tokens, accumulate)))
        updates.append(gpu_clock.seconds(side.update))
        watch = getattr(side, "watch", None)
        maxima.append(watch.seconds if watch is not None else 0.0)
    step, update, most = (statistics.median(v) for v in (passes, updates, maxima))
    return {"passes_seconds": passes, "update_seconds": updates, "maxima_seconds": maxima,
            "step_seconds": step + update, "tokens_a_second":
            accumulate * tokens.numel() / (step + update),
            "optimizer_share": (update + most) / (step + update),
            "memory": torch.cuda.max_memory_allocated()}  # fmt: skip


def profile(side: Any, tokens: torch.Tensor) -> dict[str, float]:
    """Milliseconds of the device by kind of kernel, for one batch there and back and an update."""
    from torch.profiler import ProfilerActivity

    with torch.profiler.profile(activities=[ProfilerActivity.CUDA]) as taken:
        side.passes(tokens, 1)
        side.update()
        torch.cuda.synchronize()
    found = dict.fromkeys([*KINDS, "small operations, joined", "the rest"], 0.0)
    for event in taken.key_averages():
        name = event.key
        kind = next((k for k, parts in KINDS.items() if any(p in name for p in parts)), None)
        if kind is None:
            kind = "small operations, joined" if name.startswith("triton") else "the rest"
        found[kind] += event.self_device_time_total / 1e3
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write results and figure")
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--windows", type=int, default=4, help="windows of a batch")
    parser.add_argument("--accumulate", type=int, default=16, help="batches of a step")
    parser.add_argument("--alone", action="store_true", help="leave transformers out")
    asked = parser.parse_args(arguments)
    missing = gpu_clock.need_a_gpu()
    if missing:
        print(missing)
        return 1
    torch.manual_seed(0)
    cfg, stamp = gpu_models.config(asked.layers), gpu_clock.stamp()
    flops = sizing.flops(cfg, WINDOW, asked.windows).training.total
    record = stamp | {
        "model": gpu_models.SHAPE, "layers": asked.layers, "window": WINDOW,
        "windows": asked.windows, "accumulate": asked.accumulate,
        "parameters": sizing.parameters(cfg).total, "flops_a_batch": flops, "sides": {},
    }  # fmt: skip
    print(gpu_clock.rates(stamp), flush=True)
    tokens = torch.randint(cfg.vocab_size, (asked.windows, WINDOW), device="cuda")
    sides: dict[str, Callable[[], Any]] = {
        "adamw": lambda: Ours(cfg, "adamw"), "muonclip": lambda: Ours(cfg, "muonclip"),
    }  # fmt: skip
    if not asked.alone:
        sides["transformers, adamw"] = lambda: Theirs(cfg, "grouped_mm")
    for name, make in sides.items():
        side = make()
        # Theirs has nothing to gain from more batches a step but a smaller share of AdamW.
        found = measure(side, tokens, asked.accumulate)
        speed = flops * asked.accumulate / found["step_seconds"]
        found["utilisation"] = speed / stamp["bfloat16_flops_a_second"]
        record["sides"][name] = found
        print(f"{name:20} {found['tokens_a_second']:9,.0f} tokens a second, utilisation "
              f"{found['utilisation']:.0%}, optimizer {found['optimizer_share']:.1%} of the step, "
              f"{found['memory'] / 1e9:.0f} GB", flush=True)  # fmt: skip
        if name == "muonclip":
            record["profile_milliseconds"] = profile(side, tokens)
            for kind, spent in record["profile_milliseconds"].items():
                print(f"    {kind:32} {spent:8.1f} ms")
        if asked.record:
            records.write_json(records.RESULTS / "gpu_training.json", record)
            if "profile_milliseconds" in record:
                picture.training(record).write(records.ROOT / "figures" / "gpu_training.png")
        del side
        torch.cuda.empty_cache()
    return 0 if asked.alone else judge(record)


def judge(record: dict[str, Any]) -> int:
    """1 where less was reached than is promised, with a line on each."""
    sides = record["sides"]
    reached = {
        "utilisation with adamw": sides["adamw"]["utilisation"],
        "times transformers":
            sides["adamw"]["tokens_a_second"] / sides["transformers, adamw"]["tokens_a_second"],
    }  # fmt: skip
    for what, least in PROMISED.items():
        print(f"{what}: {reached[what]:.2f}, promised {least}")
    share = sides["muonclip"]["optimizer_share"]
    print(f"MuonClip's share of a step: {share:.1%}, at most {MOST_OF_A_STEP:.0%} promised")
    short = any(reached[what] < least for what, least in PROMISED.items())
    return int(short or share > MOST_OF_A_STEP)


if __name__ == "__main__":
    sys.exit(main())
