"""loss_and_grads of both engines: the same names and numbers, refusals, what has no gradient."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import rounding
from minik2 import reference
from minik2.config import ModelConfig
from tests.pytorch import build as torch_build
from tests.reference import build, plain
from tests.reference.bounds import relative_error
from tests.reference.gradients import assert_alike
from tests.reference.test_parts import SEEDS, SHAPES, any_configs

TINY = ModelConfig.preset("tiny")
engines = pytest.mark.parametrize("engine", torch_build.ENGINES)


def data(cfg, shape, seed):
    """Tokens and targets, some of them ignored, the first one never."""
    rng = np.random.default_rng(seed)
    tokens, targets = rng.integers(0, cfg.vocab_size, (2, *shape))
    targets[rng.random(shape) < 0.3] = -100
    targets[0, 0] = seed % cfg.vocab_size
    return tokens, targets


@given(cfg=any_configs(), shape=SHAPES, alpha=st.sampled_from([0.0, 0.3]), seed=SEEDS)
@settings(max_examples=60, deadline=None)
def test_the_engines_agree_in_float64(cfg, shape, alpha, seed):
    """With the balance loss and without, dense models among them, where it adds nothing."""
    tokens, targets = data(cfg, shape, seed)
    value, grads = build.model(cfg, seed).loss_and_grads(tokens, targets, alpha)
    model = torch_build.model(cfg, seed)
    theirs, their_grads = model.loss_and_grads(tokens, targets, alpha)
    assert value == pytest.approx(theirs.item(), rel=1e-12)
    assert list(grads) == list(their_grads)
    assert_alike(grads, their_grads)
    assert all(p.grad is None for p in model.parameters())


@engines
@pytest.mark.parametrize("tied", [False, True])
def test_every_trained_tensor_has_a_gradient_of_its_own_shape(engine, tied):
    cfg = TINY.replace(tie_word_embeddings=tied)
    built, (tokens, targets) = torch_build.engine(engine, cfg), data(cfg, (2, 30), 1)
    value, grads = built.loss_and_grads(tokens, targets)
    with torch.no_grad():
        assert float(value) == pytest.approx(float(built.loss(tokens, targets)), rel=1e-13)
    trained = {n: w for n, w in built.weights.items() if "e_score_correction_bias" not in n}
    assert list(grads) == list(trained)
    for name, weight in trained.items():
        assert grads[name].shape == weight.shape and grads[name].dtype == weight.dtype
    base = "model.layers.1.mlp.experts.0."
    if engine == "reference":
        # Experts' gradients are views of one stack, as their weights are.
        gate, up = (grads[f"{base}{name}_proj.weight"] for name in ("gate", "up"))
        assert gate.base is not None and gate.base is up.base


@engines
def test_an_expert_without_tokens_has_a_gradient_of_zero(engine):
    built = torch_build.engine(engine, TINY)
    tokens, targets = np.array([[5]]), np.array([[7]])
    _, grads = built.loss_and_grads(tokens, targets)
    _, saved = build.model(TINY, 0).forward(tokens)
    for layer in (1, 2):
        busy = set(saved[layer]["mlp"]["router"]["indices"].ravel().tolist())
        assert len(busy) == 2
        for expert in range(8):
            for matrix in ("gate", "up", "down"):
                own = grads[f"model.layers.{layer}.mlp.experts.{expert}.{matrix}_proj.weight"]
                assert bool((own != 0).any()) == (expert in busy)


@engines
def test_a_token_that_no_counted_target_sees_has_no_gradient(engine):
    """Only the first four places count: later tokens, which occur nowhere else, move nothing."""
    built, tokens = torch_build.engine(engine, TINY), np.arange(20).reshape(2, 10)
    targets = np.where(np.arange(10) < 4, tokens + 1, -100)
    _, grads = built.loss_and_grads(tokens, targets)
    table = np.asarray(grads["model.embed_tokens.weight"])
    seen = np.zeros(256, bool)
    seen[tokens[:, :4]] = True
    assert (table[~seen] == 0).all() and (table[seen] != 0).any(axis=1).all()


def test_one_token_has_no_slope_along_queries_and_keys():
    """It sees itself alone, with a chance of 1 whatever the score."""
    _, grads = build.model(TINY, 0).loss_and_grads(np.array([[5]]), np.array([[7]]))
    for layer in range(3):
        base = f"model.layers.{layer}.self_attn."
        assert (grads[base + "q_b_proj.weight"] == 0).all()
        assert (grads[base + "kv_a_proj_with_mqa.weight"][16:] == 0).all()
        assert (grads[base + "o_proj.weight"] != 0).any()


def test_the_same_gradients_come_out_bit_by_bit_and_nothing_else_moves():
    model, (tokens, targets) = build.model(TINY, 0, "float32"), data(TINY, (2, 40), 3)
    before = {name: array.copy() for name, array in model.weights.items()}
    kept = tokens.copy(), targets.copy()
    (one, first), (two, second) = (model.loss_and_grads(tokens, targets) for _ in range(2))
    assert one == two and all((g == second[name]).all() for name, g in first.items())
    assert all((w == before[name]).all() for name, w in model.weights.items())
    assert (tokens == kept[0]).all() and (targets == kept[1]).all()


def test_a_step_against_the_gradient_lowers_the_loss():
    model, (tokens, targets) = build.model(TINY, 0, "float32"), data(TINY, (4, 40), 3)
    losses = []
    for _ in range(5):
        value, grads = model.loss_and_grads(tokens, targets)
        losses.append(value)
        for name, grad in grads.items():
            model.weights[name] -= 0.3 * grad
    assert losses == sorted(losses, reverse=True) and losses[0] - losses[-1] > 0.5


@pytest.mark.parametrize("seed", range(5))
def test_float32_is_right_to_its_own_rounding(seed):
    """As far from float64 as the roundings on the way there and back may carry it.

    They are those of the longest stage, once forward and twice backward (a product's two
    gradients), times how far the gradients move when all weights move (benchmarks/rounding.py).
    """
    tokens, targets = data(TINY, (2, 12), seed)
    weights = {n: w.astype(np.float32) for n, w in plain.random_weights(TINY, seed).items()}

    def whole(dtype, move=0.0):
        model, rng = reference.Model(TINY, dtype), np.random.default_rng(seed)
        for name, array in model.weights.items():
            array[...] = weights[name] * (1 + move * rng.uniform(-1, 1, array.shape))
        chosen = [s["mlp"]["router"]["indices"] for s in model.forward(tokens)[1][1:3]]
        _, grads = model.loss_and_grads(tokens, targets)
        assert all(g.dtype == dtype for g in grads.values())
        return grads, np.sort(chosen, axis=-1)

    (exact, choices), (got, chosen) = whole("float64"), whole("float32")
    assert (chosen == choices).all(), "rounding chose other experts: take another seed"
    moved, _ = whole("float64", rounding.MOVE)
    noise = 3 * rounding.model(TINY, tokens.shape).noise("float32", "float64")
    for name, want in exact.items():
        if not want.any():
            assert not got[name].any()
            continue
        sensitivity = max(1.0, relative_error(moved[name], want) / rounding.MOVE)
        assert relative_error(got[name], want) < noise * sensitivity, name


@pytest.mark.parametrize(
    ("targets", "error", "sentence"),
    [(np.full((2, 3), -100), ValueError, "Every target is -100, which leaves nothing"),
     (np.zeros((2, 4), int), ValueError, "Targets must have the tokens' shape (2, 3)"),
     (np.full((2, 3), 256), ValueError, "Target 256 is outside the vocabulary"),
     (np.full((2, 3), -1), ValueError, "Target -1 is outside the vocabulary"),
     (np.zeros((2, 3)), TypeError, "Targets must be whole numbers")],
    ids=["all ignored", "shape", "too large", "negative", "real numbers"],
)  # fmt: skip
@engines
def test_targets_that_make_no_loss_are_refused(engine, targets, error, sentence):
    built, tokens = torch_build.engine(engine, TINY), np.ones((2, 3), int)
    for verb in (built.loss, built.loss_and_grads):
        with pytest.raises(error) as caught:
            verb(tokens, targets)
        assert str(caught.value).startswith(sentence)


@engines
def test_tokens_that_are_none_are_refused(engine):
    built = torch_build.engine(engine, TINY)
    with pytest.raises(ValueError, match="Token id 256 is outside"):
        built.loss_and_grads([[256]], [[1]])


@engines
def test_the_balance_loss_adds_its_price_for_each_layer_with_experts(engine):
    model, (tokens, targets) = torch_build.engine(engine, TINY), data(TINY, (2, 12), 0)
    plain_loss, plain_grads = model.loss_and_grads(tokens, targets)
    value, grads = model.loss_and_grads(tokens, targets, balance_alpha=0.5)
    _, saved = build.model(TINY, 0).forward(tokens)
    prices = [reference.balance.forward(s["mlp"]["router"]["scores"].reshape(2, 12, 8), 2, 0.5)[0]
              for s in saved[1:3]]  # fmt: skip
    assert float(value) == pytest.approx(float(plain_loss) + sum(prices), rel=1e-14)
    gate = "model.layers.2.mlp.gate.weight"
    assert relative_error(grads[gate], plain_grads[gate]) > 1e-3
    # What lies behind the last router has nothing to do with it.
    assert (grads["lm_head.weight"] == plain_grads["lm_head.weight"]).all()
    for alpha in (-0.1, np.inf, np.nan):
        with pytest.raises(ValueError, match="alpha is a finite number, 0 or more, not"):
            model.loss_and_grads(tokens, targets, balance_alpha=alpha)


def test_mean_over_all_places_and_not_over_rows():
    """A row with more counted targets counts more, as in PyTorch."""
    targets = np.array([[1, 2, 3], [4, -100, -100]])
    logits = np.random.default_rng(0).standard_normal((2, 3, 256))
    want = F.cross_entropy(torch.from_numpy(logits[targets >= 0]),
                           torch.from_numpy(targets[targets >= 0]))  # fmt: skip
    got, _ = reference.loss.forward(logits, targets, TINY)
    assert got == pytest.approx(want.item(), rel=1e-14)


@st.composite
def batches(draw):
    return draw(st.integers(2, 4)), draw(st.integers(1, 9))


@given(shape=batches(), seed=SEEDS)
@settings(max_examples=15, deadline=None)
def test_gradients_of_a_batch_are_the_mean_of_its_rows(shape, seed):
    model, (tokens, targets) = build.model(TINY, 0), data(TINY, shape, seed)
    targets[targets == -100] = 3
    _, together = model.loss_and_grads(tokens, targets)
    apart = [model.loss_and_grads(t[None], y[None])[1]
             for t, y in zip(tokens, targets, strict=True)]  # fmt: skip
    assert_alike({n: sum(g[n] for g in apart) / shape[0] for n in together}, together)
