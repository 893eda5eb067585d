"""The whole arithmetic of a model on one screen; the body of `minik2 size`.

Unusual here: the sheet takes a preset or any config.json of the family, and says nothing about a
preset that it would not say about a file, except for the published figures at the end.
"""

from __future__ import annotations

import dataclasses
import textwrap
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from minik2.config import ModelConfig
from minik2.sizing import units
from minik2.sizing.cache import KVCache, cache
from minik2.sizing.cluster import Cluster, Layout, cluster
from minik2.sizing.communication import Communication, communication
from minik2.sizing.compute import Calibration, TrainingCompute, calibration, training_compute
from minik2.sizing.flops import Flops, flops
from minik2.sizing.formats import FORMATS, Stored, stored
from minik2.sizing.heads import HeadsCost, heads_cost
from minik2.sizing.machines import machine
from minik2.sizing.memory import TrainingMemory, memory
from minik2.sizing.parameters import Parameters, parameters
from minik2.sizing.published import Claim, claims
from minik2.sizing.roofline import HEADER, Sweep, sweep

# Sequences of training, and the tokens that compute is given for.
SEQUENCE, TRILLION = 4096, 10**12
COLUMNS = 100


@dataclass(frozen=True)
class Sheet:
    """Every part of the arithmetic; notes: what to know before believing it."""

    name: str
    shape: str
    parameters: Parameters
    stored: dict[str, Stored]
    cache: KVCache
    flops: Flops
    heads: HeadsCost
    decode: Sweep
    memory: TrainingMemory
    compute: TrainingCompute
    calibration: Calibration
    cluster: Cluster | None
    communication: Communication | None
    published: list[Claim]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """All numbers as plain values that JSON can hold, derived ones too."""
        return plain(self)

    def __str__(self) -> str:
        blocks = [f"{self.name}: {self.shape}", self._weights(), self._cache(), self._flops(),
                  self._decode(), self._training()]  # fmt: skip
        blocks += [self._cluster()] if self.cluster else []
        lines = "\n".join([*blocks, *map(str, self.published), *self.notes]).splitlines()
        return "\n".join(textwrap.fill(line, COLUMNS, subsequent_indent="  ") for line in lines)

    def _weights(self) -> str:
        held = ", ".join(f"{name} {units.amount(s.bytes, 'B')}" for name, s in self.stored.items())
        return f"{self.parameters}\nas files: {held}"

    def _cache(self) -> str:
        kept = self.cache
        others = ", ".join(f"{kind} {n / kept.numbers:.1f} x"
                           for kind, (n, _) in kept.others.items())  # fmt: skip
        each = f"{kept.numbers} numbers a token a layer, {kept.bytes_per_token:,} B a token"
        return (f"cache: {each}, {units.gib(kept.bytes)} for {kept.batch} x {kept.tokens:,}\n"
                f"  the same heads and keys without a latent: {others}")

    def _flops(self) -> str:
        more = [f"{float(first) - 1:+.1%}" for first, _ in self.heads.ratios.values()]
        kinds = ("expanded", "absorbed", "prompt")
        pairs = (f"{kind} {fixed} {grown}"
                 for kind, fixed, grown in zip(kinds, more[::2], more[1::2], strict=True))
        return (str(self.flops).rpartition("\n")[0]
                + f"\n{self.heads.heads_after} heads, weights fixed and grown: {', '.join(pairs)}")

    def _decode(self) -> str:
        one = self.decode.machine
        title = [f"{one.devices} x {one.name}, batch", *HEADER[1:]]
        return units.table(title, (step.row() for step in self.decode.steps))

    def _training(self) -> str:
        held, run = self.memory, self.compute
        names = ("parameters", "gradients", "optimizer", "master", "activations")
        parts = ", ".join(f"{name} {units.amount(getattr(held, name), 'B')}" for name in names)
        return (f"training {held.batch} x {held.tokens:,}: {parts}\n"
                f"a trillion tokens: 6 N D {units.amount(run.rule)} FLOP, exact "
                f"{units.amount(run.exact)}; {units.amount(run.hours)} {run.machine}-hours at "
                f"{run.utilisation:.1%} of peak (V3's)")

    def _cluster(self) -> str:
        laid, sent = self.cluster, self.communication
        assert laid is not None and sent is not None
        rows, line = units.amount(sent.all_to_all, "B"), units.amount(sent.pipeline, "B")
        return (str(laid).rpartition("\n")[0]
                + f"\nsent: all-to-all {rows}, pipeline {line} a token; ZeRO-1 with Muon "
                f"{units.amount(sent.muon, 'B')} a step, {sent.ratio:.2f} x AdamW's")


def read(model: str) -> tuple[str, ModelConfig]:
    """Name and config of a preset, a config.json or a folder with one.

    Raises ConfigError and OSError in sentences, as ModelConfig does.
    """
    path = Path(model)
    if model in ModelConfig.presets() or not (path.suffix or path.exists()):
        return model, ModelConfig.preset(model)
    return str(path), ModelConfig.from_json(path)


def sheet(
    cfg: ModelConfig, name: str = "this model", context: int | None = None, batch: int = 1,
    devices: str = "16xh200", weights: str = "bfloat16", cache_dtype: str = "bfloat16",
    layout: Layout | None = None,
) -> Sheet:
    """Every part of the arithmetic of `cfg`; context: the longest the model is made for if None.

    devices: as `machine` takes them. Training is in sequences of 4,096 tokens, or the context where
    it is shorter. Raises ValueError in sentences for values that make no sense.
    """
    tokens = cfg.max_position_embeddings if context is None else units.whole("context", context)
    units.whole("batch", batch)
    limits = machine(devices)
    notes = [f"Decoding is a bound ({limits.name}: {limits.source}), hours an estimate; "
             "the rest is counted."]  # fmt: skip
    if tokens > cfg.max_position_embeddings:
        notes.append(f"The model is made for {cfg.max_position_embeddings:,} tokens at most.")
    files = {}
    for form in FORMATS:
        try:
            files[form] = stored(cfg, form)
        except ValueError as error:
            notes.append(str(error))
    sequence = min(SEQUENCE, tokens)
    batches = sorted({batch, 8 * batch, 64 * batch})
    return Sheet(
        name, _shape(cfg), parameters(cfg), files, cache(cfg, tokens, batch, cache_dtype),
        flops(cfg, tokens, batch), heads_cost(cfg, tokens=tokens),
        sweep(cfg, limits, tokens, batches, weights, cache_dtype),
        memory(cfg, sequence, batch), training_compute(cfg, TRILLION, sequence), calibration(),
        None if layout is None else cluster(cfg, layout, sequence, recompute="selective"),
        None if layout is None else communication(cfg, layout), claims(name), notes,
    )  # fmt: skip


def sheet_of(
    model: str, context: int | None, batch: int, devices: str, weights: str, cache_dtype: str,
    layout: str | None,
) -> Sheet:
    """The sheet of a preset, a config.json or a folder with one; layout: text for Layout.parse."""
    name, cfg = read(model)
    laid = None if layout is None else Layout.parse(layout)
    return sheet(cfg, name, context, batch, devices, weights, cache_dtype, laid)


def _shape(cfg: ModelConfig) -> str:
    experts = "no experts" if cfg.is_all_dense else (
        f"{cfg.num_experts_per_tok} of {cfg.n_routed_experts} experts")  # fmt: skip
    return (f"{cfg.num_hidden_layers} layers, hidden {cfg.hidden_size:,}, "
            f"{cfg.num_attention_heads} heads, {experts}, vocabulary {cfg.vocab_size:,}")


def plain(value: Any) -> Any:
    """Dataclasses with their properties as dicts, fractions as numbers: all that JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [f.name for f in dataclasses.fields(value)]
        names += [n for n, kind in vars(type(value)).items() if isinstance(kind, property)]
        out = {name: plain(getattr(value, name)) for name in names}
        return out | ({"formula": value.formula} if hasattr(value, "formula") else {})
    if isinstance(value, dict):
        return {str(key): plain(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [plain(held) for held in value]
    if isinstance(value, Fraction):
        return int(value) if value.denominator == 1 else float(value)
    return value
