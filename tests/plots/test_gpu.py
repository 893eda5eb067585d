"""The figures of the GPU benchmarks say what their records say."""

import json
from pathlib import Path

from benchmarks.gpu_training import KINDS
from minik2.plots.gpu import kernels, training
from tests.plots.test_figures import PNG, assert_title_fits

RECORD = Path(__file__).parents[2] / "benchmarks" / "results" / "gpu_kernels.json"


def test_it_draws_the_record_and_its_title_follows_it():
    record = json.loads(RECORD.read_text())
    figure = kernels(record)
    assert figure.png(40).startswith(PNG)
    assert_title_fits(figure)
    chosen = [e for e in record["lines"] if e["what"] == "decode attention, batch 64"]
    best = max(line["of_the_limit"] for line in chosen)
    assert f"{best:.0%} of the memory's rate" in figure.get_suptitle()
    for line in chosen:
        line["of_the_limit"] = 0.25
    assert "25% of the memory's rate" in kernels(record).get_suptitle()


def test_a_steps_profile_is_drawn_by_kind():
    """From a made-up record: the benchmark has not run on a GPU."""
    spent = dict.fromkeys([*KINDS, "small operations, joined", "the rest"], 10.0)
    record = {"device": "a GPU", "flops_a_batch": 3e13, "bfloat16_flops_a_second": 6e14,
              "profile_milliseconds": spent | {"experts' products": 25.0}}  # fmt: skip
    figure = training(record)
    assert figure.png(40).startswith(PNG)
    assert_title_fits(figure)
    assert figure.get_suptitle() == (
        "a GPU: a batch and MuonClip's update take 95.0 ms, products 37% of it"
    )
    axes = figure.axes[0]
    texts = {text.get_text() for text in axes.texts}
    assert "25.0 ms, 26%" in texts and "10.0 ms, 11%" in texts
    assert axes.get_yticklabels()[0].get_text() == "experts' products"
    assert "50.0 ms" in axes.get_xlabel()
