"""Both engines behind the few verbs that a trainer needs, each with its optimizer.

Unusual here: this is all that the trainer knows about either. Gradients of several batches are
averaged, the router's loads and the heads' largest logits joined over them, and an update is one
call; what comes out is NumPy, so that saving, resuming and counting are written once.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from threadpoolctl import ThreadpoolController

from minik2 import host
from minik2.config import ModelConfig
from minik2.training.ranks import ALONE, Ranks
from minik2.training.settings import Settings

Array = np.ndarray[Any, np.dtype[Any]]
Batch = tuple[Array, Array]

# Squares of float32 gradients beyond this overflow, and Muon would make nothing of them.
LARGEST = 1e18


class Engine(Protocol):
    """A model in training. Everything that it returns is NumPy or a plain number."""

    def gradients(self, batches: Sequence[Batch]) -> float:
        """The mean loss over (tokens, targets) pairs; their mean gradient is kept for `update`."""

    def norm(self) -> float:
        """The length of the whole gradient, not finite if any of its numbers is not."""

    def shorten(self, factor: float) -> None:
        """Multiply the gradient."""

    def not_finite(self) -> str | None:
        """The first weight, or else the first gradient, that holds a number that is no use."""

    def update(self, share: float) -> Array | None:
        """One step at `share` of the rates; MuonClip returns γ (layers, H), others None."""

    def balance(self) -> None:
        """Move the correction biases by the loads of the last `gradients`."""

    def seen(self) -> tuple[Array, Array, float]:
        """Of the last `gradients`: largest logits (layers, H), loads (layers, E), and the seconds
        that the logits' own pass took."""

    def loss(self, tokens: Array, targets: Array) -> float:
        """The mean loss, nothing kept."""

    def continued(self, tokens: Array, count: int, temperature: float, seed: int) -> Array:
        """tokens (T,) and `count` more."""

    def weights(self) -> dict[str, Array]:
        """Every tensor of the checkpoint, perhaps a view of what is being trained; a rank of
        several has its part of them."""

    def optimizer_state(self) -> dict[str, Array]:
        """Every array that the optimizer keeps between steps; a rank of several has its rows."""

    def write(self, folder: Path) -> list[Path]:
        """Write model and optimizer into a new folder, as `store` has them; returns the files that
        this rank wrote. Raises OSError where the disk refuses."""

    def memory(self) -> int:
        """Bytes: of a GPU the most that tensors took so far, else what the process holds now."""


def make(
    cfg: ModelConfig,
    settings: Settings,
    device: str,
    saved: tuple[str, Mapping[str, Array]] | None,
    group: Ranks = ALONE,
    expert_ranks: int = 1,
    recompute: bool = False,
    mixed: bool = False,
) -> Engine:
    """The engine that `settings` names, at its start or where a checkpoint left it.

    saved: the checkpoint's directory and optimizer arrays (for several ranks `Pieces`), None for a
    new run. expert_ranks: how many ranks of the group share a layer's experts. recompute: keep
    layers' inputs alone for the backward pass (`pytorch.recompute`). mixed: compute in bfloat16
    (`pytorch.Mixed`). What goes together, `conditions` says.
    """
    if group.count > 1:
        from minik2.training import engine_distributed

        return engine_distributed.DistributedEngine(
            cfg, settings, device, saved, group, expert_ranks, recompute=recompute
        )
    if settings.engine == "reference":
        from minik2.training import engine_reference

        return engine_reference.ReferenceEngine(cfg, settings, saved)
    from minik2.training import engine_pytorch

    return engine_pytorch.PyTorchEngine(
        cfg, settings, device, saved, recompute=recompute, mixed=mixed
    )


def check(
    engine: str, device: str, recompute: bool = False, mixed: bool = False,
    threads: int | None = None,
) -> dict[str, str]:
    """The engine's library and the device, by name and version: what last bits depend on.

    Raises ValueError, one sentence, for a device that the engine cannot compute on, for more
    threads than there are, and for recompute where it keeps what its backward pass, written by
    hand, was made for, or mixed.
    """
    if threads and threads > (most := _most_threads(engine)):
        raise ValueError(
            f"{threads} threads were asked for, but this process may use {most} here; leave "
            "--threads out for all of them."
        )
    if engine == "reference":
        if recompute:
            raise ValueError(
                "The reference's backward pass, written by hand, takes what the forward pass kept; "
                "use --recompute with --engine pytorch."
            )
        if mixed:
            raise ValueError(
                "The reference computes in float32; use --mixed with --engine pytorch."
            )
        if device != "cpu":
            raise ValueError(f"The reference computes on the CPU, not on {device!r}.")
        import numba

        return {"numba": numba.__version__, "device": device}
    import torch

    rounded = {"computes in": "bfloat16"} if mixed else {}
    try:
        place = torch.device(device)
    except RuntimeError:
        place = torch.device("meta")
    if place.type not in ("cpu", "cuda"):
        raise ValueError(f"The device is cpu or cuda (or cuda:1 and up), not {device!r}.")
    if place.type == "cpu":
        return {"torch": torch.__version__, "device": device} | rounded
    if (place.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"PyTorch finds {torch.cuda.device_count()} GPUs here and so cannot use {device!r}; "
            "name another device, or cpu."
        )
    name = torch.cuda.get_device_name(place)
    return {"torch": torch.__version__, "device": f"{device} ({name})"} | rounded


def _most_threads(engine: str) -> int:
    if engine == "pytorch":
        return host.cores()
    import numba

    most: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    return most


@contextlib.contextmanager
def threads(engine: str, count: int | None) -> Iterator[int]:
    """Compute on `count` threads inside, None leaving them as they are; gives how many these are.

    For the reference, BLAS and Numba get the same number, at most what Numba was started with.
    """
    if engine == "reference":
        import numba

        blas, before = ThreadpoolController().select(user_api="blas"), numba.get_num_threads()
        pools = max((pool["num_threads"] for pool in blas.info()), default=before)
        count = min(count or min(pools, before), _most_threads(engine))
        with blas.limit(limits=count):
            numba.set_num_threads(count)
            try:
                yield count
            finally:
                numba.set_num_threads(before)
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def usable(norm: float) -> bool:
    """False for a gradient that no update can be made from; NaN is one."""
    return norm < LARGEST


def length(squares: float) -> float:
    """The root of a sum of squares; infinities and NaN stay what they are."""
    return math.sqrt(squares) if squares >= 0 else math.nan
