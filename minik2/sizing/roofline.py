"""The most tokens a second that a machine can make: bytes over bandwidth, operations over peak.

Unusual here: these are bounds, not forecasts. All devices share the work evenly, nothing is spent
on talking between them, and whichever of the two limits takes longer hides the other. What a real
machine reaches is a share of this.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from minik2.config import ModelConfig
from minik2.sizing import units
from minik2.sizing.cache import kv_cache_bytes
from minik2.sizing.flops import flops
from minik2.sizing.formats import read_bytes, stored
from minik2.sizing.machines import Machine


@dataclass(frozen=True)
class Decode:
    """One step of decoding, a token for each sequence of the batch.

    tokens: the context of each. weight_bytes (expected: routing is random), cache_bytes: read in
    the step; held_bytes: all weights and the cache; capacity: bytes of memory of all devices.
    flops: of the step. bandwidth_seconds, compute_seconds: the two limits.
    """

    batch: int
    tokens: int
    weight_bytes: float
    cache_bytes: int
    held_bytes: int
    capacity: int
    flops: int
    bandwidth_seconds: float
    compute_seconds: float
    formula = "max((weights read + cache) / bandwidth, FLOP / peak), on all devices together"

    @property
    def seconds(self) -> float:
        """The least time of the step."""
        return max(self.bandwidth_seconds, self.compute_seconds)

    @property
    def tokens_per_second(self) -> float:
        """The most tokens a second, all sequences together."""
        return self.batch / self.seconds

    @property
    def bound(self) -> str:
        """Which limit holds: "bandwidth" or "compute"."""
        return "compute" if self.compute_seconds > self.bandwidth_seconds else "bandwidth"

    @property
    def fits(self) -> bool:
        """Whether all weights and the cache are within the memory of all devices."""
        return self.held_bytes <= self.capacity

    def row(self) -> list[str]:
        """The cells of this step in a sweep's table."""
        limit = self.bound if self.fits else "does not fit"
        return [str(self.batch), units.amount(self.weight_bytes, "B"),
                units.amount(self.cache_bytes, "B"), units.amount(self.flops),
                f"{units.digits(1000 * self.seconds)} ms", units.digits(self.tokens_per_second),
                units.digits(1 / self.seconds), limit]  # fmt: skip


HEADER = ["batch", "weights", "cache", "FLOP", "least time", "tokens/s", "each", "limit"]


@dataclass(frozen=True)
class Sweep:
    """Decoding steps of growing batches on one machine."""

    machine: Machine
    steps: tuple[Decode, ...]

    def __str__(self) -> str:
        one, title = self.machine, f"{self.machine.devices} x {self.machine.name}"
        limits = (f"{title}: {units.amount(one.devices * one.bandwidth, 'B/s')}, "
                  f"{units.amount(one.devices * one.memory, 'B')} ({one.source})")
        return "\n".join([units.table(HEADER, (step.row() for step in self.steps)), limits,
                          f"= {Decode.formula}"])  # fmt: skip


def decode(
    cfg: ModelConfig, machine: Machine, tokens: int, batch: int = 1, weights: str = "bfloat16",
    cache: str = "bfloat16", absorbed: bool = True,
) -> Decode:
    """The bounds of one decoding step at a context of `tokens`, for `batch` sequences.

    weights: one of formats.FORMATS; attention is multiplied in the cache's format, everything else
    in the weights' own. absorbed: through the latents; otherwise keys and values are formed anew.
    Raises ValueError for unknown formats and counts below 1.
    """
    work = flops(cfg, tokens, batch)
    chosen = work.decode_absorbed if absorbed else work.decode_rebuilt
    read = read_bytes(cfg, weights, batch)
    cached = kv_cache_bytes(cfg, tokens, batch, units.bits(cache) / 8)
    seconds = (chosen.weights / machine.peak(weights) + chosen.attention / machine.peak(cache))
    return Decode(
        batch, tokens, read, cached, stored(cfg, weights).bytes + cached,
        machine.devices * machine.memory, chosen.total,
        (read + cached) / (machine.devices * machine.bandwidth), seconds / machine.devices,
    )  # fmt: skip


def sweep(
    cfg: ModelConfig, machine: Machine, tokens: int, batches: Iterable[int] = (1, 8, 64, 512),
    weights: str = "bfloat16", cache: str = "bfloat16", absorbed: bool = True,
) -> Sweep:
    """`decode` for each batch."""
    return Sweep(machine, tuple(decode(cfg, machine, tokens, batch, weights, cache, absorbed)
                                for batch in batches))  # fmt: skip
