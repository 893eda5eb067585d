"""AdamW: every number has its own step, the average gradient over its root mean square."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


class AdamW:
    """Updates arrays of any shape in place, by their names.

    At a name's update number t: m = β1 m + (1 - β1) g; v = β2 v + (1 - β2) g²;
    w = w - lr (weight_decay w + (m / (1 - β1^t)) / (sqrt(v / (1 - β2^t)) + eps)). betas and decay
    are DeepSeek-V3's (arXiv 2412.19437 §4.2), and all of them those of Moonlight's example code.
    means, squares and counts hold m, v and t by name. Source: arXiv 1711.05101 algorithm 2.
    """

    def __init__(
        self,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
    ) -> None:
        sizes = all(0 <= size < math.inf for size in (lr, eps, weight_decay))
        if not (sizes and all(0 <= beta < 1 for beta in betas)):
            raise ValueError(
                "AdamW wants lr, eps and weight_decay finite, 0 or more, and betas from 0 to below "
                f"1, not lr={lr}, eps={eps}, weight_decay={weight_decay}, betas={betas}."
            )
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.means: dict[str, Array] = {}
        self.squares: dict[str, Array] = {}
        self.counts: dict[str, int] = {}

    def step(self, weights: Mapping[str, Array], grads: Mapping[str, Array]) -> None:
        """One update of weights[name] for every name in grads; the gradients stay as they are."""
        for name, grad in grads.items():
            weight = weights[name]
            if grad.shape != weight.shape:
                raise ValueError(
                    f"AdamW wants gradients of their weights' shape; {name} is {weight.shape} and "
                    f"its gradient {grad.shape}."
                )
            if name not in self.counts:
                self.counts[name] = 0
                self.means[name], self.squares[name] = np.zeros_like(grad), np.zeros_like(grad)
            self.counts[name] += 1
            self._update(weight, grad, self.means[name], self.squares[name], self.counts[name])

    def _update(self, weight: Array, grad: Array, mean: Array, square: Array, count: int) -> None:
        first, second = self.betas
        mean += (1 - first) * (grad - mean)
        square *= second
        square += (1 - second) * grad * grad
        size = np.sqrt(square) / math.sqrt(1 - second**count) + self.eps
        weight *= 1 - self.lr * self.weight_decay
        weight -= (self.lr / (1 - first**count)) * mean / size
