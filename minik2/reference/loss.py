"""The loss: how surprised the model is by the next token, in nats, averaged over the targets.

Unusual here: neither direction forms probabilities in the forward pass. The loss is a difference
of logits that never overflows, and its gradient is softmax minus one at the target.
"""

from typing import Any

import numpy as np

from minik2 import tokens as token_ids
from minik2.config import ModelConfig
from minik2.reference import kernels_backward

Array = np.ndarray[Any, np.dtype[Any]]


def forward(logits: Array, targets: Any, cfg: ModelConfig) -> tuple[float, dict[str, Any]]:
    """Mean over the counted targets of log Σ e^logits - logits[target], in nats.

    logits: (B, T, vocab) float32 or float64; targets: (B, T) whole numbers, already shifted, -100
    where a place does not count. The mean is taken in float64. Raises what
    `minik2.tokens.check_targets` raises: other shapes, other ids, no target that counts.
    """
    checked = token_ids.check_targets(targets, logits.shape[:2], cfg).reshape(-1)
    rows = np.ascontiguousarray(logits).reshape(-1, logits.shape[-1])
    tops, logs = np.empty((2, len(rows)), logits.dtype)
    kernels_backward.log_sum_exp(rows, tops, logs)
    counted = np.flatnonzero(checked != token_ids.IGNORED)
    # The two large numbers first: their difference is small where the target is likely.
    losses = (tops[counted] - rows[counted, checked[counted]]) + logs[counted]
    saved = {"logits": logits, "targets": checked, "log_sums": tops + logs, "count": len(counted)}
    return float(losses.mean(dtype=np.float64)), saved


def backward(dloss: float, saved: dict[str, Any]) -> Array:
    """Gradient of the logits, (B, T, vocab): zero wherever a target does not count."""
    logits = saved["logits"]
    rows = np.ascontiguousarray(logits).reshape(-1, logits.shape[-1])
    d = np.empty_like(rows)
    each = rows.dtype.type(dloss / saved["count"])
    kernels_backward.cross_entropy_backward(rows, saved["targets"], saved["log_sums"], each, d)
    return d.reshape(logits.shape)
