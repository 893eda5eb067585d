"""What more heads cost: K2's "83% more for 128 heads", in the convention that gives it and others.

Unusual here: the paper does not say what it counted. Of the conventions below one gives its figure;
that it is the paper's is an inference (unverified). Printed beside it, the others show how far a
percentage without its convention can be from another.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from minik2.config import ModelConfig
from minik2.sizing import units
from minik2.sizing.flops import pair_costs
from minik2.sizing.parameters import parameters


@dataclass(frozen=True)
class HeadsCost:
    """How many times the operations grow from one number of heads to another, by convention.

    tokens: the context. ratios: {convention: (all active weights counted, the embedding too, as
    published counts have it; only the weights multiplied with)}, operations with the new heads over
    those with the old, exact.
    """

    heads_before: int
    heads_after: int
    tokens: int
    ratios: dict[str, tuple[Fraction, Fraction]]
    formula = "(2 x weights + attention with more heads) / (2 x weights + attention)"

    def __str__(self) -> str:
        title = f"{self.heads_before} to {self.heads_after} heads at {self.tokens:,} tokens"
        rows = [[name, *(f"{float(ratio) - 1:+.1%}" for ratio in pair)]
                for name, pair in self.ratios.items()]  # fmt: skip
        return units.table([title, "embedding counted", "not"], rows) + f"\n= {self.formula}"


def heads_cost(cfg: ModelConfig, heads: int | None = None, tokens: int = 131072) -> HeadsCost:
    """Compare `cfg` with the same model of `heads` heads (twice as many if not given).

    "weights fixed" leaves the projections as they are, "weights grown" lets them grow with the
    heads; decode is of the token after `tokens`, prefill the mean over a causal prompt of them.
    Source of the claim: arXiv 2507.20534 §2.3.
    """
    units.whole("tokens", tokens)
    heads = 2 * cfg.num_attention_heads if heads is None else heads
    more = cfg.replace(num_attention_heads=heads)
    before, after = parameters(cfg), parameters(more)
    old, new = pair_costs(cfg), pair_costs(more)
    one, mean = Fraction(tokens), Fraction(tokens + 1, 2)

    def ratios(form: str, seen: Fraction, grown: bool) -> tuple[Fraction, Fraction]:
        counts = ((before.active, after.active), (before.computed, after.computed))
        first, second = (
            (2 * counted[grown] + new[form] * seen) / (2 * counted[0] + old[form] * seen)
            for counted in counts)  # fmt: skip
        return first, second

    work = {"decode, expanded": ("expanded", one), "decode, absorbed": ("absorbed", one),
            "prefill, expanded": ("expanded", mean)}  # fmt: skip
    return HeadsCost(cfg.num_attention_heads, heads, tokens, {
        f"{name}, weights {'grown' if grown else 'fixed'}": ratios(form, seen, grown)
        for name, (form, seen) in work.items() for grown in (False, True)})  # fmt: skip
