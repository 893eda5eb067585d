"""The processes of one run (torchrun starts them): who writes, what all agree on, who was lost.

Unusual here: a run of one process is a group of one, so the trainer asks the same questions either
way. Ranks exchange numbers and plain text, never objects, which PyTorch would pickle. Each leaves a
sign of life in torchrun's own store twice a second, and so the others can say whose stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch.distributed as dist

# A rank that is gone is noticed at once, because its connections close. This is for one that hangs.
TIMEOUT = timedelta(minutes=10)
STORE_TIMEOUT = timedelta(minutes=1)
BEAT, SILENCE = 0.5, 3.0  # seconds
SHOWN = 5


class RankError(ValueError):
    """What ended the run on all ranks; quiet: another rank says it."""

    def __init__(self, text: str, quiet: bool = False) -> None:
        super().__init__(text)
        self.quiet = quiet


class Ranks:
    """One process, alone."""

    rank, count = 0, 1

    @property
    def leads(self) -> bool:
        """True on the one rank that writes and speaks."""
        return self.rank == 0

    def texts(self, mine: str) -> list[str]:
        """What every rank gave, in the ranks' order."""
        return [mine]

    def agree(self, flag: bool) -> bool:
        """True on all ranks if it is on any."""
        return any(text == "1" for text in self.texts("1" if flag else ""))

    def together(self, action: Callable[[], object]) -> str:
        """The first rank does it, and all return what it returned, as text.

        Where it fails there, with ValueError or OSError, it fails everywhere.
        """
        return self.each(action if self.leads else str)[0]

    def each(self, action: Callable[[], object]) -> list[str]:
        """All ranks do it, and all get what every rank returned, as text, in the ranks' order.

        Where it fails on one, with ValueError or OSError, it fails everywhere.
        """
        done, error = "", None
        try:
            done = str(action())
        except (ValueError, OSError) as caught:
            error = caught
        given = self.texts(json.dumps([done, None if error is None else str(error)]))
        if error is not None:
            raise error
        said = [json.loads(text) for text in given]
        for _, complaint in said:
            if complaint is not None:
                raise RankError(complaint, quiet=True)
        return [str(text) for text, _ in said]

    def same(self, parts: Mapping[str, Mapping[str, Any]]) -> None:
        """Raises RankError, on all ranks, unless every rank gave the same `parts`."""
        given = [json.loads(text) for text in self.texts(json.dumps(parts, sort_keys=True))]
        for rank, other in enumerate(given):
            lines = [
                f"{part} {key}: {a} at rank 0, {b} at rank {rank}"
                for part in given[0] for key in sorted({*given[0][part], *other[part]})
                if (a := given[0][part].get(key, "absent")) != (
                    b := other[part].get(key, "absent"))
            ]  # fmt: skip
            if lines:
                raise RankError(
                    f"Rank {rank} was started for another run than rank 0 "
                    f"({'; '.join(lines[:SHOWN])}); start all ranks by the same command.",
                    quiet=not self.leads,
                )

    def explained(self, error: RuntimeError) -> RuntimeError | RankError:
        """The error, or where it came of a rank that is gone, a sentence that names it."""
        return error


ALONE = Ranks()


class _Launched(Ranks):
    """One of several, in PyTorch's process group."""

    def __init__(self) -> None:
        import torch.distributed as dist

        self.rank, self.count = dist.get_rank(), dist.get_world_size()
        self.beating, self.where = threading.Event(), f"minik2/{_attempt()}"
        # At once, so that whoever looks finds it.
        _store().set(f"{self.where}/{self.rank}", "0")
        self.thread = threading.Thread(target=self._beat, args=(_store(),), daemon=True)
        self.thread.start()

    def end(self) -> None:
        """No more signs of life. A thread within the store's library must not outlive Python."""
        self.beating.set()
        self.thread.join()

    def _beat(self, store: dist.Store) -> None:
        beats = 0
        with contextlib.suppress(RuntimeError):  # torchrun itself has ended
            while not self.beating.wait(BEAT):
                beats += 1
                store.set(f"{self.where}/{self.rank}", str(beats))

    def texts(self, mine: str) -> list[str]:
        import torch
        import torch.distributed as dist

        data = torch.frombuffer(bytearray(mine.encode() or b"\0"), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.count)]
        dist.all_gather(sizes, torch.tensor([len(data)]))
        room = int(max(sizes))
        padded = torch.zeros(room, dtype=torch.uint8)
        padded[: len(data)] = data
        others = [torch.empty_like(padded) for _ in range(self.count)]
        dist.all_gather(others, padded)
        found = [bytes(o[: int(n)].numpy()) for o, n in zip(others, sizes, strict=True)]
        return ["" if text == b"\0" else text.decode() for text in found]

    def explained(self, error: RuntimeError) -> RuntimeError | RankError:
        try:
            store = _store()
            store.set(f"{self.where}/{self.rank}/left", "")  # silent soon, but not the first
            keys = [f"{self.where}/{rank}" for rank in range(self.count)]
            before = [store.get(key) for key in keys]
            time.sleep(SILENCE)
            silent = [
                r for r, key in enumerate(keys)
                if store.get(key) == before[r] and not store.check([f"{key}/left"])
            ]  # fmt: skip
            first = store.compare_set(f"{self.where}/told", "", str(self.rank))
        except RuntimeError:
            return error
        if not silent:
            return error
        who = f"Rank {silent[0]}" if len(silent) == 1 else f"Ranks {', '.join(map(str, silent))}"
        return RankError(
            f"{who} of {self.count} ended or no longer answers, so rank {self.rank} ends too. The "
            "run goes on from its last checkpoint when the same command is given again; torchrun "
            "does that by itself with --max-restarts.",
            quiet=first.decode() != str(self.rank),
        )


@contextlib.contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Inside, this process is one of its run's ranks; alone where nothing launched several.

    Raises RankError where the others cannot be met.
    """
    if not launched():
        yield ALONE
        return
    import torch
    import torch.distributed as dist

    if device.startswith("cuda"):
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    try:
        _meet(backend)
    except (RuntimeError, ValueError) as error:
        raise RankError(f"The ranks of this run cannot meet: {error}") from error
    group = _Launched()
    try:
        yield group
        dist.barrier()  # whoever ended first would cut the others' last words short
    except RuntimeError as error:
        if (found := group.explained(error)) is error:
            raise
        raise found from error
    finally:
        group.end()
        dist.destroy_process_group()


def _meet(backend: str) -> None:
    import torch.distributed as dist

    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        dist.init_process_group(backend, timeout=TIMEOUT)
        return
    # torchrun's store outlives a restart: without a prefix, ranks find the addresses of the dead.
    store = dist.PrefixStore(f"minik2/{_attempt()}/group", _store())
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=TIMEOUT)


def launched() -> bool:
    """True where torchrun, or something like it, started this process as one of several."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1


def follows() -> bool:
    """True in a process that is not the first of its run: it computes, and leaves talking."""
    return launched() and os.environ["RANK"] != "0"


def speaks(error: Exception) -> bool:
    """True on one rank for each sentence that ends a run."""
    if isinstance(error, RankError):
        return not error.quiet
    if not launched():
        return True
    said = f"minik2/{_attempt()}/{hashlib.sha256(str(error).encode()).hexdigest()}"
    with contextlib.suppress(RuntimeError):
        return _store().compare_set(said, "", os.environ["RANK"]).decode() == os.environ["RANK"]
    return True


def _attempt() -> str:
    """Which start of torchrun's this is: signs of life of an earlier one say nothing."""
    run, count = "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"
    return f"{os.environ.get(run, '')}/{os.environ.get(count, '0')}"


def _store() -> dist.Store:
    import torch.distributed as dist

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(host, port, is_master=False, timeout=STORE_TIMEOUT)
