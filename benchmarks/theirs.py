"""transformers as a side of the proof sheet: its parts, and the checkpoint that it writes.

Unusual here: this is the one module of the sheet that imports transformers, so that the comparison
of our own two engines runs where it is not installed. Inputs are tensors on the CPU; its two model
files differ in the rotation.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers.models.deepseek_v2 import modeling_deepseek_v2 as v2
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as v3

from benchmarks import parts
from benchmarks.question import Case, Question, Side
from minik2.config import ModelConfig
from tests.oracle import twin


def is_v3(model: Any) -> bool:
    return model.config.model_type == "deepseek_v3"


def their_table(model: Any, inputs: Any, start: int = 0) -> Any:
    where = torch.arange(start, start + inputs.tokens.shape[1])
    return model.model.rotary_emb(inputs.x, where[None].expand(len(inputs.x), -1))


def transformers_norm(model: Any, inputs: Any) -> Any:
    return model.model.layers[-1].input_layernorm(inputs.x)


def transformers_rotation(model: Any, inputs: Any) -> Any:
    heads, table = inputs.heads.transpose(1, 2), their_table(model, inputs, inputs.start)
    if is_v3(model):
        # What they return is in two halves; the same numbers, back in neighbouring places.
        turned, _ = v3.apply_rotary_pos_emb_interleave(heads, heads, *table)
        turned = turned.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
    else:
        turned, _ = v2.apply_rotary_emb(heads, heads, table)
    return turned.transpose(1, 2)


def transformers_mla(model: Any, inputs: Any) -> Any:
    tokens = inputs.tokens.shape[1]
    mask = torch.full((tokens, tokens), -torch.inf, dtype=inputs.x.dtype).triu(1)[None, None]
    attention, table = model.model.layers[-1].self_attn, their_table(model, inputs)
    return attention(inputs.x, position_embeddings=table, attention_mask=mask)[0]


def transformers_router(model: Any, inputs: Any) -> Any:
    _, weights, experts = model.model.layers[-1].mlp.gate(inputs.x)
    return weights.new_zeros(len(experts), model.config.n_routed_experts).scatter(
        1, experts, weights)  # fmt: skip


def transformers_experts(model: Any, inputs: Any) -> Any:
    mlp, rows = model.model.layers[-1].mlp, inputs.x.flatten(0, 1)
    return mlp.experts(rows, inputs.experts, inputs.weights) + mlp.shared_experts(rows)


def transformers_whole(model: Any, inputs: Any) -> Any:
    return model(inputs.tokens).logits


def transformers_gradients(model: Any, inputs: Any) -> Any:
    """Their autograd's, in the order and under the names of the checkpoint, experts apart."""
    with torch.enable_grad():
        logits = model(inputs.tokens).logits
        targets = inputs.tokens.roll(-1, 1).flatten()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets)
        held = dict(model.named_parameters())
        grads = dict(zip(held, torch.autograd.grad(loss, list(held.values())), strict=True))
    cfg = ModelConfig.from_json(model.config.to_dict())
    names = [name for name in cfg.tensor_shapes() if not name.endswith("correction_bias")]
    return torch.cat([twin.find(grads, name).flatten() for name in names])


RUNS = {
    "norm": transformers_norm, "rotation": transformers_rotation, "MLA": transformers_mla,
    "router": transformers_router, "experts": transformers_experts,
    "whole model": transformers_whole, "all gradients": transformers_gradients,
}  # fmt: skip
PARTS = [
    dataclasses.replace(part, runs=part.runs | {"transformers": RUNS[part.name]})
    for part in parts.PARTS
]


class TheirQuestion(Question):
    """A question whose checkpoint transformers writes, and that it answers as well."""

    def _write(self, seed: int) -> None:
        with self._exactly():
            dtype = torch.float64 if self.precision == "float64" else torch.float32
            self._theirs = twin.build(self.cfg, seed, dtype)
            self._theirs.to(getattr(torch, self.precision)).save_pretrained(self.directory)

    def _exactly(self) -> contextlib.AbstractContextManager[None]:
        return twin.in_float64() if self.precision == "float64" else contextlib.nullcontext()

    def _load(self, side: Side) -> Any:
        if side.engine != "transformers":
            return super()._load(side)
        assert side.precision == self.precision, "their model computes in the precision it has"
        return self._theirs


@contextlib.contextmanager
def ask(case: Case, precision: str) -> Iterator[Question]:
    """The question, its checkpoint in a temporary directory."""
    with tempfile.TemporaryDirectory() as directory:
        yield TheirQuestion(case, precision, Path(directory))
