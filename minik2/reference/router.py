"""The router: which experts a token goes to, and with what weight.

Unusual here: the two questions have two answers. The choice looks at score + correction bias; the
weights come from the scores alone. Letting the bias leak into the weights is the commonest error
in copies of this model, so the two are kept in two named variables.
"""

import math
from typing import Any

import numpy as np

from minik2.config import ModelConfig
from minik2.reference import kernels, products

Array = np.ndarray[Any, np.dtype[Any]]


def forward(
    x: Array, weight: Array, bias: Array | None, cfg: ModelConfig
) -> tuple[tuple[Array, Array], dict[str, Any]]:
    """Choose K experts a token.

    x: (tokens, D); weight: (E, D); bias: e_score_correction_bias (E,), None for softmax routers.
    Returns (indices (tokens, K) int64, weights (tokens, K) in x's dtype), saved. Scores are
    float32 at least, whatever x is. Ties go to the lower expert number.
    Source: arXiv 2412.19437 eq. 12-16; grouping as in DeepSeek-V3's inference/model.py.
    """
    exact = np.promote_types(x.dtype, np.float32)
    logits = products.product(x.astype(exact, copy=False), weight.astype(exact, copy=False))
    indices, weights, scores = choose(logits, bias, cfg)
    weights = weights.astype(x.dtype, copy=False)
    saved = {"x": x, "scores": scores, "indices": indices, "weights": weights,
             "weight": weight, "cfg": cfg}  # fmt: skip
    return (indices, weights), saved


def choose(
    logits: Array, bias: Array | None, cfg: ModelConfig
) -> tuple[Array, Array, Array]:
    """`forward` after its product: logits (tokens, E) -> indices, weights and scores, as there."""
    scores = _sigmoid(logits) if cfg.scoring_func == "sigmoid" else _softmax(logits)

    choice = scores if bias is None else scores + bias.astype(scores.dtype, copy=False)
    if cfg.n_group > 1:
        choice = _keep_best_groups(choice, cfg)
    indices = np.empty((len(logits), cfg.num_experts_per_tok), np.int64)
    kernels.top_k(choice, indices)

    weights = np.take_along_axis(scores, indices, axis=1)
    if cfg.norm_topk_prob:
        # 1e-20 as in the released code: scores that all underflow give zeros, not NaN.
        weights = weights / (weights.sum(axis=1, keepdims=True) + 1e-20)
    return indices, weights * scores.dtype.type(cfg.routed_scaling_factor), scores


def backward(
    dweights: Array, saved: dict[str, Any], dscores: Array | None = None
) -> tuple[Array, dict[str, Array]]:
    """dx as x, and {"weight": (E, D)}, from the gradient of the experts' weights (tokens, K).

    Which experts are chosen is a jump, not a slope, so nothing flows through the choice, and the
    correction bias, which touches nothing else, gets no gradient. dscores (tokens, E): what another
    loss says about the scores. Renormalised, w = s / Σ s: ds = (dw - Σ dw w) / Σ s.
    """
    x, scores, indices, cfg = (saved[name] for name in ("x", "scores", "indices", "cfg"))
    weight, exact = saved["weight"], scores.dtype
    dchosen = dweights.astype(exact, copy=False) * exact.type(cfg.routed_scaling_factor)
    if cfg.norm_topk_prob:
        chosen = np.take_along_axis(scores, indices, axis=1)
        total = chosen.sum(axis=1, keepdims=True) + 1e-20
        dchosen = (dchosen - (dchosen * chosen / total).sum(axis=1, keepdims=True)) / total

    d = np.zeros_like(scores) if dscores is None else dscores.astype(exact)
    rows = np.arange(len(d))[:, None]
    d[rows, indices] += dchosen
    if cfg.scoring_func == "sigmoid":
        dlogits = d * scores * (1 - scores)
    else:
        dlogits = scores * (d - (d * scores).sum(axis=1, keepdims=True))
    dx, dweight = products.product_backward(
        dlogits, x.astype(exact, copy=False), weight.astype(exact, copy=False)
    )
    return dx.astype(x.dtype, copy=False), {"weight": dweight.astype(weight.dtype, copy=False)}


def update_bias(bias: Array, loads: Array, speed: float, mean_free: bool = False) -> None:
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
            f"{bias.shape} and {loads.shape}."
        )
    if not 0 <= speed < math.inf:
        raise ValueError(f"The bias's speed is a finite number, 0 or more (0: off), not {speed}.")
    if speed == 0:
        return
    # In whole numbers: a mean of loads may be rounded.
    sign = np.sign(loads.sum() - len(loads) * loads).astype(np.float64)
    if mean_free:
        sign -= sign.mean()
    bias += (speed * sign).astype(bias.dtype)


def _sigmoid(logits: Array) -> Array:
    # e^-|l| never overflows; each sign has its own formula.
    small = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1 / (1 + small), small / (1 + small))


def _softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _keep_best_groups(choice: Array, cfg: ModelConfig) -> Array:
    """-inf for every expert outside the topk_group best groups.

    A group is worth its two best biased scores (noaux_tc) or its best score (group_limited_greedy).
    """
    tokens = len(choice)
    grouped = choice.reshape(tokens, cfg.n_group, -1)
    best = 2 if cfg.topk_method == "noaux_tc" else 1
    worth = np.sort(grouped, axis=2)[..., -best:].sum(axis=2)
    kept = np.empty((tokens, cfg.topk_group), np.int64)
    kernels.top_k(worth, kept)
    # Not 0: biased scores can be negative, and a masked 0 would then win.
    masked = np.full_like(grouped, -np.inf)
    rows = np.arange(tokens)[:, None]
    masked[rows, kept] = grouped[rows, kept]
    return masked.reshape(choice.shape)
