"""Every experiment from end to end, tiny: what its record says, and that its figure draws."""

import itertools
import struct

import pytest

from minik2.experiments import __main__ as command
from minik2.experiments import balance, results
from minik2.plots import experiments as pictures
from tests.experiments import tiny
from tests.plots.test_figures import assert_title_fits

NAMES = list(command.EXPERIMENTS)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """{name: record as it comes back from its file}, of a tiny run of every experiment."""
    folder, made = tmp_path_factory.mktemp("tiny"), []
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for name, module in command.EXPERIMENTS.items():
            patch.setattr(module, "finish", tiny.in_this_process(made))
            record = module.run(tiny.scale(folder, evaluate_every=3), (0, 1), lambda *_: None)
            results.write(record, folder / f"{name}.json")
            found[name] = results.read(folder / f"{name}.json")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_record_says_what_it_should_be_read_with(name, records):
    record = records[name]
    assert record["experiment"] == name and record["seeds"] == [0, 1]
    assert record["scale"] == "tiny" and record["settings"]["steps"] == tiny.STEPS
    assert record["machine"]["cores"] >= 1 and record["machine"]["packages"]["torch"]
    assert "load" not in record["machine"]
    assert record["training_seconds"] > 0
    for losses in record["found"]["final"].values():
        assert len(losses) == 2 and all(1 < loss < 6 for loss in losses)
        assert losses[0] != losses[1]  # two seeds, two runs


def test_muon_and_adamw_get_the_same_grid(records):
    found = records["muon_vs_adamw"]["found"]
    rates = found["rates"]
    assert rates == sorted(rates)
    assert all(b / a == pytest.approx(2) for a, b in itertools.pairwise(rates))
    for name, losses in found["grid"].items():
        assert len(losses) == len(rates)
        assert rates[losses.index(min(losses))] == found["best_rate"][name]
        assert found["final"][name][0] == min(losses)  # the grid's run counts as a seed's
    assert list(found["shorter"]) == ["0.55", "0.7", "0.85", "1.0"]
    assert found["shorter"]["1.0"] == found["final"]["muonclip"]


@pytest.mark.parametrize(("slopes", "ends"), [
    ({"muonclip": -1, "adamw": -1}, (2.5e-3, 1.6e-1)),
    ({"muonclip": 1, "adamw": 0}, (3.125e-4, 2e-2)),
])
def test_the_grid_grows_towards_a_best_on_its_edge(monkeypatch, tmp_path, slopes, ends):
    """A loss that only falls, or rises, with the rate has no best inside: it stops all the same."""
    module = command.EXPERIMENTS["muon_vs_adamw"]

    def finish(scale, runs, what, tell):
        def loss(settings):
            bend = abs(settings.rate - 1e-2)
            return 4 + (slopes[settings.optimizer] * settings.rate or bend)

        step = {"kind": "step", "seconds": 1.0, "maxima_seconds": 0.1}
        return [[{"kind": "evaluation", "step": 0, "held_out": 9.0},
                 *({**step, "step": n + 1} for n in range(r.settings.steps)),
                 {"kind": "evaluation", "step": r.settings.steps, "held_out": loss(r.settings)}]
                for r in runs]

    monkeypatch.setattr(module, "finish", finish)
    rates = module.run(tiny.scale(tmp_path), (0,), lambda *_: None)["found"]["rates"]
    assert (rates[0], rates[-1]) == pytest.approx(ends)


def test_heads_clipped_are_told_one_by_one(records):
    """So few steps clip nothing; planted lines do."""
    from minik2.experiments import logit_explosion as module

    lines = [{"kind": "step", "step": n + 1, "head_logits": [[5.0, n / 7], [40 - n / 7, 1.0]],
              "clipped": [[1, 0, 0.75]] if n < 10 else []} for n in range(100)]
    assert module._heads(lines) == {(1, 0)}
    assert module._by_part(lines, 100, heads=4) == [0.25] + [0.0] * 9
    assert module._last_clipped(lines, heads=4) == [0, 0, 0, 10]
    assert module._peaks(lines) == [[5.0, 99 / 7], [40.0, 1.0]]
    kept = module._head_logits(lines)
    assert len(kept) == 20 and kept[3] == [[5.0, 2.14], [37.9, 1.0]]  # of step 16
    for seeds in records["logit_explosion"]["found"]["clipped_by_part"].values():
        assert [len(shares) for shares in seeds] == [module.PARTS] * 2


def test_loads_are_shares_of_an_even_load(records):
    found = records["balance"]["found"]
    for arm in balance.ARMS:
        for column in found["loads"][arm]:
            assert sum(column) == pytest.approx(8, rel=1e-3)  # experts
    lines = [{"kind": "step", "step": 1, "loads": [[], [8, 0, 0, 0], [2, 2, 2, 2]]}]
    assert balance._idle(lines) == 3 / 8


def test_active_parameters_stay_when_experts_are_added(records):
    found = records["sparsity"]["found"]
    router = 32 * 2  # of each expert and layer, which alone grows: hidden size, layers with experts
    for level in ("1", "2", "4", "8", "16"):
        more = 2 * int(level) - 2  # experts more than at sparsity 1
        # The router's column and its bias.
        assert found["active"][level] - found["active"]["1"] in (router * more, (router + 2) * more)
        assert found["parameters"][level] > found["active"][level] or level == "1"


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_drawn_from_the_record_alone(name, records, tmp_path):
    picture = getattr(pictures, name)(records[name])
    assert_title_fits(picture)
    picture.write(tmp_path / "figure.png")
    width, height = struct.unpack(">II", (tmp_path / "figure.png").read_bytes()[16:24])
    assert width > 1000 and height > 400


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_says_what_is_claimed(name):
    text = command.EXPERIMENTS[name].__doc__
    assert all(word in text for word in ("arXiv", "Claimed:", "Done:"))
