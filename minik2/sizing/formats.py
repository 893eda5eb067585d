"""How many bytes a model's weights take in the formats that it is published in.

Unusual here: a format is more than a number of bits. FP8 leaves embedding, head, router and norms
in 16 bits and adds a 32-bit scale for each 128 x 128 block, ragged blocks included; INT4 touches
the routed experts alone and adds a 16-bit scale for each 32 weights. The sum is K2's files' size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from minik2.config import ModelConfig
from minik2.sizing import units
from minik2.sizing.parameters import parameters

# Parts that a format narrows; all others stay bfloat16.
NARROWED = {
    "float8": ("attention", "dense_ffn", "routed_experts", "shared_experts"),
    "int4": ("routed_experts",),
}
FORMATS = ("float32", "bfloat16", "float8", "int4")
BLOCK, GROUP = 128, 32


@dataclass(frozen=True)
class Stored:
    """A checkpoint's tensors in one format, bytes: weights, their scales, and both together."""

    format: str
    weights: int
    scales: int
    formula = "sum over tensors of numbers x bits / 8, and of scales x their bytes"

    @property
    def bytes(self) -> int:
        """Weights and scales."""
        return self.weights + self.scales

    def __str__(self) -> str:
        return (f"{self.format}: {units.gib(self.bytes)}, scales {units.amount(self.scales, 'B')}"
                f" of it\n= {self.formula}")


def stored(cfg: ModelConfig, format: str = "bfloat16") -> Stored:
    """Bytes of all tensors of the checkpoint of `cfg` in one of FORMATS, exactly.

    The correction bias is float32 in every format. File headers are not counted, nor, in INT4, the
    shape that is stored with each tensor. Raises ValueError for other formats, and in INT4 for rows
    that groups of 32 do not divide. Source: arXiv 2412.19437 §3.3; the released checkpoints.
    """
    units.pick("format of weights", format, FORMATS)
    narrow = NARROWED.get(format, ())
    weights = scales = 0
    # Equal tensors are counted together: K2 has 69,000 tensors, and a dozen shapes.
    for shape, part, count in _kinds(cfg):
        numbers = count * math.prod(shape)
        if part == "bias":
            weights += units.size(numbers, "float32")
        elif part in narrow:
            rows, columns = shape
            weights += units.size(numbers, format)
            if format == "float8":
                scales += 4 * count * -(-rows // BLOCK) * -(-columns // BLOCK)
            elif columns % GROUP:
                raise ValueError(f"INT4 scales groups of {GROUP} weights of a row, but {GROUP} does"
                                 f" not divide {columns}; choose another format.")
            else:
                scales += 2 * numbers // GROUP
        else:
            weights += units.size(numbers, "float32" if format == "float32" else "bfloat16")
    return Stored(format, weights, scales)


def bits_by_part(format: str) -> dict[str, Fraction]:
    """Bits that one weight of each part of `Parameters.by_part` takes, its share of scales too.

    Whole blocks are assumed. Raises ValueError for other formats than FORMATS.
    """
    units.pick("format of weights", format, FORMATS)
    scales = {"float8": Fraction(32, BLOCK * BLOCK), "int4": Fraction(16, GROUP)}
    scale = scales.get(format, Fraction(0))
    plain = Fraction(units.bits("float32" if format == "float32" else "bfloat16"))
    parts = ("embedding", "attention", "dense_ffn", "routed_experts", "shared_experts", "router",
             "norms", "head")  # fmt: skip
    narrow = NARROWED.get(format, ())
    return {p: units.bits(format) + scale if p in narrow else plain for p in parts}


def read_bytes(cfg: ModelConfig, format: str, batch: int = 1) -> float:
    """Bytes of weights read to make one token for each of `batch` sequences.

    With b tokens that choose their experts evenly and independently of each other, a share
    1 - (1 - K/E)^b of the experts is read, in the mean. Each chosen one is read once. Embedding: b
    rows at the most.
    """
    units.whole("batch", batch)
    bits, counted = bits_by_part(format), parameters(cfg)
    read: dict[str, float] = dict(counted.read_by_part)
    rest = 1 - cfg.num_experts_per_tok / cfg.n_routed_experts
    read["routed_experts"] = counted.by_part["routed_experts"] * (1 - rest**batch)
    read["embedding"] = min(read["embedding"] * batch, counted.by_part["embedding"])
    return sum(read[part] * float(bits[part]) / 8 for part in read)


def _kinds(cfg: ModelConfig) -> list[tuple[tuple[int, ...], str, int]]:
    """(shape, part, how many such tensors), by layers of a kind rather than one by one."""
    one_expert = cfg.replace(num_hidden_layers=1, n_routed_experts=1, num_experts_per_tok=1,
                             n_group=1, topk_group=1)  # fmt: skip
    dense = min(cfg.first_k_dense_replace, cfg.num_hidden_layers)
    kinds = []
    for layers, sample in ((dense, one_expert.replace(first_k_dense_replace=1)),
                           (cfg.num_hidden_layers - dense,
                            one_expert.replace(first_k_dense_replace=0))):  # fmt: skip
        for name, shape in sample.tensors():
            if ".layers." not in name:
                continue
            count, part = layers, _part(name)
            if part == "routed_experts":
                count *= cfg.n_routed_experts
            elif ".gate." in name:
                shape = (cfg.n_routed_experts, *shape[1:])
            kinds.append((shape, part, count))
    outer = [(shape, _part(name), 1) for name, shape in one_expert.tensors()
             if ".layers." not in name]  # fmt: skip
    return outer + kinds


def _part(name: str) -> str:
    if name.endswith("e_score_correction_bias"):
        return "bias"
    if "norm" in name or "embed_tokens" in name or "lm_head" in name or ".gate." in name:
        return "kept"
    if ".self_attn." in name:
        return "attention"
    if ".shared_experts." in name:
        return "shared_experts"
    return "routed_experts" if ".experts." in name else "dense_ffn"
