"""Bytes that training sends between GPUs: experts' rows, pipeline stages, gradients and weights.

Unusual here: distributed Muon is beside AdamW. A shard of a matrix cannot be made orthogonal by
itself, so ZeRO-1 with Muon gathers each updated momentum once more, in 16 bits: at most a quarter
more than AdamW sends, and less where tables and norms stay with AdamW.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from minik2.config import ModelConfig
from minik2.sizing import units
from minik2.sizing.cluster import Layout, check, stage_layers, stage_weights
from minik2.sizing.parameters import parameters

# Bytes a weight: gradients are scattered and weights gathered in 32 bits, Muon's momentum in 16
# (arXiv 2502.16982 §2.3: 4 + 4 against 4 + 2 + 4).
SCATTER, GATHER, MOMENTUM = 4, 4, 2


@dataclass(frozen=True)
class Communication:
    """Bytes of training under a layout.

    all_to_all: sent for each token by expert parallelism, forward and backward, over all layers: a
    row to each chosen expert and one back; rows for a GPU's own experts are not sent. pipeline:
    sent for each token between chunks of layers, forward and backward. adamw, muon: sent by one GPU
    of the busiest stage a step for ZeRO-1, gradients out and weights in, and Muon's gather.
    """

    layout: Layout
    all_to_all: Fraction
    pipeline: int
    adamw: int
    muon: int
    formula = "4 x MoE layers x K x D x bytes x (EP - 1) / EP; 2 x (chunks - 1) x D x bytes"

    @property
    def ratio(self) -> float:
        """Muon's bytes over AdamW's, in (1, 1.25] wherever Muon takes any matrix."""
        return self.muon / self.adamw if self.adamw else 1.0

    def __str__(self) -> str:
        return units.table(["sent", str(self.layout)], [
            ["all-to-all, a token", units.amount(self.all_to_all, "B")],
            ["pipeline, a token", units.amount(self.pipeline, "B")],
            ["ZeRO-1 with AdamW, a GPU a step", units.amount(self.adamw, "B")],
            ["ZeRO-1 with Muon, a GPU a step", units.amount(self.muon, "B")],
            ["Muon / AdamW", f"{self.ratio:.3f}"]]) + f"\n= {self.formula}"  # fmt: skip


def communication(
    cfg: ModelConfig, layout: Layout, dtype: str = "bfloat16"
) -> Communication:
    """Count what a layout sends; dtype: of the rows between experts and between stages.

    Experts are chosen evenly, and a row goes to each of its K experts, even where two of them are
    on one GPU. Raises ValueError for layouts that do not fit the model and unknown formats.
    """
    check(cfg, layout)
    row = Fraction(cfg.hidden_size * units.bits(dtype), 8)
    moe_layers = cfg.num_hidden_layers - min(cfg.first_k_dense_replace, cfg.num_hidden_layers)
    sent = 4 * moe_layers * cfg.num_experts_per_tok * row * Fraction(layout.ep - 1, layout.ep)
    boundaries = layout.pp * layout.virtual - 1 if layout.pp > 1 else 0
    adamw = muon = 0
    for stage in range(layout.pp):
        experts, matrices, rest = stage_weights(cfg, layout, stage)
        if cfg.topk_method == "noaux_tc":
            # A correction bias has no gradient: each GPU moves its own, by the loads of all.
            numbers = stage_layers(cfg.num_hidden_layers, layout, stage)
            matrices -= cfg.n_routed_experts * sum(map(cfg.is_moe, numbers))
        # Each GPU sends all but its own share; who holds the same weights differs by kind.
        holders = {"experts": layout.stage_gpus * layout.dp // layout.ep,
                   "others": layout.stage_gpus * layout.dp // layout.tp}  # fmt: skip
        away = {kind: Fraction(n - 1, n) for kind, n in holders.items()}
        orthogonal = experts * away["experts"] + matrices * away["others"]
        plain = (SCATTER + GATHER) * (orthogonal + rest * away["others"])
        adamw = max(adamw, -(-plain // 1))
        muon = max(muon, -(-(plain + MOMENTUM * orthogonal) // 1))
    return Communication(layout, sent, -(-2 * boundaries * row // 1), adamw, muon)


def muon_ratio(cfg: ModelConfig) -> Fraction:
    """Muon's bytes over AdamW's for a whole model spread over very many GPUs, exactly."""
    counted = parameters(cfg)
    parts = counted.by_part
    rest = parts["embedding"] + parts["head"] + parts["norms"]
    biases = parts["router"] - counted.computed_by_part["router"]
    matrices = counted.total - biases - rest
    return 1 + Fraction(MOMENTUM * matrices, (SCATTER + GATHER) * (matrices + rest))
