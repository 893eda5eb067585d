"""The trainer in this process: what it refuses, what ends it, what changes no bit of a run."""

import contextlib
import dataclasses
import json
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from minik2.checkpoint import open_checkpoint
from minik2.training import (
    Corpus,
    Habits,
    engines,
    identity,
    interrupt,
    metrics,
    store,
    train,
    trainer,
)
from minik2.training.trainer import Diverged
from tests.training.runs import CFG, FILES, bits, seen, settings, text, tree

# Where a weight is infinite, NumPy says so as well.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
BOTH = pytest.mark.parametrize("engine", ["reference", "pytorch"])
EVERY_STEP = Habits(save_every=1, evaluate_every=3)
EXPERT = "model.layers.1.mlp.experts.3.up_proj.weight"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The end of a run of some recipe: made once, for every test that asks."""
    made = {}

    def run(recipe):
        if recipe not in made:
            out = tmp_path_factory.mktemp("undisturbed") / "run"
            train(CFG, recipe, text(), out, Habits(evaluate_every=3))
            made[recipe] = bits(out), seen(out)
        return made[recipe]

    return run


@pytest.fixture
def change_engine(monkeypatch):
    """Have something done to the engine as soon as it is made."""

    def change(what):
        make = engines.make

        def made(*arguments):
            engine = make(*arguments)
            what(engine)
            return engine

        monkeypatch.setattr(engines, "make", made)

    return change


def told(**arguments):
    """A run, and what it told: [(kind, facts)]."""
    heard = []
    train(CFG, tell=lambda kind, facts: heard.append((kind, facts)), **arguments)
    return heard


def warnings(heard):
    return [facts["text"] for kind, facts in heard if kind == "warning"]


def stop_at(look, monkeypatch):
    """Asked to stop just before the trainer looks for the `look`th time."""

    @contextlib.contextmanager
    def stop_when_asked():
        looks = iter(range(1, 1000))
        yield lambda: next(looks) >= look

    monkeypatch.setattr(trainer, "stop_when_asked", stop_when_asked)


def part_of_a_run(out, recipe, monkeypatch, steps=3):
    """The first steps of a run, each saved."""
    with monkeypatch.context() as patch:
        stop_at(2 + steps, patch)
        outcome = train(CFG, recipe, text(), out, EVERY_STEP)
    assert (outcome.step, outcome.interrupted) == (steps, True)


# What changes no bit.


@BOTH
@pytest.mark.parametrize("look", range(1, 7))
def test_whenever_it_is_asked_to_stop_the_steps_made_are_saved(
    tmp_path, monkeypatch, undisturbed, engine, look
):
    out, recipe = tmp_path / "run", settings(engine=engine)
    with monkeypatch.context() as patch:
        stop_at(look, patch)
        outcome = train(CFG, recipe, text(), out, Habits(save_every=4, evaluate_every=3))
    assert outcome.interrupted and outcome.step == max(0, look - 2)
    assert outcome.checkpoint == (store.newest(out)[0].path if outcome.step else None)
    assert not outcome.step or store.newest(out)[0].step == outcome.step
    outcome = train(CFG, recipe, text(), out, Habits(evaluate_every=3))
    assert (outcome.step, outcome.interrupted) == (6, False)
    assert (bits(out), seen(out)) == undisturbed(recipe)


@BOTH
@pytest.mark.parametrize("habits", [
    Habits(evaluate_every=1, save_every=1, prompt="def f"),
    Habits(evaluate_every=100, save_every=2),
], ids=["often", "seldom"])  # fmt: skip
def test_looking_sampling_and_saving_change_no_bit(tmp_path, undisturbed, engine, habits):
    recipe = settings(engine=engine)
    train(CFG, recipe, text(), tmp_path, habits)
    ours, theirs = bits(tmp_path), undisturbed(recipe)[0]
    assert ours == theirs
    lines = [entry for entry in seen(tmp_path) if entry["kind"] == "step"]
    assert lines == [entry for entry in undisturbed(recipe)[1] if entry["kind"] == "step"]


def test_recomputing_changes_no_bit(tmp_path, undisturbed):
    recipe = settings(engine="pytorch")
    train(CFG, recipe, text(), tmp_path, Habits(evaluate_every=3, recompute=True))
    assert (bits(tmp_path), seen(tmp_path)) == undisturbed(recipe)


def test_a_mixed_run_rounds_and_goes_on_to_the_bit(tmp_path, undisturbed, monkeypatch):
    recipe, mixed = settings(engine="pytorch"), Habits(evaluate_every=3, mixed=True)
    train(CFG, recipe, text(), tmp_path / "whole", mixed)
    want = bits(tmp_path / "whole")
    assert want != undisturbed(recipe)[0]
    weights = open_checkpoint(store.newest(tmp_path / "whole")[0].model, CFG)
    assert weights["lm_head.weight"].dtype == np.float32
    with monkeypatch.context() as patch:
        stop_at(4, patch)
        assert train(CFG, recipe, text(), tmp_path / "cut", mixed).interrupted
    train(CFG, recipe, text(), tmp_path / "cut", mixed)
    assert bits(tmp_path / "cut") == want


@BOTH
def test_a_step_tells_every_heads_largest_logit(undisturbed, engine):
    """QK-Clip's own rule holds between what is told: γ = tau / logit, of the heads above tau."""
    recipe, kept = settings(engine=engine), 0
    for line in undisturbed(recipe)[1]:
        if line["kind"] != "step":
            continue
        logits = np.array(line["head_logits"])
        assert logits.shape == (CFG.num_hidden_layers, CFG.num_attention_heads)
        assert line["max_logit"] == logits.max(axis=1).tolist()
        above = np.argwhere(logits > recipe.tau).tolist()
        assert above == [[layer, head] for layer, head, _ in line["clipped"]]
        for layer, head, gamma in line["clipped"]:
            assert gamma == pytest.approx(recipe.tau / logits[layer, head], rel=1e-6)
        kept += logits.size - len(above)
    assert above and kept


def test_outside_the_main_thread_it_works_without_signals(tmp_path, undisturbed):
    recipe, found = settings(engine="reference"), []
    thread = threading.Thread(
        target=lambda: found.append(train(CFG, recipe, text(), tmp_path, Habits(evaluate_every=3)))
    )
    thread.start()
    thread.join()
    assert found[0].step == 6
    assert (bits(tmp_path), seen(tmp_path)) == undisturbed(recipe)


def test_a_signal_is_a_request_once_and_an_order_twice():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt), interrupt.stop_when_asked() as asked:
        assert not asked()
        signal.raise_signal(signal.SIGTERM)
        assert asked()
        signal.raise_signal(signal.SIGINT)
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


@BOTH
def test_threads_are_given_back(tmp_path, engine):
    import numba

    from minik2.reference import parallel

    before = torch.get_num_threads(), numba.get_num_threads(), parallel.thread_count()
    with engines.threads(engine, 1) as threads:
        assert threads == 1
        now = torch.get_num_threads(), numba.get_num_threads(), parallel.thread_count()
        assert now == ((before[0], 1, 1) if engine == "reference" else (1, *before[1:]))
    assert before == (torch.get_num_threads(), numba.get_num_threads(), parallel.thread_count())


def test_a_run_below_its_own_text_goes_on(tmp_path, monkeypatch):
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "run.json").write_text("{}")  # somebody's text that is called so stays
    out, recipe = tmp_path / "runs" / "one", settings(engine="reference")
    part_of_a_run(out, recipe, monkeypatch)
    whole = Corpus.from_path(tmp_path)
    assert set(whole.checksums) == {*FILES, "run.json"}


# Where a run goes on.


def test_a_finished_run_is_not_touched(tmp_path, change_engine):
    recipe = settings(engine="reference")
    first = train(CFG, recipe, text(), tmp_path)
    before = tree(tmp_path)
    change_engine(lambda engine: pytest.fail("an engine was made for nothing"))
    heard = told(settings=recipe, corpus=text(), out=tmp_path, habits=Habits(threads=1))
    assert [kind for kind, _ in heard] == ["begin"]
    assert train(CFG, recipe, text(), tmp_path) == first
    assert tree(tmp_path) == before


def test_other_circumstances_are_a_warning(tmp_path, monkeypatch):
    recipe = settings(engine="reference")
    part_of_a_run(tmp_path, recipe, monkeypatch)
    check = engines.check
    monkeypatch.setattr(
        engines, "check", lambda *given: check(*given) | {"device": "abacus", "numba": "0.1"}
    )
    heard = told(settings=recipe, corpus=text(), out=tmp_path)
    (warning,) = warnings(heard)
    assert "device cpu until now, abacus from here" in warning and ", 0.1 from here" in warning
    (line,) = [entry for entry in metrics.read(tmp_path) if entry["kind"] == "resumed"]
    assert (line["step"], line["device"], line["numba"]) == (3, "abacus", "0.1")


@pytest.mark.parametrize("damage", [
    Path.unlink,
    lambda path: path.write_text(path.read_text().replace('"kind"', '"kin', 2)),
    lambda path: path.write_bytes(path.read_bytes()[:200] + bytes(500) + b"\n"),
], ids=["gone", "lines", "zeros"])  # fmt: skip
def test_damaged_metrics_end_no_run(tmp_path, monkeypatch, undisturbed, damage):
    recipe = settings(engine="reference")
    part_of_a_run(tmp_path, recipe, monkeypatch)
    path = tmp_path / metrics.NAME
    damage(path)
    raw = path.read_bytes() if path.exists() else None
    heard = told(settings=recipe, corpus=text(), out=tmp_path, habits=Habits(evaluate_every=3))
    (warning,) = warnings(heard)
    assert metrics.NAME in warning
    assert bits(tmp_path) == undisturbed(recipe)[0]
    assert [line for line in seen(tmp_path) if line["step"] > 3] == [
        line for line in undisturbed(recipe)[1] if line["step"] > 3]  # fmt: skip
    if raw is not None:
        assert (tmp_path / f"{metrics.NAME}.damaged").read_bytes() == raw


def test_when_no_checkpoint_is_whole_every_call_refuses(tmp_path, monkeypatch):
    recipe = settings(engine="reference")
    part_of_a_run(tmp_path, recipe, monkeypatch)
    for path in (tmp_path / "checkpoints").glob("*/state.json"):
        path.unlink()
    lines = (tmp_path / metrics.NAME).read_bytes()
    for _ in range(2):  # the second call finds them set aside, and must not begin anew over them
        with pytest.raises(store.RunError, match=r"is whole: .*step-00000003.* --out"):
            train(CFG, recipe, text(), tmp_path)
    assert (tmp_path / metrics.NAME).read_bytes() == lines


def test_a_checkpoint_of_another_run_is_refused(tmp_path, monkeypatch):
    mine, other = settings(engine="reference"), settings(engine="reference", rate=0.02)
    part_of_a_run(tmp_path / "mine", mine, monkeypatch)
    part_of_a_run(tmp_path / "other", other, monkeypatch, steps=4)
    (tmp_path / "other/checkpoints/step-00000004").rename(
        tmp_path / "mine/checkpoints/step-00000004"
    )
    before = tree(tmp_path / "mine")
    with pytest.raises(store.RunError, match=r"step-00000004 is a checkpoint of another run; move"):
        train(CFG, mine, text(), tmp_path / "mine")
    assert tree(tmp_path / "mine") == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_disk_that_is_full_for_the_metrics(tmp_path, monkeypatch, undisturbed):
    recipe = settings(engine="reference")
    part_of_a_run(tmp_path, recipe, monkeypatch)
    before = tree(tmp_path / "checkpoints")
    begin = metrics.Metrics.__init__

    def full(self, *arguments):
        begin(self, *arguments)
        self.file.close()
        self.file = open("/dev/full", "a", encoding="utf-8")  # noqa: SIM115

    with monkeypatch.context() as patch:
        patch.setattr(metrics.Metrics, "__init__", full)
        with pytest.raises(OSError, match=r"metrics\.jsonl could not be written \(No space left"):
            train(CFG, recipe, text(), tmp_path, EVERY_STEP)
    assert tree(tmp_path / "checkpoints") == before
    train(CFG, recipe, text(), tmp_path, EVERY_STEP)
    assert (bits(tmp_path), seen(tmp_path)) == undisturbed(recipe)


# What is refused, and nothing changed.


CHANGED = {
    "config": (CFG.replace(rms_norm_eps=1e-5), {}, FILES, "config rms_norm_eps: 1e-06 in the run"),
    "settings": (CFG, {"tau": 5.0}, FILES, "settings tau: 0.02 in the run, 5.0 now"),
    "text": (CFG, {}, FILES | {"file3.py": b"other\n" * 90}, "text, changed: file3.py"),
}


@pytest.mark.parametrize("what", CHANGED)
def test_another_recipe_changes_nothing(tmp_path, monkeypatch, what):
    part_of_a_run(tmp_path, settings(engine="reference"), monkeypatch)
    before = tree(tmp_path)
    cfg, changes, files, line = CHANGED[what]
    with pytest.raises(store.RunError) as caught:
        train(cfg, settings(engine="reference", **changes), Corpus(files.items()), tmp_path)
    assert line in str(caught.value)
    assert tree(tmp_path) == before


REFUSED = {
    "window": ({"window": 65}, {}, "A window of 65 tokens is longer than the model's 64 positions"),
    "vocabulary": ({"cfg": CFG.replace(vocab_size=255)}, {}, "this model's vocabulary has 255"),
    "text": ({"corpus": Corpus([("a", b"ab" * 5), ("b", b"b" * 90)])}, {}, "too few for windows"),
    "reference on a GPU": ({"engine": "reference"}, {"device": "cuda"}, "computes on the CPU"),
    "reference, recomputing": ({"engine": "reference"}, {"recompute": True}, "--engine pytorch"),
    "reference, mixed": ({"engine": "reference"}, {"mixed": True}, "--engine pytorch"),
    "no GPU": ({"engine": "pytorch"}, {"device": "cuda:63"}, "cannot use 'cuda:63'"),
    "no device": ({"engine": "pytorch"}, {"device": "abacus"}, "cpu or cuda"),
    "another device": ({"engine": "pytorch"}, {"device": "meta"}, "cpu or cuda"),
    "threads": ({"engine": "pytorch"}, {"threads": 10_000}, "10000 threads were asked for"),
    "threads, reference": ({"engine": "reference"}, {"threads": 10_000}, "may use"),
    "nobody to share with": ({"engine": "pytorch"}, {"expert_ranks": 2}, "--nproc-per-node 2"),
    "batch": ({"batch": 10**7, "window": 64}, {}, "choose a smaller --batch (--accumulate"),
    "model": ({"cfg": CFG.replace(vocab_size=10**12)}, {}, "choose a smaller model"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_is_said_before_anything_is_made(tmp_path, what):
    given, habits, sentence = REFUSED[what]
    cfg, corpus = given.pop("cfg", CFG), given.pop("corpus", text())
    with pytest.raises(ValueError) as caught:
        train(cfg, settings(**given), corpus, tmp_path / "run", Habits(**habits))
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("given", "sentence"), [
    ({"threads": 0}, "threads must be a whole number, 1 up, not 0"),
    ({"save_every": 2.5}, "save_every must be a whole number, 1 up, not 2.5"),
    ({"evaluate_every": None}, "evaluate_every must be a whole number, 1 up, not None"),
    ({"save_every": True}, "save_every must be"),
    ({"prompt": ""}, "one letter"),
], ids=str)  # fmt: skip
def test_habits_that_make_no_sense(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        Habits(**given)


def a_file(folder):
    (folder / "file").write_text("")
    return folder / "file"


def a_link_to_nothing(folder):
    (folder / "link").symlink_to(folder / "nothing")
    return folder / "link"


def closed(folder):
    (folder / "closed").mkdir(mode=0o500)
    if os.access(folder / "closed", os.W_OK):
        pytest.skip("this user may write everywhere")
    return folder / "closed"


@pytest.mark.parametrize("place", [
    a_file, lambda folder: a_file(folder) / "run", a_link_to_nothing, closed,
    lambda folder: closed(folder) / "run", lambda folder: Path("/proc/self/nothing/run"),
], ids=["file", "in a file", "link", "closed", "in closed", "no place"])  # fmt: skip
def test_a_place_that_cannot_be_a_run(tmp_path, place):
    out = place(tmp_path)
    before = tree(tmp_path)
    with pytest.raises((OSError, store.RunError)) as caught:
        train(CFG, settings(), text(), out)
    assert str(out) in str(caught.value) and "name another --out" in str(caught.value)
    assert "\n" not in str(caught.value) and "Errno" not in str(caught.value)
    assert tree(tmp_path) == before


def test_who_comes_second_into_an_empty_directory_does_not_write(tmp_path, monkeypatch):
    rival = identity.of(CFG, settings(rate=0.5), text())
    check, calls = identity.check, []

    def beaten(run, mine):
        check(run, mine)
        if not calls:  # after the first look, before the lock
            run.mkdir()
            (run / identity.NAME).write_text(json.dumps(rival))
        calls.append(run)

    monkeypatch.setattr(identity, "check", beaten)
    with pytest.raises(store.RunError, match=r"settings rate: 0\.5 in the run, 0\.01 now"):
        train(CFG, settings(), text(), tmp_path / "run")
    assert identity.read(tmp_path / "run") == rival


def test_the_same_directory_twice_in_one_process(tmp_path):
    mine = identity.of(CFG, settings(), text())
    with (
        identity.held(tmp_path, mine),
        pytest.raises(store.RunError, match="Another process is training in"),
        identity.held(tmp_path, mine),
    ):
        pass
    with identity.held(tmp_path, mine):  # given back
        pass


# What ends a run: numbers that no update can be made from.


def diverges(out, recipe, step, sentence, good):
    with pytest.raises(Diverged) as caught:
        train(CFG, recipe, text(), out, EVERY_STEP)
    message = str(caught.value)
    assert f"Step {step} cannot be used" in message and sentence in message, message
    assert "\n" not in message and "--rate" in message
    saved, damaged = store.newest(out)
    assert not damaged
    if not good:
        assert saved is None and "no checkpoint was saved before it" in message
        return message
    assert saved.step == good and f"last good checkpoint is {saved.path}" in message
    source = open_checkpoint(saved.model, CFG)
    assert all(np.isfinite(source[name]).all() for name in CFG.tensor_shapes())
    assert all(np.isfinite(array).all() for array in saved.optimizer.values())
    lines = metrics.read(out)
    assert [e["step"] for e in lines if e["kind"] == "step"][:good] == list(range(1, good + 1))
    return message


@BOTH
@pytest.mark.parametrize("optimizer", ["muonclip", "adamw"])
@pytest.mark.parametrize("rate", [1e10, 1e25])
def test_a_rate_far_too_high(tmp_path, engine, optimizer, rate):
    recipe = settings(engine=engine, optimizer=optimizer, rate=rate, warmup=0, steps=30)
    with pytest.raises(Diverged) as caught:
        train(CFG, recipe, text(), tmp_path, EVERY_STEP)
    assert "cannot be used: " in str(caught.value)
    saved, _ = store.newest(tmp_path)
    if saved is not None:
        assert f"the last good checkpoint is {saved.path}" in str(caught.value)
        source = open_checkpoint(saved.model, CFG)
        assert all(np.isfinite(source[name]).all() for name in CFG.tensor_shapes())


def fill(engine, name, value):
    tensor = engine.model.weights[name]
    if isinstance(tensor, torch.Tensor):
        tensor.detach().fill_(value)
    else:
        tensor.fill(value)


def at_step(number, method, do):
    """Change an engine so that, before its `number`th call of `method`, `do` is done to it."""

    def change(engine):
        original, calls = getattr(engine, method), iter(range(1, 1000))

        def changed(*arguments):
            if next(calls) == number:
                do(engine)
            return original(*arguments)

        setattr(engine, method, changed)

    return change


@BOTH
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_no_number(tmp_path, change_engine, engine, value):
    name = "model.layers.1.self_attn.kv_b_proj.weight"
    change_engine(at_step(4, "gradients", lambda engine: fill(engine, name, value)))
    diverges(tmp_path, settings(engine=engine), 4, f"weight {name}", good=3)


@BOTH
@pytest.mark.parametrize("name", [EXPERT, "model.layers.2.mlp.gate.e_score_correction_bias"])
def test_a_bad_weight_that_no_loss_shows_is_not_saved(tmp_path, change_engine, engine, name):
    # After the step's own gradients: nothing computes with it before the save.
    change_engine(at_step(2, "memory", lambda engine: fill(engine, name, np.nan)))
    diverges(tmp_path, settings(engine=engine), 2, f"the weights after it. The first numbers that "
             f"are not finite, or too large, are in the weight {name}", good=1)  # fmt: skip


@BOTH
@pytest.mark.parametrize("value", [1e30, np.nan, np.inf])
@pytest.mark.parametrize("step", [1, 3])
def test_a_gradient_that_is_no_use(tmp_path, change_engine, engine, value, step):
    name = "model.layers.2.self_attn.q_a_proj.weight"

    def spoil(engine):
        if isinstance(engine.model.weights[name], torch.Tensor):
            engine.model.get_parameter(name).grad[0, 0] = value
        else:
            engine.grads[name][0, 0] = value

    change_engine(at_step(step, "norm", spoil))
    diverges(tmp_path, settings(engine=engine), step, f"gradient of {name}", good=step - 1)


@BOTH
@pytest.mark.parametrize("optimizer", ["muonclip", "muon", "adamw"])
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_largest_logit_that_is_no_number(tmp_path, change_engine, engine, optimizer, value):
    def spoil(engine):
        engine.watch.max_logits[1, 0] = value

    change_engine(at_step(3, "norm", spoil))
    recipe = settings(engine=engine, optimizer=optimizer)
    diverges(tmp_path, recipe, 3, "attention logits of layer 1, head 0", good=2)


@BOTH
def test_a_held_out_loss_that_is_no_number(tmp_path, change_engine, engine):
    name = "lm_head.weight"
    # Step 3 is looked at: the weight goes bad between its update and the look.
    change_engine(at_step(3, "memory", lambda engine: fill(engine, name, np.nan)))
    diverges(tmp_path, settings(engine=engine), 3, f"held-out loss nan. The first numbers that are "
             f"not finite, or too large, are in the weight {name}", good=2)  # fmt: skip


def test_a_run_that_diverged_says_so_again(tmp_path):
    recipe = dataclasses.replace(settings(engine="reference", steps=30), rate=1e25, warmup=0)
    messages = set()
    for _ in range(2):
        with pytest.raises(Diverged) as caught:
            train(CFG, recipe, text(), tmp_path, EVERY_STEP)
        messages.add(str(caught.value))
    assert len(messages) == 1
