"""How far apart two right implementations may be: the bound of the proof sheet, derived.

An algorithm that is stable in the backward sense returns the exact answer to a question whose
numbers were each changed a little: by at most n u, relatively, where u is the precision's unit
roundoff and n the number of roundings on the longest way from one matrix of weights to the next.
So its answer may be off by n u κ, where κ says how far the answer moves, relatively, when every
number that goes in, all weights included, moves relatively by one. How errors of one stage grow
and add up in later stages is in κ, since the weights of all stages move at once. Two
implementations may differ by the sum of both.

n is counted below from the shapes. κ is measured for every configuration on the reference in
float64, whose own rounding is a millionth of the move: every number moves by up to one part in
10⁹, up or down at random, a few times over, and the answer that moves most counts; κ is at least 1,
since the output itself is rounded.

This is an estimate of the first order and not a theorem: the n roundings of a stage rarely all
fall the same way, which makes it wide, and a few random moves are not the worst ones, which makes
it narrow.
"""

from __future__ import annotations

from dataclasses import dataclass

from minik2.config import ModelConfig

UNIT = {"float64": 2.0**-53, "float32": 2.0**-24, "bfloat16": 2.0**-8}
MOVE = 1e-9
MOVES = 4
# Where first order would allow this much, it is no longer a small error, and nothing is shown.
TOO_COARSE = 0.25


@dataclass(frozen=True)
class Chain:
    """Roundings on the longest way through one stage: in sums and functions, on storing, of angles.

    sums are made in float32 where the precision is bfloat16, and stores in bfloat16; in the wider
    precisions a store rounds nothing that was not rounded already. An angle of p radians is a
    product of position and frequency, three roundings of it: 3 p roundings of a number near 1.
    Our engines take angles in float64 whatever the precision; transformers in its own.
    """

    sums: int
    stores: int
    angles: int = 0

    def __add__(self, other: Chain) -> Chain:
        return Chain(self.sums + other.sums, self.stores + other.stores,
                     self.angles + other.angles)  # fmt: skip

    def noise(self, precision: str, angles: str) -> float:
        """n u, with `angles` the precision that angles are taken in."""
        within = "float32" if precision == "bfloat16" else precision
        stored = UNIT["bfloat16"] * self.stores if precision == "bfloat16" else 0.0
        return self.sums * UNIT[within] + stored + self.angles * UNIT[angles]


def longest(*stages: Chain) -> Chain:
    """The most of each kind of rounding that any stage has."""
    return Chain(max(s.sums for s in stages), max(s.stores for s in stages),
                 max(s.angles for s in stages))  # fmt: skip


Shape = tuple[int, int]


def norm(cfg: ModelConfig, shape: Shape) -> Chain:
    """The sum over D, its mean, eps, root, quotient, gain."""
    return Chain(cfg.hidden_size + 5, 2)


def near_rotation(cfg: ModelConfig, shape: Shape) -> Chain:
    """cos and sin with their gain, two products and their sum; positions 0 to T - 1."""
    return Chain(6, 1, 3 * shape[1])


def far_rotation(cfg: ModelConfig, shape: Shape) -> Chain:
    """The same, its tokens anywhere among the config's positions."""
    return Chain(6, 1, 3 * cfg.max_position_embeddings)


def mla(cfg: ModelConfig, shape: Shape) -> Chain:
    """The longest of: down to a latent and its norm; up, rotation, attention; output."""
    latent, tokens = max(cfg.q_lora_rank or 0, cfg.kv_lora_rank), shape[1]
    down = Chain(cfg.hidden_size + latent + 5, 3)
    scores = Chain(latent, 1) + near_rotation(cfg, shape) + Chain(cfg.qk_head_dim + 1, 1)
    # Largest score taken off, e^x (4 roundings), the sum over tokens, the quotient; then the
    # average of the values.
    attention = scores + Chain(tokens + 6, 1) + Chain(tokens, 1)
    return longest(down, attention, output(cfg))


def output(cfg: ModelConfig) -> Chain:
    """MLA's last product."""
    return Chain(cfg.num_attention_heads * cfg.v_head_dim, 1)


def router(cfg: ModelConfig, shape: Shape) -> Chain:
    """Logits, sigmoid or softmax, bias, sum of the chosen, quotient, scaling."""
    return Chain(cfg.hidden_size + 2 * cfg.n_routed_experts + 8, 1)


def up(cfg: ModelConfig) -> Chain:
    """Gate and up, silu (6 roundings), their product."""
    return Chain(cfg.hidden_size + 7, 3)


def down(cfg: ModelConfig) -> Chain:
    """Down from the wider of shared expert and dense layer, the weighted sum over experts."""
    width = max(cfg.moe_intermediate_size * cfg.n_shared_experts, cfg.intermediate_size)
    return Chain(width + cfg.num_experts_per_tok + 2, 4)


def experts(cfg: ModelConfig, shape: Shape) -> Chain:
    """The longer of a feed-forward block's two stages."""
    return longest(up(cfg), down(cfg))


def model(cfg: ModelConfig, shape: Shape) -> Chain:
    """The longest stage of all; behind an output or a down stand an addition and a norm."""
    added = Chain(1, 1) + norm(cfg, shape)
    return longest(mla(cfg, shape), output(cfg) + added, router(cfg, shape), up(cfg),
                   down(cfg) + added)  # fmt: skip


def gradients(cfg: ModelConfig, shape: Shape) -> Chain:
    """A stage forward, the same stage backward, and a weight's sum over all tokens.

    Between two matrices the backward pass sums over what the forward pass summed over, and starts
    from numbers that were rounded on the way there; the loss is a stage over the vocabulary.
    """
    there = longest(model(cfg, shape), Chain(cfg.vocab_size + 8, 1))
    return there + there + Chain(shape[0] * shape[1], 1)


def decoding(cfg: ModelConfig, shape: Shape) -> Chain:
    """The whole model with attention absorbed: queries and contexts go through one product more."""
    row = cfg.kv_lora_rank + cfg.qk_rope_head_dim
    latent = max(cfg.q_lora_rank or 0, cfg.kv_lora_rank)
    query = Chain(latent, 1) + near_rotation(cfg, shape) + Chain(cfg.qk_nope_head_dim + 1, 2)
    scores = query + Chain(row, 1) + Chain(shape[1] + 6, 1)
    return longest(model(cfg, shape), scores + Chain(shape[1] + cfg.kv_lora_rank, 2))
