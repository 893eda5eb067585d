"""Fifty steps of training on the device, within a band that was derived before it ran.

Unusual here: the band comes from the reference alone. Another right implementation differs from it
by rounding, and n roundings that fall at random come to about √n of them. So the reference trains
several times more, from the same weights on the same batches, with every weight moved by up to
√n u for each pass, up or down at random, and every gradient once more before the step; n is the
proof sheet's for all gradients (`benchmarks/rounding.py`), u the unit roundoff. A moved run rounds
as the plain one does besides, so its distance from the plain run holds the roundings of both sides.

A distance is the sum of many small ones, hence nearly normal, and a few runs only estimate how wide
it spreads: the device's, over the root of their mean square, follows Student's distribution. The
band at each step is WIDTH of those roots, the largest so far, which a run like the moved ones
leaves once in 10,000 steps. Choices of experts that rounding decides move a loss by more, at once:
a right run leaves the band where it meets one before all the moved ones, at most once in RUNS + 1.
The band is printed and stored before the device computes its curve.

In bfloat16 the weights that are trained stay in float32; the pass runs on a rounded copy, and
Newton–Schulz iterates in bfloat16.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks import rounding
from benchmarks.gpu.check import Check
from benchmarks.rounding import UNIT
from minik2 import pytorch, reference
from minik2.config import ModelConfig

Array = np.ndarray[Any, np.dtype[Any]]
Batches = list[tuple[Array, Array]]
STEPS, BATCH, WINDOW, RATE = 50, 4, 64, 0.01
# Few, as in a text: among many unlike ones more experts are nearly tied, and the band is wider.
TOKENS = 32
# Low enough that heads are clipped in these few steps.
TAU = 1.0
# Beyond WIDTH, Student's distribution with RUNS degrees of freedom has one part in 10,000.
RUNS, WIDTH = 8, 7.12


def run(section: str, cases: Sequence[Any], device: str, preset: str = "small") -> Iterator[Check]:
    """Each precision's band as an open check, then the same check with the device's curve."""
    cfg = ModelConfig.preset(preset)
    batches = drawn(np.random.default_rng(0))
    plain, clipped = reference_losses(cfg, batches, 0.0, 0)
    checks = []
    for precision in ("float32", "bfloat16"):
        check = Check(section, f"loss, {preset}, {STEPS} steps", precision)
        width = band(cfg, batches, plain, move(cfg, precision))
        check.series = {"reference": plain, "band": width}
        check.bound = 1.0
        check.note = (f"in units of the band, {width[0]:.1e} to {width[-1]:.1e} nats around a loss "
                      f"of {plain[0]:.2f} to {plain[-1]:.2f}; {clipped} heads clipped")  # fmt: skip
        checks.append(check)
        yield check
    for check in checks:
        judge(check, device_losses(cfg, batches, check.precision, device))
        yield check


def drawn(rng: np.random.Generator) -> Batches:
    """STEPS batches (tokens, targets) in which a token is followed by one of four of its own.

    No text of the checkout: with every edit of it the batches would be others, and a right engine
    might leave their band.
    """
    follow, out = rng.integers(TOKENS, size=(TOKENS, 4)), []
    for _ in range(STEPS):
        text = rng.integers(TOKENS, size=(BATCH, WINDOW + 1))
        for t in range(WINDOW):
            text[:, t + 1] = follow[text[:, t], text[:, t + 1] % 4]
        out.append((text[:, :-1], text[:, 1:]))
    return out


def judge(check: Check, losses: list[float]) -> None:
    """The device's curve into a check that holds the band."""
    check.series["device"] = losses
    apart = np.abs(np.array(losses) - check.series["reference"])
    share = apart / check.series["band"]
    worst = int(np.where(np.isfinite(share), share, np.inf).argmax())
    check.add(float(share[worst]), 1.0, f"step {worst}: {losses[worst]!r}", len(losses))


def move(cfg: ModelConfig, precision: str) -> float:
    """√n u: of sums in float32 at the least, and of what is stored in the precision."""
    chain = rounding.gradients(cfg, (BATCH, WINDOW))
    stored = UNIT[precision] * math.sqrt(chain.stores) if precision == "bfloat16" else 0.0
    return UNIT["float32"] * math.sqrt(chain.sums) + stored


def band(cfg: ModelConfig, batches: Batches, plain: list[float], size: float) -> list[float]:
    """Nats, one number a step: how far from `plain` a right curve may be."""
    moved = [reference_losses(cfg, batches, size, seed)[0] for seed in range(1, RUNS + 1)]
    spread = np.sqrt(np.square(np.array(moved) - plain).mean(axis=0))
    # A loss is itself rounded, in float32: the band is nowhere narrower than that.
    least = move(cfg, "float32") * np.abs(plain)
    return [float(width) for width in np.maximum.accumulate(np.maximum(WIDTH * spread, least))]


def reference_losses(
    cfg: ModelConfig, batches: Batches, size: float, seed: int
) -> tuple[list[float], int]:
    """The loss before every step, float32, and how many heads were clipped in all."""
    model, rng = reference.Model.init(cfg, 0), np.random.default_rng(seed)
    optimizer, watch = reference.muon.MuonClip(model, RATE, tau=TAU), reference.Watch(cfg)
    losses, clipped = [], 0
    for tokens, targets in batches:
        kept = {name: array.copy() for name, array in model.weights.items()} if size else {}
        if size:
            _move(model.weights, size, rng)
        watch.reset()
        loss, grads = model.loss_and_grads(tokens, targets, watch=watch)
        for name, array in kept.items():
            model.weights[name][...] = array
        if size:
            _move(grads, size, rng)
        clipped += int((optimizer.step(grads, watch.max_logits) < 1).sum())
        losses.append(float(loss))
    return losses, clipped


def _move(arrays: dict[str, Array], size: float, rng: np.random.Generator) -> None:
    for array in arrays.values():
        array *= (1 + size * rng.uniform(-1, 1, array.shape)).astype(array.dtype)


def device_losses(cfg: ModelConfig, batches: Batches, precision: str, device: str) -> list[float]:
    """The same run by the torch engine on the device."""
    dtype = getattr(torch, precision)
    master = pytorch.Model.init(cfg, 0, device)
    running = master if precision == "float32" else pytorch.Model.init(cfg, 0, device, dtype)
    optimizer = pytorch.MuonClip(master, RATE, tau=TAU, iteration_dtype=dtype)
    watch, losses = pytorch.Watch(cfg, device), []
    for tokens, targets in batches:
        watch.reset()
        running.zero_grad()
        loss = running.loss(tokens, targets, watch=watch)
        loss.backward()
        if running is not master:
            for p, low in zip(master.parameters(), running.parameters(), strict=True):
                p.grad = low.grad.float()
        optimizer.step(watch.max_logits)
        if running is not master:
            with torch.no_grad():
                for p, low in zip(master.parameters(), running.parameters(), strict=True):
                    low.copy_(p)
        losses.append(loss.item())
    return losses
