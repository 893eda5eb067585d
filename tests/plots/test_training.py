"""The pictures of runs: what is drawn is what the lines say, and titles say it in numbers."""

import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from minik2.plots import training
from minik2.plots.training import one_run, several_runs
from tests.plots.test_figures import assert_title_fits

rng = np.random.default_rng(0)


def lines(steps=40, layers=3, every=10, pace=0.5, clipped=(), dense=False, last=2.0):
    """A run as `metrics.read` gives it: the logit of layer n is n + step, seconds are pace a step.

    Held-out losses fall evenly from 5 to `last`.
    """
    found = [{"kind": "evaluation", "step": 0, "held_out": 5.0}]
    for step in range(1, steps + 1):
        found.append({
            "kind": "step", "step": step, "loss": 5 - step / steps, "rate": 1e-3 * step,
            "max_logit": [layer + step for layer in range(layers)],
            "clipped": [[layer, head, 0.5] for at, layer, head in clipped if at == step],
            "violation": [] if dense else [0.25, 1.5 if step == 7 else 0.5],
            "trained": step * pace, "tokens": 100 * step})  # fmt: skip
        if step % every == 0:
            held_out = 5 - (5 - last) * step / steps
            found.append({"kind": "evaluation", "step": step, "held_out": held_out})
        if step == 20:
            found.append({"kind": "resumed", "step": 20})
    return found


def curves(axes):
    return [np.array(line.get_data()) for line in axes.lines]


def key(figure):
    return [text.get_text() for text in figure.axes[-1].get_legend().get_texts()]


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes]


def test_one_run_is_drawn_as_its_lines_say():
    figure = one_run("mine", lines(clipped=[(30, 2, 1), (31, 2, 1), (31, 0, 3)]), tau=35.0)
    assert figure.get_suptitle() == "mine: 5.00 nats a byte at first, 2.00 after 40 steps"
    by_tokens, by_seconds, rate, logits, balance, _ = figure.axes
    held_out = [5.0, 4.25, 3.5, 2.75, 2.0]
    np.testing.assert_allclose(curves(by_tokens)[1], [[0, 1000, 2000, 3000, 4000], held_out])
    np.testing.assert_allclose(curves(by_seconds)[1], [[0, 5, 10, 15, 20], held_out])
    steps = np.arange(1, 41)
    np.testing.assert_allclose(curves(rate)[0], [steps, 1e-3 * steps])
    for layer in range(3):
        np.testing.assert_array_equal(curves(logits)[layer], [steps, layer + steps])
    np.testing.assert_array_equal(curves(logits)[3], [[30, 31, 31], [32, 33, 31]])
    np.testing.assert_array_equal(curves(logits)[4][1], [35, 35])
    np.testing.assert_array_equal(curves(balance)[0][1], np.where(steps == 7, 1.5, 0.5))
    assert titles(figure)[:5] == [
        "loss by tokens: 4,000", "by time: 200 tokens a second", "learning rate: 0.04 at most",
        "largest logit: 42, in layer 2; 2 heads clipped",
        "busiest expert: at most 2.50 times its share"]
    assert key(figure) == ["held-out text", "training",
                           *(f"largest logit, layer {n}" for n in range(3)), "tau: 35",
                           "a head is clipped"]


def test_without_tau_nothing_is_said_of_clipping():
    figure = one_run("mine", lines())
    assert len(figure.axes[3].lines) == 3 and "clipped" not in " ".join(titles(figure))
    assert not {"tau: 35", "a head is clipped"} & set(key(figure))


@pytest.mark.parametrize("steps", [1, 79, 200])
def test_smoothing_is_the_mean_of_the_steps_before(steps):
    run = training._Run("mine", lines(steps))
    run.loss = rng.normal(size=steps)
    expected = [run.loss[max(0, n - run.width) : n].mean() for n in range(1, steps + 1)]
    np.testing.assert_allclose(run.smooth(), expected)
    assert run.width == {1: 1, 79: 2, 200: 5}[steps]


def test_several_runs_have_a_line_each_and_the_best_is_named():
    runs = {"slow": lines(pace=1.0, last=1.5), "fast": lines(20, layers=5), "mid": lines(last=3)}
    figure = several_runs(runs)
    assert figure.get_suptitle() == (
        "slow is lowest: 1.50 nats a byte after 40 steps; fast: 2.00 after 20")
    for axes in figure.axes[2:5]:
        assert len(axes.lines) == 3
    np.testing.assert_array_equal(curves(figure.axes[3])[1], [np.arange(1, 21), np.arange(5, 25)])
    assert titles(figure)[:2] == ["loss by tokens: 2,000 to 4,000",
                                  "by time: 100 to 200 tokens a second"]
    assert titles(figure)[3] == "largest logit: 42, of slow"
    assert key(figure)[:3] == list(runs)


def test_a_loss_is_told_with_the_step_that_it_was_measured_at():
    entries = lines(40, every=15)
    assert one_run("mine", entries).get_suptitle().endswith("2.75 after 30 steps")
    assert several_runs({"a": entries, "b": lines()}).get_suptitle() == (
        "b is lowest: 2.00 nats a byte after 40 steps; a: 2.75 after 30")


def test_what_never_happened_is_not_in_the_key():
    assert "a head is clipped" not in key(one_run("mine", lines(), tau=100.0))


def test_a_run_in_progress_and_one_without_experts_are_drawn():
    begun = [entry for entry in lines(3) if entry["kind"] == "step"]
    assert one_run("new", begun).get_suptitle() == (
        "new: 4.67 nats a byte at first, 4.00 after 3 steps")
    figure = several_runs({"new": begun, "dense": lines(dense=True)})
    assert titles(figure)[4].startswith("busiest expert")
    assert titles(one_run("dense", lines(dense=True)))[4] == "no layer has experts"


def test_a_run_without_a_step_is_refused():
    for draw in (lambda begun: one_run("mine", begun), lambda begun: several_runs({"mine": begun})):
        with pytest.raises(ValueError, match="mine has made no step yet"):
            draw([{"kind": "evaluation", "step": 0, "held_out": 5.0}])


@pytest.mark.parametrize("kind, lacks", [("step", "max_logit"), ("evaluation", "held_out")])
def test_lines_that_another_program_wrote_are_a_sentence(kind, lacks):
    strange = [{key: value for key, value in line.items() if line["kind"] != kind or key != lacks}
               for line in lines()]
    with pytest.raises(ValueError, match=f"A line of mine has no '{lacks}'") as caught:
        one_run("mine", strange)
    assert "\n" not in str(caught.value)


def test_steep_logits_get_a_logarithm():
    assert one_run("mine", lines(40)).axes[3].get_yscale() == "linear"
    assert one_run("mine", lines(400)).axes[3].get_yscale() == "symlog"


def test_long_names_and_many_layers_stay_within_the_picture():
    names = [f"a/very/long/name/of/a/directory/which/goes/on-and-on-{n}" for n in range(3)]
    figure = several_runs({name: lines(12_000, every=3000) for name in names})
    assert_title_fits(figure)
    assert [name[-4:] for name in key(figure)[:3]] == ["on-0", "on-1", "on-2"]
    figure = one_run(names[0], lines(layers=61))
    assert_title_fits(figure)
    assert sum("layer" in text for text in key(figure)) == training.NAMED
    assert "largest logit, layer 60" in key(figure)


def test_a_grey_print_keeps_runs_apart():
    def grey(colour):
        return np.dot((0.299, 0.587, 0.114), to_rgb(colour))

    for (one, dash), (other, another) in itertools.combinations(training.LOOKS, 2):
        assert dash != another or abs(grey(one) - grey(other)) > 12 / 256
