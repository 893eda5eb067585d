"""The two engines as the trainer sees them: alike up to rounding, and whole after saving.

How far apart rounding alone puts two runs is measured, not guessed: by a run that begins with
weights one rounding away.
"""

import numpy as np
import pytest
import torch

from minik2.training import Habits, engines, metrics, train
from minik2.training.settings import OPTIMIZERS
from tests.training.runs import CFG, bits, settings, text

BOTH = pytest.mark.parametrize("engine", ["reference", "pytorch"])
# Float32: sums of up to some hundred terms, in another order.
CLOSE = {"rtol": 2e-5, "atol": 1e-7}


def make(saved=None, device="cpu", **changes):
    recipe = settings(**changes)
    return engines.make(CFG, recipe, device, saved)


def batches(count, rows=2, seed=0):
    rng = np.random.default_rng(seed)
    return [text().sample("train", rows, 12, rng) for _ in range(count)]


def step(engine, share=1.0, seed=0):
    engine.gradients(batches(2, seed=seed))
    return engine.update(share)


def copies(arrays):
    return {name: np.array(array) for name, array in arrays.items()}


def differs(before, after):
    return {name for name in before if not np.array_equal(before[name], after[name])}


def losses(out, recipe):
    train(CFG, recipe, text(), out, Habits(evaluate_every=4))
    lines = metrics.read(out)
    step_losses = [entry["loss"] for entry in lines if entry["kind"] == "step"]
    held_out = [entry["held_out"] for entry in lines if entry["kind"] == "evaluation"]
    return np.array(step_losses + held_out)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_both_engines_see_the_same_losses(tmp_path, monkeypatch, optimizer):
    # A bias that moves by a sign, and a choice of experts, may each turn over one rounding: with a
    # bias left alone and few steps neither does.
    recipe = {"optimizer": optimizer, "steps": 8, "bias_speed": 0.0, "rate": 0.003}
    ours = losses(tmp_path / "reference", settings(engine="reference", **recipe))
    assert ours[7] < ours[0] - 0.01  # it learns
    with monkeypatch.context() as patch:
        in_float32(patch)
        theirs = losses(tmp_path / "pytorch", settings(engine="pytorch", **recipe))
    one_rounding_away(monkeypatch)
    rounding = losses(tmp_path / "rounded", settings(engine="reference", **recipe))
    apart = np.abs(rounding - ours).max()
    assert apart < 1e-6  # a measure worth having
    # torch's loss is a float32: whatever the weights, it may be off by a last place or two.
    own = 2 * np.spacing(ours.astype(np.float32))
    assert (np.abs(theirs - ours) <= own + 16 * apart).all()


def in_float32(monkeypatch):
    """Muon iterates in bfloat16 where torch finds that fast, and the reference in float32."""

    def change(engine):
        for group in engine.optimizer.param_groups:
            if "iteration_dtype" in group:
                group["iteration_dtype"] = torch.float32

    changed(monkeypatch, change)


def one_rounding_away(monkeypatch):
    """Every weight moved to one of its neighbours."""

    def change(engine):
        rng = np.random.default_rng(1)
        for array in engine.weights().values():
            array *= 1 + rng.choice([-1, 1], array.shape).astype(np.float32) * 2.0**-23

    changed(monkeypatch, change)


def changed(monkeypatch, change):
    make_ = engines.make

    def made(*arguments):
        engine = make_(*arguments)
        change(engine)
        return engine

    monkeypatch.setattr(engines, "make", made)


@BOTH
def test_gradients_of_batches_are_averaged(engine):
    found = make(engine=engine)
    together = batches(1, rows=8)[0]
    apart = [(together[0][own], together[1][own]) for own in np.split(np.arange(8), 4)]
    loss = found.gradients([together])
    norm, grads, maxima, loads = found.norm(), gradients(found), *found.seen()[:2]
    maxima, loads = maxima.copy(), loads.copy()
    assert found.gradients(apart) == pytest.approx(loss, rel=2e-6)
    assert found.norm() == pytest.approx(norm, rel=2e-5)
    top = max(np.abs(grad).max() for grad in grads.values())
    for name, grad in gradients(found).items():
        np.testing.assert_allclose(grad, grads[name], rtol=2e-4, atol=2e-6 * top, err_msg=name)
    np.testing.assert_allclose(found.seen()[0], maxima, **CLOSE)
    assert np.array_equal(found.seen()[1], loads)
    assert loads[1:].sum(axis=1).tolist() == [8 * 12 * 2] * 2 and not loads[0].any()


def gradients(found):
    if hasattr(found, "grads"):
        return copies(found.grads)
    return copies({name: grad.numpy() for name, grad in found._grads().items()})


@BOTH
def test_the_length_is_that_of_all_numbers_and_is_really_cut(engine):
    found = make(engine=engine)
    found.gradients(batches(2))
    every = np.concatenate([grad.ravel() for grad in gradients(found).values()]).astype(np.float64)
    assert found.norm() == pytest.approx(np.linalg.norm(every), rel=1e-5)
    found.shorten(0.25)
    cut = np.concatenate([grad.ravel() for grad in gradients(found).values()])
    np.testing.assert_array_equal(cut, every.astype(np.float32) * np.float32(0.25))


@BOTH
def test_clipping_shortens_long_gradients_alone(tmp_path, monkeypatch, engine):
    lengths = []
    make_ = engines.make

    def watched(*arguments):
        found = make_(*arguments)
        update = found.update
        found.update = lambda share: (lengths.append(found.norm()), update(share))[1]
        return found

    monkeypatch.setattr(engines, "make", watched)
    recipe = settings(engine=engine, clip_norm=2.2)
    train(CFG, recipe, text(), tmp_path)
    before = [entry["norm"] for entry in metrics.read(tmp_path) if entry["kind"] == "step"]
    assert min(before) < 2.2 < max(before), before  # both kinds are there
    assert lengths == pytest.approx(np.minimum(before, 2.2), rel=1e-5)


@BOTH
def test_biases_move_by_the_loads_or_rest(tmp_path, engine):
    found = make(engine=engine)
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    found.gradients(batches(2))
    assert not found.weights()[name].any()
    found.balance()
    loads = found.seen()[1][1]
    wanted = 0.01 * np.sign(loads.mean() - loads)
    np.testing.assert_allclose(found.weights()[name], wanted, rtol=1e-6)
    others = differs(copies(make(engine=engine).weights()), copies(found.weights()))
    assert others == {name, name.replace("1", "2")}


@BOTH
def test_biases_are_switched_off(tmp_path, engine):
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    ends = {}
    for key, changes in {"never": {"bias_speed": 0.0}, "until 3": {"bias_until": 0.5},
                         "always": {"bias_until": 1.0}}.items():  # fmt: skip
        out = tmp_path / key
        moved, before = [], None
        recipe = settings(engine=engine, **changes)
        with pytest.MonkeyPatch.context() as patch:
            make_ = engines.make
            held = []
            patch.setattr(engines, "make", lambda *a, m=make_, h=held: h.append(m(*a)) or h[0])

            def tell(kind, facts, held=held, moved=moved):
                if kind == "step":
                    moved.append(held[0].weights()[name].copy())

            train(CFG, recipe, text(), out, tell=tell)
        before = np.zeros(8, np.float32)
        ends[key] = []
        for now in moved:
            ends[key].append(bool((now != before).any()))
            before = now
    assert ends["never"] == [False] * 6
    assert ends["until 3"] == [True] * 3 + [False] * 3
    assert ends["always"] == [True] * 6


@BOTH
def test_the_balance_loss_reaches_the_router(engine):
    found = [make(engine=engine, balance_alpha=alpha) for alpha in (0.0, 0.1)]
    for one in found:
        one.gradients(batches(2))
    moved = differs(*map(gradients, found))
    assert {f"model.layers.{n}.mlp.gate.weight" for n in (1, 2)} <= moved
    # The loss tells what the text costs, with or without.
    plain, weighed = (one.gradients(batches(2)) for one in found)
    assert weighed == pytest.approx(plain + 0.1 * 2, abs=0.1)  # two layers, about 1 each


@BOTH
@pytest.mark.parametrize("optimizer", ["muonclip", "muon"])
def test_the_share_of_the_rate_reaches_both_optimizers(engine, optimizer):
    given = {"engine": engine, "optimizer": optimizer, "rate": 0.02, "adamw_rate": 0.004,
             "tau": 1e9, "weight_decay": 0.0}  # fmt: skip
    sizes = {}
    for share in (1.0, 0.25):
        found = make(**given)
        before = copies(found.weights())
        step(found, share)
        sizes[share] = {n: np.abs(a - before[n]).max() for n, a in copies(found.weights()).items()}
    # AdamW's first step is its rate, whatever the gradient.
    for name in ("lm_head.weight", "model.norm.weight"):
        assert sizes[1.0][name] == pytest.approx(0.004, rel=1e-2)
        assert sizes[0.25][name] == pytest.approx(0.001, rel=1e-2)
    # Muon's is an orthogonal matrix, 0.2 sqrt(32) and about 1 to each singular value, times its.
    name = "model.layers.0.self_attn.q_a_proj.weight"
    assert sizes[1.0][name] / sizes[0.25][name] == pytest.approx(4, rel=1e-3)
    found = make(**given)
    before = copies(found.weights())[name]
    step(found)
    spectrum = np.linalg.svd(copies(found.weights())[name] - before, compute_uv=False)
    assert spectrum.min() / (0.02 * 0.2 * 32**0.5) > 0.6
    assert spectrum.max() / (0.02 * 0.2 * 32**0.5) < 1.3
    # Without a rate of its own AdamW has Muon's.
    found = make(**given | {"adamw_rate": None})
    before = copies(found.weights())["lm_head.weight"]
    step(found)
    moved = np.abs(copies(found.weights())["lm_head.weight"] - before).max()
    assert moved == pytest.approx(0.02, rel=1e-2)


@BOTH
def test_adamw_alone_has_the_rate(engine):
    found = make(engine=engine, optimizer="adamw", rate=0.02, weight_decay=0.0)
    before = copies(found.weights())
    step(found, 0.5)
    for name, array in copies(found.weights()).items():
        if "bias" not in name and "experts" not in name:
            assert np.abs(array - before[name]).max() == pytest.approx(0.01, rel=1e-2), name


@BOTH
def test_only_muonclip_clips(engine):
    found = {name: make(engine=engine, optimizer=name) for name in OPTIMIZERS}
    gammas = {name: step(one) for name, one in found.items()}
    assert gammas["muon"] is None and gammas["adamw"] is None
    tops = found["muonclip"].seen()[0]
    np.testing.assert_allclose(gammas["muonclip"], np.minimum(1, 0.02 / tops), rtol=1e-6)
    assert (gammas["muonclip"] < 1).any()
    moved = differs(copies(found["muon"].weights()), copies(found["muonclip"].weights()))
    assert moved and all(n.endswith(("q_b_proj.weight", "kv_b_proj.weight")) for n in moved)


@BOTH
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_is_saved_makes_the_same_engine(tmp_path, engine, optimizer):
    recipe = settings(engine=engine, optimizer=optimizer, steps=3)
    outcome = train(CFG, recipe, text(), tmp_path)
    state = copies_of_saved(outcome.checkpoint / "optimizer.safetensors")
    saved = str(outcome.checkpoint / "model"), state
    again = engines.make(CFG, recipe, "cpu", saved)
    assert not differs(state, again.optimizer_state())
    assert again.optimizer_state().keys() == state.keys()
    trained = {name for name in CFG.tensor_shapes() if "bias" not in name}
    kinds = {key.rpartition("/")[2] for key in state}
    if engine == "reference":  # there, optimizers know the checkpoint's names
        assert {key.rpartition("/")[0] for key in state} == trained
    assert {"momentum_buffer"} <= kinds if optimizer != "adamw" else len(kinds) == 3
    # And two of them make the same next step, to the bit, from memory of their own.
    other = engines.make(CFG, recipe, "cpu", (saved[0], {k: a.copy() for k, a in state.items()}))
    before = copies(other.weights())
    step(again, seed=5)
    assert not differs(before, copies(other.weights()))
    step(other, seed=5)
    assert not differs(copies(again.weights()), copies(other.weights()))
    assert not differs(again.optimizer_state(), other.optimizer_state())
    assert differs(before, copies(other.weights()))


def copies_of_saved(path):
    import safetensors.numpy

    return safetensors.numpy.load_file(path)


@BOTH
def test_one_more_recipe_gives_other_bits(tmp_path, engine):
    """The hashes that other tests compare do tell runs apart."""
    train(CFG, settings(engine=engine), text(), tmp_path / "a")
    train(CFG, settings(engine=engine, seed=4), text(), tmp_path / "b")
    a, b = bits(tmp_path / "a"), bits(tmp_path / "b")
    assert {key for key in a if a[key] == b[key]} <= {"model", "model/config.json", "step"}
