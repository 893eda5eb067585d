"""The torch engine in training: autograd, MuonClip or torch.optim.AdamW, CPU or GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from minik2 import pytorch
from minik2.config import ModelConfig
from minik2.pytorch.muon import MuonClip
from minik2.training import engines, store
from minik2.training.engines import Batch
from minik2.training.settings import Settings

Array = np.ndarray[Any, np.dtype[Any]]
# A checkpoint's directory and optimizer arrays; None for a new run.
Saved = tuple[str, Mapping[str, Array]] | None


class PyTorchEngine:
    """`engines.Engine` in PyTorch."""

    muon_clip = MuonClip

    def __init__(
        self,
        cfg: ModelConfig,
        settings: Settings,
        device: str,
        saved: Saved,
        dtype: torch.dtype = torch.float32,
        recompute: bool = False,
        mixed: bool = False,
    ) -> None:
        self.cfg, self.settings, self.device = cfg, settings, torch.device(device)
        self.model = self._make_model(saved, dtype)
        self.compute = pytorch.Mixed(self.model) if mixed else self.model
        self.compute.recompute = recompute
        self.watch = pytorch.Watch(cfg, self.device)
        decay = settings.weight_decay
        self.optimizer: MuonClip | torch.optim.AdamW
        if settings.optimizer == "adamw":
            # Two groups, since on several ranks experts are cut in another way than the rest.
            named = list(self.model.named_parameters())
            parts = ([p for n, p in named if (".experts." in n) == kind] for kind in (False, True))
            groups = [{"params": own} for own in parts if own]
            self.optimizer = torch.optim.AdamW(
                groups, settings.rate, (0.9, 0.95), weight_decay=decay,
                fused=self.device.type == "cuda",
            )  # fmt: skip
            self.parts: tuple[torch.optim.Optimizer, ...] = (self.optimizer,)
        else:
            tau = settings.tau if settings.optimizer == "muonclip" else None
            self.optimizer = self.muon_clip(
                self.model, settings.rate, tau=tau, adamw_lr=settings.rate_of_adamw,
                weight_decay=decay,
            )  # fmt: skip
            self.parts = (self.optimizer.muon, self.optimizer.adamw)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        if saved is not None:
            self._load(saved[1])

    def _make_model(self, saved: Saved, dtype: torch.dtype) -> pytorch.Model:
        if saved is None:
            return pytorch.Model.init(self.cfg, self.settings.seed, self.device, dtype)
        return pytorch.Model.from_pretrained(saved[0], self.device, dtype)

    def gradients(self, batches: Sequence[Batch]) -> float:
        self.watch.reset()
        self.optimizer.zero_grad()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for tokens, targets in batches:
            loss = self.compute.loss(tokens, targets, self.settings.balance_alpha, self.watch)
            (loss / len(batches)).backward()
            total += loss.detach()
        # Here the host waits for the device, once for all batches.
        return total.item() / len(batches)

    def norm(self) -> float:
        return float(torch.nn.utils.get_total_norm(self._grads().values()))

    def shorten(self, factor: float) -> None:
        torch._foreach_mul_(list(self._grads().values()), factor)

    def not_finite(self) -> str | None:
        for kind, held in (("weight", self.model.weights), ("gradient of", self._grads())):
            for name, tensor in held.items():
                if not engines.usable(float(tensor.detach().norm())):
                    return f"{kind} {name}"
        return None

    def update(self, share: float) -> Array | None:
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = share * rate
        if not isinstance(self.optimizer, MuonClip):
            self.optimizer.step()
            self._refresh()
            return None
        gammas = self.optimizer.step(self.watch.max_logits)
        self._refresh()
        return gammas.cpu().numpy() if self.settings.optimizer == "muonclip" else None

    def _refresh(self) -> None:
        if isinstance(self.compute, pytorch.Mixed):
            self.compute.refresh()

    def balance(self) -> None:
        for layer, loads in zip(self.model.model.layers, self.watch.loads, strict=True):
            gate = getattr(layer.mlp, "gate", None)
            bias = getattr(gate, "e_score_correction_bias", None)
            if bias is not None:
                pytorch.router.update_bias(
                    bias, loads, self.settings.bias_speed, self.settings.bias_mean_free
                )

    def seen(self) -> tuple[Array, Array, float]:
        logits, loads = self.watch.max_logits.cpu().numpy(), self.watch.loads.cpu().numpy()
        return logits, loads, self.watch.seconds

    @torch.inference_mode()
    def loss(self, tokens: Array, targets: Array) -> float:
        return self.model.loss(tokens, targets).item()

    @torch.inference_mode()
    def continued(self, tokens: Array, count: int, temperature: float, seed: int) -> Array:
        return self.model.generate(tokens[None], count, temperature, seed)[0].cpu().numpy()

    def weights(self) -> dict[str, Array]:
        return {name: t.detach().cpu().numpy() for name, t in self.model.weights.items()}

    def optimizer_state(self) -> dict[str, Array]:
        names: dict[torch.Tensor, str] = {p: n for n, p in self.model.named_parameters()}
        return {
            f"{names[p]}/{kind}": tensor.detach().cpu().numpy()
            for part in self.parts for p, held in part.state.items()
            for kind, tensor in held.items()
        }  # fmt: skip

    def write(self, folder: Path) -> list[Path]:
        return store.write_whole(folder, self.cfg, self.weights(), self.optimizer_state())

    def _owners(self) -> dict[torch.Tensor, torch.optim.Optimizer]:
        """Which optimizer updates a parameter."""
        return {p: part for part in self.parts for g in part.param_groups for p in g["params"]}

    def _load(self, state: Mapping[str, Array]) -> None:
        owners = self._owners()
        parameters = dict(self.model.named_parameters())
        for key, array in state.items():
            name, _, kind = key.rpartition("/")
            p = parameters[name]
            owners[p].state[p][kind] = torch.from_numpy(array).to(self.device)

    def _grads(self) -> dict[str, torch.Tensor]:
        named = self.model.named_parameters()
        return {name: p.grad for name, p in named if p.grad is not None}

    def memory(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return psutil.Process().memory_info().rss
