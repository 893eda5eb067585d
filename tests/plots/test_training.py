"""The pictures of runs: what is drawn is what the lines say, and titles say it in numbers."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from matplotlib.cbook import is_math_text
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
        "new: training loss 4.67 nats a byte at first, 4.00 after 3 steps")
    figure = several_runs({"new": begun, "dense": lines(dense=True)})
    assert titles(figure)[4].startswith("busiest expert")
    assert titles(one_run("dense", lines(dense=True)))[4] == "no layer has experts"


def test_an_evaluation_before_the_first_step_is_not_told_as_the_last():
    stopped = lines(9)
    assert one_run("mine", stopped).get_suptitle() == (
        "mine: 5.00 nats a byte at step 0, not evaluated since; training loss 4.00 after 9 steps")
    assert several_runs({"a": stopped, "b": lines(last=4.5)}).get_suptitle() == (
        "a is lowest: 4.00 in training after 9 steps; b: 4.50 held out after 40")
    assert several_runs({"a": stopped, "b": lines()}).get_suptitle() == (
        "b is lowest: 2.00 held out after 40 steps; a: 4.00 in training after 9")


@pytest.mark.parametrize("name", ["$x_^$", "a$b", "a$b$c", r"\$x", "_x"])
def test_names_are_drawn_as_they_are(name):
    one, two = one_run(name, lines()), several_runs({name: lines(), "other": lines(20)})
    texts = [one.get_suptitle(), two.get_suptitle(), titles(two)[3], key(two)[0]]
    assert not any(map(is_math_text, texts))
    texts = [text.replace(r"\$", "$") for text in texts]  # as Matplotlib does
    assert texts[0].startswith(f"{name}: ") and texts[1].startswith(f"{name} is lowest")
    assert texts[2:] == [f"largest logit: 42, of {name}", name]
    two.draw_without_rendering()


def test_directories_are_named_by_as_much_as_tells_them_apart(tmp_path):
    assert training.names([tmp_path / "a" / "x", Path("y")]) == ["x", "y"]
    runs = [tmp_path / "a" / "x", tmp_path / "b" / "x", tmp_path / "b" / "y"]
    assert training.names(runs) == [str(Path(*run.parts[-2:])) for run in runs]


def test_runs_whose_shown_names_are_alike_are_numbered():
    figure = several_runs({f"{n}/a-name-longer-than-is-shown": lines(n) for n in (20, 30)})
    assert [name[:4] for name in key(figure)[:2]] == ["1: …", "2: …"]
    assert all(len(name) <= training.LETTERS for name in key(figure)[:2])


def labels(axis):
    """The numbers at an axis that lie within it."""
    low, high = sorted(axis.get_view_interval())
    return [tick.label1.get_text() for tick in axis.get_major_ticks()
            if low <= tick.get_loc() <= high]  # fmt: skip


@pytest.mark.parametrize("low, high", [(5.525, 5.535), (3.1, 3.9), (0.01, 0.02), (20, 90), (2, 5),
                                       (2, 3000)])  # fmt: skip
def test_a_loss_axis_has_numbers_that_stand_apart(low, high):
    entries = lines(20)
    for entry in entries:
        if entry["kind"] == "step":
            entry["loss"] = low + (high - low) * (entry["step"] - 1) / 19
        elif entry["kind"] == "evaluation":
            entry["held_out"] = high
    figure = one_run("mine", entries)
    figure.draw_without_rendering()
    for axes in figure.axes[:2]:
        assert 2 <= len(labels(axes.yaxis)) == len(set(labels(axes.yaxis))) <= 12
        tops = [text.get_window_extent() for text in axes.get_yticklabels()]
        inside = [box for box in tops if axes.bbox.y0 <= (box.y0 + box.y1) / 2 <= axes.bbox.y1]
        assert all(a.y1 < b.y0 for a, b in itertools.pairwise(inside))


def test_a_run_of_one_step_is_seen():
    figure = one_run("mine", lines(1), tau=100.0)
    several = several_runs({"mine": lines(1), "other": lines(1)})
    for axes in [*figure.axes[:5], *several.axes[:5]]:
        alone = [line for line in axes.lines if len(line.get_xdata()) == 1]
        assert alone and all(line.get_marker() not in ("", "None") for line in alone)
    assert figure.get_suptitle().endswith("5.00 nats a byte at step 0, not evaluated since; "
                                          "training loss 4.00 after 1 step")  # fmt: skip
    figure.draw_without_rendering()
    assert labels(figure.axes[3].xaxis) == ["1"]
    assert all(line.get_marker() == "" for line in one_run("mine", lines(2)).axes[3].lines)


def test_a_tau_far_above_the_logits_is_told_and_leaves_them_the_axis():
    figure = one_run("mine", lines(), tau=1000.0)
    logits = figure.axes[3]
    assert len(logits.lines) == 4 and logits.get_ylim()[1] < 50  # the fourth: no head is clipped
    assert "tau: 1000, far above" in key(figure)
    near = one_run("mine", lines(), tau=42.0 * training.FAR)
    assert near.axes[3].get_ylim()[1] > 42 * training.FAR and "tau: 168" in key(near)


@pytest.mark.parametrize("pace", [0.001, 0.03, 50, 20_000])
def test_seconds_are_plain_numbers(pace):
    figure = one_run("mine", lines(pace=pace))
    figure.draw_without_rendering()
    seconds = [float(text) for text in labels(figure.axes[1].xaxis)]
    assert seconds[-1] <= 42 * pace and len(set(seconds)) == len(seconds) > 2


@pytest.mark.parametrize("count", [13, 20, 45])
def test_many_runs_keep_their_panels_and_fit_their_key(count):
    few = several_runs({str(n): lines() for n in range(2)})
    names = [f"{n:02}-a-name-as-long-as-any" for n in range(count)]
    many = several_runs({name: lines() for name in names})
    for figure in (few, many):
        figure.draw_without_rendering()
    for one, other in zip(few.axes, many.axes, strict=True):
        assert one.bbox.height == pytest.approx(other.bbox.height, rel=0.02)
    widths = [line.get_linewidth() for line in many.axes[2].lines]
    assert max(widths) <= 6 and all(a > b for a, b in itertools.pairwise(widths))
    told = many.axes[-1].get_legend().get_window_extent()
    assert told.y0 >= 0 and told.x1 <= many.bbox.x1
    assert len(key(many)) == min(count, training.KEYED) + 1 + (count > training.KEYED)
    assert (f"and {count - training.KEYED} more" in key(many)) == (count > training.KEYED)


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
