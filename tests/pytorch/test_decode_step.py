"""A step of decoding as a GPU records it: here without the recording, in float64 on the CPU.

What is recorded, on a GPU, is in test_gpu.py.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from minik2.config import ModelConfig
from minik2.pytorch import decode
from tests.pytorch import build
from tests.reference.bounds import FLOAT64, relative_error

TINY = ModelConfig.preset("tiny")


class Unrecorded(decode.Step):
    """Computes at each replay what a graph would repeat."""

    def _record(self):
        self.logits = self._run()
        self.graph = SimpleNamespace(replay=lambda: self.logits.copy_(self._run()))


@pytest.fixture
def steps(monkeypatch):
    made = []
    monkeypatch.setattr(decode, "takes", lambda model, cache: True)
    monkeypatch.setattr(decode, "Step", lambda *a: made.append(Unrecorded(*a)) or made[-1])
    return made


@pytest.mark.parametrize("cfg", [TINY, TINY.replace(n_group=4, topk_group=2, q_lora_rank=None)])
def test_one_recording_serves_all_lengths(steps, cfg):
    model, rng = build.model(cfg, 0), np.random.default_rng(0)
    tokens = rng.integers(0, cfg.vocab_size, (3, 20))
    counts = np.array([9, 1, 14])
    cache = model.new_cache(3, 20)
    model(tokens[:, :14], cache=cache, counts=counts)
    for n in range(6):
        given = tokens[np.arange(3), counts + n][:, None]
        got = model(given if n % 2 else torch.from_numpy(given), cache=cache)
        for row in range(3):
            want = model(tokens[row : row + 1, : counts[row] + n + 1])[0, -1]
            assert relative_error(got[row, 0].detach(), want.detach()) < FLOAT64
    assert len(steps) == 1 and (cache.lengths == counts + 6).all()
    cache.truncate(3)
    again = model(tokens[:, 3:4], cache=cache)
    want = model(tokens[:, :4])[:, -1:]
    assert relative_error(again.detach(), want.detach()) < FLOAT64 and len(steps) == 1


def test_logits_are_fresh_and_a_full_cache_is_refused_before_anything_is_written(steps):
    model = build.model(TINY, 0)
    cache = model.new_cache(1, 2)
    first = model(np.array([[1]]), cache=cache)
    kept = first.clone()
    model(np.array([[2]]), cache=cache)
    assert torch.equal(first, kept)
    with pytest.raises(ValueError, match="2"):
        model(np.array([[3]]), cache=cache)
    assert cache.lengths == [2]


def test_a_model_that_was_moved_gets_a_new_recording(steps):
    model = build.model(TINY, 0)
    cache = model.new_cache(1, 8)
    model(np.array([[1]]), cache=cache)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 2)
    got = model(np.array([[2]]), cache=cache)
    want = model(np.array([[1, 2]]))[:, -1:]
    assert len(steps) == 2 and relative_error(got.detach(), want.detach()) < FLOAT64


def test_on_a_cpu_nothing_is_recorded():
    model = build.model(TINY, 0, torch.bfloat16)
    cache = model.new_cache(1, 8)
    model(np.array([[1]]), cache=cache)
    model(np.array([[1]]), cache=cache)
    assert cache.step is None
