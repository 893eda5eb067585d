"""The proof sheet holds for the engines as they are, and breaks where one is made wrong."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from benchmarks import proof, question, records, theirs
from benchmarks.theirs import PARTS
from minik2 import pytorch, reference
from minik2.config import ModelConfig
from minik2.doctor import machine

CPU_COMPARISONS = [c for c in proof.comparisons() if not c.on_gpu]


def part(name):
    (found,) = (p for p in PARTS if p.name == name)
    return found


def test_it_holds_on_a_few_configurations_and_is_recorded(tmp_path, monkeypatch, capsys):
    (tmp_path / "README.md").write_text("a\n<!-- proof:begin -->\nold\n<!-- proof:end -->\nz\n")
    monkeypatch.setattr(records, "ROOT", tmp_path)
    monkeypatch.setattr(records, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert proof.main(["--configurations", "6", "--seed", "3", "--record"]) == 0
    record = json.loads((tmp_path / "results" / "proof.json").read_text())
    assert len(record["rows"]) == len(PARTS) * len(proof.comparisons())
    for row in record["rows"]:
        if "GPU" in row["compared"]:
            assert row["state"] == "open: no GPU at hand" and row["configurations"] == 0
        else:
            assert row["state"] == "holds" and row["configurations"] > 0
            assert row["error"] <= row["bound"] and row["configurations"] + row["left_out"] <= 6
    assert record["seed"] == 3 and record["machine"]["packages"]["torch"] == torch.__version__
    document = (tmp_path / "README.md").read_text()
    assert document.startswith("a\n<!-- proof:begin -->") and document.endswith("end -->\nz\n")
    assert "| whole model |" in document and "old" not in document
    assert document.count("| open |") == len(PARTS) * 3


def biased_weights(x, weight, bias, cfg):
    """The commonest error in copies of this model: the bias leaks into the weights."""
    (indices, _), saved = ROUTER(x, weight, bias, cfg)
    leaky = np.take_along_axis(saved["scores"] + (0 if bias is None else bias), indices, axis=1)
    if cfg.norm_topk_prob:
        leaky = leaky / leaky.sum(axis=1, keepdims=True)
    return (indices, leaky * cfg.routed_scaling_factor), saved


ROUTER, NORM, ROTATE = reference.router.forward, reference.norm.forward, reference.rope.rotate
SCALE, EXPERTS = pytorch.rope.softmax_scale, pytorch.moe.Experts.forward
LOSS_BACKWARD = reference.loss.backward

WRONG = {
    "the bias leaks into the weights": ("router", reference.router, "forward", biased_weights),
    "eps is ten times too large": (
        "norm", reference.norm, "forward", lambda x, w, eps: NORM(x, w, 10 * eps)),
    "a float32 hides in the float64 path": (
        "norm", reference.norm, "forward",
        lambda x, w, eps: NORM(x, w.astype("f4").astype(x.dtype), eps)),
    "pairs turn backwards": (
        "rotation", reference.rope, "rotate", lambda x, cos, sin, i=True: ROTATE(x, cos, -sin, i)),
    "pairs are two halves": (
        "MLA", reference.rope, "rotate",
        lambda x, cos, sin, i=True, out=None: ROTATE(x, cos, sin, False, out)),
    "the softmax scale is off by a part in ten thousand": (
        "MLA", pytorch.rope, "softmax_scale", lambda cfg: 1.0001 * SCALE(cfg)),
    "the first choice counts twice": (
        "experts", pytorch.moe.Experts, "forward",
        lambda self, x, i, w: EXPERTS(self, x, i, w) + EXPERTS(self, x, i[:, :1], w[:, :1])),
    "gradients turn the way that states do": (
        "all gradients", reference.rope, "backward", ROTATE),
    "a gradient is the sum over targets and not their mean": (
        "all gradients", reference.loss, "backward",
        lambda dloss, saved: LOSS_BACKWARD(dloss, saved | {"count": 1})),
}  # fmt: skip


@pytest.mark.parametrize("mistake", WRONG)
def test_a_planted_error_breaks_it(mistake, monkeypatch):
    name, module, function, wrong = WRONG[mistake]
    monkeypatch.setattr(module, function, wrong)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    rows = proof.run(8, seed=1, parts=[part(name)])
    broken = {row.compared for row in rows if row.state == "broken" and row.precision == "float64"}
    side = "reference" if module.__name__.startswith("minik2.reference") else "PyTorch"
    # The two comparisons that the wrong side takes part in, and not the third.
    assert broken == {c for c in ("PyTorch, reference", "reference, transformers",
                                  "PyTorch, transformers") if side in c.split(", ")}  # fmt: skip


def test_a_planted_error_fails_the_command_and_says_how_to_repeat_it(monkeypatch, capsys):
    monkeypatch.setattr(proof, "PARTS", [part("norm")])
    monkeypatch.setattr(proof.run, "__defaults__", ([part("norm")],))
    monkeypatch.setattr(reference.norm, "forward", lambda x, w, eps: NORM(x, w, 2 * eps))
    assert proof.main(["--configurations", "2"]) == 1
    out, err = capsys.readouterr()
    assert "**broken:**" in out
    assert "Broken: norm" in err and "seed=" in err and "hidden_size=" in err


def test_a_part_that_one_side_lacks_has_no_row_and_a_dash(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    norm = part("norm")
    ours = dataclasses.replace(
        norm, name="ours", runs={name: norm.runs[name] for name in ("reference", "pytorch")})
    rows = proof.run(2, 0, [norm, ours])
    assert {row.compared for row in rows if row.part == "ours"} == {
        "PyTorch, reference", "PyTorch on a GPU, reference"}  # fmt: skip
    (first, *_) = [line for line in proof.table(rows, 2, 0, machine.stamp()).splitlines()
                   if line.startswith("| ours |")]  # fmt: skip
    assert first.count("| – |") == 1 and first.endswith("| – | open |")


@pytest.mark.parametrize("got", [np.nan, np.inf])
def test_what_is_not_finite_never_passes(got):
    error = question.relative_error(np.array([1.0, got]), np.array([1.0, 2.0]))
    row = proof.Row("norm", "a, b", "float64")
    row.add(1e-17, 1e-15, None)
    row.add(error, 1e-15, None)
    assert row.state == "broken"
    row.add(1e-17, 1e-15, None)
    assert row.state == "broken", "a later success mends nothing"


def test_configurations_are_drawn_again_from_the_same_seed():
    first = proof.draw(12, 5)
    assert first == proof.draw(12, 5) != proof.draw(12, 6)
    assert len({repr(case.cfg) for case in first}) > 8
    assert {case.cfg.scoring_func for case in proof.draw(40, 0)} == {"sigmoid", "softmax"}


def routed(**changes):
    return ModelConfig.preset("tiny").replace(**changes)


def test_the_margin_is_between_the_last_chosen_and_the_first_left():
    cfg = routed(n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1)
    scores = np.array([[0.9, 0.1, 0.5, 0.2], [0.1, 0.2, 0.9, 0.8]])
    assert question.margin(scores, cfg) == pytest.approx(0.3)
    assert question.margin(scores, cfg.replace(num_experts_per_tok=4)) == np.inf
    grouped = cfg.replace(n_group=2, topk_group=1)
    # Groups are worth 1.0 and 0.7 for the first token, 0.3 and 1.7 for the second.
    assert question.margin(scores, grouped) == pytest.approx(0.3)
    # One of the kept group's two experts: 0.9 against 0.1, and 0.9 against 0.8.
    assert question.margin(scores, grouped.replace(num_experts_per_tok=1)) == pytest.approx(0.1)


def test_a_near_tie_is_left_out_rather_than_called_wrong():
    case = proof.draw(1, 0)[0]
    cfg = routed(hidden_size=16, num_attention_heads=2, n_routed_experts=4, num_experts_per_tok=1,
                 n_group=1, topk_group=1, first_k_dense_replace=0, rms_norm_eps=1e-6)
    with theirs.ask(proof.Case(cfg, (1, 8), case.seed), "float32") as asked:
        model = asked._moved[0][0]
        assert 0 < asked.leeway(part("whole model")) < np.inf
        assert asked.leeway(part("experts")) == np.inf
        # Two experts that are the same: every token that wants one of them stands at a tie.
        for moved, _ in asked._moved:
            moved.layers[-1]["mlp"]["gate.weight"][:] = moved.layers[-1]["mlp"]["gate.weight"][0]
            moved.layers[-1]["mlp"]["gate.e_score_correction_bias"][:] = 0
        assert np.isfinite(model.weights["lm_head.weight"]).all()
        row = proof.Row("router", "PyTorch, reference", "float32")
        comparison = next(c for c in CPU_COMPARISONS if c.precision == "float32")
        proof.compare(asked, part("router"), comparison, row, case)
        assert (row.left_out, row.configurations) == (1, 0)


def test_records_are_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "a.json"
    records.write_json(path, {"µ": 1})
    assert json.loads(path.read_text(encoding="utf-8")) == {"µ": 1}
    with pytest.raises(TypeError):
        records.write_json(path, {"x": object()})
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]
    assert json.loads(path.read_text(encoding="utf-8")) == {"µ": 1}


@pytest.mark.parametrize("text", ["", "<!-- t:begin -->", "<!-- t:end --> <!-- t:begin -->",
                                  "<!-- t:begin --><!-- t:begin --><!-- t:end -->",
                                  "<!-- t:begin --><!-- t:end --><!-- t:end -->"])
def test_a_document_without_its_marks_is_left_alone(tmp_path, text):
    path = tmp_path / "a.md"
    path.write_text(text)
    with pytest.raises(ValueError, match="must have one"):
        records.fill(path, "t", "new")
    assert path.read_text() == text
