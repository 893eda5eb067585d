"""One model on many ranks: shards of every weight (FSDP2), experts on an axis of their own, Muon.

Unusual here: an optimizer sees the rows that its rank keeps. AdamW minds nothing; Muon needs whole
matrices, so each rank gathers a matrix's updated momentum, makes it orthogonal and keeps its own
rows (Moonlight's scheme). Stacks of experts are cut between experts: they need no gather. Weights
are gathered once a step and gradients scattered once, which is what ZeRO-1 sends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard

from minik2.config import ModelConfig
from minik2.pytorch import qk_clip
from minik2.pytorch.expert_parallel import ParallelExperts
from minik2.pytorch.mla import MLA
from minik2.pytorch.model import Model, named_view, to_torch
from minik2.pytorch.moe import MoE
from minik2.pytorch.muon import Muon, MuonClip, newton_schulz, scale

Array = np.ndarray[Any, np.dtype[Any]]


class Mesh:
    """All ranks as data × expert: `expert` ranks next to each other share the experts of a layer.

    Every rank has sequences of its own, whatever the axes are. Raises ValueError for an expert axis
    that does not divide the ranks. Needs a process group.
    """

    def __init__(self, device: str, expert: int = 1) -> None:
        ranks = dist.get_world_size()
        if expert < 1 or ranks % expert:
            raise ValueError(
                f"{ranks} ranks cannot be arranged with {expert} ranks to an expert group; choose "
                f"a divisor of {ranks}."
            )
        self.ranks, self.rank, self.expert = ranks, dist.get_rank(), expert
        self.world = init_device_mesh(device, (ranks,), mesh_dim_names=("world",))
        both = init_device_mesh(device, (ranks // expert, expert),
                                mesh_dim_names=("data", "expert"))  # fmt: skip
        self.data, self.experts = both["data"], both["expert"].get_group()


def rows_of(size: int, ranks: int, rank: int) -> slice:
    """The rows, of `size`, that a rank keeps: as FSDP cuts them, the last ranks' may be none."""
    each = -(-size // ranks)
    return slice(min(rank * each, size), min((rank + 1) * each, size))


def own_rows(size: int, mesh: DeviceMesh) -> slice:
    """The rows, of `size`, that this rank keeps."""
    return rows_of(size, mesh.size(), mesh.get_local_rank())


class ShardedModel(Model):
    """A Model of which every rank keeps a part; `loss` is called by all ranks at once."""

    mesh: Mesh

    @classmethod
    def spread(
        cls,
        cfg: ModelConfig,
        mesh: Mesh,
        device: torch.device,
        dtype: torch.dtype,
        value: Callable[[str, tuple[int, ...]], Array],
    ) -> ShardedModel:
        """The model with the weights value(name, shape) of the checkpoint's names.

        Only what a rank keeps is asked for where experts are concerned. Raises ValueError for tied
        embeddings, which FSDP would cut in two.
        """
        if cfg.tie_word_embeddings:
            raise ValueError(
                "A model whose head is its embedding (tie_word_embeddings) cannot be spread over "
                "ranks; train it on one."
            )
        with torch.device("meta"):
            model = cls(cfg)
            for layer in model.model.layers:
                if mesh.expert > 1 and isinstance(layer.mlp, MoE):
                    layer.mlp.experts = ParallelExperts(cfg, mesh.experts)  # type: ignore[assignment]
        model = model.to(dtype)
        model.mesh = mesh
        for layer in model.model.layers:
            if isinstance(layer.mlp, MoE):
                fully_shard(layer.mlp.experts, mesh=mesh.data, reshard_after_forward=False)
            fully_shard(layer, mesh=mesh.world, reshard_after_forward=False)
        fully_shard(model, mesh=mesh.world, reshard_after_forward=False)
        register_fsdp_forward_method(model, "loss")
        model = model.to_empty(device=device)
        model._fill_shards(value)
        return model

    @torch.no_grad()
    def _fill_shards(self, value: Callable[[str, tuple[int, ...]], Array]) -> None:
        shapes = self.cfg.tensor_shapes()
        for name, own in self.own_weights.items():
            array = to_torch(value(name, shapes[name]))
            if array.shape != own.shape:
                array = array[own_rows(len(array), self.mesh.world)]
            own.copy_(array)

    @property
    def own_weights(self) -> dict[str, Tensor]:
        """What this rank keeps, by the checkpoint's names, as views: its experts' matrices whole,
        its rows of all other tensors, and every correction bias, which all ranks have.
        """
        held = {name: local(p) for name, p in self.named_parameters()}
        held |= dict(self.named_buffers())
        found = {}
        for name in self.cfg.tensor_shapes():
            if ".experts." not in name:
                found[name] = held[name]
                continue
            stack, expert, matrix, _ = name.rsplit(".", 3)
            if int(expert) in self.own_experts:
                place = int(expert) - self.own_experts.start
                found[name] = named_view(held, f"{stack}.{place}.{matrix}.weight")
        return found

    def experts_of(self, rank: int) -> range:
        """The experts of a layer that a rank keeps; no two ranks keep the same."""
        data, place = divmod(rank, self.mesh.expert)
        each = self.cfg.n_routed_experts // self.mesh.expert
        rows = rows_of(each, self.mesh.ranks // self.mesh.expert, data)
        return range(place * each + rows.start, place * each + rows.stop)

    @property
    def own_experts(self) -> range:
        """Those of this rank."""
        return self.experts_of(self.mesh.rank)

    def own_slice(self, name: str) -> slice:
        """The rows of parameter `name`, or of something of its shape, that this rank keeps."""
        if ".experts." in name:
            return slice(self.own_experts.start, self.own_experts.stop)
        return own_rows(len(self.get_parameter(name)), self.mesh.world)

    def whole(self, name: str, own: Tensor) -> Tensor:
        """What all ranks keep of parameter `name`, or of something of its shape, put together."""
        p = self.get_parameter(name)
        full = sharded(own, p).full_tensor()
        if ".experts." not in name or self.mesh.expert == 1:
            return full
        parts = [torch.empty_like(full) for _ in range(self.mesh.expert)]
        dist.all_gather(parts, full.contiguous(), group=self.mesh.experts)
        return torch.cat(parts)

    def whole_weights(self) -> dict[str, Tensor]:
        """Every tensor of the checkpoint; all ranks call it, and all get it."""
        held: dict[str, Tensor] = {
            name: self.whole(name, local(p)) for name, p in self.named_parameters()
        }
        held |= dict(self.named_buffers())
        return {name: named_view(held, name) for name in self.cfg.tensor_shapes()}

    def travel(self, now: bool) -> None:
        """Whether the next backward pass sends gradients, or adds to those kept here."""
        for module in self.modules():
            if isinstance(module, FSDPModule):
                module.set_requires_gradient_sync(now, recurse=False)

    def let_go(self) -> None:
        """Drop gathered weights, which a pass without a backward pass leaves behind: stale ones
        would be used after the next update.
        """
        for module in self.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def local(tensor: Tensor) -> Tensor:
    """What this rank keeps of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sharded(own: Tensor, p: Tensor) -> DTensor:
    """`own`, this rank's rows of something with the shape of `p`, as a part of the whole."""
    assert isinstance(p, DTensor)
    return DTensor.from_local(own.contiguous(), p.device_mesh, [Shard(0)], run_check=False,
                              shape=p.shape, stride=p.stride())  # fmt: skip


class ShardedMuon(Muon):
    """Muon over rows: a matrix's updated momentum is gathered, stacks stay where they are.

    The momentum kept is this rank's, a plain tensor. Source: arXiv 2502.16982 §2.3.
    """

    def _update(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        assert isinstance(p, DTensor) and isinstance(grad, DTensor)
        state, weight, gradient = self.state[p], p.to_local(), grad.to_local()
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        if p.ndim == 3:
            if len(weight):
                self._update_local(state, weight, gradient, group)
            return
        buffer, mu, lr = state["momentum_buffer"], group["momentum"], group["lr"]
        buffer.lerp_(gradient, 1 - mu)
        direction = gradient.lerp(buffer, mu) if group["nesterov"] else buffer
        whole = sharded(direction, p).full_tensor()
        update = newton_schulz(whole, group["steps"], group["iteration_dtype"])
        size = lr * scale(p.shape[0], p.shape[1], group["adjust_lr_fn"])
        own = own_rows(len(p), p.device_mesh)
        weight.mul_(1 - lr * group["weight_decay"]).add_(update[own], alpha=-size)


class ShardedMuonClip(MuonClip):
    """MuonClip for a ShardedModel; the maxima are those of all ranks."""

    muon_class = ShardedMuon

    @torch.no_grad()
    def _scale_rows(self, block: MLA, gamma: Tensor) -> None:
        for name, factors in qk_clip.row_factors(gamma, self.model.cfg).items():
            p = block.get_parameter(name)
            assert isinstance(p, DTensor)
            rows = factors[own_rows(len(factors), p.device_mesh), None]
            p.to_local().mul_(rows.to(p.dtype))


def gradients(model: nn.Module) -> Iterator[Tensor]:
    """This rank's rows of every gradient; all ranks together have each number once."""
    for p in model.parameters():
        if p.grad is not None:
            yield local(p.grad)
