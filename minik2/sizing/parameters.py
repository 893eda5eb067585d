"""How many parameters a model stores, and how many of them one token uses.

Unusual here: nothing is estimated, and three numbers that are often taken for each other stand
apart: what is stored, what one token makes the machine read, and what it is multiplied with. The
counts are products of the very shapes that the checkpoint has; a test adds up the shapes one by
one to say so.
"""

from __future__ import annotations

from dataclasses import dataclass

from minik2.config import ModelConfig
from minik2.sizing import units


@dataclass(frozen=True)
class Parameters:
    """Parameter counts; all fields are numbers of weights.

    total: everything stored, correction biases included.
    active: what one token is multiplied with: total less the experts it is not routed to. It
        counts the whole embedding and the output head; published "active" counts differ in
        whether they do, hence the two narrower counts.
    active_without_embedding: less the embedding table (a token reads one row of it).
    active_without_embedding_and_head: the layers alone.
    by_part: stored weights of embedding, attention, dense_ffn, routed_experts, shared_experts,
        router, norms and head; they add up to total.
    read, read_by_part: what has to come from memory to make one token: one row of the embedding,
        the experts chosen, all the rest. A tied table is read as the head.
    computed, computed_by_part: what a token meets in matrix products, two operations each: no
        embedding (a look-up), no norms and no biases (one operation a number, left out).
    """

    total: int
    active: int
    active_without_embedding: int
    active_without_embedding_and_head: int
    by_part: dict[str, int]
    read_by_part: dict[str, int]
    computed_by_part: dict[str, int]

    @property
    def read(self) -> int:
        """Weights read for one token."""
        return sum(self.read_by_part.values())

    @property
    def computed(self) -> int:
        """Weights that one token is multiplied with."""
        return sum(self.computed_by_part.values())

    def __str__(self) -> str:
        rows = [[part, f"{stored:,}", f"{stored / self.total:.2%}",
                 f"{self.read_by_part[part]:,}", f"{self.computed_by_part[part]:,}"]
                for part, stored in self.by_part.items()]  # fmt: skip
        rows.append(["total", f"{self.total:,}", "", f"{self.read:,}", f"{self.computed:,}"])
        rows.append(["active", f"{self.active:,}", "", "", ""])
        return units.table(["part", "stored", "", "read a token", "multiplied"], rows)


def layer(cfg: ModelConfig, number: int) -> dict[str, int]:
    """Weights of one layer by part, the attention in two: what every head has of its own
    (attention_heads) and the products down to the latents, which all share (attention_latents)."""
    hidden, heads, rank = cfg.hidden_size, cfg.num_attention_heads, cfg.q_lora_rank
    moe = cfg.is_moe(number)
    # Rows of one head: queries, keys and values from the latent, and the output.
    own = cfg.qk_head_dim * (rank or hidden)
    own += cfg.kv_lora_rank * (cfg.qk_nope_head_dim + cfg.v_head_dim) + cfg.v_head_dim * hidden
    expert = 3 * hidden * cfg.moe_intermediate_size
    has_bias = cfg.topk_method == "noaux_tc"
    return {
        "attention_heads": heads * own,
        "attention_latents": hidden * (cfg.kv_lora_rank + cfg.qk_rope_head_dim + (rank or 0)),
        "dense_ffn": 0 if moe else 3 * hidden * cfg.intermediate_size,
        "routed_experts": moe * cfg.n_routed_experts * expert,
        "shared_experts": moe * cfg.n_shared_experts * expert,
        "router": moe * cfg.n_routed_experts * (hidden + has_bias),
        "norms": 2 * hidden + cfg.kv_lora_rank + (rank or 0),
    }


def parameters(cfg: ModelConfig) -> Parameters:
    """Count the parameters of `cfg` by part. Formula: the sum of rows x columns of each matrix.

    >>> parameters(ModelConfig.preset("kimi-k2")).total
    1026408232448
    """
    dense_layers = min(cfg.first_k_dense_replace, cfg.num_hidden_layers)
    moe_layers = cfg.num_hidden_layers - dense_layers
    dense, moe = layer(cfg, 0), layer(cfg, cfg.first_k_dense_replace)
    dense = dense if dense_layers else dict.fromkeys(dense, 0)
    layers = {part: dense_layers * dense[part] + moe_layers * moe[part] for part in moe}

    table = cfg.vocab_size * cfg.hidden_size
    attention = layers.pop("attention_heads") + layers.pop("attention_latents")
    layers["norms"] += cfg.hidden_size
    head = 0 if cfg.tie_word_embeddings else table
    by_part = {"embedding": table, "attention": attention, **layers, "head": head}

    chosen = by_part["routed_experts"] * cfg.num_experts_per_tok // cfg.n_routed_experts
    row = 0 if cfg.tie_word_embeddings else cfg.hidden_size
    read = {**by_part, "embedding": row, "routed_experts": chosen, "head": table}
    biases = moe_layers * cfg.n_routed_experts * (cfg.topk_method == "noaux_tc")
    computed = {**read, "embedding": 0, "norms": 0, "router": by_part["router"] - biases}

    total = sum(by_part.values())
    active = total - by_part["routed_experts"] + chosen
    # A tied table still works as the head, so only an untied one drops out with the embedding.
    no_embedding = active - head
    return Parameters(total, active, no_embedding, no_embedding - table, by_part, read, computed)
