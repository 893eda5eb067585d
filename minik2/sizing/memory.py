"""What training keeps in memory: weights, gradients, optimizer, master copy, activations.

Unusual here: Muon keeps one number a weight where AdamW keeps two, and which weights Muon takes is
a rule of the engine (all matrices but the two tables of tokens); the sums are the engine's own to
the byte, a test says.
"""

from __future__ import annotations

from dataclasses import dataclass

from minik2.config import ModelConfig
from minik2.sizing import units
from minik2.sizing.activations import activations
from minik2.sizing.parameters import parameters

OPTIMIZERS = ("muonclip", "adamw")


@dataclass(frozen=True)
class Precision:
    """Number formats of a training run; master: of the copy of the weights that the optimizer
    updates, or None where it updates the weights themselves."""

    weights: str = "bfloat16"
    gradients: str = "float32"
    optimizer: str = "float32"
    master: str | None = "float32"

    def __post_init__(self) -> None:
        for dtype in (self.weights, self.gradients, self.optimizer, self.master or "float32"):
            units.bits(dtype)


# bfloat16 weights, everything that adds up in float32 (arXiv 2507.20534 §2.4); and the engine's.
MIXED, PLAIN = Precision(), Precision("float32", "float32", "float32", None)


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of a training run on one device.

    parameters: weights and correction biases. gradients: one for each trained weight. optimizer:
    momentum (Muon: one buffer; AdamW: two, and a 4-byte count of steps a tensor). master: the copy
    that is updated, 0 without. activations: what a step of `batch` x `tokens` keeps for backward.
    """

    tokens: int
    batch: int
    parameters: int
    gradients: int
    optimizer: int
    master: int
    activations: int
    formula = "weights x (weight + gradient + master + 1 or 2 buffers) bytes + activations"

    @property
    def states(self) -> int:
        """All but the activations."""
        return self.parameters + self.gradients + self.optimizer + self.master

    @property
    def total(self) -> int:
        """Everything."""
        return self.states + self.activations

    def __str__(self) -> str:
        names = ("parameters", "gradients", "optimizer", "master", "activations", "total")
        rows = [[name, f"{getattr(self, name):,}", units.amount(getattr(self, name), "B")]
                for name in names]  # fmt: skip
        title = f"{self.batch} x {self.tokens:,} tokens"
        return units.table([title, "bytes", ""], rows) + f"\n= {self.formula}"


def memory(
    cfg: ModelConfig, tokens: int = 4096, batch: int = 1, precision: Precision = MIXED,
    optimizer: str = "muonclip", recompute: str = "none", kernels: str = "gpu",
) -> TrainingMemory:
    """Memory of training `cfg` on one device that holds all of it.

    optimizer: "muonclip" (Muon for the matrices, AdamW for tables and norms) or "adamw" for all.
    recompute, kernels: as in `activations`. Raises ValueError for other words and counts below 1.
    """
    units.pick("optimizer", optimizer, OPTIMIZERS)
    matrices, others, tensors = trained(cfg)
    buffers = matrices * (1 if optimizer == "muonclip" else 2) + 2 * others
    counts = others_tensors(cfg) if optimizer == "muonclip" else tensors
    # The bias keeps float32 even where the weights have 16 bits.
    bias = "float64" if precision.weights == "float64" else "float32"
    biases = parameters(cfg).total - matrices - others
    kept = activations(cfg, tokens, batch, precision.weights, recompute, kernels)
    trainable = matrices + others
    return TrainingMemory(
        tokens, batch,
        parameters=units.size(trainable, precision.weights) + units.size(biases, bias),
        gradients=units.size(trainable, precision.gradients),
        optimizer=units.size(buffers, precision.optimizer) + 4 * counts,
        master=units.size(trainable, precision.master) if precision.master else 0,
        activations=kept.bytes,
    )  # fmt: skip


def trained(cfg: ModelConfig) -> tuple[int, int, int]:
    """Weights that Muon takes, weights that it leaves to AdamW, and tensors of the engine.

    The engine stacks a layer's experts into two tensors.
    """
    counted, layers = parameters(cfg), cfg.num_hidden_layers
    parts, moe_layers = counted.by_part, layers - min(cfg.first_k_dense_replace, layers)
    biases = parts["router"] - counted.computed_by_part["router"]
    others = parts["embedding"] + parts["head"] + parts["norms"]
    attention = 5 if cfg.q_lora_rank else 4
    # A dense layer has three matrices; one with experts a router, two stacks, three shared ones.
    tensors = layers * (attention + 3) + 3 * moe_layers
    return counted.total - biases - others, others, tensors + others_tensors(cfg)


def others_tensors(cfg: ModelConfig) -> int:
    """Tensors that Muon leaves to AdamW: the tables and the norms."""
    norms = cfg.num_hidden_layers * (4 if cfg.q_lora_rank else 3) + 1
    return norms + (1 if cfg.tie_word_embeddings else 2)
