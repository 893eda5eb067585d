"""The reference engine in training: gradients by hand, optimizers by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from minik2 import reference
from minik2.config import ModelConfig
from minik2.reference.adamw import AdamW
from minik2.reference.muon import MuonClip
from minik2.training import engines, store
from minik2.training.engines import Batch
from minik2.training.settings import Settings

Array = np.ndarray[Any, np.dtype[Any]]


class ReferenceEngine:
    """`engines.Engine` in NumPy and Numba, float32."""

    def __init__(
        self, cfg: ModelConfig, settings: Settings, saved: tuple[str, Mapping[str, Array]] | None
    ) -> None:
        self.cfg, self.settings = cfg, settings
        if saved is None:
            self.model = reference.Model.init(cfg, settings.seed)
        else:
            self.model = reference.Model.from_pretrained(saved[0])
        self.watch = reference.Watch(cfg)
        self.grads: dict[str, Array] = {}
        decay = settings.weight_decay
        self.clip: MuonClip | None = None
        if settings.optimizer == "adamw":
            self.adamw = AdamW(settings.rate, weight_decay=decay)
        else:
            tau = settings.tau if settings.optimizer == "muonclip" else None
            self.clip = MuonClip(
                self.model, settings.rate, tau=tau, adamw_lr=settings.rate_of_adamw,
                weight_decay=decay,
            )  # fmt: skip
            self.adamw = self.clip.adamw
        if saved is not None:
            self._load(saved[1])

    def gradients(self, batches: Sequence[Batch]) -> float:
        self.watch.reset()
        total = 0.0
        for number, (tokens, targets) in enumerate(batches):
            loss, grads = self.model.loss_and_grads(
                tokens, targets, self.settings.balance_alpha, watch=self.watch
            )
            total += loss
            if number == 0:
                self.grads = grads
                continue
            for name, grad in grads.items():
                self.grads[name] += grad
        if len(batches) > 1:
            self.shorten(1 / len(batches))
        return total / len(batches)

    def norm(self) -> float:
        return engines.length(sum(_squares(grad) for grad in self.grads.values()))

    def shorten(self, factor: float) -> None:
        for grad in self.grads.values():
            grad *= grad.dtype.type(factor)

    def not_finite(self) -> str | None:
        for kind, held in (("weight", self.model.weights), ("gradient of", self.grads)):
            for name, array in held.items():
                if not engines.usable(_squares(array) ** 0.5):
                    return f"{kind} {name}"
        return None

    def update(self, share: float) -> Array | None:
        rate = share * self.settings.rate
        if self.clip is None:
            self.adamw.lr = rate
            self.adamw.step(self.model.weights, self.grads)
            return None
        self.clip.muon.lr, self.clip.adamw.lr = rate, share * self.settings.rate_of_adamw
        gammas = self.clip.step(self.grads, self.watch.max_logits)
        return gammas if self.settings.optimizer == "muonclip" else None

    def balance(self) -> None:
        for name, bias in self.model.weights.items():
            if name.endswith("e_score_correction_bias"):
                loads = self.watch.loads[int(name.split(".")[2])]
                reference.router.update_bias(
                    bias, loads, self.settings.bias_speed, self.settings.bias_mean_free
                )

    def seen(self) -> tuple[Array, Array, float]:
        return self.watch.max_logits, self.watch.loads, self.watch.seconds

    def loss(self, tokens: Array, targets: Array) -> float:
        return self.model.loss(tokens, targets)

    def continued(self, tokens: Array, count: int, temperature: float, seed: int) -> Array:
        return self.model.generate(tokens[None], count, temperature, seed)[0]

    def weights(self) -> dict[str, Array]:
        return self.model.weights

    def optimizer_state(self) -> dict[str, Array]:
        kept = {"mean": self.adamw.means, "square": self.adamw.squares}
        if self.clip is not None:
            kept["momentum_buffer"] = self.clip.muon.momentum_buffers
        state = {f"{n}/{kind}": array for kind, held in kept.items() for n, array in held.items()}
        counts = self.adamw.counts.items()
        return state | {f"{name}/count": np.array([count]) for name, count in counts}

    def write(self, folder: Path) -> list[Path]:
        return store.write_whole(folder, self.cfg, self.weights(), self.optimizer_state())

    def _load(self, state: Mapping[str, Array]) -> None:
        for key, array in state.items():
            name, _, kind = key.rpartition("/")
            if kind == "momentum_buffer" and self.clip is not None:
                self.clip.muon.momentum_buffers[name] = array
            elif kind == "mean":
                self.adamw.means[name] = array
            elif kind == "square":
                self.adamw.squares[name] = array
            elif kind == "count":
                self.adamw.counts[name] = int(array[0])

    def memory(self) -> int:
        return psutil.Process().memory_info().rss


def _squares(array: Array) -> float:
    return float(np.square(array, dtype=np.float64).sum())
