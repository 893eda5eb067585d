"""What both engines promise beside the numbers: seeds, causality, refusals, generation."""

import numpy as np
import pytest
import torch

from minik2 import pytorch, reference
from minik2.config import ModelConfig
from minik2.pytorch.generate import pick as pick_torch
from minik2.reference.generate import pick as pick_reference
from tests.pytorch import build
from tests.reference import plain
from tests.reference.bounds import FLOAT64, relative_error

TINY = ModelConfig.preset("tiny")
# Attention in blocks, groups, softmax scores, plain queries, tied embeddings: between them.
VARIANTS = {
    "K2": TINY,
    "V3": TINY.replace(n_group=4, topk_group=2, first_k_dense_replace=2),
    "V2": TINY.replace(scoring_func="softmax", topk_method="greedy", norm_topk_prob=False,
                       q_lora_rank=None, tie_word_embeddings=True),
    "dense": TINY.replace(first_k_dense_replace=3),
}  # fmt: skip
variants = pytest.mark.parametrize("cfg", VARIANTS.values(), ids=VARIANTS)
engines = pytest.mark.parametrize("engine", build.ENGINES)


def random_tokens(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, TINY.vocab_size, shape)


@variants
def test_the_same_seed_gives_both_engines_the_same_weights(cfg):
    ours, theirs = reference.Model.init(cfg, seed=3), pytorch.Model.init(cfg, seed=3)
    assert list(ours.weights) == list(theirs.weights)
    for name, array in ours.weights.items():
        assert array.dtype == np.float32 and (theirs.weights[name].numpy(force=True) == array).all()
    tokens = random_tokens(2, 20)
    # Some hundred rounded terms a number, three layers.
    assert relative_error(build.logits(theirs, tokens), ours(tokens)) < 1e3 * 2**-24


@variants
@engines
def test_a_token_changes_no_earlier_logits(engine, cfg):
    built, tokens = build.engine(engine, cfg), random_tokens(2, 33)
    before = build.logits(built, tokens)
    for place in (0, 1, 16, 32):
        changed = tokens.copy()
        changed[0, place] = (tokens[0, place] + 1) % cfg.vocab_size
        after = build.logits(built, changed)
        # To rounding: the other tokens' experts see another number of rows at once.
        assert relative_error(after[1], before[1]) < FLOAT64
        if place:
            assert relative_error(after[0, :place], before[0, :place]) < FLOAT64
        moved = np.abs(after[0, place:] - before[0, place:]).max(axis=1)
        assert (moved > 1e-6).all(), "every later token must see the change"


@variants
@engines
def test_sequences_of_a_batch_do_not_see_each_other(engine, cfg):
    built, tokens = build.engine(engine, cfg), random_tokens(3, 9)
    apart = np.concatenate([build.logits(built, row[None]) for row in tokens])
    assert relative_error(build.logits(built, tokens), apart) < FLOAT64
    assert relative_error(build.logits(built, tokens[:, :1])[:, 0], apart[:, 0]) < FLOAT64


@engines
def test_the_order_of_tokens_matters(engine):
    built, tokens = build.engine(engine, TINY), random_tokens(1, 9)
    swapped = tokens[:, [1, 0, *range(2, 9)]]
    last = [build.logits(built, t)[0, -1] for t in (tokens, swapped)]
    assert relative_error(*last) > 1e-3


@engines
def test_experts_may_change_places(engine):
    """The same permutation of experts, router rows and biases gives the same model."""
    tokens, order = random_tokens(2, 20), np.random.default_rng(0).permutation(8)
    weights = plain.random_weights(TINY, 0)
    moved = dict(weights)
    for name, value in weights.items():
        if ".mlp.gate." in name:
            moved[name] = value[order]
        elif ".experts." in name:
            expert = int(name.split(".experts.")[1].split(".")[0])
            source = name.replace(f".experts.{expert}.", f".experts.{order[expert]}.")
            moved[name] = weights[source]
    built = build.engine(engine, TINY)
    before = build.logits(built, tokens)
    build.load(built, moved)
    assert relative_error(build.logits(built, tokens), before) < FLOAT64


@engines
def test_logits_are_the_callers_own(engine):
    built, tokens = build.engine(engine, TINY), random_tokens(1, 5)
    kept = tokens.copy()
    first = build.logits(built, tokens)
    copy = first.copy()
    build.logits(built, np.ones((1, 5), int))
    assert (first == copy).all() and (tokens == kept).all()


@engines
@pytest.mark.parametrize(
    "tokens",
    [[[1, 2, 3]], np.array([[1, 2, 3]], np.uint8), np.array([[1, 2, 3]], ">i4"),
     np.array([[3, 2, 1]])[:, ::-1], torch.tensor([[1, 2, 3]]),
     torch.tensor([[1, 2, 3]], dtype=torch.int32)],
    ids=["list", "uint8", "big-endian", "reversed", "tensor", "int32 tensor"],
)  # fmt: skip
def test_whole_numbers_of_any_kind_are_tokens(engine, tokens):
    built = build.engine(engine, TINY)
    want = build.logits(built, np.array([[1, 2, 3]]))
    assert (build.logits(built, tokens) == want).all()


@engines
def test_read_only_tokens_are_taken_without_a_warning(engine, recwarn):
    built, tokens = build.engine(engine, TINY), np.array([[1, 2, 3]])
    tokens.flags.writeable = False
    build.logits(built, tokens)
    assert (np.asarray(built.generate(tokens, 0)) == tokens).all()
    assert not recwarn.list


@engines
@pytest.mark.parametrize(
    ("tokens", "error", "sentence"),
    [
        ([[1.0, 2.0]], TypeError, "Tokens must be whole numbers, but they are of dtype float64"),
        ([[True]], TypeError, "of dtype bool"),
        ([["a"]], TypeError, "whole numbers"),
        (None, ValueError, "their shape is ()"),
        ([1, 2], ValueError, "one sequence goes in as tokens[None]"),
        ([[]], ValueError, "at least one of each, but their shape is (1, 0)"),
        (np.zeros((0, 3), int), ValueError, "shape is (0, 3)"),
        (np.zeros((1, 2, 3), int), ValueError, "shape is (1, 2, 3)"),
        ([[1, 2], [3]], ValueError, "differ in length"),
        ([[0, 256]], ValueError, "Token id 256 is outside the vocabulary of 256 ids (0 to 255)"),
        ([[0, -1]], ValueError, "Token id -1 is outside"),
        (np.zeros((1, 513), int), ValueError, "513 tokens exceed the model's 512 positions"),
    ],
)  # fmt: skip
def test_other_things_are_refused_with_a_sentence(engine, tokens, error, sentence):
    built = build.engine(engine, TINY)
    for verb in (built, lambda t: built.generate(t, 1)):
        with pytest.raises(error) as caught:
            verb(tokens)
        assert sentence in str(caught.value)


@engines
def test_the_longest_sequence_runs(engine):
    built = build.engine(engine, TINY)
    logits = build.logits(built, random_tokens(1, 512))
    assert logits.shape == (1, 512, 256) and np.isfinite(logits).all()
    assert np.asarray(built.generate(random_tokens(1, 511), 1)).shape == (1, 512)


# Generation.


@variants
@engines
def test_greedy_generation_takes_the_largest_logit_each_time(engine, cfg):
    built, prompt = build.engine(engine, cfg), random_tokens(2, 4)
    out = np.asarray(built.generate(prompt, 6))
    assert out.shape == (2, 10) and out.dtype == np.int64 and (out[:, :4] == prompt).all()
    for t in range(4, 10):
        assert (out[:, t] == build.logits(built, out[:, :t])[:, -1].argmax(axis=-1)).all()
    assert (np.asarray(built.generate(prompt, 6, seed=9)) == out).all()


def test_both_engines_continue_alike():
    prompt = random_tokens(3, 5)
    ours, theirs = (np.asarray(build.engine(e, TINY).generate(prompt, 20)) for e in build.ENGINES)
    assert (ours == theirs).all()


@engines
def test_a_seed_decides_what_is_drawn(engine):
    built, prompt = build.engine(engine, TINY), random_tokens(1, 4)

    def drawn(seed):
        return np.asarray(built.generate(prompt, 20, temperature=1.0, seed=seed)).tolist()

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)


@engines
def test_nothing_asked_for_gives_the_prompt_and_not_the_callers_array(engine):
    prompt = random_tokens(1, 4)
    out = np.asarray(build.engine(engine, TINY).generate(prompt, 0))
    assert (out == prompt).all() and not np.shares_memory(out, prompt)


def draws(engine, logits, temperature, count):
    """`count` draws for one row of logits, as one batch."""
    rows = np.tile(logits, (count, 1))
    if engine == "reference":
        return pick_reference(rows, temperature, np.random.default_rng(0))
    generator = torch.Generator().manual_seed(0)
    return pick_torch(torch.from_numpy(rows), temperature, generator).numpy()


@engines
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_draws_follow_the_softmax(engine, temperature):
    logits = np.array([2.0, 1.0, 0.0, -1.0, 0.5])
    chances = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
    count = 40_000
    seen = np.bincount(draws(engine, logits, temperature, count), minlength=5)
    # Hoeffding: each share is off by more than this with probability 2 e^-20 at the most.
    assert np.abs(seen / count - chances).max() < np.sqrt(20 / (2 * count))


@engines
def test_the_coldest_and_the_hottest_draws(engine):
    logits = np.array([1.0, 5.0, 5.0 - 1e-3, -800.0])
    for temperature in (1e-300, 1e-30, 1e-6):
        assert (draws(engine, logits, temperature, 50) == 1).all()
    seen = np.bincount(draws(engine, logits, 1e300, 40_000), minlength=4) / 40_000
    assert np.abs(seen - 1 / 4).max() < np.sqrt(20 / 80_000)
    assert (draws(engine, logits, 0.0, 3) == 1).all()


@engines
@pytest.mark.parametrize(
    ("request_", "error", "sentence"),
    [
        ({"max_new_tokens": -1}, ValueError, "max_new_tokens must be 0 or more, but it is -1"),
        ({"max_new_tokens": 1.0}, TypeError, "max_new_tokens must be a whole number"),
        ({"max_new_tokens": True}, TypeError, "max_new_tokens must be a whole number"),
        ({"max_new_tokens": 509}, ValueError, "A prompt of 4 tokens and 509 new ones exceed"),
        ({"temperature": -0.1}, ValueError, "temperature must be 0 (greedy) or positive"),
        ({"temperature": float("nan")}, ValueError, "temperature must be"),
        ({"temperature": float("inf")}, ValueError, "temperature must be"),
    ],
)  # fmt: skip
def test_requests_that_cannot_end_well_are_refused(engine, request_, error, sentence):
    with pytest.raises(error) as caught:
        build.engine(engine, TINY).generate(random_tokens(1, 4), **request_)
    assert sentence in str(caught.value)


@engines
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_token_is_picked_from_logits_that_are_not_finite(engine, temperature):
    built = build.engine(engine, TINY)
    with torch.no_grad():
        built.weights["lm_head.weight"][7, 3] = float("nan")
    with pytest.raises(ValueError, match="logits after 4 tokens are not all finite"):
        built.generate(random_tokens(1, 4), 2, temperature)
