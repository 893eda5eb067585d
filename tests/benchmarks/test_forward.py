"""The forward benchmark counts exactly, compares like with like, and refuses what would mislead."""

import json

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import forward, records
from minik2 import ModelConfig, pytorch, reference


# One token alone is multiplied as a vector, which PyTorch's counter does not see.
@pytest.mark.parametrize("tokens", [8, 24])
def test_operations_are_those_that_pytorch_counts(tokens):
    cfg = ModelConfig.preset("tiny")
    model = pytorch.Model.init(cfg)
    given = torch.arange(tokens)[None] % cfg.vocab_size
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(given)
    counts = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
    products = sum(n for op, n in counts.items() if "attention" not in op)
    # PyTorch counts attention without regard to the mask: the pairs are counted here by hand.
    pairs = sum(t + 1 for t in range(tokens)) * cfg.num_hidden_layers * cfg.num_attention_heads
    assert forward.flops(cfg, tokens) == products + 2 * pairs * (cfg.qk_head_dim + cfg.v_head_dim)


def test_the_summary_takes_ratios_within_a_round():
    cfg = ModelConfig.preset("tiny")
    found = {"reference": {"seconds": [1.0, 2.0, 4.0], "peak_gflops": 1.0},
             "transformers": {"seconds": [2.0, 8.0, 12.0], "peak_gflops": 2.0}}  # fmt: skip
    out = forward.summary(found, cfg, 10)
    assert out["reference"]["tokens_per_second"] == 5.0
    assert out["reference"]["times_transformers"] == {"median": 3.0, "least": 2.0, "most": 4.0}
    assert out["transformers"]["times_transformers"]["median"] == 1.0
    limit = 1e9 / forward.flops(cfg, 10) * 10
    assert out["reference"]["limit_tokens_per_second"] == pytest.approx(limit)
    assert out["reference"]["share_of_limit"] == pytest.approx(5.0 / limit)
    assert out["transformers"]["limit_tokens_per_second"] == pytest.approx(2 * limit)
    assert "3.00" in forward.table(out) and "2.00 to 4.00" in forward.table(out)


def test_nothing_is_recorded_under_workqueue(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(forward.machine, "numba_layer", lambda: "workqueue")
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    monkeypatch.setattr(forward, "measure", lambda *_: pytest.fail("measured all the same"))
    assert forward.main(["--record"]) != 0
    assert "libgomp1" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_too_slow_fails(monkeypatch, capsys):
    def measured(cfg, tokens, rounds, threads):
        slow = {"reference": 1.4, "pytorch": 1.3, "transformers": 1.0}
        return {name: {"seconds": [1 / s], "peak_gflops": 1.0} for name, s in slow.items()}

    monkeypatch.setattr(forward, "measure", measured)
    assert forward.main([]) == 1
    err = capsys.readouterr().err
    assert "reference is short of the 1.5 times" in err and "pytorch" not in err


@pytest.fixture
def checkpoint(tmp_path):
    cfg = ModelConfig.preset("tiny")
    reference.Model.init(cfg, seed=0).save_pretrained(tmp_path / "checkpoint")
    np.save(tmp_path / "tokens.npy", np.arange(12)[None])
    return tmp_path


def test_an_engine_answers_in_a_process_of_its_own(checkpoint):
    engine = forward.Engine("reference", checkpoint / "checkpoint", checkpoint / "tokens.npy", 1)
    try:
        assert engine.facts["threads"] == 1 and engine.facts["numba_layer"]
        assert engine.ask("time") > 0
        forward.agree([engine], checkpoint)
        model = reference.Model.from_pretrained(checkpoint / "checkpoint")
        assert np.array_equal(np.load(checkpoint / "reference.npy"), model(np.arange(12)[None]))
    finally:
        engine.close()


def test_an_engine_that_stops_says_why(checkpoint):
    with pytest.raises(RuntimeError, match=r"(?s)reference stopped:.*config\.json"):
        forward.Engine("reference", checkpoint / "nowhere", checkpoint / "tokens.npy", 1)


def test_engines_that_disagree_are_not_compared(tmp_path):
    class Fake:
        def __init__(self, name, value):
            self.name, self.value = name, value

        def ask(self, order):
            np.save(order["logits"], self.value)

    same, other = np.ones(3), np.array([1.0, 1.0, 1.001])
    forward.agree([Fake("a", same), Fake("b", same + 1e-6)], tmp_path)
    for wrong in (other, np.array([1.0, 1.0, np.nan])):
        with pytest.raises(RuntimeError, match="b and a differ"):
            forward.agree([Fake("a", same), Fake("b", wrong)], tmp_path)


@pytest.mark.slow
def test_all_three_run_and_are_recorded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    monkeypatch.setattr(forward, "PROMISED", {})
    monkeypatch.setattr(forward.machine, "numba_layer", lambda: "omp")
    arguments = "--preset tiny --tokens 16 --rounds 2 --threads 1 --record"
    assert forward.main(arguments.split()) == 0
    record = json.loads((tmp_path / "forward.json").read_text())
    assert set(record["engines"]) == {"reference", "pytorch", "transformers"}
    for engine in record["engines"].values():
        assert len(engine["seconds"]) == 2 and engine["threads"] == 1
        assert engine["tokens_per_second"] > 0 and engine["peak_gflops"] > 0
    assert record["machine"]["processor"] and record["date"]
