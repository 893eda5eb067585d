"""Muon and MuonClip in torch.

Unusual here: a parameter may hold several matrices: a stack (E, r, c) of experts, or, where its
group says `split`, equal blocks of rows, such as the gate and up halves of gate_up_proj. All of
them are orthogonalised in batched calls, each for itself. A GPU takes a stack whole; a CPU takes
at a time what fits its caches, from the momentum to the new weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from minik2.pytorch import qk_clip
from minik2.pytorch.layer import Layer
from minik2.pytorch.mla import MLA
from minik2.pytorch.model import Model
from minik2.pytorch.newton_schulz import newton_schulz

__all__ = ["Muon", "MuonClip", "newton_schulz", "scale", "takes"]

# Numbers taken at a time. Each thread of a CPU: 1 MiB in float32. A GPU: 1 GiB, since larger
# batches would only cost memory.
CPU_BATCH, GPU_BATCH = 2**18, 2**28


def takes(name: str, shape: Sequence[int]) -> bool:
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


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal; parameters (r, c) or (E, r, c), updated as torch.optim.Muon does.

    M = μ M + (1 - μ) G; U = (1 - μ) G + μ M with nesterov, else M; O = newton_schulz(U) scale;
    W = W - lr (O + weight_decay W). iteration_dtype: what Newton–Schulz computes in; None leaves it
    to `newton_schulz.iteration_dtype`. A group may carry `split`, the number of equal blocks of
    rows that each count as a matrix (1 if it does not say). Raises ValueError for other shapes.
    Source: arXiv 2502.16982 §2.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        nesterov: bool = True,
        steps: int = 5,
        adjust_lr_fn: str = "match_rms_adamw",
        iteration_dtype: torch.dtype | None = None,
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
        defaults = {
            "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov,
            "steps": steps, "adjust_lr_fn": adjust_lr_fn, "iteration_dtype": iteration_dtype,
            "split": 1,
        }  # fmt: skip
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Also called for every group at the start. Raises ValueError for what is no matrix."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for p in group["params"]:
            if p.ndim not in (2, 3) or p.shape[-2] % group["split"] or not p.numel():
                self.param_groups.pop()
                raise ValueError(
                    f"Muon updates matrices (r, c) and stacks (E, r, c) with numbers in them and r "
                    f"a multiple of {group['split']}, not the shape {tuple(p.shape)}; leave it to "
                    "AdamW."
                )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, group)
        return loss

    def _update(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(grad)
        self._update_local(state, p, grad, group)

    def _update_local(
        self, state: dict[str, Any], p: Tensor, grad: Tensor, group: dict[str, Any]
    ) -> None:
        mu, lr = group["momentum"], group["lr"]
        rows, columns = p.shape[-2] // group["split"], p.shape[-1]
        weights, grads, buffers = (
            t.unflatten(-2, (-1, rows)).view(-1, rows, columns)
            for t in (p, grad, state["momentum_buffer"])
        )
        size = lr * scale(rows, columns, group["adjust_lr_fn"])
        on_cpu = p.device.type == "cpu"
        batch = CPU_BATCH * torch.get_num_threads() if on_cpu else GPU_BATCH
        count = max(1, batch // (rows * columns))
        for weight, gradient, buffer in zip(
            weights.split(count), grads.split(count), buffers.split(count), strict=True
        ):
            buffer.lerp_(gradient, 1 - mu)
            update = newton_schulz(
                # Nameless, so that it is gone before the next one takes memory.
                gradient.lerp(buffer, mu) if group["nesterov"] else buffer,
                group["steps"],
                group["iteration_dtype"],
            )
            weight.mul_(1 - lr * group["weight_decay"]).add_(update, alpha=-size)


class MuonClip:
    """K2's recipe for a whole model: Muon for its matrices, AdamW for the rest, then QK-Clip.

    Muon takes what `takes` says; gate and up, two matrices in the checkpoint and one in memory, are
    taken apart. kv_b_proj, q_b_proj and kv_a_proj_with_mqa, one matrix each in the checkpoint, stay
    whole, and so does every head with them: our choice, K2's is not published. adamw_lr: AdamW's
    learning rate if it is to differ, betas and eps its constants (DeepSeek-V3's). weight_decay
    holds for everything, norms too, which Moonlight found crucial (arXiv 2502.16982 appendix D).
    tau None: no clipping, which leaves Moonlight's recipe.
    The keywords left go to Muon. param_groups are Muon's, then AdamW's, for a schedule to set.
    Source: arXiv 2507.20534 algorithm 1.
    """

    muon_class = Muon

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
        matrices, fused, others = [], [], []
        for name, p in model.named_parameters():
            if not takes(name, p.shape):
                others.append(p)
            elif name.endswith("experts.gate_up_proj"):
                fused.append(p)
            else:
                matrices.append(p)
        groups: list[dict[str, Any]] = [{"params": matrices}]
        if fused:
            groups.append({"params": fused, "split": 2})
        self.muon = self.muon_class(groups, lr, weight_decay=weight_decay, **muon)
        self.adamw = torch.optim.AdamW(
            others, lr if adamw_lr is None else adamw_lr, betas, eps, weight_decay,
            fused=model.device.type == "cuda",
        )  # fmt: skip

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Muon's groups, then AdamW's; setting a group's "lr" changes the next step."""
        return self.muon.param_groups + self.adamw.param_groups

    def step(self, max_logits: Tensor | None = None) -> Tensor:
        """Update every parameter, then clip; returns γ (layers, H), 1 for heads left alone.

        max_logits (layers, H), `Watch.max_logits`: the largest logit of each head in the forward
        passes that gave the gradients, of all micro-batches and ranks; needless with tau None. The
        step's own logits are left as they were. Raises ValueError, and changes nothing, without
        maxima to clip by, for another shape, and for maxima that are not finite.
        """
        cfg, tau = self.model.cfg, self.tau
        self._check(max_logits)
        self.muon.step()
        self.adamw.step()
        if tau is None or max_logits is None:
            return torch.ones(
                cfg.num_hidden_layers, cfg.num_attention_heads, device=self.model.device
            )
        gammas = qk_clip.shrink(max_logits, tau)
        for layer, gamma in zip(self.model.model.layers, gammas, strict=True):
            self._scale_rows(cast(Layer, layer).self_attn, gamma)
        return gammas

    def _scale_rows(self, block: MLA, gamma: Tensor) -> None:
        qk_clip.scale_rows(dict(block.named_parameters()), gamma, self.model.cfg)

    def _check(self, max_logits: Tensor | None) -> None:
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
                f"not the shape {tuple(max_logits.shape)}."
            )
        finite = max_logits.isfinite()
        if not finite.all():
            bad = [tuple(place) for place in (~finite).nonzero().tolist()]
            raise ValueError(
                f"The largest logits of (layer, head) {bad} are not finite; nothing was updated, "
                "go back to a good checkpoint."
            )

    def zero_grad(self) -> None:
        """Drop every gradient."""
        self.muon.zero_grad()
        self.adamw.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """Both optimizers' states, which load_state_dict takes back."""
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where state_dict was taken."""
        self.muon.load_state_dict(state["muon"])
        self.adamw.load_state_dict(state["adamw"])
