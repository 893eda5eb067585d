"""The fixed question: which bytes, and that the answer is the model's own loss over them."""

import numpy as np
import pytest
import torch

from minik2 import ModelConfig, pytorch, reference
from minik2.capstone import held_out
from minik2.training.corpus import Corpus
from tests.capstone import texts

CONFIG = ModelConfig.preset("tiny")


def test_every_held_out_byte_is_asked_for_once_and_none_of_the_training_text():
    corpus = texts.corpus()
    text = corpus.bytes["validation"]
    tokens, targets = held_out.windows(corpus)
    count = (len(text) - 1) // held_out.WINDOW
    assert tokens.shape == targets.shape == (count, held_out.WINDOW) and count > 1
    assert tokens.flatten().tolist() == text[: tokens.size].tolist()
    assert targets.flatten().tolist() == text[1 : tokens.size + 1].tolist()
    assert not set(corpus.files["train"]) & set(corpus.files["validation"])


def test_of_a_long_text_the_windows_are_evenly_spread_and_the_same_each_time():
    corpus = Corpus([(f"{n}.py", bytes(np.random.default_rng(n).integers(1, 256, 9000, np.uint8)))
                     for n in range(40)])  # fmt: skip
    all_of_them, some = held_out.windows(corpus)[0], held_out.windows(corpus, 7)[0]
    places = [int(np.flatnonzero((all_of_them == window).all(1))[0]) for window in some]
    gaps = np.diff(places)
    assert len(places) == 7 and gaps.max() - gaps.min() <= 1
    assert (held_out.windows(corpus, 7)[0] == some).all()


@pytest.mark.parametrize("engine", [reference, pytorch])
def test_the_judge_finds_the_models_own_loss(engine):
    model = engine.Model.init(CONFIG, seed=3)
    tokens, targets = held_out.windows(texts.corpus())
    tokens, targets = tokens[:5], targets[:5]
    seen = []
    found = held_out.nats_a_byte(model, tokens, targets, lambda *done: seen.append(done))
    with torch.no_grad():
        own = float(model.loss(tokens, targets))
    assert found == pytest.approx(own, abs=2e-6)
    assert seen == [(5, 5)]


def test_batches_of_windows_count_alike(monkeypatch):
    model = pytorch.Model.init(CONFIG, seed=3, dtype=torch.float64)
    tokens, targets = held_out.windows(texts.corpus())
    want = model.loss(tokens[:5], targets[:5]).item()
    monkeypatch.setattr(held_out, "AT_ONCE", 2)
    found = held_out.nats_a_byte(model, tokens[:5], targets[:5])
    assert found == pytest.approx(want, abs=1e-12)


def test_large_logits_overflow_nothing():
    def sure(tokens):
        logits = np.zeros((*tokens.shape, 256))
        logits[..., 7] = 1e5
        return logits

    tokens = np.zeros((1, 4), np.int64)
    assert held_out.nats_a_byte(sure, tokens, tokens + 7) == 0.0
    assert held_out.nats_a_byte(sure, tokens, tokens) == 1e5


def test_no_number_and_another_shape_are_sentences():
    tokens = np.zeros((1, 4), np.int64)
    with pytest.raises(ValueError, match="is no finite number: training went astray"):
        held_out.nats_a_byte(lambda t: np.full((*t.shape, 256), np.nan), tokens, tokens)
    with pytest.raises(ValueError, match=r"logits of the shape \(1, 4, 10\)"):
        held_out.nats_a_byte(lambda t: np.zeros((*t.shape, 10)), tokens, tokens)


def test_a_text_too_short_is_a_sentence():
    with pytest.raises(ValueError, match="has 21 bytes, fewer than the 257"):
        held_out.windows(Corpus([("a.py", b"x" * 400)]))


def test_a_text_is_known_by_its_bytes():
    one, other = texts.corpus(), Corpus([*texts.FILES, ("more.py", b"x = 1\n")])
    assert held_out.digest(one) == held_out.digest(texts.corpus())
    assert held_out.digest(one) != held_out.digest(other)
