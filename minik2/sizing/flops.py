"""Floating-point operations of reading a prompt, making one token, and training.

Unusual here: attention and weights are counted apart, and each of the forms that MLA can be
computed in has its own count. Two operations a multiply-add; matrix products and attention only
(norms, rotation, softmax and sums are left out: they cost time, but hardly operations).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from minik2.config import ModelConfig
from minik2.sizing import units
from minik2.sizing.parameters import layer, parameters


@dataclass(frozen=True)
class Work:
    """Operations of one piece of work: products with weights, and attention over the context."""

    weights: int
    attention: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.weights + self.attention


@dataclass(frozen=True)
class Flops:
    """Operations for `batch` sequences of `tokens` tokens; every count is for all of the batch.

    decode_absorbed: one new token each, which looks at `tokens` tokens, itself among them, through
        the latents: H (2 C + R) multiply-adds for each, W_UK and W_UV once.
    decode_expanded: the same against keys and values that are kept in full: H (N + R + V).
    decode_rebuilt: the same against keys and values formed anew from the latents at every step;
        the forming, H C (N + V) a token looked at, is counted with attention.
    prefill_expanded, prefill_absorbed: the whole prompt under the causal mask, T (T + 1) / 2 pairs
        a sequence; the head for the last token only.
    training: forward and backward of all tokens, expanded, the head for every token; backward is
        two products for each of forward's; nothing computed twice.
    """

    tokens: int
    batch: int
    decode_absorbed: Work
    decode_expanded: Work
    decode_rebuilt: Work
    prefill_expanded: Work
    prefill_absorbed: Work
    training: Work
    formula = "2 x weights met x tokens + 2 x layers x heads x (numbers a pair) x pairs"

    def __str__(self) -> str:
        rows = [[f.name.replace("_", ", "), *map(units.amount, (w.weights, w.attention, w.total))]
                for f in fields(self) if isinstance(w := getattr(self, f.name), Work)]  # fmt: skip
        title = f"{self.batch} x {self.tokens:,} tokens"
        return units.table([title, "weights", "attention", "FLOP"], rows) + f"\n= {self.formula}"


def pair_costs(cfg: ModelConfig) -> dict[str, int]:
    """Operations for one query to look at one cached token, in all heads and layers, by form."""
    heads = cfg.num_hidden_layers * cfg.num_attention_heads
    latent, rope = cfg.kv_lora_rank, cfg.qk_rope_head_dim
    expanded = cfg.qk_head_dim + cfg.v_head_dim
    forming = latent * (cfg.qk_nope_head_dim + cfg.v_head_dim)
    return {"absorbed": 2 * heads * (2 * latent + rope), "expanded": 2 * heads * expanded,
            "forming": 2 * heads * forming}  # fmt: skip


def flops(cfg: ModelConfig, tokens: int = 4096, batch: int = 1) -> Flops:
    """Count the operations of `batch` sequences of `tokens` tokens, exactly.

    Raises ValueError for counts below 1. Source of the two forms: arXiv 2405.04434 §2.1.2.
    """
    units.whole("tokens", tokens)
    units.whole("batch", batch)
    pair, each = pair_costs(cfg), 2 * parameters(cfg).computed
    head = 2 * cfg.vocab_size * cfg.hidden_size
    pairs = tokens * (tokens + 1) // 2
    prompt = (each - head) * tokens + head

    def work(weights: int, attention: int) -> Work:
        return Work(batch * weights, batch * attention)

    rebuilt = tokens * (pair["expanded"] + pair["forming"])
    return Flops(
        tokens, batch,
        decode_absorbed=work(each, tokens * pair["absorbed"]),
        decode_expanded=work(each, tokens * pair["expanded"]),
        # The new token's own keys and values are among those formed.
        decode_rebuilt=work(each - pair["forming"], rebuilt),
        prefill_expanded=work(prompt, pairs * pair["expanded"]),
        prefill_absorbed=work(prompt, pairs * pair["absorbed"]),
        training=work(3 * each * tokens, 3 * pairs * pair["expanded"]),
    )  # fmt: skip


def mtp_training(cfg: ModelConfig, tokens: int) -> int:
    """Operations that training adds for `num_nextn_predict_layers` of DeepSeek-V3's kind.

    Each is a product from 2 D to D, one layer and the head. Source: arXiv 2412.19437 §2.2.
    """
    whole, own = parameters(cfg), layer(cfg, cfg.num_hidden_layers - 1)
    hidden, layers = cfg.hidden_size, cfg.num_hidden_layers
    met = own["attention_heads"] + own["attention_latents"] + own["dense_ffn"]
    if cfg.is_moe(layers - 1):
        moe = layers - cfg.first_k_dense_replace
        kinds = ("routed_experts", "shared_experts", "router")
        met += sum(whole.computed_by_part[kind] for kind in kinds) // moe
    met += 2 * hidden * hidden + cfg.vocab_size * hidden
    pairs = tokens * (tokens + 1) // 2
    attention = pair_costs(cfg)["expanded"] // layers * pairs
    return 3 * cfg.num_nextn_predict_layers * (2 * met * tokens + attention)
