"""How many parameters a model stores, and how many of them one token uses.

Unusual here: nothing is estimated. The counts are products of the very shapes that the checkpoint
has, so they are exact, and a test adds up the shapes one by one to say so.
"""

from __future__ import annotations

from dataclasses import dataclass

from minik2.config import ModelConfig


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
    """

    total: int
    active: int
    active_without_embedding: int
    active_without_embedding_and_head: int
    by_part: dict[str, int]

    def __str__(self) -> str:
        width = max(map(len, self.by_part))
        rows = [f"{n:<{width}}  {v:>19,}  {v / self.total:7.2%}" for n, v in self.by_part.items()]
        sums = {"total": self.total, "active": self.active}
        return "\n".join([*rows, *(f"{n:<{width}}  {v:>19,}" for n, v in sums.items())])


def parameters(cfg: ModelConfig) -> Parameters:
    """Count the parameters of `cfg` by part. Formula: the sum of rows x columns of each matrix.

    >>> parameters(ModelConfig.preset("kimi-k2")).total
    1026408232448
    """
    hidden, heads, layers = cfg.hidden_size, cfg.num_attention_heads, cfg.num_hidden_layers
    dense_layers = min(cfg.first_k_dense_replace, layers)
    moe_layers = layers - dense_layers

    queries = heads * cfg.qk_head_dim
    rank = cfg.q_lora_rank
    query = hidden * queries if rank is None else rank * (hidden + queries)
    latent = hidden * (cfg.kv_lora_rank + cfg.qk_rope_head_dim)
    keys_and_values = cfg.kv_lora_rank * heads * (cfg.qk_nope_head_dim + cfg.v_head_dim)
    output = heads * cfg.v_head_dim * hidden

    expert = 3 * hidden * cfg.moe_intermediate_size
    has_bias = cfg.topk_method == "noaux_tc"
    table = cfg.vocab_size * hidden
    by_part = {
        "embedding": table,
        "attention": layers * (query + latent + keys_and_values + output),
        "dense_ffn": dense_layers * 3 * hidden * cfg.intermediate_size,
        "routed_experts": moe_layers * cfg.n_routed_experts * expert,
        "shared_experts": moe_layers * cfg.n_shared_experts * expert,
        "router": moe_layers * cfg.n_routed_experts * (hidden + has_bias),
        "norms": layers * (2 * hidden + cfg.kv_lora_rank + (rank or 0)) + hidden,
        "head": 0 if cfg.tie_word_embeddings else table,
    }
    total = sum(by_part.values())
    resting = moe_layers * (cfg.n_routed_experts - cfg.num_experts_per_tok) * expert
    active = total - resting
    # A tied table still works as the head, so only an untied one drops out with the embedding.
    no_embedding = active - (0 if cfg.tie_word_embeddings else table)
    return Parameters(total, active, no_embedding, no_embedding - table, by_part)
