"""The training benchmark: its count of operations, its ratios, what it fails on."""

import json

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import forward, records, training, training_engine
from minik2 import ModelConfig, pytorch, reference


def test_the_backward_pass_has_twice_the_operations_of_the_forward_pass():
    """As PyTorch counts it, attention left aside: there it counts what is computed anew as well."""
    cfg = ModelConfig.preset("tiny")
    model, tokens = pytorch.Model.init(cfg), np.arange(24).reshape(2, 12)
    counts = []
    for run in (lambda: model.loss(tokens, tokens), lambda: model.loss_and_grads(tokens, tokens)):
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(bool(counts)):
            run()
        found = counter.get_flop_counts()["Global"].items()
        counts.append(sum(n for op, n in found if "attention" not in str(op)))
    once, both = counts
    pairs = 2 * (12 * 13 // 2) * cfg.num_hidden_layers * cfg.num_attention_heads
    attention = 2 * pairs * (cfg.qk_head_dim + cfg.v_head_dim)
    assert training.flops(cfg, 2, 12) == 3 * (once + attention)
    assert both == 3 * once


FOUND = {
    "reference": {"seconds": [1.0, 2.0, 4.0], "update_seconds": [],
                  "peak_gflops": 4.0, "memory_bytes": 5e6},
    "pytorch": {"seconds": [2.0, 2.0, 2.0], "update_seconds": [2.0, 2.0, 4.0],
                "peak_gflops": 4.0, "memory_bytes": 9e6},
    "transformers": {"seconds": [2.0, 8.0, 12.0], "update_seconds": [3.0, 5.0, 8.0],
                     "peak_gflops": 4.0, "memory_bytes": 8e6},
    training_engine.KEEPING: {"seconds": [1.0, 4.0, 6.0], "update_seconds": [3.0, 3.0, 3.0],
                              "peak_gflops": 4.0, "memory_bytes": 9e6},
}  # fmt: skip


def test_ratios_are_taken_within_a_round():
    out = training.summary(FOUND, 6_000_000_000)
    assert out["reference"]["median_seconds"] == 2.0 and out["reference"]["gflops"] == 3.0
    assert out["reference"]["share_of_peak"] == 0.75
    assert out["reference"]["times_transformers"] == {"median": 3.0, "least": 2.0, "most": 4.0}
    assert "3.00 (2.00 to 4.00)" in training.table(out)
    assert out["reference"]["times_transformers_keeping_memory"]["median"] == 1.5
    assert out["pytorch"]["times_transformers_with_adamw"]["median"] == 2.0
    assert "times_transformers_with_adamw" not in out["reference"]


def test_what_is_promised_and_not_kept_is_said():
    out = training.summary(FOUND, 1)
    assert [s.split(" above")[0] for s in training.shortfalls(out)] == ["pytorch takes 9 MB"]
    slow = FOUND | {"reference": {**FOUND["reference"], "seconds": [2.0, 8.0, 12.0]}}
    (first, _) = training.shortfalls(training.summary(slow, 1))
    assert first.startswith("reference is 1.00 times as fast as transformers, where 1.3")


def test_nothing_is_recorded_under_workqueue(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(training.machine, "numba_layer", lambda: "workqueue")
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    monkeypatch.setattr(training, "measure", lambda *_: pytest.fail("measured all the same"))
    assert training.main(["--record"]) != 0
    assert "libgomp1" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_memory_is_what_a_run_holds_at_its_height():
    before = training_engine.most_memory(lambda: None)

    def run():
        held = np.ones(2**24)
        training_engine.time.sleep(0.1)
        return held

    assert training_engine.most_memory(run) - before > 0.9 * 2**27


def test_an_engine_answers_in_a_process_of_its_own(tmp_path):
    reference.Model.init(ModelConfig.preset("tiny")).save_pretrained(tmp_path / "checkpoint")
    tokens = np.arange(24).reshape(2, 12)
    np.save(tmp_path / "tokens.npy", tokens)
    engine = forward.Engine(
        "reference", tmp_path / "checkpoint", tmp_path / "tokens.npy", 1, "training_engine"
    )
    try:
        assert engine.facts["threads"] == 1 and engine.facts["loaded_bytes"] > 0
        assert engine.ask("time") > 0 and engine.ask("memory") < 2**30
        assert engine.ask("update") is None
        forward.agree([engine], tmp_path)
        model = reference.Model.from_pretrained(tmp_path / "checkpoint")
        loss, grads = model.loss_and_grads(tokens, np.roll(tokens, -1, axis=1))
        want = np.append(grads[training_engine.EMBEDDING].ravel(), loss)
        assert np.allclose(np.load(tmp_path / "reference.npy"), want, rtol=1e-4, atol=1e-7)
    finally:
        engine.close()


@pytest.mark.slow
def test_all_run_and_are_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    monkeypatch.setattr(training, "shortfalls", lambda engines: [])
    monkeypatch.setattr(training.machine, "numba_layer", lambda: "omp")
    arguments = "--preset tiny --batch 2 --tokens 16 --rounds 2 --threads 1 --record"
    assert training.main(arguments.split()) == 0
    record = json.loads((tmp_path / "training.json").read_text())
    assert set(record["engines"]) == set(training_engine.ENGINES)
    for engine in record["engines"].values():
        assert len(engine["seconds"]) == 2 and engine["median_seconds"] > 0
