"""What decides a run's weights: two runs with equal settings, config and text end alike.

Unusual here: nothing else is in it. How often to save or to evaluate, where to write and on how
many threads change no weight (threads only a rounding), so a resumed run may change them freely,
and these settings not at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

ENGINES = ("reference", "pytorch")
OPTIMIZERS = ("muonclip", "muon", "adamw")


@dataclass(frozen=True)
class Settings:
    """The recipe of a run. Raises ValueError, one sentence, for values that make no sense.

    batch × accumulate windows of `window` tokens make a step. rate: the highest learning rate;
    adamw_rate: AdamW's if it is to differ. warmup: steps; decay: the share of all steps that fall
    along a cosine to final × rate (K2: 5.5 of 15.5 T tokens, to a tenth; arXiv 2507.20534 §2.5).
    clip_norm: the longest gradient, none where K2's report names none. tau: MuonClip's.
    bias_speed: of the router's correction bias, up to bias_until of all steps (DeepSeek-V3: 0.001
    for 14.3 of 14.8 T tokens, arXiv 2412.19437 §4.2; a run of hundreds of steps needs more);
    bias_mean_free: Moonlight's rule, which keeps the bias from drifting. balance_alpha: of the
    sequence-wise balance loss (the same §4.2).
    """

    engine: str = "pytorch"
    optimizer: str = "muonclip"
    steps: int = 400
    batch: int = 8
    window: int = 128
    accumulate: int = 1
    rate: float = 0.01
    adamw_rate: float | None = None
    weight_decay: float = 0.1
    warmup: int = 20
    decay: float = 0.4
    final: float = 0.1
    clip_norm: float | None = None
    tau: float = 100.0
    bias_speed: float = 0.01
    bias_until: float = 0.97
    bias_mean_free: bool = False
    balance_alpha: float = 0.0001
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (("engine", ENGINES), ("optimizer", OPTIMIZERS)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} is one of {', '.join(allowed)}, not {getattr(self, name)!r}."
                )
        for name in ("steps", "batch", "window", "accumulate"):
            self._must(name, self._whole(name) and getattr(self, name) >= 1, "a whole number, 1 up")
        for name in ("warmup", "seed"):
            self._must(name, self._whole(name) and getattr(self, name) >= 0, "a whole number, 0 up")
        for name in ("rate", "adamw_rate", "tau", "clip_norm"):
            value = getattr(self, name)
            optional = value is None and name in ("adamw_rate", "clip_norm")
            self._must(name, optional or (_finite(value) and value > 0), "a number above 0")
        for name in ("weight_decay", "bias_speed", "balance_alpha"):
            value = getattr(self, name)
            self._must(name, _finite(value) and value >= 0, "a number, 0 or more")
        for name in ("decay", "final", "bias_until"):
            value = getattr(self, name)
            self._must(name, _finite(value) and 0 <= value <= 1, "a share from 0 to 1")
        if self.optimizer == "adamw" and self.adamw_rate is not None:
            raise ValueError(
                f"adamw_rate is {self.adamw_rate!r}, but it is for what Muon leaves to AdamW; "
                "where AdamW takes everything, give its rate as `rate`."
            )

    def _whole(self, name: str) -> bool:
        value = getattr(self, name)
        return isinstance(value, int) and not isinstance(value, bool)

    def _must(self, name: str, holds: bool, wanted: str) -> None:
        if not holds:
            raise ValueError(f"{name} must be {wanted}, not {getattr(self, name)!r}.")

    @property
    def tokens_a_step(self) -> int:
        """How many targets one update is made from."""
        return self.batch * self.accumulate * self.window

    @property
    def rate_of_adamw(self) -> float:
        """The highest rate of what AdamW takes beside Muon."""
        return self.rate if self.adamw_rate is None else self.adamw_rate

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, as `from_json` takes it."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Settings:
        """Raises ValueError for keys that are no settings: another version's run."""
        strange = set(raw) - {field.name for field in fields(cls)}
        if strange:
            raise ValueError(
                f"{', '.join(sorted(strange))} are no settings of this version of minik2; resume "
                "the run with the version that began it."
            )
        return cls(**raw)


def _finite(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)
