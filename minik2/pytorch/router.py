"""The router in torch: chosen by biased scores, weighed by unbiased ones."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minik2.config import ModelConfig


class Router(nn.Module):
    """x (tokens, D) -> indices (tokens, K) int64 and weights (tokens, K) in x's dtype.

    Scores are float32 at least, whatever x is; ties fall as torch.topk lets them. The correction
    bias is a buffer, not a parameter: no gradient reaches it, and it stays float32 when the model
    becomes bfloat16. saved, if given, takes "router": scores (tokens, E) and indices.
    Source: arXiv 2412.19437 eq. 12-16.
    """

    e_score_correction_bias: Tensor

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.weight = nn.Parameter(torch.empty(cfg.n_routed_experts, cfg.hidden_size))
        if cfg.topk_method == "noaux_tc":
            self.register_buffer("e_score_correction_bias", torch.zeros(cfg.n_routed_experts))

    def _apply(self, fn, recurse=True):
        bias = getattr(self, "e_score_correction_bias", None)
        super()._apply(fn, recurse)
        if bias is not None and self.e_score_correction_bias.dtype.itemsize < 4:
            # Rounded to 16 bits, updates of 0.001 would be lost: keep the old values, moved.
            self.e_score_correction_bias = bias.to(self.e_score_correction_bias.device)
        return self

    def forward(self, x: Tensor, saved: dict[str, Any] | None = None) -> tuple[Tensor, Tensor]:
        cfg = self.cfg
        exact = torch.promote_types(x.dtype, torch.float32)
        logits = F.linear(x.to(exact), self.weight.to(exact))
        scores = logits.sigmoid() if cfg.scoring_func == "sigmoid" else logits.softmax(-1)
        with torch.no_grad():
            choice = scores
            if cfg.topk_method == "noaux_tc":
                choice = choice + self.e_score_correction_bias
            if cfg.n_group > 1:
                choice = self._keep_best_groups(choice)
            indices = choice.topk(cfg.num_experts_per_tok, dim=-1).indices
        if saved is not None:
            saved["router"] = {"scores": scores, "indices": indices}
        weights = scores.gather(1, indices)
        if cfg.norm_topk_prob:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return indices, (weights * cfg.routed_scaling_factor).type_as(x)

    def _keep_best_groups(self, choice: Tensor) -> Tensor:
        """-inf outside the topk_group best groups (-inf, because biased scores can be negative)."""
        cfg = self.cfg
        grouped = choice.unflatten(-1, (cfg.n_group, -1))
        best = 2 if cfg.topk_method == "noaux_tc" else 1
        worth = grouped.topk(best, dim=-1).values.sum(-1)
        dropped = torch.ones_like(worth, dtype=torch.bool)
        dropped.scatter_(1, worth.topk(cfg.topk_group, dim=-1).indices, False)
        return grouped.masked_fill(dropped[..., None], float("-inf")).flatten(1)


@torch.no_grad()
def update_bias(bias: Tensor, loads: Tensor, speed: float, mean_free: bool = False) -> None:
    """One step of the correction bias, in place: b += speed sign(mean(loads) - loads).

    bias: e_score_correction_bias (E,); loads: (E,) whole numbers, how many (token, choice) pairs
    each expert got since the last step. Experts with less than their share become likelier to be
    chosen, without a gradient. mean_free: b += speed (sign - mean(sign)), after which the sum of
    the biases stays what it was. speed 0 switches it off. Raises ValueError for another shape and
    for a speed that is negative or not finite. Source: arXiv 2412.19437 §2.1.2, speed 0.001 in its
    §4.2; mean-free: arXiv 2502.16982 appendix C.
    """
    if bias.ndim != 1 or bias.shape != loads.shape:
        raise ValueError(
            "The correction bias and the loads are (E,), one number an expert, not "
            f"{tuple(bias.shape)} and {tuple(loads.shape)}."
        )
    if not 0 <= speed < math.inf:
        raise ValueError(f"The bias's speed is a finite number, 0 or more (0: off), not {speed}.")
    if speed == 0:
        return
    # In whole numbers: a mean of loads may be rounded.
    sign = (loads.sum() - len(loads) * loads).sign().double()
    if mean_free:
        sign -= sign.mean()
    bias += (speed * sign).to(bias)
