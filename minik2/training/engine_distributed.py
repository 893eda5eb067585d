"""The torch engine on several ranks: each with its share of the batch, of the weights, of experts.

Unusual here: every method is called by all ranks at once, with the same arguments, and returns the
same, but for what is saved and shown of weights and optimizer: of these each has its part. A run
goes on with another number of ranks, or one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from minik2 import checkpoint, initial
from minik2.config import ModelConfig
from minik2.pytorch import distributed
from minik2.pytorch.distributed import ShardedModel
from minik2.pytorch.model import Model
from minik2.training import engines, shards, store
from minik2.training.engine_pytorch import Array, PyTorchEngine, Saved
from minik2.training.engines import Batch
from minik2.training.pieces import Pieces
from minik2.training.ranks import Ranks
from minik2.training.settings import Settings


class DistributedEngine(PyTorchEngine):
    """`engines.Engine` over the ranks of PyTorch's process group; expert: ranks that share experts.

    The batch is a multiple of the ranks. Raises what `Mesh` and `ShardedModel.spread` raise.
    """

    muon_clip = distributed.ShardedMuonClip
    model: ShardedModel

    def __init__(
        self,
        cfg: ModelConfig,
        settings: Settings,
        device: str,
        saved: Saved,
        group: Ranks,
        expert: int = 1,
        dtype: torch.dtype = torch.float32,
        recompute: bool = False,
    ) -> None:
        self.group, self.mesh = group, distributed.Mesh(torch.device(device).type, expert)
        super().__init__(cfg, settings, device, saved, dtype, recompute)

    def _make_model(self, saved: Saved, dtype: torch.dtype) -> ShardedModel:
        cfg, seed = self.cfg, self.settings.seed

        def drawn(name: str, shape: tuple[int, ...]) -> Array:
            return initial.tensor(name, shape, cfg, seed)

        source = checkpoint.open_checkpoint(saved[0], cfg) if saved else None
        value = drawn if source is None else lambda name, shape: source[name]
        return ShardedModel.spread(cfg, self.mesh, self.device, dtype, value)

    def _own(self, rows: Array) -> Array:
        """This rank's share of a batch."""
        return np.array_split(rows, self.group.count)[self.group.rank]

    def gradients(self, batches: Sequence[Batch]) -> float:
        self.watch.reset()
        self.optimizer.zero_grad()
        total = torch.zeros(1, dtype=torch.float64, device=self.device)
        for number, (tokens, targets) in enumerate(batches, 1):
            # Gradients travel once a step, with the last batch.
            self.model.travel(number == len(batches))
            loss = self.model.loss(self._own(tokens), self._own(targets),
                                   self.settings.balance_alpha, watch=self.watch)  # fmt: skip
            (loss / len(batches)).backward()
            total += loss.detach()
        dist.all_reduce(total)
        dist.all_reduce(self.watch.max_logits, dist.ReduceOp.MAX)
        dist.all_reduce(self.watch.loads)
        return total.item() / len(batches) / self.group.count

    def norm(self) -> float:
        squares = torch.zeros(1, dtype=torch.float64, device=self.device)
        for gradient in distributed.gradients(self.model):
            squares += gradient.double().square().sum()
        dist.all_reduce(squares)
        return engines.length(squares.item())

    def shorten(self, factor: float) -> None:
        torch._foreach_mul_(list(distributed.gradients(self.model)), factor)

    def not_finite(self) -> str | None:
        found = ""
        for name, p in self.model.named_parameters():
            for kind, tensor in (("weight", p.detach()), ("gradient of", p.grad)):
                if tensor is not None and not found:
                    size = float(distributed.local(tensor).norm())
                    found = "" if engines.usable(size) else f"{kind} {name}"
        return next(filter(None, self.group.texts(found)), None)

    def loss(self, tokens: Array, targets: Array) -> float:
        shared = len(tokens) % self.group.count == 0
        with torch.no_grad():
            mine = (self._own(tokens), self._own(targets)) if shared else (tokens, targets)
            loss = self.model.loss(*mine).double()
        self.model.let_go()
        dist.all_reduce(loss)
        return loss.item() / self.group.count

    def continued(self, tokens: Array, count: int, temperature: float, seed: int) -> Array:
        # A text is a token at a time: too little for several ranks to share.
        model = Model.empty(self.cfg, self.device, self.model.lm_head.weight.dtype)
        with torch.no_grad():
            for (_, own), whole in zip(model.weights.items(), self.model.whole_weights().values(),
                                       strict=True):  # fmt: skip
                own.copy_(whole)
            return model.generate(tokens[None], count, temperature, seed)[0].cpu().numpy()

    def weights(self) -> dict[str, Array]:
        return {n: t.detach().cpu().numpy() for n, t in self.model.own_weights.items()}

    def optimizer_state(self) -> dict[str, Array]:
        owners, state = self._owners(), {}
        for name, p in self.model.named_parameters():
            own = self.model.own_slice(name)
            for kind, tensor in owners[p].state[p].items():
                if kind == "step" and self.group.leads:
                    state[f"{name}/step"] = tensor.numpy()
                elif kind != "step" and own.start < own.stop:
                    rows = distributed.local(tensor).detach().cpu().numpy()
                    state[f"{name}/{kind}/{own.start}"] = rows
        return state

    def write(self, folder: Path) -> list[Path]:
        written = shards.save_model(folder / store.MODEL, self.model)
        rows = folder / store.optimizer_file(self.group.rank, self.group.count)
        shards.save_rows(rows, self.optimizer_state())
        return [*written, rows]

    def _load(self, state: Mapping[str, Array]) -> None:
        assert isinstance(state, Pieces)
        owners = self._owners()
        parameters = dict(self.model.named_parameters())
        for key in state:
            name, _, kind = key.rpartition("/")
            p = parameters[name]
            if kind == "step":
                owners[p].state[p][kind] = torch.from_numpy(state[key])
                continue
            tensor = torch.from_numpy(state.rows(key, self.model.own_slice(name))).to(self.device)
            # AdamW's are of its parameters' kind.
            owners[p].state[p][kind] = (
                tensor if kind == "momentum_buffer" else distributed.sharded(tensor, p)
            )
