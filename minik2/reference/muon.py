"""Muon: momentum made orthogonal, so that every direction of a matrix learns equally fast.

Unusual here: the experts of a layer, which carry one name each, are gathered into a stack and
orthogonalised in one call, each for itself. Momentum is an average, M = μ M + (1 - μ) G, as in
torch.optim.Muon; the papers' sum μ M + G is 1 / (1 - μ) times as large, and Newton–Schulz divides
by the norm first.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from minik2.reference.newton_schulz import newton_schulz, plain

__all__ = ["Muon", "newton_schulz", "plain", "scale", "takes"]

Array = np.ndarray[Any, np.dtype[Any]]


def takes(name: str, shape: tuple[int, ...]) -> bool:
    """True for the tensors that Muon updates; embedding, head and norms are AdamW's.

    Every matrix but the two tables of tokens, the router included: the rule of Moonlight's code
    (examples/toy_train.py); that the paper's models put the router there is not stated outright.
    K2's own split is not published.
    """
    return len(shape) >= 2 and "embed_tokens" not in name and "lm_head" not in name


def scale(rows: int, columns: int, adjust_lr_fn: str) -> float:
    """What an orthogonal update of a matrix (rows, columns) is multiplied with.

    "match_rms_adamw": 0.2 sqrt(max(rows, columns)), after which its root mean square is near 0.2,
    as AdamW's is. Source: arXiv 2502.16982 §2.2. "original": sqrt(max(1, rows / columns)).
    """
    if adjust_lr_fn == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1.0, rows / columns))


class Muon:
    """Updates matrices (r, c) and stacks of them (E, r, c) in place, by their names.

    For each: M = μ M + (1 - μ) G; U = (1 - μ) G + μ M with nesterov, else M; O = newton_schulz(U)
    scale; W = W - lr (O + weight_decay W). Weights and gradients share a dtype, float32 or float64.
    momentum_buffers holds M by name. Source: arXiv 2502.16982 §2; torch.optim.Muon.
    """

    def __init__(
        self,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        nesterov: bool = True,
        steps: int = 5,
        adjust_lr_fn: str = "match_rms_adamw",
    ) -> None:
        if lr < 0 or weight_decay < 0 or not 0 <= momentum < 1:
            raise ValueError(
                "Muon wants lr and weight_decay of 0 or more and a momentum from 0 to below 1, not "
                f"lr={lr}, weight_decay={weight_decay}, momentum={momentum}."
            )
        if adjust_lr_fn not in ("match_rms_adamw", "original"):
            raise ValueError(
                f"adjust_lr_fn is 'match_rms_adamw' or 'original', not {adjust_lr_fn!r}; the first "
                "goes with AdamW's learning rates."
            )
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self.nesterov, self.steps, self.adjust_lr_fn = nesterov, steps, adjust_lr_fn
        self.momentum_buffers: dict[str, Array] = {}

    def step(self, weights: Mapping[str, Array], grads: Mapping[str, Array]) -> None:
        """One update of weights[name] for every name in grads; the gradients stay as they are."""
        for name, grad in grads.items():
            if grad.shape != weights[name].shape or grad.ndim not in (2, 3):
                raise ValueError(
                    f"Muon updates matrices and stacks of matrices with gradients of their shape; "
                    f"{name} is {weights[name].shape} and its gradient {grad.shape}."
                )
        for names in _stacks(grads):
            directions = [self._direction(name, grads[name]) for name in names]
            if len(names) == 1:
                updates = newton_schulz(directions[0], self.steps)[None]
            else:
                updates = newton_schulz(np.stack(directions), self.steps)
            for name, update in zip(names, updates, strict=True):
                rows, columns = update.shape[-2:]
                weight = weights[name]
                weight *= 1 - self.lr * self.weight_decay
                weight -= (self.lr * scale(rows, columns, self.adjust_lr_fn)) * update

    def _direction(self, name: str, grad: Array) -> Array:
        if name not in self.momentum_buffers:
            self.momentum_buffers[name] = np.zeros_like(grad)
        buffer = self.momentum_buffers[name]
        buffer += (1 - self.momentum) * (grad - buffer)
        return grad + self.momentum * (buffer - grad) if self.nesterov else buffer


def _stacks(grads: Mapping[str, Array]) -> list[list[str]]:
    """Names that go into one call: the experts of one layer and kind; every other tensor alone."""
    stacks: dict[str, list[str]] = {}
    for name in grads:
        before, found, after = name.partition(".experts.")
        kind = f"{before}{found}{after.partition('.')[2]}" if found else name
        stacks.setdefault(kind, []).append(name)
    return list(stacks.values())
