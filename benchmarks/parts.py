"""The parts of a model that the proof sheet compares, each written once for each engine.

Unusual here: every implementation runs inside a whole model that was read from the same file, and
a part is a call into that model. So the tensors' names, the loading and the wiring are compared
along with the arithmetic. To add a part: write a function for each engine that has it and its chain
of roundings, and put it into PARTS; transformers' own are in theirs.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks import rounding
from minik2 import pytorch, reference
from minik2.config import ModelConfig

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Inputs:
    """What the parts of one configuration are fed with, float64 arrays and whole numbers.

    tokens (B, T); start: the position of the first token where only the rotation is compared;
    x (B, T, D); heads (B, T, H, R); experts (B T, K): distinct experts; weights (B T, K).
    """

    tokens: Array
    start: int
    x: Array
    heads: Array
    experts: Array
    weights: Array

    @classmethod
    def draw(cls, cfg: ModelConfig, shape: tuple[int, int], seed: int) -> Inputs:
        rng = np.random.default_rng(seed)
        batch, tokens = shape
        order = rng.random((batch * tokens, cfg.n_routed_experts)).argsort(axis=1)
        return cls(
            tokens=rng.integers(0, cfg.vocab_size, shape),
            start=int(rng.integers(0, cfg.max_position_embeddings - tokens + 1)),
            x=rng.standard_normal((batch, tokens, cfg.hidden_size)),
            heads=rng.standard_normal(
                (batch, tokens, cfg.num_attention_heads, cfg.qk_rope_head_dim)
            ),
            experts=order[:, : cfg.num_experts_per_tok].copy(),
            weights=rng.random((batch * tokens, cfg.num_experts_per_tok)),
        )

    def map(self, change: Callable[[Array], Array]) -> Inputs:
        """The same with `change` applied to every array of real numbers."""
        return Inputs(self.tokens, self.start, change(self.x), change(self.heads), self.experts,
                      change(self.weights))  # fmt: skip


Run = Callable[[Any, Inputs], Any]


@dataclass(frozen=True)
class Part:
    """One part: what it is in each implementation that has it, and its chain of roundings.

    runs: {"reference": (model, inputs) -> output, …}; there must be a reference. needs_experts:
    it exists only where the last layer has experts. chooses: its output jumps where a token stands
    between two choices of experts.
    """

    name: str
    runs: dict[str, Run]
    chain: Callable[[ModelConfig, tuple[int, int]], rounding.Chain]
    needs_experts: bool = False
    chooses: bool = False


# The reference: arrays of the model's dtype in, an array out.


def positions(inputs: Inputs, start: int = 0) -> Array:
    return np.arange(start, start + inputs.tokens.shape[1])


def reference_norm(model: reference.Model, inputs: Inputs) -> Array:
    gain = model.layers[-1]["input_layernorm.weight"]
    return reference.norm.forward(inputs.x, gain, model.cfg.rms_norm_eps)[0]


def reference_rotation(model: reference.Model, inputs: Inputs) -> Array:
    table = reference.rope.table(model.cfg, positions(inputs, inputs.start), model.dtype)
    return reference.rope.rotate(inputs.heads, *table, model.cfg.rope_interleave)


def reference_mla(model: reference.Model, inputs: Inputs) -> Array:
    table = reference.rope.table(model.cfg, positions(inputs), model.dtype)
    weights = model.layers[-1]["self_attn"]
    return reference.mla.forward(inputs.x, weights, model.cfg, *table)[0]


def reference_router(model: reference.Model, inputs: Inputs) -> Array:
    mlp, rows = model.layers[-1]["mlp"], inputs.x.reshape(-1, model.cfg.hidden_size)
    bias = mlp.get("gate.e_score_correction_bias")
    (experts, weights), _ = reference.router.forward(rows, mlp["gate.weight"], bias, model.cfg)
    return spread(experts, weights, model.cfg)


def reference_experts(model: reference.Model, inputs: Inputs) -> Array:
    mlp, rows = model.layers[-1]["mlp"], inputs.x.reshape(-1, model.cfg.hidden_size)
    y, _ = reference.ffn.forward(rows, mlp["shared_experts"])
    reference.moe.add_experts(y, rows, inputs.experts, inputs.weights,
                              mlp["experts.gate_up_proj"], mlp["experts.down_proj"])  # fmt: skip
    return y


def spread(experts: Array, weights: Array, cfg: ModelConfig) -> Array:
    """(tokens, K) choices as a (tokens, E) matrix of weights: in what order they came is moot."""
    out = np.zeros((len(experts), cfg.n_routed_experts), weights.dtype)
    np.put_along_axis(out, experts, weights, axis=1)
    return out


def reference_gradients(model: reference.Model, inputs: Inputs) -> Array:
    _, grads = model.loss_and_grads(inputs.tokens, np.roll(inputs.tokens, -1, axis=1))
    return np.concatenate([grad.ravel() for grad in grads.values()])


# PyTorch: the inputs are tensors on the model's device, in the model's dtype.


def torch_table(model: pytorch.Model, inputs: Any, start: int = 0) -> tuple[Any, Any]:
    exact = torch.promote_types(inputs.x.dtype, torch.float32)
    where = torch.arange(start, start + inputs.tokens.shape[1], device=model.device)
    return pytorch.rope.table(model.cfg, where, exact)


def pytorch_norm(model: pytorch.Model, inputs: Any) -> Any:
    return model.model.layers[-1].input_layernorm(inputs.x)


def pytorch_rotation(model: pytorch.Model, inputs: Any) -> Any:
    table = torch_table(model, inputs, inputs.start)
    return pytorch.rope.rotate(inputs.heads, *table, model.cfg.rope_interleave)


def pytorch_mla(model: pytorch.Model, inputs: Any) -> Any:
    return model.model.layers[-1].self_attn(inputs.x, *torch_table(model, inputs))


def pytorch_router(model: pytorch.Model, inputs: Any) -> Any:
    experts, weights = model.model.layers[-1].mlp.gate(inputs.x.flatten(0, 1))
    return torch_spread(experts, weights, model.cfg)


def pytorch_experts(model: pytorch.Model, inputs: Any) -> Any:
    mlp, rows = model.model.layers[-1].mlp, inputs.x.flatten(0, 1)
    return mlp.experts(rows, inputs.experts, inputs.weights) + mlp.shared_experts(rows)


def torch_spread(experts: Any, weights: Any, cfg: ModelConfig) -> Any:
    return weights.new_zeros(len(experts), cfg.n_routed_experts).scatter(1, experts, weights)


def pytorch_gradients(model: pytorch.Model, inputs: Any) -> Any:
    with torch.enable_grad():
        _, grads = model.loss_and_grads(inputs.tokens, inputs.tokens.roll(-1, 1))
    return torch.cat([grad.flatten() for grad in grads.values()])


def whole(model: Any, inputs: Any) -> Any:
    return model(inputs.tokens)


def both(reference: Run, pytorch: Run) -> dict[str, Run]:
    return {"reference": reference, "pytorch": pytorch}


PARTS = [
    Part("norm", both(reference_norm, pytorch_norm), rounding.norm),
    Part("rotation", both(reference_rotation, pytorch_rotation), rounding.far_rotation),
    Part("MLA", both(reference_mla, pytorch_mla), rounding.mla),
    Part("router", both(reference_router, pytorch_router), rounding.router,
         needs_experts=True, chooses=True),
    Part("experts", both(reference_experts, pytorch_experts), rounding.experts,
         needs_experts=True),
    Part("whole model", both(whole, whole), rounding.model, chooses=True),
    Part("all gradients", both(reference_gradients, pytorch_gradients), rounding.gradients,
         chooses=True),
]  # fmt: skip
