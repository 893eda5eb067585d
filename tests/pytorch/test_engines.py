"""What both engines promise beside the numbers: seeds, causality, refusals, generation."""

import numpy as np
import pytest
import torch

from minik2 import pytorch, reference
from minik2.config import ModelConfig
from minik2.pytorch import generate as generate_pytorch
from minik2.reference import generate as generate_reference
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


HOW = {
    "greedy": {},
    "drawn": {"temperature": 1.0, "seed": 4},
    "top": {"temperature": 0.8, "top_k": 30, "top_p": 0.9, "seed": 2},
}


@variants
@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
def test_both_engines_continue_alike(cfg, how):
    prompt, counts = random_tokens(3, 5), [5, 1, 3]
    ours, theirs = (np.asarray(build.engine(e, cfg).generate(prompt, 40, **how, counts=counts))
                    for e in build.ENGINES)  # fmt: skip
    assert (ours == theirs).all() and len(np.unique(ours)) > 20


@engines
@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
def test_a_row_goes_on_as_it_would_alone(engine, how):
    """Row 0 draws from the stream (seed, 0) in both; padding is neither read nor changed."""
    built, prompt = build.engine(engine, TINY), random_tokens(3, 7)
    out = np.asarray(built.generate(prompt, 12, **how, counts=[4, 7, 1]))
    assert (out[:, :7] == prompt).all()
    assert (out[:1, 7:] == np.asarray(built.generate(prompt[:1, :4], 12, **how))[:, 4:]).all()


@engines
def test_a_prompt_is_read_in_pieces(engine, monkeypatch):
    built, prompt, counts = build.engine(engine, TINY), random_tokens(3, 11), [11, 4, 8]
    want = np.asarray(built.generate(prompt, 8, counts=counts))
    for module in (generate_reference, generate_pytorch):
        monkeypatch.setattr(module, "CHUNK", 4)
    assert (np.asarray(built.generate(prompt, 8, counts=counts)) == want).all()


@engines
def test_rows_stop_apart_and_all_of_them_end_the_work(engine):
    built, prompt, seen = build.engine(engine, TINY), random_tokens(2, 4), []
    free = np.asarray(built.generate(prompt, 12))[:, 4:]
    first = [{int(t): i for i, t in reversed(list(enumerate(row)))} for row in free]
    # A token that only row 0 takes, near the start, and one that only row 1 takes, later.
    a = next(t for t, i in first[0].items() if i < 6 and t not in first[1])
    b = next(t for t, i in first[1].items() if first[0][a] < i < 11 and t not in first[0])
    stop, ends = {a, b}, [first[0][a], first[1][b]]
    out = np.asarray(built.generate(prompt, 12, stop=stop, on_token=seen.append))[:, 4:]
    for row, (end, want) in enumerate(zip(ends, free, strict=True)):
        assert (out[row, : end + 1] == want[: end + 1]).all()
        assert (out[row, end:] == want[end]).all()
    assert (np.stack(seen, 1) == out[:, : max(ends) + 1]).all()


@engines
def test_on_token_sees_every_step_and_may_break_off(engine):
    built, prompt, seen = build.engine(engine, TINY), random_tokens(2, 4), []

    def take(tokens):
        seen.append(tokens)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        built.generate(prompt, 12, on_token=take)
    want = np.asarray(built.generate(prompt, 12))[:, 4:7]
    assert (np.stack(seen, 1) == want).all() and seen[0].dtype == np.int64


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
        ({"top_k": 0}, ValueError, "top_k must be 1 or more"),
        ({"top_p": 0.0}, ValueError, "top_p must be above 0"),
        ({"stop": [256]}, ValueError, "Stop tokens must be ids from 0 to 255"),
        ({"counts": [5]}, ValueError, "Counts must be 1 whole numbers from 1 to 4"),
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
