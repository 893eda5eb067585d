"""Muon: momentum made orthogonal, so that every direction of a matrix learns equally fast.

Unusual here: a step is cut up not by kind of work but by matrix. Each is taken from its momentum to
its new weights by one thread, small ones of one shape together; the largest go first, so that the
cores are done at the same time. Only a matrix that is more than a core's share has all of them.
Momentum is an average, M = μ M + (1 - μ) G, as in
torch.optim.Muon; the papers' sum μ M + G is 1 / (1 - μ) times as large, and Newton–Schulz divides
by the norm first.
"""

import math
from collections.abc import Mapping
from typing import Any

import numba
import numpy as np

from minik2.reference import parallel, qk_clip
from minik2.reference.adamw import AdamW
from minik2.reference.model import Model
from minik2.reference.newton_schulz import (
    batches,
    flops,
    newton_schulz,
    plain,
    segments,
    together,
)

__all__ = ["Muon", "MuonClip", "newton_schulz", "plain", "scale", "takes"]

Array = np.ndarray[Any, np.dtype[Any]]
Matrix = tuple[Array, Array, Array]


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
        if not (0 <= lr < math.inf and 0 <= weight_decay < math.inf and 0 <= momentum < 1):
            raise ValueError(
                "Muon wants lr and weight_decay finite, 0 or more, and momentum from 0 to below 1, "
                f"not lr={lr}, weight_decay={weight_decay}, momentum={momentum}."
            )
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(f"Muon wants a whole number of steps, 1 up, not {steps}; 5 is usual.")
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
        # The matrices of one shape, whatever they are called, and how many of them go together.
        alike: dict[tuple[int, ...], list[Matrix]] = {}
        for name, grad in grads.items():
            for matrix in self._matrices(name, weights[name], grad):
                alike.setdefault(matrix[0].shape, []).append(matrix)
        batched = [
            (self._work(len(matrices[own]), *shape), matrices[own])
            for shape, matrices in alike.items()
            for own in batches(len(matrices), *shape)
        ]
        batched.sort(key=lambda batch: -batch[0])
        share = sum(work for work, _ in batched) / numba.get_num_threads()
        for work, batch in batched:
            if work > share:
                self._update(batch)
        parallel.each(self._update, [batch for work, batch in batched if work <= share])

    def _matrices(self, name: str, weight: Array, grad: Array) -> list[Matrix]:
        """Weight, gradient and momentum of each matrix that goes by this name."""
        if name not in self.momentum_buffers:
            self.momentum_buffers[name] = np.zeros_like(grad)
        buffer = self.momentum_buffers[name]
        if grad.ndim == 2:
            return [(weight, grad, buffer)]
        return list(zip(weight, grad, buffer, strict=True))

    def _work(self, count: int, rows: int, columns: int) -> int:
        return count * flops(rows, columns, segments(rows, columns, self.steps))

    def _update(self, matrices: list[Matrix]) -> None:
        """Matrices of one shape from their momenta to their new weights."""
        directions = []
        for _, grad, buffer in matrices:
            buffer += (1 - self.momentum) * (grad - buffer)
            directions.append(grad + self.momentum * (buffer - grad) if self.nesterov else buffer)
        if len(directions) == 1:
            updates = together(directions[0], self.steps)[None]
        else:
            updates = together(np.stack(directions), self.steps)
        rows, columns = updates.shape[1:]
        size = self.lr * scale(rows, columns, self.adjust_lr_fn)
        for (weight, _, _), update in zip(matrices, updates, strict=True):
            weight *= 1 - self.lr * self.weight_decay
            weight -= size * update


class MuonClip:
    """K2's recipe for a whole model: Muon for its matrices, AdamW for the rest, then QK-Clip.

    Muon takes what `takes` says, AdamW the rest: adamw_lr is its learning rate if it is to differ,
    betas and eps its constants (DeepSeek-V3's). kv_b_proj, q_b_proj and kv_a_proj_with_mqa, one
    matrix each in the checkpoint, stay whole, and so does every head with them: our choice, K2's is
    not published. weight_decay holds for everything, norms too, which Moonlight found crucial
    (arXiv 2502.16982 appendix D). tau None: no clipping, which leaves Moonlight's recipe. The
    keywords left go to Muon. For a schedule, set muon.lr and adamw.lr; the state is in
    muon.momentum_buffers and adamw.means, .squares and .counts, by the checkpoint's names.
    Source: arXiv 2507.20534 algorithm 1.
    """

    def __init__(
        self,
        model: Model,
        lr: float,
        tau: float | None = 100.0,
        adamw_lr: float | None = None,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        **muon: Any,
    ) -> None:
        if tau is not None:
            qk_clip.check_tau(tau)
        self.model, self.tau = model, tau
        self.muon = Muon(lr, weight_decay=weight_decay, **muon)
        self.adamw = AdamW(lr if adamw_lr is None else adamw_lr, betas, eps, weight_decay)

    def step(self, grads: Mapping[str, Array], max_logits: Array | None = None) -> Array:
        """Update every weight that has a gradient, then clip; returns γ (layers, H), 1 for heads
        left alone.

        grads: as `Model.loss_and_grads` gives them. max_logits (layers, H), `Watch.max_logits`: the
        largest logit of each head in the forward passes that gave the gradients; needless with tau
        None. The step's own logits are left as they were. Raises ValueError, and changes nothing,
        without maxima to clip by, for another shape, and for maxima that are not finite.
        """
        cfg, tau = self.model.cfg, self.tau
        self._check(max_logits)
        weights = self.model.weights
        matrices = {n: grad for n, grad in grads.items() if takes(n, grad.shape)}
        self.muon.step(weights, matrices)
        self.adamw.step(weights, {n: grad for n, grad in grads.items() if n not in matrices})
        if tau is None or max_logits is None:
            return np.ones((cfg.num_hidden_layers, cfg.num_attention_heads))
        return np.stack([
            qk_clip.clip(layer["self_attn"], top, cfg, tau)
            for layer, top in zip(self.model.layers, max_logits, strict=True)
        ])  # fmt: skip

    def _check(self, max_logits: Array | None) -> None:
        layers, heads = self.model.cfg.num_hidden_layers, self.model.cfg.num_attention_heads
        if max_logits is None:
            if self.tau is not None:
                raise ValueError(
                    f"MuonClip with tau={self.tau} wants the largest logits of {layers} layers "
                    f"with {heads} heads each; give it a Watch's max_logits, or tau=None."
                )
            return
        if max_logits.shape != (layers, heads):
            raise ValueError(
                f"MuonClip wants the largest logits of {layers} layers with {heads} heads each, "
                f"not the shape {max_logits.shape}."
            )
        finite = np.isfinite(max_logits)
        if not finite.all():
            bad = [tuple(place) for place in np.argwhere(~finite).tolist()]
            raise ValueError(
                f"The largest logits of (layer, head) {bad} are not finite; nothing was updated, "
                "go back to a good checkpoint."
            )
