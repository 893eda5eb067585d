"""Metrics: a line a step, once each, whatever happened in between."""

import json

import pytest

from minik2.training import metrics, observe
from minik2.training.metrics import Metrics


def write(run, step, count):
    log = Metrics(run, step)
    for number in range(step + 1, step + count + 1):
        log.add("step", number, loss=1 / number)
    log.close()


def test_a_line_is_there_at_once(tmp_path):
    log = Metrics(tmp_path, 0)
    log.add("step", 1, loss=0.1 + 0.2)
    assert metrics.read(tmp_path) == [{"kind": "step", "step": 1, "loss": 0.1 + 0.2}]
    log.close()


def test_resuming_cuts_off_what_will_be_made_again(tmp_path):
    write(tmp_path, 0, 7)
    write(tmp_path, 4, 2)
    assert [line["step"] for line in metrics.read(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_new_run_does_not_keep_lines_of_one_that_never_saved(tmp_path):
    write(tmp_path, 0, 3)
    write(tmp_path, 0, 1)
    assert [line["step"] for line in metrics.read(tmp_path)] == [1]


def test_a_line_cut_off_by_a_kill_is_passed_over(tmp_path):
    write(tmp_path, 0, 3)
    with (tmp_path / metrics.NAME).open("a") as file:
        file.write('{"kind": "step", "st')
    assert [line["step"] for line in metrics.read(tmp_path)] == [1, 2, 3]
    write(tmp_path, 3, 1)
    assert [line["step"] for line in metrics.read(tmp_path)] == [1, 2, 3, 4]


@pytest.mark.parametrize("line", ["nonsense", "[]", "3", '{"kind": "step"}', "null"])
def test_other_lines_are_named(tmp_path, line):
    write(tmp_path, 0, 1)
    with (tmp_path / metrics.NAME).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match="Line 2"):
        metrics.read(tmp_path)


def test_no_metrics_is_a_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="--out"):
        metrics.read(tmp_path)


def test_numbers_that_json_has_not_are_refused(tmp_path):
    log = Metrics(tmp_path, 0)
    with pytest.raises(ValueError, match="JSON"):
        log.add("step", 1, loss=float("nan"))
    log.close()
    assert metrics.read(tmp_path) == []


def test_floats_come_back_to_the_bit(tmp_path):
    values = [0.1, 1 / 3, 2.0**-1074, 1.7976931348623157e308]
    log = Metrics(tmp_path, 0)
    log.add("step", 1, values=values)
    log.close()
    assert json.loads((tmp_path / metrics.NAME).read_text())["values"] == values


def test_weights_are_put_together_by_kind():
    import numpy as np

    rng = np.random.default_rng(0)
    a, b, c = (rng.normal(size=(3, 4)) for _ in range(3))
    found = observe.rms_by_kind({
        "model.layers.1.mlp.experts.0.up_proj.weight": a,
        "model.layers.2.mlp.experts.11.up_proj.weight": b,
        "model.embed_tokens.weight": c,
    })  # fmt: skip
    assert found == {
        "mlp.experts.up_proj": pytest.approx(np.sqrt((np.stack([a, b]) ** 2).mean())),
        "embed_tokens": pytest.approx(np.sqrt((c**2).mean())),
    }


def test_violation():
    import numpy as np

    assert observe.violation(np.array([4, 4, 4, 4])) == 0
    assert observe.violation(np.array([16, 0, 0, 0])) == 3
    assert observe.violation(np.array([6, 2, 4, 4])) == 0.5
