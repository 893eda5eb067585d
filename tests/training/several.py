"""What one rank of tests/training/test_ranks.py does: python -m tests.training.several JOBS.json.

Each job's steps with the engine of several ranks, or of one; what came of it goes to job["out"].
"""

import contextlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from minik2.config import ModelConfig
from minik2.pytorch.wire import Wire
from minik2.training import ranks, shards, store
from minik2.training.engine_distributed import DistributedEngine
from minik2.training.engine_pytorch import PyTorchEngine
from minik2.training.settings import Settings


def batches(cfg, settings, step):
    rng = np.random.default_rng([settings.seed, step])
    made = []
    for _ in range(settings.accumulate):
        tokens = rng.integers(0, cfg.vocab_size, (settings.batch, settings.window + 1))
        made.append((tokens[:, :-1].copy(), tokens[:, 1:].copy()))
    return made


@contextlib.contextmanager
def gathered():
    """Bytes of all gathered tensors that are alive, whenever one more has been gathered."""
    alive, held, gather = [], [0], shards.gather

    def counted(*given):
        found = gather(*given)
        if found is not None:
            whole = found.untyped_storage()
            alive.append((StorageWeakRef(whole), whole.nbytes()))
        held.append(sum(size for storage, size in alive if not storage.expired()))
        return found

    shards.gather = counted
    yield held
    shards.gather = gather


def main(path):
    torch.set_num_threads(1)
    with ranks.joined("cpu") as group:
        for job in json.loads(Path(path).read_text()):
            do(job, group)


def do(job, group):
    cfg, settings = ModelConfig.from_json(job["config"]), Settings(**job["settings"])
    dtype, out = getattr(torch, job["dtype"]), Path(job["out"])
    saved = None
    if job["saved"]:
        kept, warnings = store.newest(Path(job["saved"]))
        assert kept and not warnings
        saved = str(kept.model), kept.optimizer
    again = job["recompute"]
    engine = (DistributedEngine(cfg, settings, "cpu", saved, group, job["expert"], dtype, again)
              if group.count > 1 else PyTorchEngine(cfg, settings, "cpu", saved, dtype, again))
    seen = {"losses": [], "norms": [], "loads": [], "clipped": [], "sent": []}
    for step in range(job["steps"]):
        with Wire() as wire:
            seen["losses"].append(engine.gradients(batches(cfg, settings, step)))
            seen["norms"].append(engine.norm())
            engine.shorten(0.5)
            _, loads, _ = engine.seen()
            gammas = engine.update(1.0)
            engine.balance()
        seen["sent"].append(dict(wire.sent))
        seen["loads"].append(loads.tolist())
        seen["clipped"].append(0 if gammas is None else int((gammas < 1).sum()))
        assert engine.not_finite() is None
    # A look at the held-out text leaves nothing behind that the next step would use.
    tokens, targets = batches(cfg, settings, 999)[0]
    seen["held_out"] = engine.loss(tokens, targets)
    seen["again"] = engine.gradients(batches(cfg, settings, job["steps"]))
    seen["text"] = engine.continued(tokens[0, :5], 4, 0.0, 0).tolist()
    with Wire() as wire, gathered() as held:
        store.save(out, settings.steps, engine.write, {}, group)
    seen["saving"] = group.texts(json.dumps([wire.sent["collect"], wire.sent.total(), max(held)]))
    seen["all"] = [json.loads(text) for text in group.texts(json.dumps(seen["sent"]))]
    if group.leads:
        (out / "seen.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1])
