"""The router where it is easy to get wrong: leaking biases, masked groups, ties, saturation."""

import numpy as np
import pytest

from minik2.config import ModelConfig
from minik2.reference import router

TINY = ModelConfig.preset("tiny").replace(hidden_size=8)
LOGITS = np.eye(8)  # a router whose logits are its input


def route(logits, cfg, bias=None):
    bias = np.zeros(8) if bias is None else np.asarray(bias, np.float64)
    if cfg.topk_method != "noaux_tc":
        bias = None
    x = np.atleast_2d(np.asarray(logits, np.float64))
    (indices, weights), _ = router.forward(x, LOGITS, bias, cfg)
    return indices, weights


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def test_the_bias_moves_the_choice_and_never_the_weights():
    cfg = TINY.replace(num_experts_per_tok=2, routed_scaling_factor=2.5)
    logits = [3.0, 2.0, 1.0, 0.0, -1.0, -2.0, -3.0, -4.0]
    indices, weights = route(logits, cfg)
    assert indices.tolist() == [[0, 1]]
    indices, weights = route(logits, cfg, bias=[-5, 0, 0, 0, 0, 0, 0, 5])
    assert indices.tolist() == [[7, 1]]
    chosen = sigmoid([-4.0, 2.0])
    assert np.allclose(weights, 2.5 * chosen / chosen.sum(), rtol=1e-15)
    assert np.allclose(weights.sum(), 2.5)


def test_weights_without_renormalising_are_the_scores_themselves():
    cfg = TINY.replace(norm_topk_prob=False, routed_scaling_factor=1.5)
    _, weights = route([1.0, 5.0, -1, 0, 2, 0, 0, 0], cfg)
    assert np.allclose(weights, 1.5 * sigmoid([[5.0, 2.0]]), rtol=1e-15)


def test_softmax_scores():
    cfg = TINY.replace(scoring_func="softmax", topk_method="greedy", norm_topk_prob=False,
                       routed_scaling_factor=1.0)  # fmt: skip
    logits = np.array([1.0, 5.0, -1, 0, 2, 0, 0, 9.0])
    indices, weights = route(logits, cfg)
    assert indices.tolist() == [[7, 1]]
    assert np.allclose(weights, np.exp([[9.0, 5.0]]) / np.exp(logits).sum(), rtol=1e-14)
    # A logit of 1000 overflows nothing; the next chance is e^-995, which is zero.
    logits[7] = 1000.0
    assert route(logits, cfg)[1].tolist() == [[1.0, 0.0]]


def test_a_group_is_worth_its_two_best_biased_scores():
    cfg = TINY.replace(n_group=2, topk_group=1, num_experts_per_tok=2)
    # The best single score is in group 0, the best pair in group 1.
    logits = [4.0, -9, -9, -9, 1.5, 1.4, -9, -9]
    assert route(logits, cfg)[0].tolist() == [[4, 5]]
    # The bias counts in a group's worth too.
    assert route(logits, cfg, bias=[0, 1, 0, 0, 0, 0, 0, 0])[0].tolist() == [[1, 0]]


def test_group_limited_greedy_takes_a_groups_best_score():
    cfg = TINY.replace(n_group=2, topk_group=1, num_experts_per_tok=2, scoring_func="softmax",
                       topk_method="group_limited_greedy")  # fmt: skip
    assert route([4.0, -9, -9, -9.5, 1.5, 1.4, -9, -9], cfg)[0].tolist() == [[0, 1]]


def test_masked_groups_lose_even_to_negative_biased_scores():
    """Masked with 0 instead of -inf, experts 0 and 1 would win over the negative ones allowed."""
    cfg = TINY.replace(n_group=4, topk_group=1, num_experts_per_tok=2)
    logits, bias = np.zeros(8), [-5, -5, -5, -5, -2, -3, -5, -5]
    indices, weights = route(logits, cfg, bias)
    assert indices.tolist() == [[4, 5]]
    assert np.allclose(weights, 2.827 / 2)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_ties_go_to_the_lower_expert(groups):
    cfg = TINY.replace(n_group=groups, topk_group=1, num_experts_per_tok=2)
    assert route(np.zeros(8), cfg)[0].tolist() == [[0, 1]]


def test_scores_that_all_saturate_or_underflow_give_no_nan():
    for logit, total in ((800.0, 2.827), (-800.0, 0.0)):
        indices, weights = route(np.full(8, logit), TINY)
        assert indices.tolist() == [[0, 1]]
        assert np.allclose(weights.sum(), total)


def test_a_nan_is_chosen_and_shown():
    logits = np.zeros(8)
    logits[5] = np.nan
    x = logits[None]
    with np.errstate(invalid="ignore"):
        (indices, weights), _ = router.forward(np.ones((1, 8)), np.diag(logits), np.zeros(8), TINY)
        assert 5 in indices and np.isnan(weights).all()
        _, weights = route(x, TINY)
    assert np.isnan(weights).all()


def test_scores_of_a_float32_model_are_float32_and_of_a_float64_model_float64():
    for dtype in (np.float32, np.float64):
        x = np.ones((3, 8), dtype)
        (_, weights), saved = router.forward(x, LOGITS.astype(dtype), np.zeros(8, dtype), TINY)
        assert weights.dtype == saved["scores"].dtype == dtype


def test_half_precision_states_are_scored_in_float32():
    x = np.linspace(-1, 1, 8, dtype=np.float16)[None]
    (_, weights), saved = router.forward(x, LOGITS.astype(np.float16), np.zeros(8), TINY)
    assert saved["scores"].dtype == np.float32 and weights.dtype == np.float16
    assert np.allclose(saved["scores"], sigmoid(x), atol=2**-24)
