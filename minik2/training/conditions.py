"""What a run needs, judged before its directory is touched.

Unusual here: memory is judged from below. What is counted here is needed whatever else is, so a run
that is refused would have ended in the middle, and one that is let in may still be too large.
"""

from __future__ import annotations

from minik2 import host, sizing
from minik2.config import ModelConfig
from minik2.sizing.memory import MIXED, PLAIN
from minik2.training.corpus import SPLITS, VOCABULARY, Corpus
from minik2.training.settings import Settings


def fit(cfg: ModelConfig, settings: Settings, corpus: Corpus) -> None:
    """Raises ValueError where model, windows and text do not go together."""
    if cfg.vocab_size < VOCABULARY:
        raise ValueError(
            f"The text is bytes, {VOCABULARY} of them, but this model's vocabulary has "
            f"{cfg.vocab_size}; choose a config with vocab_size {VOCABULARY} or more."
        )
    if settings.window > cfg.max_position_embeddings:
        raise ValueError(
            f"A window of {settings.window} tokens is longer than the model's "
            f"{cfg.max_position_embeddings} positions; ask for a shorter --window."
        )
    for split in SPLITS:
        corpus.spread(split, 1, settings.window)


def ranks(
    cfg: ModelConfig, settings: Settings, count: int, expert_ranks: int, mixed: bool
) -> None:
    """Raises ValueError for what `count` ranks cannot do together; 1 is a process by itself."""
    if count == 1:
        if expert_ranks > 1:
            raise ValueError(
                f"Experts can be shared by {expert_ranks} ranks only where there are as many; "
                f"start them with torchrun --nproc-per-node {expert_ranks} -m minik2.training."
            )
        return
    if settings.engine == "reference":
        raise ValueError("The reference computes in one process; use --engine pytorch.")
    if mixed:
        raise ValueError(
            "Several processes compute in float32 here; leave --mixed away, or train on one."
        )
    if settings.batch % count:
        raise ValueError(
            f"A batch of {settings.batch} windows cannot be shared evenly among {count} ranks; "
            f"choose a --batch that is a multiple of {count}."
        )
    if count % expert_ranks:
        raise ValueError(
            f"{count} ranks cannot be arranged with {expert_ranks} ranks to an expert group; "
            f"choose --expert-ranks that divide {count}."
        )
    if cfg.n_routed_experts % expert_ranks:
        raise ValueError(
            f"{cfg.n_routed_experts} experts cannot be shared evenly among {expert_ranks} ranks; "
            f"choose --expert-ranks that divide {cfg.n_routed_experts}."
        )


def room(
    cfg: ModelConfig, settings: Settings, device: str, recompute: bool, mixed: bool
) -> None:
    """Raises ValueError for a run of one process that its memory cannot hold.

    Counted are weights, gradients, optimizer, and what a step keeps for the backward pass: all of
    it where that is known to the byte (PyTorch on a CPU), else each layer's input.
    """
    optimizer = "adamw" if settings.optimizer == "adamw" else "muonclip"
    known = settings.engine == "pytorch" and device == "cpu" and not (recompute or mixed)
    needed = sizing.memory(
        cfg, settings.window, settings.batch, MIXED if mixed else PLAIN, optimizer,
        *(("none", "cpu") if known else ("full", "gpu")),
    )  # fmt: skip
    free, place = host.memory()[1], "in memory"
    if device.startswith("cuda"):
        import torch

        free, place = torch.cuda.mem_get_info(torch.device(device))[0], f"on {device}"
    if needed.total <= free:
        return
    states, kept, whole, left = (
        sizing.units.amount(size, "B")
        for size in (needed.states, needed.activations, needed.total, free)
    )
    way = (
        "a smaller model"
        if needed.states > free
        else "a smaller --batch (--accumulate makes up for it), or a shorter --window"
    )
    raise ValueError(
        f"A step takes {whole} at least: {states} for weights, gradients and optimizer, {kept} for "
        f"{settings.batch} x {settings.window} tokens. Free {place}: {left}; choose {way}."
    )
