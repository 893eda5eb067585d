"""What a pass through a real-size model should take, what it took, and both beside each other.

Unusual here: nothing is fitted. Counts come from `minik2.sizing`, arrays from the shapes below,
seconds from a trial of the same loops on this machine a moment before.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from minik2 import sizing
from minik2.config import ModelConfig
from minik2.sizing import units
from minik2.sizing.formats import read_bytes


@dataclass(frozen=True)
class Amounts:
    """One side of the comparison, predicted or measured.

    parameters: weights touched, each once however many tokens met it. experts: routed experts made,
    over all layers. cache: bytes of latents and rotary keys. flops: two a multiply-add, products
    and attention. arrays: bytes of NumPy's arrays at the most, cache included. resident: bytes of
    the process in memory at the most. seconds: of the pass.
    """

    parameters: float
    experts: float
    cache: int
    flops: int
    arrays: int
    resident: int
    seconds: float


NAMES = {
    "parameters": "parameters touched", "experts": "experts made", "cache": "cache, bytes",
    "flops": "operations, FLOP", "arrays": "arrays at the most, bytes",
    "resident": "process at the most, bytes", "seconds": "seconds",
}  # fmt: skip


@dataclass(frozen=True)
class Report:
    """What `run` found.

    layers: what was asked for; done: layers gone through, fewer after an interruption, and then the
    measured amounts are those so far. chosen: experts of each layer that has some, a list of K for
    each token. layer_seconds: of each layer done. before: bytes resident before the first layer.
    """

    layers: int
    done: int
    tokens: int
    seed: int
    threads: int
    predicted: Amounts
    measured: Amounts
    before: int
    layer_seconds: list[float]
    chosen: list[list[list[int]]]

    @property
    def finished(self) -> bool:
        """Whether all layers and the head were gone through."""
        return self.done == self.layers

    def to_dict(self) -> dict[str, Any]:
        """All of it for JSON."""
        return asdict(self) | {"finished": self.finished}

    def __str__(self) -> str:
        said, found = asdict(self.predicted), asdict(self.measured)
        rows = []
        for name, title in NAMES.items():
            form = "{:,.2f}" if name == "seconds" else "{:,.0f}"
            ratio = f"{found[name] / said[name]:.3f}" if said[name] else ""
            rows.append([title, form.format(said[name]), form.format(found[name]), ratio])
        rate = units.amount(self.measured.parameters / max(self.measured.seconds, 1e-9))
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        ends = f"{rate} weights a second on {threads}, made and used, none stored."
        if self.tokens > 1:
            ends += "\nPredicted for tokens that choose their experts evenly, each by itself."
        if not self.finished:
            ends += (f"\nStopped after {self.done} of {self.layers} layers: measured so far, "
                     "predicted for all.")  # fmt: skip
        return units.table(["", "predicted", "measured", "ratio"], rows) + f"\n{ends}"


def predict(
    cfg: ModelConfig, tokens: int, before: int, weight: float, multiply_add: float
) -> Amounts:
    """What `tokens` new tokens take in float32, for all layers of `cfg` and the head.

    before: bytes resident already; weight, multiply_add: seconds for making one weight and for one
    use of it. Experts are counted as if tokens chose evenly and independently of each other.
    """
    moe = max(0, cfg.num_hidden_layers - cfg.first_k_dense_replace)
    rest = 1 - cfg.num_experts_per_tok / cfg.n_routed_experts
    parameters = read_bytes(cfg, "float32", tokens) / 4
    work = sizing.flops(cfg, tokens).prefill_absorbed
    cache = sizing.kv_cache_bytes(cfg, tokens, bytes_per_number=4)
    arrays = cache + 4 * activations(cfg, tokens)
    return Amounts(
        round(parameters, 3), round(moe * cfg.n_routed_experts * (1 - rest**tokens), 3), cache,
        work.total, arrays, before + arrays, parameters * weight + work.weights / 2 * multiply_add,
    )  # fmt: skip


def activations(cfg: ModelConfig, tokens: int) -> int:
    """Numbers held at a time by `Model`, the cache left out: x and the largest of its parts."""
    hidden, heads, row = cfg.hidden_size, cfg.num_attention_heads, cfg.kv_lora_rank
    row += cfg.qk_rope_head_dim
    # The norm's output and down; q, moved, context; values as they come and in order; the output.
    attention = hidden + row + hidden
    attention += heads * (cfg.qk_head_dim + row + cfg.kv_lora_rank + 2 * cfg.v_head_dim)
    parts = [attention]
    if cfg.first_k_dense_replace:
        # The norm's output; gate, up and what is between them; the output.
        parts.append(hidden + 3 * cfg.intermediate_size + hidden)
    if not cfg.is_all_dense:
        shared = cfg.n_shared_experts * cfg.moe_intermediate_size
        parts.append(hidden + 3 * shared + hidden)
    head = cfg.vocab_size + hidden
    return max(tokens * (hidden + max(parts)), head)
