"""The pass with its report: predicted and measured side by side, the ends of it, the refusals."""

import json
import subprocess
import sys
import tracemalloc

import pytest

from minik2 import fullsize
from minik2.config import ModelConfig

TINY, SMALL = ModelConfig.preset("tiny"), ModelConfig.preset("small")
EXACT = ("parameters", "experts", "cache", "flops")


@pytest.mark.parametrize("preset", ["tiny", "small"])
@pytest.mark.parametrize("layers", [None, 1, 2])
def test_what_one_token_takes_is_predicted_exactly(preset, layers):
    cfg = ModelConfig.preset(preset)
    made = fullsize.run(cfg, 1, layers)
    assert made.layers == made.done == (layers or cfg.num_hidden_layers) and made.finished
    for name in EXACT:
        assert getattr(made.measured, name) == getattr(made.predicted, name), name
    assert len(made.layer_seconds) == made.done and sum(made.layer_seconds) > 0
    assert sum(made.layer_seconds) <= made.measured.seconds
    assert [len(chosen[0]) for chosen in made.chosen] == (made.layers - 1) * [
        cfg.num_experts_per_tok]


@pytest.mark.parametrize("changes", [
    {}, {"q_lora_rank": None}, {"first_k_dense_replace": 0, "intermediate_size": 4096},
    {"first_k_dense_replace": 9}, {"num_attention_heads": 16}, {"moe_intermediate_size": 2048},
    {"vocab_size": 300_000},
])  # fmt: skip
def test_arrays_take_what_the_shapes_say(changes):
    made = fullsize.run(SMALL.replace(**changes), 400, 2)
    assert abs(made.measured.arrays / made.predicted.arrays - 1) < 0.05


def test_the_process_takes_what_it_had_and_the_arrays():
    made = fullsize.run(SMALL, 400)
    grown = made.measured.resident - made.before
    assert made.predicted.resident == made.before + made.predicted.arrays
    # Freed memory of before may be used again, and threads and code take a little.
    assert -2**20 <= grown < made.predicted.arrays + 2**24


def test_more_tokens_share_experts():
    one, many = (fullsize.run(SMALL, tokens).measured for tokens in (1, 64))
    moe = SMALL.num_hidden_layers - 1
    assert one.experts == moe * SMALL.num_experts_per_tok
    assert one.experts < many.experts <= moe * SMALL.n_routed_experts
    assert many.parameters < 64 * one.parameters / 8 and many.flops > 60 * one.flops


def test_the_same_seed_is_the_same_pass_and_another_is_another():
    first, again, other = (fullsize.run(SMALL, 3, seed=seed).chosen for seed in (1, 1, 2))
    assert first == again != other


def test_it_says_what_it_is_at():
    said = []
    fullsize.run(TINY, tell=lambda step, done: said.append((step, done)))
    assert [done for _, done in said] == [0, 0, 0, 1, 2, 3]
    assert [step for step, _ in said[-2:]] == ["layer 2 of 0 to 2", "the head"]


def test_stopped_it_reports_what_was_done():
    made = fullsize.run(SMALL, stop=iter([False, False, True]).__next__)
    assert (made.done, made.finished) == (2, False) and len(made.layer_seconds) == 2
    assert 0 < made.measured.parameters < made.predicted.parameters
    assert "Stopped after 2 of 4 layers" in str(made)
    never = fullsize.run(SMALL, stop=lambda: True)
    assert never.done == 0 and never.chosen == [] and str(never)


def test_the_report_reads_well_and_is_json():
    made = fullsize.run(SMALL, 5)
    text = str(made)
    assert f"{made.measured.flops:,}" in text and "each by itself" in text
    assert "each by itself" not in str(fullsize.run(SMALL))
    assert json.loads(json.dumps(made.to_dict()))["measured"]["flops"] == made.measured.flops


def test_who_traces_memory_goes_on_tracing():
    tracemalloc.start()
    try:
        fullsize.run(TINY)
        assert tracemalloc.is_tracing()
    finally:
        tracemalloc.stop()
    fullsize.run(TINY)
    assert not tracemalloc.is_tracing()


@pytest.mark.parametrize(("how", "words"), [
    ({"tokens": 0}, "tokens must be a whole number of at least 1"),
    ({"tokens": 1.5}, "tokens must be a whole number"),
    ({"tokens": 513}, "The model has 512 positions, fewer than 513 tokens"),
    ({"layers": 0}, "layers must be a whole number of at least 1"),
    ({"layers": 4}, "The model has 3 layers, fewer than the 4 asked for"),
    ({"seed": -1}, "seed must be a whole number"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(how, words):
    with pytest.raises(ValueError, match=words):
        fullsize.run(TINY, **how)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_token_through_all_of_k2_takes_less_than_2_gib():
    # Not getrusage: a new program's ru_maxrss begins with what the process had that started it.
    code = ("import json, re, pathlib\nfrom minik2 import ModelConfig, fullsize\n"
            "made = fullsize.run(ModelConfig.preset('kimi-k2'))\n"
            "status = pathlib.Path('/proc/self/status').read_text()\n"
            "peak = int(re.search(r'VmHWM:\\s+(\\d+) kB', status)[1]) * 1024\n"
            "print(json.dumps([made.to_dict(), peak]))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    made, peak = json.loads(done.stdout)
    assert made["done"] == 61 and peak < 2 * 2**30
    assert made["measured"]["parameters"] == made["predicted"]["parameters"] == 31_687_102_976
    assert made["measured"]["experts"] == 480 and made["measured"]["cache"] == 140_544
    assert made["measured"]["flops"] == made["predicted"]["flops"]
    assert abs(made["measured"]["arrays"] / made["predicted"]["arrays"] - 1) < 0.05
