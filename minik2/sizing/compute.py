"""Training compute and time: the rule 6 N D, the exact count, hours at an assumed utilisation.

Unusual here: the utilisation is not chosen but taken from a run whose hours are published,
DeepSeek-V3's. What it does not cover: other machines, other layouts, and that V3 multiplied mostly
in 8 bits, while the peak it is held against is bfloat16's.
"""

from __future__ import annotations

from dataclasses import dataclass

from minik2.config import ModelConfig
from minik2.sizing import units
from minik2.sizing.flops import flops, mtp_training
from minik2.sizing.machines import MACHINES, Machine
from minik2.sizing.parameters import parameters

# Pre-training of DeepSeek-V3: deepseek-ai/DeepSeek-V3 README; sequences of 4,096: arXiv 2412.19437.
V3_TOKENS, V3_HOURS, V3_CONTEXT = 14_800_000_000_000, 2_664_000, 4096


@dataclass(frozen=True)
class Calibration:
    """The share of an H800's bfloat16 peak that DeepSeek-V3's pre-training reached.

    flops: of the main model over all tokens; with_mtp: with its extra prediction layer. hours: of
    one H800. utilisation: flops / (hours x peak), without the extra layer; with it, the same number
    of hours did a little more.
    """

    flops: int
    with_mtp: int
    hours: int
    peak: float
    formula = "FLOP / (hours x 3600 x peak)"

    @property
    def utilisation(self) -> float:
        """Without the prediction layer."""
        return self.flops / (self.hours * 3600 * self.peak)

    @property
    def utilisation_with_mtp(self) -> float:
        """With it."""
        return self.with_mtp / (self.hours * 3600 * self.peak)

    def __str__(self) -> str:
        return (f"DeepSeek-V3: {units.amount(self.flops)} FLOP in {self.hours:,} H800-hours = "
                f"{self.utilisation:.1%} of {units.amount(self.peak, 'FLOP/s')} (bfloat16), "
                f"{self.utilisation_with_mtp:.1%} with its MTP layer\n= {self.formula}")


@dataclass(frozen=True)
class TrainingCompute:
    """Operations and time of training on `tokens` tokens in sequences of `context`.

    rule: 6 N D with N the active weights without the embedding. exact: forward and backward,
    attention included, nothing computed twice. utilisation: assumed share of the machine's
    bfloat16 peak. hours: of one device of the machine.
    """

    tokens: int
    context: int
    rule: int
    exact: int
    utilisation: float
    hours: float
    machine: str
    formula = "hours = exact / (3600 x peak x utilisation)"

    def __str__(self) -> str:
        return (f"{units.amount(self.tokens)} tokens of {self.context:,}: 6 N D = "
                f"{units.amount(self.rule)} FLOP, exact {units.amount(self.exact)}; "
                f"{units.amount(self.hours)} {self.machine}-hours at an assumed "
                f"{self.utilisation:.1%} of peak\n= {self.formula}")


def calibration() -> Calibration:
    """DeepSeek-V3's published hours, turned into a utilisation."""
    cfg = ModelConfig.preset("deepseek-v3")
    sequences = V3_TOKENS // V3_CONTEXT
    main = flops(cfg, V3_CONTEXT).training.total
    extra = mtp_training(cfg, V3_CONTEXT)
    return Calibration(sequences * main, sequences * (main + extra), V3_HOURS,
                       MACHINES["h800"].peak("bfloat16"))  # fmt: skip


def training_compute(
    cfg: ModelConfig, tokens: int, context: int = 4096, machine: Machine = MACHINES["h800"],
    utilisation: float | None = None,
) -> TrainingCompute:
    """Operations and device-hours; utilisation: DeepSeek-V3's if not given.

    Raises ValueError for counts below 1 and utilisations that are no share.
    """
    units.whole("tokens", tokens)
    used = calibration().utilisation if utilisation is None else units.share(
        "utilisation", utilisation)  # fmt: skip
    exact = tokens * flops(cfg, context).training.total // context
    rule = 6 * parameters(cfg).active_without_embedding * tokens
    hours = exact / (3600 * machine.peak("bfloat16") * used)
    return TrainingCompute(tokens, context, rule, exact, used, hours, machine.name)
