"""Memory of each GPU when a model is trained on many: PP x EP x TP x ZeRO-1, virtual stages.

Unusual here: layers are whole and stages are not equal, so the GPU that holds most is found by
looking at every stage rather than by dividing. The quotient, which papers print, stands beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

from minik2.config import ModelConfig
from minik2.sizing import units
from minik2.sizing.activations import activations
from minik2.sizing.memory import MIXED, OPTIMIZERS, Precision
from minik2.sizing.parameters import layer, parameters

COPIES = (1, 4, 16, 64)


@dataclass(frozen=True)
class Layout:
    """How a model lies on GPUs; all fields are counts.

    pp: pipeline stages. ep: GPUs that share a stage's routed experts. tp: GPUs that share each of
    its other matrices (heads, columns of dense and shared FFNs, rows of the tables); what every
    head needs (down-projections, norms, router) each of them holds. A stage takes max(ep, tp) GPUs,
    of which the smaller number divides the larger. virtual: chunks of layers of one stage. dp:
    copies of the whole. ZeRO-1 spreads master weights and optimizer over all GPUs that hold the
    same weights.
    """

    pp: int = 1
    ep: int = 1
    tp: int = 1
    dp: int = 1
    virtual: int = 1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            units.whole(name, value)
        if self.stage_gpus % min(self.ep, self.tp):
            raise ValueError(f"Of ep and tp one must divide the other, but they are {self.ep} and "
                             f"{self.tp}; change one.")

    @property
    def stage_gpus(self) -> int:
        """GPUs of one stage of one copy."""
        return max(self.ep, self.tp)

    @property
    def group(self) -> int:
        """GPUs that hold one copy of the model."""
        return self.pp * self.stage_gpus

    @property
    def gpus(self) -> int:
        """All GPUs."""
        return self.group * self.dp

    @classmethod
    def parse(cls, text: str) -> Layout:
        """A layout as the command line has it: "pp=16,ep=16,dp=4". Raises ValueError for others."""
        given: dict[str, int] = {}
        for item in filter(None, text.replace(" ", "").split(",")):
            name, _, value = item.partition("=")
            if name not in vars(cls()) or not value.isascii() or not value.isdecimal():
                raise ValueError(f"A cluster is written pp=16,ep=16,dp=4, with counts for any of "
                                 f"{', '.join(vars(cls()))}; {item!r} is none of these.")
            given[name] = int(value)
        return cls(**given)

    def __str__(self) -> str:
        chunks = f" of {self.virtual} chunks" if self.virtual > 1 else ""
        return (f"PP {self.pp}{chunks}, EP {self.ep}, TP {self.tp}, DP {self.dp}: "
                f"{self.gpus:,} GPUs")


@dataclass(frozen=True)
class Stage:
    """One GPU of a pipeline stage: its layers, weights (expert and other) and bytes.

    parameters, gradients: held whole. optimizer: master weights and buffers, its share of them.
    activations: of the micro-batches under way when most are.
    """

    layers: tuple[int, ...]
    expert_weights: int
    other_weights: int
    parameters: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def states(self) -> int:
        """All but activations."""
        return self.parameters + self.gradients + self.optimizer

    @property
    def total(self) -> int:
        """Everything."""
        return self.states + self.activations


@dataclass(frozen=True)
class Cluster:
    """Bytes of each GPU under a layout.

    even_bytes: weights and gradients of the whole model over the GPUs of one copy, as if they could
    be spread evenly: the figure that papers print. stages: one GPU of each stage. by_dp: for other
    numbers of copies, the states (no activations) of a GPU in the mean and of the fullest.
    """

    layout: Layout
    tokens: int
    batch: int
    recompute: str
    even_bytes: int
    stages: tuple[Stage, ...]
    by_dp: dict[int, tuple[int, int]]
    formula = "layers of the stage x (experts / EP + the rest / TP) x bytes; ZeRO-1: / holders"

    @property
    def fullest(self) -> Stage:
        """A GPU of the stage that needs most."""
        return max(self.stages, key=lambda stage: stage.total)

    def __str__(self) -> str:
        rows, names = [], ("parameters", "gradients", "optimizer", "activations", "total")
        for name, stages in (("mean", self.stages), ("fullest", (self.fullest,))):
            means = (sum(getattr(s, n) for s in stages) / len(stages) for n in names)
            rows.append([f"{name} GPU", *(units.amount(mean, "B") for mean in means)])
        listed = units.table([str(self.layout), "weights", "gradients", "optimizer", "activations",
                              "all"], rows)  # fmt: skip
        copies = ", ".join(f"{dp}: {units.amount(mean, 'B')} ({units.amount(most, 'B')})"
                           for dp, (mean, most) in self.by_dp.items())
        return (f"weights and gradients, evenly: {units.amount(self.even_bytes, 'B')} a GPU; "
                f"micro-batches of {self.batch} x {self.tokens:,}, recomputation {self.recompute}\n"
                f"{listed}\nstates by DP, mean (fullest) {copies}\n= {self.formula}")


def cluster(
    cfg: ModelConfig, layout: Layout, tokens: int = 4096, batch: int = 1,
    precision: Precision = MIXED, optimizer: str = "muonclip", recompute: str = "none",
) -> Cluster:
    """What each GPU holds, for micro-batches of `batch` x `tokens`, at least as many of them as the
    pipeline needs to fill.

    Chunks of layers are as equal as whole layers allow, in order; stage s has chunks s, s + pp, …
    The embedding is with the first, norm and head with the last (a tied table with both). Under way
    at once: pp - s micro-batches, or, of an interleaved pipeline's chunks, 2 (pp - s - 1) +
    (virtual - 1) pp + 1 (arXiv 2205.05198 §4.2.3). Tokens are spread evenly over experts, and over
    the tp GPUs (sequence parallel). Raises ValueError for layouts that do not fit the model.
    """
    check(cfg, layout)
    units.pick("optimizer", optimizer, OPTIMIZERS)
    kept = activations(cfg, tokens, batch, precision.weights, recompute)
    stages = tuple(_stage(cfg, layout, number, precision, optimizer, kept.by_layer, kept.ends)
                   for number in range(layout.pp))  # fmt: skip
    each = Fraction(units.bits(precision.weights) + units.bits(precision.gradients), 8)
    even = -(-parameters(cfg).total * each // layout.group)
    by_dp = {}
    for copies in COPIES:
        other = replace(layout, dp=copies)
        states = [_stage(cfg, other, number, precision, optimizer, kept.by_layer, kept.ends).states
                  for number in range(layout.pp)]  # fmt: skip
        by_dp[copies] = (sum(states) // layout.pp, max(states))
    return Cluster(layout, tokens, batch, recompute, even, stages, by_dp)


def check(cfg: ModelConfig, layout: Layout) -> None:
    """Raise ValueError, one sentence, if the layout does not fit the model."""
    layers, chunks = cfg.num_hidden_layers, layout.pp * layout.virtual
    if chunks > layers:
        raise ValueError(f"{layout.pp} stages of {layout.virtual} chunks need {chunks} layers at "
                         f"least, but the model has {layers}; use fewer stages or chunks.")
    if cfg.n_routed_experts % layout.ep and not cfg.is_all_dense:
        raise ValueError(f"Expert parallelism shares {cfg.n_routed_experts} experts out evenly, "
                         f"but ep {layout.ep} does not divide them; choose a divisor.")
    if cfg.num_attention_heads % layout.tp:
        raise ValueError(f"Tensor parallelism shares {cfg.num_attention_heads} heads out evenly, "
                         f"but tp {layout.tp} does not divide them; choose a divisor.")


def stage_layers(layers: int, layout: Layout, stage: int) -> tuple[int, ...]:
    """The numbers of the layers that a stage holds."""
    chunks = layout.pp * layout.virtual
    return tuple(number for chunk in range(stage, chunks, layout.pp)
                 for number in range(layers * chunk // chunks, layers * (chunk + 1) // chunks))


def stage_weights(cfg: ModelConfig, layout: Layout, stage: int) -> tuple[int, int, int]:
    """Weights on one GPU of a stage: routed experts', other matrices', and tables and norms."""
    experts = matrices = rest = 0
    for number in stage_layers(cfg.num_hidden_layers, layout, stage):
        own = layer(cfg, number)
        experts += own["routed_experts"] // layout.ep
        shared = own["attention_heads"] + own["dense_ffn"] + own["shared_experts"]
        matrices += -(-shared // layout.tp) + own["attention_latents"] + own["router"]
        rest += own["norms"]
    table = -(-cfg.vocab_size * cfg.hidden_size // layout.tp)
    ends = (stage == 0) + (stage == layout.pp - 1)
    one_table = cfg.tie_word_embeddings and layout.pp == 1
    rest += table * (1 if one_table else ends)
    rest += cfg.hidden_size * (stage == layout.pp - 1)
    return experts, matrices, rest


def _stage(
    cfg: ModelConfig, layout: Layout, stage: int, precision: Precision, optimizer: str,
    by_layer: tuple[int, ...], ends: int,
) -> Stage:
    experts, matrices, rest = stage_weights(cfg, layout, stage)
    others = matrices + rest
    master = units.bits(precision.master) if precision.master else 0
    buffer, muon = units.bits(precision.optimizer), optimizer == "muonclip"
    one, two = Fraction(master + buffer, 8), Fraction(master + 2 * buffer, 8)
    # Who holds the same weights, and so shares the optimizer's states for them.
    holders = layout.stage_gpus * layout.dp
    optimizer_bytes = Fraction(experts * (one if muon else two)) / (holders // layout.ep)
    optimizer_bytes += (matrices * (one if muon else two) + rest * two) / (holders // layout.tp)

    numbers = stage_layers(cfg.num_hidden_layers, layout, stage)
    way = layout.pp - stage
    if layout.virtual > 1:
        way = 2 * (way - 1) + (layout.virtual - 1) * layout.pp + 1
    kept = Fraction(sum(by_layer[n] for n in numbers) * way, layout.virtual)
    if stage == layout.pp - 1:
        kept += ends
    return Stage(
        numbers, experts, others,
        units.size(experts + others, precision.weights),
        units.size(experts + others, precision.gradients),
        -(-optimizer_bytes // 1), -(-kept // layout.tp),
    )  # fmt: skip
