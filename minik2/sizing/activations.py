"""What a training step keeps for its backward pass, tensor by tensor.

Unusual here: no constant is fitted. The list below names every tensor that the PyTorch engine's
operations save, each with its numbers a token, and a test compares the sum with what autograd holds
(distinct storages; parameters and buffers left out). Kernels differ in what they save: those of a
CPU pad the values to the keys' width, but of a norm they keep the input alone, and of SwiGLU gate
and up. The list of a GPU's has not been measured: none was at hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from minik2.config import ModelConfig
from minik2.sizing import units

KERNELS = ("gpu", "cpu")
RECOMPUTE = ("none", "selective", "full")
# 1 x 128 tiles of 8 bits with a 32-bit scale each (arXiv 2507.20534 §2.4).
FLOAT8 = 8 + Fraction(32, 128)


@dataclass(frozen=True)
class Saved:
    """One kind of tensor: its numbers a token, what format they have, and what K2 does with it.

    kind: "work" (the model's format), "exact" (float32 at least) or "index" (int64).
    selective: "keep", "recompute" or "float8": arXiv 2507.20534 §2.4 computes norms, SwiGLU, MLA's
    up-projections and the experts' down-projections again, and keeps the inputs of the experts'
    up-projections and of SwiGLU in 8 bits.
    """

    name: str
    numbers: int
    kind: str = "work"
    selective: str = "keep"


@dataclass(frozen=True)
class Activations:
    """Bytes kept for backward, for `batch` sequences of `tokens` tokens.

    by_layer: of each layer. ends: of embedding, rotary tables, last norm, head and loss.
    by_tensor: of each kind of tensor over all layers.
    """

    tokens: int
    batch: int
    recompute: str
    by_layer: tuple[int, ...]
    ends: int
    by_tensor: dict[str, int]
    formula = "tokens x the sum over saved tensors of numbers a token x bytes a number"

    @property
    def bytes(self) -> int:
        """All of it."""
        return sum(self.by_layer) + self.ends

    def __str__(self) -> str:
        rows = [[name, units.amount(n, "B"), f"{n / self.bytes:.1%}"]
                for name, n in sorted(self.by_tensor.items(), key=lambda item: -item[1]) if n]
        rows += [["embedding, head, loss", units.amount(self.ends, "B"),
                  f"{self.ends / self.bytes:.1%}"], ["all", units.amount(self.bytes, "B"), ""]]
        title = f"{self.batch} x {self.tokens:,} tokens, recomputation {self.recompute}"
        return units.table([title, "bytes", ""], rows) + f"\n= {self.formula}"


def norm(name: str, size: int, kernels: str, source: int | None = None) -> list[Saved]:
    """An RMSNorm and what its result is kept for; source: numbers of the tensor it was cut from."""
    saved = [Saved(f"{name}: input", source or size),
             Saved(f"{name}: result", size, selective="recompute")]  # fmt: skip
    if kernels == "gpu":
        saved.append(Saved(f"{name}: 1/rms", 1, "exact"))
    return saved


def attention(cfg: ModelConfig, tokens: int, kernels: str) -> list[Saved]:
    """MLA in expanded form, for sequences of `tokens`."""
    heads, rank, width = cfg.num_attention_heads, cfg.q_lora_rank, cfg.qk_head_dim
    value = max(cfg.v_head_dim, width) if kernels == "cpu" else cfg.v_head_dim
    # Values that are not copied are a part of what kv_b_proj made, which is then kept whole. A CPU
    # copies them to pad them, and, where they are wider than keys, to lay the heads apart.
    copied = kernels == "cpu" and (value != cfg.v_head_dim or (value > width and heads > 1))
    held = value if copied else cfg.qk_nope_head_dim + value
    saved = norm("input norm", cfg.hidden_size, kernels)
    if rank is not None:
        saved += norm("query latent", rank, kernels)
    source = cfg.kv_lora_rank + cfg.qk_rope_head_dim
    saved += norm("key/value latent", cfg.kv_lora_rank, kernels, source)
    saved += [Saved("queries", heads * width, selective="recompute"),
              Saved("keys", heads * width, selective="recompute"),
              Saved("values", heads * held, selective="recompute"),
              Saved("heads' outputs", heads * value)]  # fmt: skip
    if kernels == "cpu" and value > width:
        # The fused kernel of a CPU does not take values wider than keys.
        saved.append(Saved("attention weights", heads * tokens))
    else:
        saved.append(Saved("softmax sums", heads, "exact"))
    # A copy, unless what is left lies evenly spaced already.
    if value != cfg.v_head_dim and heads > 1 and cfg.v_head_dim > 1:
        saved.append(Saved("heads' outputs, cut to width", heads * cfg.v_head_dim))
    return saved


def ffn(name: str, width: int, kernels: str) -> list[Saved]:
    """SwiGLU of `width` hidden numbers; its input is the norm's result. A CPU makes everything but
    gate and up again."""
    saved = [Saved(f"{name}: gate", width, selective="float8"),
             Saved(f"{name}: up", width, selective="float8")]  # fmt: skip
    if kernels == "gpu":
        saved += [Saved(f"{name}: silu(gate)", width, selective="recompute"),
                  Saved(f"{name}: product", width, selective="recompute")]  # fmt: skip
    return saved


def experts(cfg: ModelConfig, exact: bool, kernels: str) -> list[Saved]:
    """The router and the routed experts; exact: the model computes in float32 or wider."""
    chosen, hidden = cfg.num_experts_per_tok, cfg.hidden_size
    saved = [] if exact else [Saved("router: input", hidden, "exact", "recompute")]
    saved += [Saved("router: scores", cfg.n_routed_experts, "exact"),
              Saved("router: choice", chosen, "index")]  # fmt: skip
    if cfg.norm_topk_prob:
        saved += [Saved("router: weights before scaling", chosen, "exact"),
                  Saved("router: their sum", 1, "exact")]  # fmt: skip
    saved += [Saved("router: weights", chosen), Saved("order by expert", chosen, "index"),
              Saved("order back", chosen, "index")]  # fmt: skip
    saved += ffn("experts", chosen * cfg.moe_intermediate_size, kernels)
    if kernels == "gpu":
        saved += [Saved("experts: rows", chosen * hidden, selective="float8"),
                  Saved("experts: outputs", chosen * hidden, selective="recompute")]  # fmt: skip
    shared = cfg.n_shared_experts * cfg.moe_intermediate_size
    return saved + ffn("shared experts", shared, kernels)


def layer(
    cfg: ModelConfig, number: int, tokens: int, dtype: str = "bfloat16", kernels: str = "gpu"
) -> list[Saved]:
    """Every tensor that one layer keeps, for sequences of `tokens`."""
    saved = attention(cfg, tokens, kernels) + norm("second norm", cfg.hidden_size, kernels)
    if not cfg.is_moe(number):
        return saved + ffn("dense", cfg.intermediate_size, kernels)
    return saved + experts(cfg, units.bits(dtype) >= 32, kernels)


def size(saved: Saved, tokens: int, dtype: str, recompute: str) -> int:
    """Bytes of one kind of tensor for `tokens` tokens; 0 where it is computed again."""
    work = units.bits(dtype)
    own: Fraction = Fraction({"work": work, "exact": max(32, work), "index": 64}[saved.kind])
    if recompute == "selective" and saved.selective == "recompute":
        own = Fraction(0)
    if recompute == "selective" and saved.selective == "float8":
        own = min(FLOAT8, own)
    return -(-tokens * saved.numbers * own // 8)


def activations(
    cfg: ModelConfig, tokens: int, batch: int = 1, dtype: str = "bfloat16",
    recompute: str = "none", kernels: str = "gpu",
) -> Activations:
    """Count what is kept for backward, exactly: all experts together have K rows a token.

    recompute: "none" leaves it to the kernels; "selective" as K2 was trained (arXiv 2507.20534
    §2.4); "full" keeps each layer's input only. While backward runs, what one layer computes again
    comes on top. kernels: "gpu", or "cpu" in float32 and float64. Raises ValueError for other
    values and counts below 1.
    """
    rows = units.whole("tokens", tokens) * units.whole("batch", batch)
    units.pick("recomputation", recompute, RECOMPUTE)
    units.pick("kernels", kernels, KERNELS)
    if kernels == "cpu" and units.bits(dtype) < 32:
        raise ValueError(f"What a CPU keeps is known in float32 and float64 only, not in {dtype}: "
                         "its norms keep copies in float32 there; choose one, or kernels='gpu'.")
    by_tensor: dict[str, int] = {}
    by_layer = []
    for number in range(cfg.num_hidden_layers):
        kinds = [Saved("layers' inputs", cfg.hidden_size)]
        if recompute != "full":
            kinds = layer(cfg, number, tokens, dtype, kernels)
        sizes = {saved.name: size(saved, rows, dtype, recompute) for saved in kinds}
        for name, own in sizes.items():
            by_tensor[name] = by_tensor.get(name, 0) + own
        by_layer.append(sum(sizes.values()))
    edges = [Saved("token ids", 1, "index"), *norm("last norm", cfg.hidden_size, kernels),
             Saved("log of the probabilities", cfg.vocab_size, "exact"),
             Saved("targets", 1, "index")]  # fmt: skip
    ends = sum(size(saved, rows, dtype, "none") for saved in edges)
    # One table of angles for all sequences, and the loss's sum of weights.
    exact = "float64" if dtype == "float64" else "float32"
    ends += units.size(tokens * cfg.qk_rope_head_dim + 1, exact)
    return Activations(tokens, batch, recompute, tuple(by_layer), ends, by_tensor)
