"""The decoding benchmark: its limit is the sheet's, its ratios are within a round, its failures."""

import numpy as np
import pytest

from benchmarks import absorption, decode, decode_engine, records
from minik2 import ModelConfig, reference, sizing
from minik2.plots import absorption as picture

BENCH, TINY = ModelConfig.preset("bench"), ModelConfig.preset("tiny")


def test_the_limit_is_the_sheets_where_memory_is_all_that_counts():
    machine = sizing.Machine("slow", 2**40, 1e9, {"float32": 1e18, "bfloat16": 1e18}, 0, 0, "test")
    for weights, size in (("float32", 4), ("bfloat16", 2)):
        bound = sizing.decode(BENCH, machine, 2049, weights=weights, cache="float32")
        got = decode.limit(BENCH, 2048, 1e9, 1e18, size)
        assert got == pytest.approx(bound.bandwidth_seconds, rel=1e-3)
    work = sizing.flops(BENCH, 2049).decode_absorbed
    assert decode.limit(BENCH, 2048, 1e30, 1e9, 4) == pytest.approx(work.total / 1e9)


def found(speed, slope=1e-7):
    """A measurement in which an engine is speed[name] times as fast as transformers everywhere."""
    keys = {"prompt": 0.1} | {str(c): 1e-3 + slope * c for c in decode.CONTEXTS}
    engines = {
        name: {"seconds": {k: [v / times, 3 * v / times, 2 * v / times] for k, v in keys.items()},
               "peak_gflops": 100.0}
        for name, times in speed.items()
    }  # fmt: skip
    return {"bandwidth": {"gigabytes_per_second": 10.0}, "engines": engines}


def test_the_summary_has_ratios_within_a_round_and_the_line_by_context():
    speed = {"reference": 50.0, "reference bfloat16": 80.0, "pytorch": 10.0, "transformers": 1.0}
    result = decode.summary(found(speed), BENCH)
    for name, times in speed.items():
        engine = result["engines"][name]
        assert all(ratio == pytest.approx(times) for ratio in engine["times_transformers"].values())
        assert engine["nanoseconds_a_cached_token"] == pytest.approx(200 / times)
        assert engine["largest_departure_from_the_line"] < 1e-9
    assert result["engines"]["reference"]["tokens_per_second"]["prompt"] == pytest.approx(
        50 * decode.PROMPT / 0.2
    )
    assert result["cache_nanoseconds_a_token"] == pytest.approx(384.0)
    assert "at 8192" in decode.table(result) and "10.00x" in decode.table(result)


def test_broken_promises_are_told_one_by_one():
    speed = {"reference": 20.0, "reference bfloat16": 24.0, "pytorch": 10.0, "transformers": 1.0}
    sentences = decode.short(decode.summary(found(speed), BENCH))
    assert len(sentences) == 3
    assert "reference is 20.00 times" in sentences[0] and "8192" in sentences[0]
    assert "pytorch is 10.00 times" in sentences[1] and "8192" in sentences[1]
    assert "bfloat16 weights give 1.20 times" in sentences[2]


@pytest.mark.parametrize("module", [decode])
def test_nothing_is_recorded_under_workqueue(module, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(module.machine, "numba_layer", lambda: "workqueue")
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    monkeypatch.setattr(module, "measured", lambda *_: pytest.fail("measured all the same"))
    assert module.main(["--record"]) == 2
    assert "libgomp1" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_every_engine_makes_the_same_tokens_and_goes_back(tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    reference.Model.init(TINY, seed=0).save_pretrained(tmp_path)
    tokens = np.random.default_rng(0).integers(0, TINY.vocab_size, (1, 300))
    last = {}
    for name in decode_engine.ENGINES:
        with torch.inference_mode():
            own = decode_engine.ENGINES[name](tmp_path)
            cache = own.new(40)
            own.read(tokens[:, :20], cache)
            assert len(decode_engine.steps(own, cache, tokens, 20, 3)) == 3
            last[name] = own.step(tokens[:, 20:21], cache)
    for name, logits in last.items():
        bound = 0.05 if "bfloat16" in name else 1e-5
        assert np.abs(logits - last["reference"]).max() < bound * np.abs(logits).max(), name


def test_the_grid_of_forms_is_measured_and_drawn(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(absorption, "NEW", (1, 200))
    monkeypatch.setattr(absorption, "CACHED", (0, 64))
    monkeypatch.setattr(absorption, "ALLOWED", np.inf)
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    monkeypatch.setattr(records, "ROOT", tmp_path)
    (tmp_path / "figures").mkdir()
    assert absorption.main(["--rounds", "1", "--record", "--preset", "tiny"]) == 0
    assert (tmp_path / "absorption.json").exists()
    assert (tmp_path / "figures" / "absorption.png").read_bytes()[1:4] == b"PNG"
    monkeypatch.setattr(absorption, "ALLOWED", 0.0)
    assert absorption.main(["--rounds", "1", "--preset", "tiny"]) == 1
    assert "times as long as the other" in capsys.readouterr().err


def test_the_figure_says_the_worst_it_shows():
    def one(new, cached, absorbed, expanded, chosen):
        both = {"absorbed": 10, "expanded": 20}
        return {"new": new, "cached": cached, "absorbed": absorbed, "expanded": expanded,
                "chosen": chosen, "flops": both, "bytes": both}  # fmt: skip

    points = [one(1, 0, 1.0, 2.0, "absorbed"), one(1, 9, 1.3, 1.0, "absorbed"),
              one(2, 0, 1.0, 1.0, "expanded"), one(2, 9, 2.0, 1.0, "expanded")]  # fmt: skip
    figure = picture.absorption({"points": points})
    assert "1.30 times" in figure.get_suptitle()
