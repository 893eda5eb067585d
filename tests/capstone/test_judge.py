"""The judge: what is timed, what is not, what a trial says, and what becomes of bad entries."""

import re
import signal
import time

import numpy as np
import pytest

from minik2.capstone import entry, held_out, results
from minik2.capstone.board import boards, table
from minik2.capstone.entry import EntryError
from minik2.capstone.judge import judge
from minik2.capstone.run import NotFinite, Run
from tests.capstone import texts


@pytest.fixture(scope="module")
def corpus():
    return texts.corpus()


@pytest.fixture
def file(tmp_path):
    """file("text") -> the path of an entry with this text."""

    def write(text, name="mine.py"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_time_is_a_share_that_runs_out(corpus):
    told = []
    run = Run(corpus, 0, 1, 4.0, texts.ticking(0.5), lambda *what: told.append(what))
    shares = []
    for gone in run.steps():
        shares.append(gone)
        run.note(2.0 - gone)
    # A look at the clock begins a step and another one tells of it.
    assert shares == [0.125, 0.375, 0.625, 0.875] and run.made == 4
    assert [what for what, _ in told] == ["step"] * 4
    assert told[-1][1] == {"seconds": 4.0, "made": 4, "loss": 2.0 - 0.875}


def test_a_run_gives_training_text_alone_and_counts_it(corpus):
    run = Run(corpus, 5, 1, 1.0, time.perf_counter)
    assert run.text is corpus.bytes["train"]
    tokens, targets = run.batch(3, 50)
    again, _ = Run(corpus, 5, 1, 1.0, time.perf_counter).batch(3, 50)
    assert tokens.shape == (3, 50) and (tokens[:, 1:] == targets[:, :-1]).all()
    assert (tokens == again).all() and run.tokens == 150
    text = run.text.tobytes()
    assert all(bytes(row.astype(np.uint8)) in text for row in tokens)


def test_a_trial(file, corpus):
    told = []
    path = file(texts.learns(0.01))
    trial, ran = judge(path, corpus, 0.5, 3, tell=lambda *what: told.append(what),
                       clock=texts.ticking(0.5))  # fmt: skip
    assert (trial["entry"], trial["title"]) == ("mine", "A tiny reference model.")
    assert (trial["seed"], trial["minutes"], trial["threads"]) == (3, 0.5, 1)
    assert trial["device"] == "cpu" and trial["parameters"] > trial["active"] > 0
    # 30 seconds, two looks of half a second a step.
    assert trial["steps"] == 30 and trial["tokens"] == 30 * 4 * 32
    assert 30 <= trial["seconds"] <= 31 and trial["cpu_seconds"] > 0
    assert trial["nats"] < 3.5  # 5.5 before training
    assert ran.text == path.read_text() and len(trial["source"]) == 16
    kinds = list(dict.fromkeys(what for what, _ in told))
    assert kinds == ["rehearsal", "step", "evaluation"]
    assert [facts["made"] for what, facts in told if what == "step"] == list(range(1, 31))
    assert trial.keys() == results.FIELDS.keys()


def test_the_same_seed_and_as_many_steps_give_the_same_loss(file, corpus):
    path = file(texts.learns(0.01))
    found = [judge(path, corpus, 0.05, seed, clock=texts.ticking(0.5))[0] for seed in (1, 1, 2)]
    assert found[0]["nats"] == found[1]["nats"] != found[2]["nats"]


def test_rehearsal_and_evaluation_are_not_timed(file, corpus, monkeypatch):
    path = file(texts.learns(0.01))
    quick = held_out.nats_a_byte

    def slow(*arguments):
        time.sleep(0.4)
        return quick(*arguments)

    monkeypatch.setattr(held_out, "nats_a_byte", slow)
    start = time.perf_counter()
    trial, _ = judge(path, corpus, 0.2 / 60)
    assert time.perf_counter() - start > 1.0
    assert 0.2 <= trial["seconds"] < 0.7


def test_two_entries_are_ranked_by_what_they_learned(file, corpus, tmp_path):
    path = tmp_path / "results.json"
    for name, rate in (("baseline", 0.001), ("quicker", 0.01)):
        source = file(texts.learns(rate), f"{name}.py")
        for seed in (0, 1):
            trial, _ = judge(source, corpus, 0.25, seed, clock=texts.ticking(0.5))
            results.add(path, [trial])
    ((said, rows),) = boards(results.read(path)).items()
    assert said.startswith("0.25 minutes, 1 thread, cpu, ")
    assert [row.entry for row in rows] == ["quicker", "baseline"]
    assert rows[0].seeds == (0, 1) and max(rows[0].against) < 0 and rows[1].against == (0, 0)
    assert re.search(r"^quicker\*? .* 2 of 2 ", table(rows), re.M)


BAD = {
    "no Python": ("def train(run:\n", r"mine\.py, line 1, is not Python: '\(' was never closed"),
    "a zero byte": ("x = '\0'\n", r"mine\.py.* is not Python: .*null bytes"),
    "no train": ("x = 1\n", "has no function `train`; define `train"),
    "train is no function": ("train = 3\n", "has no function `train`"),
    "a mistake outside": ("import numpy\nnumpy.nothing\n",
                          r"line 2, `numpy\.nothing`: AttributeError: .*nothing"),
    "no parameter": ("def train():\n    pass\n",
                     "failed when it was called, before its first line: TypeError: train"),
    "a mistake inside": (texts.body("x = 1\nreturn x / 0"),
                         r"line 3, `return x / 0`: ZeroDivisionError: division by zero"),
    "a mistake in our code": (texts.body("run.batch(2, 10**9)"),
                              r"line 2, `run\.batch\(2, 10\*\*9\)`: ValueError: The train text"),
    "nothing returned": (texts.body("for gone in run.steps():\n    run.batch(1, 8)"),
                         "`train` returned nothing; the judge takes"),
    "no model": (texts.body("return 5"), "`train` returned a int; the judge takes"),
    "no step": (texts.body("""
        from minik2 import ModelConfig, reference
        return reference.Model.init(ModelConfig.preset("tiny"))"""), "made no step"),
    "few positions": (texts.body("""
        from minik2 import ModelConfig, reference
        cfg = ModelConfig.preset("tiny").replace(max_position_embeddings=128, rope_scaling=None)
        return reference.Model.init(cfg)"""), "has 128 positions, and the judge asks with windows"),
    "few tokens": (texts.body("""
        from minik2 import ModelConfig, reference
        cfg = ModelConfig.preset("tiny").replace(vocab_size=100)
        return reference.Model.init(cfg)"""), "knows 100 tokens, and the text is bytes"),
    "the loss is no number": (texts.body("for gone in run.steps():\n    run.note(float('nan'))"),
                              r"line 3, `run\.note\(.*NotFinite: The loss of step 1 is nan"),
    "the model is no number": (texts.body("""
        from minik2 import ModelConfig, reference
        model = reference.Model.init(ModelConfig.preset("tiny"))
        for gone in run.steps():
            model.weights["lm_head.weight"][:] = float("nan")
        return model"""), "held-out loss is no finite number"),
    "the end of the process": (texts.body("raise SystemExit(0)"),
                               r"line 2, `raise SystemExit\(0\)` ended the whole process"),
    "text that steers a terminal": (texts.body("raise ValueError('\\x1b[2J')"),
                                    "ValueError: \ufffd\\[2J"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_entry_is_a_sentence_with_its_own_line(file, corpus, name):
    text, sentence = BAD[name]
    with pytest.raises(EntryError, match=sentence) as said:
        judge(file(text), corpus, 0.01)
    assert "\x1b" not in str(said.value)


def test_an_entry_is_a_python_file_that_is_there(file, tmp_path):
    with pytest.raises(EntryError, match=r"does not end in \.py; capstone/my_entry\.py is there"):
        entry.load(file("", "mine.ipynb"))
    with pytest.raises(OSError, match=r"gone\.py cannot be read: No such file"):
        entry.load(tmp_path / "gone.py")
    path = tmp_path / "latin.py"
    path.write_bytes("# é".encode("latin-1"))
    with pytest.raises(EntryError, match="is no text: byte 2 is not UTF-8"):
        entry.load(path)


def test_what_stands_under_main_rests_and_a_digest_is_of_the_text(file):
    one = entry.load(file('def train(run): ...\nif __name__ == "__main__":\n    1 / 0\n'))
    other = entry.load(file("def train(run): ...\n"))
    assert one.digest != other.digest and one.title == ""


def test_comments_and_empty_lines_make_no_other_entry():
    code = "def train(run):\n    return 1\n"
    told = "# What happened: nothing.\n\ndef train(run):\n    # At last:\n    return 1"
    assert entry.digest_of(code) == entry.digest_of(told) != entry.digest_of(code + "x = 1\n")


def test_what_an_entry_prints_is_kept_out_of_the_output(file, corpus, capsys):
    judge(file("print('hello')\n" + texts.learns(0.01)), corpus, 0.02, clock=texts.ticking(0.5))
    said = capsys.readouterr()
    assert said.out == "" and "hello" in said.err


@pytest.fixture
def interruptible():
    """Ctrl-C as in a terminal; a test run in the background may have it switched off."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_entry_that_never_ends_is_ended(file, corpus, monkeypatch, interruptible):
    monkeypatch.setitem(judge.__globals__, "REHEARSAL", 0.3)
    with pytest.raises(EntryError, match=r"was stopped after 0 s, because it goes on"):
        judge(file(texts.body("while True:\n    pass")), corpus, 0.01)


def test_an_entry_that_comes_back_late_has_no_score(file, corpus):
    late = texts.learns(0.01).replace("return model", "\n".join(
        ["[run.used() for _ in range(20)]", "    return model"]))  # fmt: skip
    with pytest.raises(EntryError, match=r"came back after 1\d s of the 6 s that it had"):
        judge(file(late), corpus, 0.1, clock=texts.ticking(0.5))


def test_ctrl_c_stays_ctrl_c(file, corpus):
    with pytest.raises(KeyboardInterrupt):
        judge(file(texts.body("raise KeyboardInterrupt")), corpus, 0.01)


@pytest.mark.parametrize(("settings", "sentence"), [
    ({"minutes": 0.0}, "minutes must be a number above 0, not 0.0"),
    ({"minutes": float("nan")}, "minutes must be a number above 0"),
    ({"seed": -1}, "seed must be a whole number, 0 up, not -1"),
    ({"threads": 0}, "threads must be a whole number, 1 up, not 0"),
])  # fmt: skip
def test_settings_that_make_no_sense(file, corpus, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        judge(file(texts.learns(0.01)), corpus, **settings)


def test_a_loss_that_is_no_number_is_named_with_its_step(corpus):
    run = Run(corpus, 0, 1, 1.0, time.perf_counter)
    with pytest.raises(NotFinite, match="The loss of step 1 is inf"):
        run.note(float("inf"))
