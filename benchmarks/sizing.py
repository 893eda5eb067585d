"""Bytes estimated, then measured: real steps of random configurations on this machine.

    python -m benchmarks.sizing              print it
    python -m benchmarks.sizing --record     and write results/sizing.json

For each configuration one forward and backward pass and one optimizer step of the PyTorch engine;
then the bytes of its weights, gradients and optimizer, and of the distinct storages that autograd
saved, weights and buffers left out. On a GPU the allocator's peak stands beside it. And one
decoding step, with the bytes of weights and cache that its operations read. Fails where what is
saved for backward is further than 5% from the estimate, or anything else is not equal to it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import reads, records
from minik2 import ModelConfig, pytorch, sizing
from minik2.doctor import machine
from minik2.sizing import units
from minik2.sizing.memory import PLAIN

NAMES = ("parameters", "gradients", "optimizer", "activations")
READ = ("weights read", "cache read")
CONTEXT = 48
ALLOWED = 0.05


@dataclass(frozen=True)
class Measured:
    """Bytes of one training step; peak: of the allocator above the loaded model, None on a CPU."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    peak: int | None


def held(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors, each storage once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
                for t in tensors}.values())  # fmt: skip


def measure(
    cfg: ModelConfig, tokens: int, batch: int, dtype: torch.dtype = torch.float32,
    optimizer: str = "muonclip", device: str = "cpu", recompute: bool = False,
) -> Measured:
    """One step of training a fresh model on random tokens."""
    model = pytorch.Model.init(cfg, device=device, dtype=dtype)
    model.recompute = recompute
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, cfg.vocab_size, (batch, tokens)))
    ids = ids.to(device)
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        where = tensor.untyped_storage().data_ptr()
        if where not in own:
            # The tensor itself, so that its memory is not given to another meanwhile.
            kept.setdefault(where, tensor)
        return tensor

    on_gpu = device != "cpu"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model.loss(ids, ids.roll(-1, 1))
    activations = held(kept.values())
    kept.clear()
    loss.backward()
    peak = torch.cuda.max_memory_allocated() - before if on_gpu else None
    weights = list(model.parameters())
    states = step(model, optimizer)
    return Measured(held([*weights, *model.buffers()]), held(_grads(weights)),
                    held(t for t in states if torch.is_tensor(t)), activations, peak)  # fmt: skip


def _grads(weights: Iterable[Tensor]) -> list[Tensor]:
    return [p.grad for p in weights if p.grad is not None]


def step(model: pytorch.Model, optimizer: str) -> list[Any]:
    """Update the model once; everything that the optimizer keeps."""
    if optimizer == "adamw":
        adamw = torch.optim.AdamW(model.parameters())
        adamw.step()
        return [value for state in adamw.state.values() for value in state.values()]
    cfg = model.cfg
    both = pytorch.MuonClip(model, lr=1e-3)
    both.step(torch.zeros(cfg.num_hidden_layers, cfg.num_attention_heads, device=model.device))
    return [value for one in (both.muon, both.adamw) for state in one.state.values()
            for value in state.values()]  # fmt: skip


def draw(count: int, seed: int = 0) -> list[ModelConfig]:
    """Random configurations large enough to matter; between them every branch of the model."""
    rng = np.random.default_rng(seed)
    out = []
    for number in range(count):
        groups = (1, 4)[number // 2 % 2]
        softmax = number % 3 == 2
        experts, heads = groups * int(rng.integers(3, 9)), int(rng.integers(2, 9))
        kept = int(rng.integers(1, groups + 1))
        out.append(ModelConfig(
            vocab_size=int(rng.integers(100, 900)), hidden_size=16 * int(rng.integers(4, 17)),
            num_hidden_layers=3, num_attention_heads=heads,
            q_lora_rank=None if number % 2 else int(rng.integers(16, 99)),
            kv_lora_rank=int(rng.integers(16, 99)), qk_nope_head_dim=int(rng.integers(8, 33)),
            qk_rope_head_dim=2 * int(rng.integers(4, 9)), v_head_dim=int(rng.integers(8, 25)),
            first_k_dense_replace=(1, 0, 2, 3)[number % 4],
            intermediate_size=int(rng.integers(50, 300)),
            moe_intermediate_size=int(rng.integers(16, 99)), n_routed_experts=experts,
            n_shared_experts=int(rng.integers(1, 3)),
            num_experts_per_tok=int(rng.integers(1, kept * experts // groups + 1)),
            n_group=groups, topk_group=kept, scoring_func="softmax" if softmax else "sigmoid",
            topk_method=("greedy" if groups == 1 else "group_limited_greedy") if softmax
            else "noaux_tc", norm_topk_prob=number % 3 == 0, tie_word_embeddings=number % 5 == 1,
        ))  # fmt: skip
    return out


def compare(count: int, tokens: int, batch: int, device: str) -> list[dict[str, Any]]:
    """Estimate and measurement of each configuration, with the ratio of each pair."""
    kernels = "cpu" if device == "cpu" else "gpu"
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    plain = sizing.Precision("bfloat16", "bfloat16", "bfloat16", None)
    out = []
    for cfg in draw(count):
        said = sizing.memory(cfg, tokens, batch, PLAIN if device == "cpu" else plain,
                             kernels=kernels)  # fmt: skip
        found = measure(cfg, tokens, batch, dtype, device=device)
        row: dict[str, Any] = {"config": cfg.to_json(), "peak": found.peak}
        for name in NAMES:
            pair = getattr(said, name), getattr(found, name)
            row[name] = _row(*pair)
        expected = (4 * sizing.parameters(cfg).read,
                    sizing.kv_cache_bytes(cfg, CONTEXT, bytes_per_number=4))  # fmt: skip
        row |= {name: _row(said, got) for name, said, got in zip(
            READ, expected, reads.decoding(cfg, CONTEXT), strict=True)}  # fmt: skip
        out.append(row)
    return out


def _row(estimated: int, measured: int) -> dict[str, float]:
    return {"estimated": estimated, "measured": measured, "ratio": measured / estimated}


def table(rows: list[dict[str, Any]]) -> str:
    """Measured bytes and, in brackets, what they are to the estimate."""
    columns = NAMES + READ
    lines = [[str(number), *(f"{row[n]['measured']:,} ({row[n]['ratio']:.4f})" for n in columns),
              "" if row["peak"] is None else f"{row['peak']:,}"]
             for number, row in enumerate(rows)]  # fmt: skip
    return units.table(["measured (of estimate)", *columns, "peak"], lines)


def shortfalls(rows: list[dict[str, Any]]) -> list[str]:
    """A sentence for each figure that its estimate does not meet."""
    out = []
    for number, row in enumerate(rows):
        for name in NAMES + READ:
            limit = ALLOWED if name == "activations" else 0.0
            if abs(row[name]["ratio"] - 1) > limit:
                out.append(f"Configuration {number}: {name} measured {row[name]['measured']:,} B, "
                           f"estimated {row[name]['estimated']:,} B.")  # fmt: skip
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--configs", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--record", action="store_true", help="write results/sizing.json")
    chosen = parser.parse_args(arguments)
    rows = compare(chosen.configs, chosen.tokens, chosen.batch, chosen.device)
    print(f"{chosen.batch} x {chosen.tokens} tokens on {chosen.device}, bytes\n\n{table(rows)}")
    if chosen.record:
        records.write_json(records.RESULTS / "sizing.json", {
            **machine.stamp(), "tokens": chosen.tokens, "batch": chosen.batch,
            "device": chosen.device, "configs": rows})  # fmt: skip
    short = shortfalls(rows)
    for sentence in short:
        print(sentence, file=sys.stderr)
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
