"""The GPU check rehearsed on the CPU: what it keeps, and that planted errors break it."""

import json
import math
import zlib

import numpy as np
import pytest
import torch

from benchmarks import gpu_check, records
from benchmarks.gpu import choices, draw, greedy, parts, products, steps, training
from benchmarks.gpu.check import Check
from benchmarks.gpu.table import OPEN, table
from benchmarks.parts import PARTS
from minik2 import pytorch
from minik2.config import ModelConfig

TINY = ModelConfig.preset("tiny")


@pytest.fixture
def at_home(tmp_path, monkeypatch):
    """A README and a folder of results that a test may write to."""
    (tmp_path / "README.md").write_text(
        "a\n<!-- gpu-check:begin -->\nold\n<!-- gpu-check:end -->\nz\n")
    monkeypatch.setattr(records, "ROOT", tmp_path)
    monkeypatch.setattr(records, "RESULTS", tmp_path / "results")
    return tmp_path


def states(checks):
    return {(check.name, check.precision): check.state for check in checks}


@pytest.mark.slow
def test_every_section_holds_on_the_cpu_and_the_record_becomes_a_table(
    at_home, monkeypatch, capsys
):
    monkeypatch.setattr(training, "STEPS", 3)
    monkeypatch.setattr(greedy, "SEEDS", 1)
    monkeypatch.setattr(choices, "TOKENS", 64)
    monkeypatch.setattr(steps, "SHAPES", ((8, 24), (3, 24, 8)))
    out = at_home / "results" / "gpu_check.json"
    arguments = ["--device", "cpu", "--configurations", "2", "--output", str(out)]
    assert gpu_check.main(arguments) == 0
    record = json.loads(out.read_text())
    assert {check["section"] for check in record["checks"]} == set(gpu_check.SECTIONS)
    assert {check["state"] for check in record["checks"]} <= {"holds", "open"}
    for check in record["checks"]:
        assert check["count"] + check["left_out"] > 0, check
        assert check["error"] <= check["bound"] and (check["state"] == "holds") == bool(
            check["count"])
    assert record["device"] == "cpu" and record["machine"]["packages"]["torch"]
    (curve,) = [check["series"] for check in record["checks"]
                if check["section"] == "training" and check["precision"] == "float32"]
    assert [len(curve[name]) for name in ("reference", "band", "device")] == [3, 3, 3]
    assert gpu_check.main(["--table"]) == 0
    document = (at_home / "README.md").read_text()
    assert document.startswith("a\n<!-- gpu-check:begin -->") and "old" not in document
    assert "| whole model |" in document and "| training |" in document
    assert "training:" in capsys.readouterr().out


def test_without_a_gpu_it_is_one_sentence_and_nothing_is_touched(at_home, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = (at_home / "README.md").read_text()
    assert gpu_check.main(["--record"]) == 2
    assert gpu_check.main(["--record", "--device", "cpu"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and [line.endswith(".") for line in err.splitlines()] == [True, True]
    assert "PyTorch finds no GPU here" in err
    assert (at_home / "README.md").read_text() == before
    assert [path.name for path in at_home.iterdir()] == ["README.md"]


def test_without_a_record_the_table_says_open(at_home):
    assert table(None) == OPEN
    assert gpu_check.main(["--table"]) == 0
    assert OPEN in (at_home / "README.md").read_text()


def test_a_run_that_is_cut_off_keeps_what_it_measured(at_home, monkeypatch):
    def breaks(section, cases, device):
        yield Check(section, "first", "float32", 1, 0, 1e-9, 1e-8)
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu_check, "SECTIONS", {"products": products.run, "parts": breaks})
    out = at_home / "record.json"
    with pytest.raises(KeyboardInterrupt):
        gpu_check.main(["--device", "cpu", "--output", str(out), "--sections", "products", "parts"])
    kept = json.loads(out.read_text())["checks"]
    assert [check["name"] for check in kept] == ["a matrix product"] * 3 + ["first"]


def test_a_broken_bound_fails_the_command_and_says_where(monkeypatch, capsys):
    def wrong(section, cases, device):
        check = Check(section, "norm", "float32")
        check.add(2.0, 1.0, "case 7")
        yield check

    monkeypatch.setattr(gpu_check, "SECTIONS", {"products": wrong})
    assert gpu_check.main(["--device", "cpu", "--sections", "products"]) == 1
    assert "Broken: norm in float32: 2.00e+00 exceeds 1.00e+00 with case 7" in (
        capsys.readouterr().err)


def test_a_check_keeps_its_worst_comparison_and_no_success_mends_it():
    check = Check("s", "n", "float32")
    check.add(1e-9, 1e-6, "a")
    check.add(1e-7, 1e-6, "b")
    check.add(2e-9, 1e-6, "c")
    assert (check.state, check.error, check.count) == ("holds", 1e-7, 3)
    for bad in (math.nan, math.inf, 1.0):
        check.add(bad, 1e-6, "d")
        check.add(0.0, 1e-6, "e")
        assert check.state == "broken"


def with_ten_bits(array):
    """Rounded as TF32 rounds: 10 bits after the first, of float32's 23."""
    bits = np.asarray(array, np.float32).view(np.uint32)
    return ((bits + 0x1000) & np.uint32(0xFFFFE000)).view(np.float32)


MATMUL, LINEAR = torch.Tensor.__matmul__, torch.nn.functional.linear


def test_products_in_tf32_are_found(monkeypatch):
    def tf32(left, right):
        if left.dtype != torch.float32:
            return MATMUL(left, right)
        return MATMUL(*(torch.from_numpy(with_ten_bits(t.numpy())) for t in (left, right)))

    monkeypatch.setattr(torch.Tensor, "__matmul__", tf32)
    assert states(products.run("s", [], "cpu")) == {
        ("a matrix product", "float64"): "holds", ("a matrix product", "float32"): "broken",
        ("a matrix product", "bfloat16"): "holds"}  # fmt: skip


def linear_in_tf32(x, weight, bias=None):
    if x.dtype != torch.float32:
        return LINEAR(x, weight, bias)
    return LINEAR(*(torch.from_numpy(with_ten_bits(t.detach().numpy())) for t in (x, weight)))


ROTATE, EXPERTS = pytorch.rope.rotate, pytorch.moe.Experts.forward
WRONG = {
    "pairs turn backwards": (
        "MLA", pytorch.rope, "rotate", lambda x, cos, sin, i=True: ROTATE(x, cos, -sin, i)),
    "an expert's sign is wrong": (
        "experts", pytorch.moe.Experts, "forward",
        lambda self, x, i, w: EXPERTS(self, x, i, w * torch.tensor([-1.0, *[1.0] * 99],
                                                                   dtype=w.dtype)[: w.shape[1]])),
    "products in TF32": ("MLA", torch.nn.functional, "linear", linear_in_tf32),
}  # fmt: skip


@pytest.mark.parametrize("mistake", WRONG)
def test_a_planted_error_in_a_part_is_found(mistake, monkeypatch):
    name, module, function, wrong = WRONG[mistake]
    monkeypatch.setattr(module, function, wrong)
    part = next(part for part in PARTS if part.name == name)
    found = states(parts.run("s", draw.cases(6, 1), "cpu", [part]))
    assert found[name, "float32"] == "broken"
    assert (found[name, "float64"] == "holds") == (mistake == "products in TF32")


def test_a_cache_whose_positions_stop_is_found(monkeypatch):
    right = pytorch.rope.table
    monkeypatch.setattr(pytorch.rope, "table",
                        lambda cfg, where, dtype: right(cfg, where.clamp(max=2), dtype))
    found = states(parts.run("s", draw.cases(3, 1), "cpu", parts.DECODING[:2]))
    assert set(found.values()) == {"broken"}


def test_a_wrong_coefficient_and_a_wrong_clip_are_found(monkeypatch):
    from minik2.pytorch import newton_schulz

    monkeypatch.setattr(steps, "SHAPES", ((8, 24), (3, 24, 8)))
    with monkeypatch.context() as patch:
        patch.setattr(newton_schulz, "B", -4.7751)
        for check in (steps.iteration("s", "float32", "cpu"), steps.muon("s", "float32", "cpu")):
            assert check.state == "broken"
    factors = pytorch.qk_clip.row_factors
    with monkeypatch.context() as patch:
        patch.setattr(pytorch.qk_clip, "row_factors",
                      lambda gamma, cfg: factors(gamma.sqrt(), cfg))
        matrices, adamw, gamma = steps.muon_clip("s", "MuonClip", TINY, "float32", "cpu")
    assert (matrices.state, adamw.state, gamma.state) == ("broken", "holds", "holds")


@pytest.mark.parametrize("cfg", choices.CONFIGS.values(), ids=choices.CONFIGS)
def test_a_flipped_choice_is_found_and_a_tie_is_none(cfg, monkeypatch):
    monkeypatch.setattr(choices, "TOKENS", 50)
    right = choices.device_choice

    def other_of_a_tie(*arguments):
        """Each expert's double, which scores the same: as right as what was picked."""
        half = cfg.n_routed_experts // 2
        return (right(*arguments) + half) % cfg.n_routed_experts

    with monkeypatch.context() as patch:
        patch.setattr(choices, "device_choice", other_of_a_tie)
        check = choices.decide("s", "n", cfg, "exact ties", "float32", "cpu")
        assert check.state == "holds"
        assert not check.note.startswith("50 of 50")

    def flipped(*arguments):
        picked = right(*arguments)
        unpicked = next(e for e in range(cfg.n_routed_experts) if e not in picked[7])
        picked[7, 0] = unpicked
        return picked

    with monkeypatch.context() as patch:
        patch.setattr(choices, "device_choice", flipped)
        check = choices.decide("s", "n", cfg, "random", "float32", "cpu")
        assert check.state == "broken" and "token 7" in check.broken_by


def test_an_expert_that_is_chosen_twice_is_no_choice():
    scores = np.array([[0.9, 0.5, 0.1, 0.2] * 16])
    picked = np.array([[0, 0, 4, 8, 12, 16, 20]])
    gaps = choices.excess(choices.WIDE, scores, np.full(scores.shape, 1e-7), picked)
    assert gaps.tolist() == [math.inf]


def test_a_token_that_was_not_the_best_is_found(monkeypatch):
    monkeypatch.setattr(greedy, "SEEDS", 1)
    right = pytorch.Model.generate

    def wrong(self, tokens, new, counts):
        out = right(self, tokens, new, counts=counts).clone()
        out[0, -3] = (out[0, -3] + 1) % self.cfg.vocab_size
        return out

    monkeypatch.setattr(pytorch.Model, "generate", wrong)
    assert next(greedy.run("s", [], "cpu")).state == "broken"


def test_the_band_is_there_before_the_curve_and_a_wrong_step_leaves_it(monkeypatch):
    monkeypatch.setattr(training, "STEPS", 4)
    run = training.run("s", [], "cpu", "tiny")
    band = next(run)
    assert band.state == "open" and "device" not in band.series
    assert all(width > 0 for width in band.series["band"])
    assert band.series["band"] == sorted(band.series["band"])
    next(run)
    monkeypatch.setattr(pytorch.MuonClip, "__init__", no_decay(pytorch.MuonClip.__init__))
    found = {check.precision: check.state for check in run}
    assert found["float32"] == "broken"


def test_the_band_is_a_multiple_of_the_moved_runs_spread_that_never_narrows(monkeypatch):
    def losses(cfg, batches, size, seed):
        return [5 + 0.1 * (-1) ** seed, 5 + 0.3 * (seed == 8), 5.0], 0

    monkeypatch.setattr(training, "reference_losses", losses)
    found = training.band(TINY, [], [5.0, 5.0, 5.0], 0.01)
    assert found == pytest.approx(7.12 * np.array([0.1, 0.3 / 8**0.5, 0.3 / 8**0.5]))


def test_beyond_the_width_student_has_one_part_in_ten_thousand():
    """Its integral in closed form, for an even number of runs: Abramowitz and Stegun, 26.7.4."""
    angle = math.atan(training.WIDTH / math.sqrt(training.RUNS))
    terms = [math.comb(2 * k, k) * (math.cos(angle) / 2) ** (2 * k)
             for k in range(training.RUNS // 2)]  # fmt: skip
    assert training.RUNS % 2 == 0
    assert 1 - math.sin(angle) * sum(terms) == pytest.approx(1e-4, rel=0.01)


def test_the_batches_change_with_no_edit_of_the_code():
    """While they were windows of the package's source, a comment could break the check."""
    (tokens, targets), *_ = training.drawn(np.random.default_rng(0))
    assert zlib.crc32(np.ascontiguousarray(tokens).astype("<i8")) == 3300512233
    assert (tokens[:, 1:] == targets[:, :-1]).all()


def no_decay(init):
    def wrong(self, *arguments, **keywords):
        init(self, *arguments, **keywords | {"weight_decay": 0.0})

    return wrong


def test_cases_are_the_same_for_the_same_seed_and_show_every_branch():
    cases = draw.cases(40, 0)
    assert cases == draw.cases(40, 0) != draw.cases(40, 1)
    assert {case.cfg.topk_method for case in cases} == {
        "noaux_tc", "greedy", "group_limited_greedy"}  # fmt: skip
    assert {case.cfg.q_lora_rank is None for case in cases} == {True, False}
    assert all(case.cfg.hidden_size % 8 == 0 for case in cases[1::2])


def test_the_reference_is_what_the_device_is_held_against():
    sides = parts.comparison("bfloat16", "cuda")
    assert (sides.left.device, sides.right.engine, sides.right.precision) == (
        "cuda", "reference", "float64")  # fmt: skip
