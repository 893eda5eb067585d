"""The engine's GPU kernels beside the library's way and the limit: Moonlight's shapes, bfloat16.

    python3 -m benchmarks.gpu_kernels              print it
    python3 -m benchmarks.gpu_kernels --record     and write results/gpu_kernels.json
    python3 -m benchmarks.gpu_kernels --tune       also try other tiles of attention

Every line also says how far the answer is from float64's.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import gpu_clock, records
from minik2 import ModelConfig
from minik2.plots import gpu as picture
from minik2.pytorch import attention, grouped, kernels, newton_schulz, qk_clip

CFG = ModelConfig.preset("moonlight-16b-a3b")
BF16, CONTEXT = torch.bfloat16, 8192
Line = dict[str, Any]


def randn(*shape: int, size: float = 1.0) -> Tensor:
    return (torch.randn(*shape, device="cuda") * size).to(BF16)


def error(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())


def line(
    what: str, way: str, run: Callable[[], Any], *, bytes: int = 0, flops: int = 0,
    error: float | None = None,
) -> Line:  # fmt: skip
    """One measurement; bytes and flops: the least that there is to move and to compute."""
    return {"what": what, "way": way, "milliseconds": gpu_clock.milliseconds(run),
            "bytes": bytes, "flops": flops, "error": error}  # fmt: skip


def decoding(tune: bool) -> Iterator[Line]:
    """Absorbed attention of one layer for one token a sequence, after 8,192 tokens."""
    heads, latent = CFG.num_attention_heads, CFG.kv_lora_rank
    width = latent + CFG.qk_rope_head_dim
    for batch in (1, 64):
        q, held = randn(batch, 1, heads, width, size=0.15), randn(batch, CONTEXT, width)
        last = torch.full((batch, 1), CONTEXT - 1, device="cuda")
        scores = q[:, 0].double() @ held.double().mT
        want = (scores.softmax(-1) @ held[..., :latent].double())[:, None]
        del scores
        what = f"decode attention, batch {batch}"
        cost = {"bytes": held.nbytes, "flops": 2 * batch * heads * CONTEXT * (width + latent)}

        def products(q: Tensor = q, held: Tensor = held) -> Tensor:
            shares = torch.bmm(q[:, 0], held.mT).softmax(-1, dtype=torch.float32).to(BF16)
            return torch.bmm(shares, held[..., :latent])[:, None]

        def own(q: Tensor = q, held: Tensor = held, last: Tensor = last) -> Tensor:
            return kernels.absorbed(q, held, latent, last)

        for way, run in (("two products", products), ("our kernel", own)):
            yield line(what, way, run, **cost, error=error(run(), want))
        if tune:
            names = ("TILE", "WAVES", "WARPS", "STAGES")
            before = [getattr(kernels, name) for name in names]
            for tried in itertools.product((16, 32, 64), (1, 2), (4, 8), (2, 3)):
                for name, value in zip(names, tried, strict=True):
                    setattr(kernels, name, value)
                yield line(what, f"tile, waves, warps, stages {tried}", own, **cost)
            for name, value in zip(names, before, strict=True):
                setattr(kernels, name, value)


def maxima() -> Iterator[Line]:
    """The largest logit of each head over four windows of 4,096 tokens."""
    batch, tokens, heads, width = 4, 4096, CFG.num_attention_heads, CFG.qk_head_dim
    q, k = (randn(batch, tokens, heads, width) for _ in range(2))
    flops = batch * heads * tokens * (tokens + 1) * width
    logits = q[:, :512].double().transpose(1, 2) @ k[:, :512].double().permute(0, 2, 3, 1)
    seen = torch.ones(512, 512, device="cuda", dtype=torch.bool).tril()
    want = logits.masked_fill(~seen, -torch.inf).amax((0, 2, 3))
    for way, takes in (("products, mask, maximum", lambda *_: False), ("our kernel", None)):
        before = kernels.takes_logits
        if takes is not None:
            kernels.takes_logits = takes
        apart = error(qk_clip.max_logits(q[:, :512], k[:, :512], 1.0), want)
        yield line("largest logits", way, lambda: qk_clip.max_logits(q, k, 1.0), flops=flops,
                   error=apart)  # fmt: skip
        kernels.takes_logits = before


def experts() -> Iterator[Line]:
    """The routed experts of one layer: a token, and 16,384 tokens there and back."""
    hidden, width, count = CFG.hidden_size, CFG.moe_intermediate_size, CFG.n_routed_experts
    chosen = CFG.num_experts_per_tok
    stacks = (randn(count, 2 * width, hidden, size=hidden**-0.5),
              randn(count, hidden, width, size=width**-0.5))  # fmt: skip

    def given(tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        indices = torch.rand(tokens, count, device="cuda").topk(chosen).indices
        return randn(tokens, hidden), indices, torch.rand(tokens, chosen, device="cuda").to(BF16)

    few = given(1)
    with torch.no_grad():
        wide = [t.double() if t.is_floating_point() else t for t in (*few, *stacks)]
        want = grouped._Loop.apply(*wide)
        read = 2 * chosen * 3 * width * hidden
        for way, run in (("grouped_mm", grouped._Kernel.apply), ("our kernel", kernels.experts)):
            yield line("experts, 1 token", way, lambda run=run: run(*few, *stacks), bytes=read,
                       error=error(run(*few, *stacks), want))  # fmt: skip
    x, indices, weights = given(16384)
    leaves = [t.requires_grad_() for t in (x, weights, *stacks)]
    flops = 2 * len(x) * chosen * 3 * width * hidden
    compiled = torch.compile(lambda *a: grouped._Kernel.apply(*a), dynamic=False)
    for way, call in (("grouped_mm", grouped._Kernel.apply), ("grouped_mm, compiled", compiled)):
        def run(call: Any = call) -> Tensor:
            return call(x, indices, weights, *stacks)

        y = run()
        dy = torch.randn_like(y)
        yield line("experts, 16,384 tokens, forward", way, run, flops=flops)
        yield line(
            "experts, 16,384 tokens, backward", way,
            lambda y=y, dy=dy: torch.autograd.grad(y, leaves, dy, retain_graph=True),
            flops=2 * flops,
        )  # fmt: skip


def training_attention() -> Iterator[Line]:
    """Causal attention of one layer over four windows of 4,096 tokens, there and back."""
    batch, tokens, heads = 4, 4096, CFG.num_attention_heads
    q, k = (randn(batch, tokens, heads, CFG.qk_head_dim).requires_grad_() for _ in range(2))
    v = randn(batch, tokens, heads, CFG.v_head_dim).requires_grad_()
    flops = batch * heads * tokens * (tokens + 1) * (CFG.qk_head_dim + CFG.v_head_dim)
    chosen_by_pytorch = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
    for way, order in (("PyTorch's choice", chosen_by_pytorch), ("ours: cuDNN", None)):
        def run(order: Any = order) -> Tensor:
            if order is None:
                return attention.forward(q, k, v, 0.07)
            heads_first = (t.transpose(1, 2) for t in (q, k, v))
            with sdpa_kernel(list(order)):
                y = F.scaled_dot_product_attention(*heads_first, is_causal=True, scale=0.07)
            return y.transpose(1, 2)

        y = run()
        dy = torch.randn_like(y)
        yield line("attention, 4 x 4,096, forward", way, run, flops=flops)
        yield line(
            "attention, 4 x 4,096, backward", way,
            lambda y=y, dy=dy: torch.autograd.grad(y, (q, k, v), dy, retain_graph=True),
            flops=2 * flops,
        )  # fmt: skip


def orthogonal() -> Iterator[Line]:
    """Newton–Schulz over a layer's stack of experts."""
    count, rows, columns = CFG.n_routed_experts, CFG.moe_intermediate_size, CFG.hidden_size
    G = torch.randn(count, rows, columns, device="cuda")
    steps = newton_schulz.segments(rows, columns, 5)
    yield line(f"Newton–Schulz, {count} x {rows} x {columns}", "bmm",
               lambda: newton_schulz.newton_schulz(G),
               flops=count * newton_schulz.flops(rows, columns, steps))  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write the results file")
    parser.add_argument("--tune", action="store_true", help="try other tiles of attention too")
    asked = parser.parse_args(arguments)
    missing = gpu_clock.need_a_gpu()
    if missing:
        print(missing)
        return 1
    torch.manual_seed(0)
    record = gpu_clock.stamp() | {"lines": []}
    print(gpu_clock.rates(record), flush=True)
    for found in itertools.chain(
        decoding(asked.tune), maxima(), experts(), training_attention(), orthogonal()
    ):
        record["lines"].append(found | {"of_the_limit": gpu_clock.share(found, record)})
        apart = "" if found["error"] is None else f", error {found['error']:.1e}"
        print(f"{found['what']:34} {found['way']:26} {found['milliseconds']:8.3f} ms, "
              f"{gpu_clock.share(found, record):.0%} of the limit{apart}", flush=True)  # fmt: skip
        if asked.record:
            records.write_json(records.RESULTS / "gpu_kernels.json", record)
            picture.kernels(record).write(records.ROOT / "figures" / "gpu_kernels.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
