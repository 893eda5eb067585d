"""The figure of the GPU's kernels says what its record says."""

import json
from pathlib import Path

from minik2.plots.gpu import kernels
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
