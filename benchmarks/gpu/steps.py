"""Newton–Schulz, Muon, AdamW and MuonClip: a few steps on the device against the reference.

Unusual here: Newton–Schulz has a bound of its own, for its sums cancel, so that rounding one
number of a product counts by the size of the terms and not of the sum. The iteration is run in
float64 with every product a little off, by its number of roundings, each as large as |A||B| at
that place; what comes out moves by as much, in first order, as a right implementation may err. As
in the proof sheet (`benchmarks/rounding.py`): four random moves, of which the worst counts.

A step is W - lr (O + decay W): it errs by lr times its update's error and by the roundings of W.
AdamW's quotient m / sqrt(v), corrected, errs by at most 1.2 n u with n = 24 roundings: by Cauchy
and Schwarz the sum of |g| in m is at most 1.01 sqrt(v) in the first three steps, for betas 0.9 and
0.95, whatever the gradients are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.check import Check
from benchmarks.question import relative_error
from benchmarks.rounding import MOVE, MOVES, TOO_COARSE, UNIT
from minik2 import pytorch, reference
from minik2.config import ModelConfig
from minik2.pytorch.newton_schulz import newton_schulz, segments

Array = np.ndarray[Any, np.dtype[Any]]
A, B, C = 3.4445, -4.7750, 2.0315
STEPS, RATE, DECAY, MOMENTUM = 3, 0.02, 0.1, 0.95
# Wide, tall, square, stacked; from 128 rows on Newton–Schulz works on Gram matrices.
SHAPES = ((24, 96), (96, 24), (64, 64), (6, 16, 48), (160, 512), (3, 384, 144))
# What a row of the sheet means by its precision: the weights', and the iteration's.
PRECISIONS = {
    "float64": ("float64", "float64"),
    "float32": ("float32", "float32"),
    "bfloat16": ("float32", "bfloat16"),
}


def moved_iteration(G: Array, move: float, rng: np.random.Generator, precision: str) -> Array:
    """Newton–Schulz of one matrix, float64, each operation off by up to `move` a rounding."""
    tall = G.shape[0] > G.shape[1]
    X = G.T if tall else G
    rows, columns = X.shape
    half = precision == "bfloat16"

    def product(left: Array, right: Array, beta: float = 0.0, added: Array | None = None) -> Array:
        """left right + beta added; in bfloat16 the sums are float32's, and storing counts."""
        terms, value = np.abs(left) @ np.abs(right), left @ right
        if added is not None:
            terms, value = terms + np.abs(beta * added), value + beta * added
        roundings = 1.0 if half else left.shape[1] + 2.0
        return value + move * roundings * rng.uniform(-1, 1, value.shape) * terms

    def times(K: Array, Y: Array) -> Array:
        return product(K, Y, A, Y)

    def curve(R: Array) -> Array:
        return product(C * R, R, B, R)

    start = 3.0 if half else rows + columns + 6.0
    X = X / max(float(np.linalg.norm(X)), 1e-7)
    X = X * (1 + move * start * rng.uniform(-1, 1, X.shape))
    for length in segments(rows, columns, 5):
        R = product(X, X.T)
        K = curve(R)
        if length == 1:
            X = times(K, X)
            continue
        Q = K + A * np.eye(rows)
        for _ in range(length - 1):
            R = times(K, times(K, R))
            K = curve(R)
            Q = times(K, Q)
        X = product(Q, X)
    return X.T if tall else X


def allowance(G: Array, precision: str) -> tuple[Array, float]:
    """The exact iteration of one matrix, and how far its largest number may be off, absolutely."""
    rng = np.random.default_rng(0)
    exact = moved_iteration(G, 0.0, rng, precision)
    moved = [moved_iteration(G, MOVE, rng, precision) for _ in range(MOVES)]
    kappa = max(float(np.abs(other - exact).max()) for other in moved) / MOVE
    return exact, kappa * (UNIT[precision] + UNIT["float64"])


def matrices(array: Array) -> Array:
    return array if array.ndim == 3 else array[None]


def run(section: str, cases: Sequence[Any], device: str) -> Iterator[Check]:
    """Every check of this section; the drawn cases are not needed."""
    for precision in PRECISIONS:
        yield iteration(section, precision, device)
        yield muon(section, precision, device)
        for name, cfg in configs().items():
            yield from muon_clip(section, name, cfg, precision, device)


def configs() -> dict[str, ModelConfig]:
    tiny = ModelConfig.preset("tiny")
    return {
        "MuonClip": tiny,
        "MuonClip, no query latent": tiny.replace(q_lora_rank=None, tie_word_embeddings=True),
    }


def iteration(section: str, precision: str, device: str) -> Check:
    """Newton–Schulz on matrices and stacks."""
    check, rng = Check(section, "Newton–Schulz", precision), np.random.default_rng(0)
    dtype = getattr(torch, precision)
    for shape in SHAPES:
        G = rng.standard_normal(shape).astype(precision).astype(np.float64)
        got = newton_schulz(torch.from_numpy(G).to(device, dtype), dtype=dtype)
        want, bound = _iterated(G, precision)
        _add(check, _host(got), want, bound, f"shape {shape}")
    return check


def _iterated(G: Array, precision: str) -> tuple[Array, float]:
    """The reference's answer and the largest allowance of any of its matrices."""
    allowed = max(allowance(matrix, precision)[1] for matrix in matrices(G))
    return reference.muon.newton_schulz(G), allowed


def _host(tensor: Any) -> Array:
    return tensor.detach().to("cpu", torch.float64).numpy()


def _add(check: Check, got: Array, want: Array, allowed: float, what: str) -> None:
    bound = allowed / float(np.abs(want).max())
    if bound > TOO_COARSE:
        check.left_out += 1
    else:
        check.add(relative_error(got, want), bound, what)


class Allowance:
    """How far a tensor may be off after the steps that it is told of, absolutely."""

    def __init__(self, weight: Array, precision: str) -> None:
        self.weights, self.iteration = PRECISIONS[precision]
        # Decay, update, their difference, two factors of QK-Clip; both sides.
        unit = UNIT[self.weights] + UNIT["float64"]
        self.each, self.total = 6 * unit * float(np.abs(weight).max()), 0.0
        self.unit, self.momentum = unit, np.zeros_like(weight)

    def muon(self, grad: Array) -> None:
        """One step of Muon with this gradient."""
        self.momentum += (1 - MOMENTUM) * (grad - self.momentum)
        direction = grad + MOMENTUM * (self.momentum - grad)
        off = max(allowance(matrix, self.iteration)[1] for matrix in matrices(direction))
        size = RATE * reference.muon.scale(*grad.shape[-2:], "match_rms_adamw")
        self.total += size * (off + 4 * self.unit) + self.each

    def adamw(self) -> None:
        """One step of AdamW."""
        self.total += RATE * 1.2 * 24 * self.unit + self.each


def muon(section: str, precision: str, device: str) -> Check:
    """Three steps of Muon on matrices and stacks; what is compared is how far the weights went."""
    check, rng = Check(section, "Muon, 3 steps", precision), np.random.default_rng(1)
    held, iterated = PRECISIONS[precision]
    for shape in SHAPES:
        start = (0.02 * rng.standard_normal(shape)).astype(held).astype(np.float64)
        allowed, ours = Allowance(start, precision), {"w": start.copy()}
        # A copy: on a CPU in float64 the step would otherwise move `start` itself.
        theirs = torch.nn.Parameter(
            torch.tensor(start, dtype=getattr(torch, held), device=device))  # fmt: skip
        keywords = {"momentum": MOMENTUM, "weight_decay": DECAY}
        exact = reference.muon.Muon(RATE, **keywords)
        optimizer = pytorch.Muon([theirs], RATE, **keywords,
                                 iteration_dtype=getattr(torch, iterated))  # fmt: skip
        for _ in range(STEPS):
            grad = rng.standard_normal(shape).astype(held).astype(np.float64)
            theirs.grad = torch.from_numpy(grad).to(device, theirs.dtype)
            optimizer.step()
            exact.step(ours, {"w": grad})
            allowed.muon(grad)
        _add(check, _host(theirs) - start, ours["w"] - start, allowed.total, f"shape {shape}")
    return check


def muon_clip(
    section: str, name: str, cfg: ModelConfig, precision: str, device: str
) -> list[Check]:
    """Three steps of the whole recipe on given gradients, heads past tau among them.

    What Muon and what AdamW moved are two checks; a third is γ itself, off by two roundings.
    """
    of_muon, of_adamw, of_gamma = (
        Check(section, f"{name}: {what}", precision) for what in ("matrices", "AdamW's", "γ")
    )
    held, iterated = PRECISIONS[precision]
    ours, start, rng = reference.Model(cfg, "float64"), {}, np.random.default_rng(2)
    for key, array in ours.weights.items():
        array[...] = (0.02 * rng.standard_normal(array.shape)).astype(held)
        start[key] = array.copy()
    theirs = pytorch.Model.empty(cfg, device, getattr(torch, held))
    _write(theirs, start)
    exact = reference.muon.MuonClip(ours, RATE, weight_decay=DECAY)
    optimizer = pytorch.MuonClip(theirs, RATE, weight_decay=DECAY,
                                 iteration_dtype=getattr(torch, iterated))  # fmt: skip
    trained = [key for key in start if not key.endswith("e_score_correction_bias")]
    allowed = {key: Allowance(start[key], precision) for key in trained}
    for _ in range(STEPS):
        grads = {key: rng.standard_normal(start[key].shape).astype(held).astype(np.float64)
                 for key in trained}  # fmt: skip
        tops = 150 * rng.random((cfg.num_hidden_layers, cfg.num_attention_heads))
        tops[0, 0] = 300.0
        _give(theirs, grads)
        gamma = optimizer.step(torch.from_numpy(tops).to(device))
        want = exact.step(grads, tops)
        of_gamma.add(relative_error(_host(gamma), want), 3 * (UNIT[held] + UNIT["float64"]),
                     f"largest logits {tops.tolist()}", want.size)  # fmt: skip
        for key, grad in grads.items():
            if reference.muon.takes(key, grad.shape):
                allowed[key].muon(grad)
            else:
                allowed[key].adamw()
    for key in trained:
        check = of_muon if reference.muon.takes(key, start[key].shape) else of_adamw
        got = _host(theirs.weights[key]) - start[key]
        _add(check, got, ours.weights[key] - start[key], allowed[key].total, key)
    return [of_muon, of_adamw, of_gamma]


@torch.no_grad()
def _write(model: pytorch.Model, values: dict[str, Array]) -> None:
    for key, tensor in model.weights.items():
        tensor.copy_(torch.from_numpy(values.get(key, np.zeros(tuple(tensor.shape)))))


def _give(model: pytorch.Model, grads: dict[str, Array]) -> None:
    """Every parameter's gradient, by the checkpoint's names: a second model carries them there."""
    carrier = pytorch.Model.empty(model.cfg, model.device, model.lm_head.weight.dtype)
    _write(carrier, grads)
    for p, grad in zip(model.parameters(), carrier.parameters(), strict=True):
        p.grad = grad.detach()
