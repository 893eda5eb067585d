"""One random configuration put to both engines: the models, their inputs, the bounds.

Unusual here: weights and inputs are rounded to the coarsest precision of a comparison before
anybody sees them, so that all start from the same numbers; and they are no coarser than that, so
that a float32 hidden in a float64 path shows.
"""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (teaches NumPy the name bfloat16)
import numpy as np
import torch

from benchmarks.parts import Inputs, Part, Run
from benchmarks.rounding import MOVE, MOVES
from minik2 import pytorch, reference
from minik2.config import ModelConfig

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Side:
    """One side of a comparison: "reference", "pytorch" or "transformers", and how it computes."""

    engine: str
    precision: str
    device: str = "cpu"

    @property
    def angles(self) -> str:
        """The precision that rotary angles are taken in."""
        return self.precision if self.engine == "transformers" else "float64"


@dataclass(frozen=True)
class Case:
    """A configuration, the shape (B, T) of its tokens, and the seed of its weights and inputs."""

    cfg: ModelConfig
    shape: tuple[int, int]
    seed: int


def relative_error(got: Array, want: Array) -> float:
    """Largest difference over the largest wanted value; infinite where anything is not finite."""
    if got.shape != want.shape:
        raise ValueError(f"The two sides differ in shape: {got.shape} and {want.shape}.")
    error = np.abs(got - want).max() / np.abs(want).max()
    return float(error) if np.isfinite(error) else np.inf


class Question:
    """A case in one precision of its numbers: "float64", "float32" or "bfloat16".

    In bfloat16 every token goes to all experts. A score errs by a part in a hundred there, so that
    hardly a configuration is left in which no token stands between two choices.
    """

    def __init__(self, case: Case, precision: str, directory: Path) -> None:
        cfg = case.cfg
        if precision == "bfloat16":
            cfg = cfg.replace(topk_group=cfg.n_group, num_experts_per_tok=cfg.n_routed_experts)
        self.cfg, self.shape, self.precision, self.directory = cfg, case.shape, precision, directory
        self._write(case.seed)
        self.inputs = Inputs.draw(cfg, case.shape, case.seed).map(
            lambda array: array.astype(precision).astype(np.float64))  # fmt: skip
        self._models: dict[Side, Any] = {}
        self._kappas: dict[Run, float] = {}

    def _write(self, seed: int) -> None:
        """The checkpoint that all sides read, its numbers no finer than the precision.

        Norms are away from 1, and biases large enough to change choices; matrices keep lengths, so
        that every layer's output matters.
        """
        model, rng = reference.Model(self.cfg, "float64"), np.random.default_rng(seed)
        for name, array in model.weights.items():
            noise = rng.standard_normal(array.shape)
            if name.endswith("norm.weight"):
                noise = 1 + 0.3 * noise
            elif name.endswith("e_score_correction_bias"):
                noise *= 0.2
            else:
                noise /= array.shape[-1] ** 0.5
            array[...] = noise.astype(self.precision)
        model.save_pretrained(self.directory)

    def _exactly(self) -> contextlib.AbstractContextManager[None]:
        """What an implementation needs around it to compute in the precision that it is asked."""
        return contextlib.nullcontext()

    def has(self, part: Part) -> bool:
        """Whether this configuration has the part at all."""
        return not (part.needs_experts and self.cfg.is_all_dense)

    def answer(self, part: Part, side: Side) -> Array:
        """What one side computes, as float64."""
        if side not in self._models:
            self._models[side] = self._load(side)
        model, run = self._models[side], part.runs[side.engine]
        if side.engine == "reference":
            return run(model, self.inputs.map(lambda a: a.astype(side.precision))).astype(float)
        dtype, device = getattr(torch, side.precision), side.device
        given = self.inputs.map(lambda a: torch.from_numpy(a).to(device, dtype))
        given = Inputs(torch.from_numpy(given.tokens).to(device), given.start, given.x,
                       given.heads, torch.from_numpy(given.experts).to(device),
                       given.weights)  # fmt: skip
        with self._exactly(), torch.no_grad():
            return run(model, given).to("cpu", torch.float64).numpy()

    def _load(self, side: Side) -> Any:
        if side.engine == "reference":
            return reference.Model.from_pretrained(self.directory, dtype=side.precision)
        dtype = getattr(torch, side.precision)
        return pytorch.Model.from_pretrained(self.directory, side.device, dtype)

    @functools.cached_property
    def _moved(self) -> list[tuple[reference.Model, Inputs]]:
        """The exact model and inputs, then copies with every number a little moved."""
        out = []
        exact = reference.Model.from_pretrained(self.directory, dtype="float64")
        for number in range(1 + MOVES):
            model = reference.Model(exact.cfg, "float64")
            rng, size = np.random.default_rng(number), MOVE if number else 0.0
            for name, array in model.weights.items():
                array[...] = exact.weights[name] * (1 + size * rng.uniform(-1, 1, array.shape))
            out.append((model, self.inputs.map(
                lambda a, rng=rng, size=size: a * (1 + size * rng.uniform(-1, 1, a.shape)))))
        return out  # fmt: skip

    def sensitivity(self, part: Part) -> float:
        """κ: how far the part's answer moves when every number that goes in moves by one."""
        run = part.runs["reference"]
        if run not in self._kappas:  # parts that differ on the other side alone share it
            exact, *others = (run(model, inputs) for model, inputs in self._moved)
            moved = max(relative_error(other, exact) for other in others)
            self._kappas[run] = max(1.0, moved / MOVE)
        return self._kappas[run]

    def leeway(self, part: Part) -> float:
        """By how much every number may move, relatively, before a token changes its experts.

        A choice is safe from a move δ while 2 δ d < margin, where d is how far scores move for
        each unit and the margin is between the last that is chosen and the first that is not.
        """
        if not part.chooses or self.cfg.is_all_dense:
            return np.inf
        exact, *others = (self._scores(part, *moved) for moved in self._moved)
        least = np.inf
        for layer, scores in enumerate(exact):
            moved = max(np.abs(other[layer] - scores).max() for other in others) / MOVE
            least = min(least, margin(scores, self.cfg) / (2 * moved) if moved else np.inf)
        return least

    def _scores(self, part: Part, model: reference.Model, inputs: Inputs) -> list[Array]:
        """The scores that choices are made by, biases included, of each router that ran."""
        if part.name == "router":
            routers = [(model.layers[-1], inputs.x.reshape(-1, model.cfg.hidden_size))]
        else:
            saved = model.forward(inputs.tokens)[1]
            routers = [(layer, found["mlp"]["router"]["x"])
                       for layer, found in zip(model.layers, saved, strict=False)
                       if "router" in found["mlp"]]  # fmt: skip
        out = []
        for layer, rows in routers:
            bias = layer["mlp"].get("gate.e_score_correction_bias")
            gate = layer["mlp"]["gate.weight"]
            scores = reference.router.forward(rows, gate, bias, model.cfg)[1]["scores"]
            out.append(scores if bias is None else scores + bias)
        return out


def margin(scores: Array, cfg: ModelConfig) -> float:
    """How close any token came to other groups or experts; infinite where there is no choice."""
    least, groups = np.inf, np.sort(scores.reshape(len(scores), cfg.n_group, -1), axis=2)
    if cfg.topk_group < cfg.n_group:
        best = 2 if cfg.topk_method == "noaux_tc" else 1
        worth = groups[..., -best:].sum(axis=2)
        order = worth.argsort(axis=1)
        ranked = np.take_along_axis(worth, order, axis=1)
        least = float((ranked[:, -cfg.topk_group] - ranked[:, -cfg.topk_group - 1]).min())
        kept = order[:, -cfg.topk_group :]
        groups = np.take_along_axis(groups, kept[..., None], axis=1)
    allowed, chosen = np.sort(groups.reshape(len(scores), -1), axis=1), cfg.num_experts_per_tok
    if chosen < allowed.shape[1]:
        least = min(least, float((allowed[:, -chosen] - allowed[:, -chosen - 1]).min()))
    return least


@contextlib.contextmanager
def ask(case: Case, precision: str) -> Iterator[Question]:
    """The question, its checkpoint in a temporary directory."""
    with tempfile.TemporaryDirectory() as directory:
        yield Question(case, precision, Path(directory))
