"""The figure of decoding says what its record says."""

import json
from pathlib import Path

from minik2.plots.decode import decode
from tests.plots.test_figures import PNG, assert_title_fits

RECORD = Path(__file__).parents[2] / "benchmarks" / "results" / "decode.json"


def test_it_draws_the_record_and_its_title_follows_it():
    record = json.loads(RECORD.read_text())
    ours = record["engines"]["reference"]
    figure = decode(record)
    assert figure.png(40).startswith(PNG)
    assert_title_fits(figure)
    first, *_, last = ours["share_of_limit"].values()
    assert f"{first:.0%} of the limit at 256 tokens, {last:.0%} at 8,192" in figure.get_suptitle()
    ours["share_of_limit"]["8192"], ours["times_transformers"]["8192"] = 0.1, 0.9
    times = f"10% at 8,192; {ours['times_transformers']['256']:.1f} and 0.9 times transformers"
    assert times in decode(record).get_suptitle()
