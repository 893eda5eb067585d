"""The backward pass of each part against torch's autograd, on random small configurations."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from minik2 import pytorch
from minik2.config import ModelConfig
from minik2.reference import (
    attention,
    balance,
    embedding,
    ffn,
    loss,
    mla,
    moe,
    norm,
    rope,
    router,
)
from tests.pytorch import build as torch_build
from tests.reference import build
from tests.reference.gradients import assert_alike
from tests.reference.test_parts import SEEDS, SHAPES, any_configs, moe_configs, states

examples = settings(max_examples=40, deadline=None)
TINY = ModelConfig.preset("tiny")


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def autograd(function, inputs, dy):
    """torch's gradients of Σ dy function(**inputs), by the inputs' names."""
    tensors = {name: torch.from_numpy(a).requires_grad_() for name, a in inputs.items()}
    grads = torch.autograd.grad(function(**tensors), list(tensors.values()), torch.from_numpy(dy))
    return {name: g.numpy() for name, g in zip(tensors, grads, strict=True)}


def autograd_of(module, x, dy, *others):
    """The same of a module's parameters by their names, and of "x"."""
    x = torch.from_numpy(x).requires_grad_()
    names, tensors = zip(("x", x), *module.named_parameters(), strict=True)
    grads = torch.autograd.grad(module(x, *others), tensors, torch.from_numpy(dy))
    return {name: g.numpy() for name, g in zip(names, grads, strict=True)}


@given(shape=SHAPES, vocab=st.integers(2, 40), spread=st.sampled_from([1.0, 30.0]),
       ignored=st.floats(0, 1), seed=SEEDS)  # fmt: skip
@examples
def test_loss(shape, vocab, spread, ignored, seed):
    rng, cfg = np.random.default_rng(seed), TINY.replace(vocab_size=vocab)
    logits = spread * normal(seed, *shape, vocab)
    targets = rng.integers(0, vocab, shape)
    targets[rng.random(shape) < ignored] = -100
    targets[0, 0] = 1
    value, saved = loss.forward(logits, targets, cfg)

    def theirs(logits):
        return F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets.reshape(-1)))

    want = theirs(torch.from_numpy(logits)).item()
    # torch adds the largest logit before it takes the target's away, and rounds at that size.
    assert value == pytest.approx(want, rel=1e-13, abs=8 * 2**-53 * np.abs(logits).max())
    d = loss.backward(2.5, saved)
    # Softmax minus one is small where the target is likely; an exponent of 150 is rounded by 150
    # units.
    want = autograd(theirs, {"logits": logits}, np.array(2.5))
    assert_alike({"logits": d}, want, terms=2.5)
    assert (d[targets == -100] == 0).all()


@given(cfg=any_configs(), shape=SHAPES, seed=SEEDS)
@examples
def test_embedding(cfg, shape, seed):
    tokens = np.random.default_rng(seed).integers(0, cfg.vocab_size, shape)
    weight, dy = states(cfg, (cfg.vocab_size,), seed), states(cfg, shape, seed + 1)
    y, saved = embedding.forward(tokens, weight)
    assert (y == weight[tokens]).all()
    want = autograd(lambda weight: F.embedding(torch.from_numpy(tokens), weight),
                    {"weight": weight}, dy)  # fmt: skip
    assert_alike(embedding.backward(dy, saved), want)


@given(cfg=any_configs(), shape=SHAPES, seed=SEEDS)
@examples
def test_norm(cfg, shape, seed):
    x, dy = (states(cfg, shape, s) for s in (seed, seed + 1))
    module = pytorch.norm.RMSNorm(cfg.hidden_size, cfg.rms_norm_eps).double()
    gain = 1 + 0.3 * states(cfg, (), seed + 2)
    module.weight.data.copy_(torch.from_numpy(gain))
    _, saved = norm.forward(x, gain, cfg.rms_norm_eps)
    dx, grads = norm.backward(dy, saved)
    assert_alike({"x": dx} | grads, autograd_of(module, x, dy))


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 1000])
def test_norm_sums_over_any_number_of_rows(rows):
    x, dy = normal(0, rows, 5), normal(1, rows, 5)
    gain = normal(2, 5)
    _, saved = norm.forward(x, gain, 1e-6)
    want = autograd(lambda x, weight: F.rms_norm(x, (5,), weight, 1e-6), {"x": x, "weight": gain},
                    dy)  # fmt: skip
    dx, grads = norm.backward(dy, saved)
    assert_alike({"x": dx} | grads, want)


@given(cfg=any_configs(), shape=SHAPES, heads=st.integers(1, 3), seed=SEEDS)
@examples
def test_rotation(cfg, shape, heads, seed):
    x, dy = normal(seed, 2, *shape, heads, cfg.qk_rope_head_dim)
    table = rope.table(cfg, np.arange(shape[1]) + seed % 1000, np.float64)
    theirs = [torch.from_numpy(t) for t in table]
    want = autograd(lambda x: pytorch.rope.rotate(x, *theirs, cfg.rope_interleave), {"x": x}, dy)
    assert_alike({"x": rope.backward(dy, *table, cfg.rope_interleave)}, want)


@given(shape=SHAPES, heads=st.integers(1, 4), sizes=st.tuples(*[st.integers(1, 9)] * 2), seed=SEEDS)
@examples
def test_attention(shape, heads, sizes, seed):
    q, k = normal(seed, 2, *shape, heads, sizes[0])
    v, dy = normal(seed + 1, 2, *shape, heads, sizes[1])
    check_attention(q, k, v, dy)


@pytest.mark.parametrize("tokens", [31, 32, 33, 96, 300])
@pytest.mark.parametrize("key, value", [(5, 4), (24, 40)])
def test_attention_in_blocks_of_queries(tokens, key, value):
    q, k = normal(tokens, 2, 2, tokens, 3, key)
    v, dy = normal(tokens + 1, 2, 2, tokens, 3, value)
    check_attention(q, k, v, dy)


def check_attention(q, k, v, dy):
    _, saved = attention.forward(q, k, v, 0.7)
    got = dict(zip("qkv", attention.backward(dy, saved), strict=True))
    want = autograd(lambda q, k, v: pytorch.attention.forward(q, k, v, 0.7),
                    {"q": q, "k": k, "v": v}, dy)  # fmt: skip
    assert_alike(got, want)
    # What was saved is as it was, and the same comes out bit by bit.
    again = attention.backward(dy, saved)
    assert all((one == two).all() for one, two in zip(got.values(), again, strict=True))


@given(cfg=any_configs(), shape=SHAPES, seed=SEEDS)
@examples
def test_mla(cfg, shape, seed):
    x, dy = (states(cfg, shape, s) for s in (seed, seed + 1))
    table = rope.table(cfg, np.arange(shape[1]), np.float64)
    weights = build.model(cfg, seed).layers[0]["self_attn"]
    _, saved = mla.forward(x, weights, cfg, *table)
    dx, grads = mla.backward(dy, saved)
    module = torch_build.model(cfg, seed).model.layers[0].self_attn
    assert_alike({"x": dx} | grads,
                 autograd_of(module, x, dy, *(torch.from_numpy(t) for t in table)))  # fmt: skip


@given(cfg=any_configs(), shape=SHAPES, seed=SEEDS)
@examples
def test_ffn(cfg, shape, seed):
    dense = cfg.replace(first_k_dense_replace=1)
    x, dy = (states(cfg, shape, s) for s in (seed, seed + 1))
    _, saved = ffn.forward(x, build.model(dense, seed).layers[0]["mlp"])
    dx, grads = ffn.backward(dy, saved)
    module = torch_build.model(dense, seed).model.layers[0].mlp
    assert_alike({"x": dx} | grads, autograd_of(module, x, dy))


@given(cfg=moe_configs, tokens=st.integers(1, 20), other=st.booleans(), seed=SEEDS)
@examples
def test_router(cfg, tokens, other, seed):
    """Through the weights, and through what another loss says about all scores."""
    x = states(cfg, (tokens,), seed)
    mlp = build.model(cfg, seed).layers[0]["mlp"]
    bias = mlp.get("gate.e_score_correction_bias")
    (indices, weights), saved = router.forward(x, mlp["gate.weight"], bias, cfg)
    dweights = normal(seed + 1, *weights.shape)
    dscores = normal(seed + 2, tokens, cfg.n_routed_experts) if other else None
    dx, grads = router.backward(dweights, saved, dscores)
    gate = torch_build.model(cfg, seed).model.layers[0].mlp.gate

    def theirs(x, weight):
        # In the order of our choices: torch's may differ.
        chosen, w = torch.func.functional_call(gate, {"weight": weight}, x)
        w = torch.zeros_like(x @ weight.T).scatter(1, chosen, w)
        total = (w.gather(1, torch.from_numpy(indices)) * torch.from_numpy(dweights)).sum()
        if dscores is None:
            return total
        logits = x @ weight.T
        scores = logits.sigmoid() if cfg.scoring_func == "sigmoid" else logits.softmax(-1)
        return total + (scores * torch.from_numpy(dscores)).sum()

    want = autograd(theirs, {"x": x, "weight": mlp["gate.weight"]}, np.array(1.0))
    # Renormalised, a weight of 1 has no slope: terms of the size of dweights cancel.
    terms = cfg.routed_scaling_factor * np.abs(dweights).max()
    assert_alike({"x": dx} | grads, want, terms)


@given(cfg=moe_configs, shape=SHAPES, seed=SEEDS)
@examples
def test_moe(cfg, shape, seed):
    x, dy = (states(cfg, shape, s) for s in (seed, seed + 1))
    _, saved = moe.forward(x, build.model(cfg, seed).layers[0]["mlp"], cfg)
    dx, grads = moe.backward(dy, saved)
    shared = {f"shared_experts.{n}": g for n, g in grads.pop("shared_experts").items()}
    module = torch_build.model(cfg, seed).model.layers[0].mlp
    assert_alike({"x": dx} | grads | shared, autograd_of(module, x, dy))
    unchosen = np.setdiff1d(np.arange(cfg.n_routed_experts), saved["router"]["indices"])
    assert (grads["experts.gate_up_proj"][unchosen] == 0).all()
    assert (grads["experts.down_proj"][unchosen] == 0).all()


@given(shape=SHAPES, experts=st.integers(2, 9), data=st.data(), seed=SEEDS)
@examples
def test_balance(shape, experts, data, seed):
    chosen = data.draw(st.integers(1, experts))
    scores = np.random.default_rng(seed).uniform(0.01, 1, (*shape, experts))
    value, saved = balance.forward(scores, chosen, 0.3)

    def theirs(scores):
        # arXiv 2412.19437 eq. 17-20, one sequence after the other.
        losses = []
        for sequence in scores:
            best = torch.zeros_like(sequence).scatter(1, sequence.topk(chosen).indices, 1.0)
            f = experts / (chosen * len(sequence)) * best.sum(0)
            p = (sequence / sequence.sum(1, keepdim=True)).mean(0)
            losses.append(0.3 * (f * p).sum())
        return torch.stack(losses).mean()

    assert value == pytest.approx(theirs(torch.from_numpy(scores)).item(), rel=1e-13)
    want = autograd(theirs, {"scores": scores}, np.array(2.0))
    # Where all experts are as often among the best, no score has a slope: terms f / Σ s cancel.
    terms = 2.0 * 0.3 * experts / chosen / np.prod(shape) / scores.sum(axis=2).min()
    assert_alike({"scores": balance.backward(2.0, saved)}, want, terms)


def test_scores_that_all_underflow_cost_nothing_and_are_no_nan():
    scores = np.full((1, 2, 4), 0.25, np.float32)
    scores[0, 0] = 0.0
    value, saved = balance.forward(scores, 2, 0.5)
    leaf = torch.from_numpy(scores).requires_grad_()
    theirs = pytorch.balance.forward(leaf, 2, 0.5)
    theirs.backward()
    assert value == pytest.approx(0.25) and theirs.item() == pytest.approx(0.25)
    assert np.isfinite(balance.backward(1.0, saved)).all() and leaf.grad.isfinite().all()


def test_experts_alike_cost_alpha_and_one_alone_costs_more():
    # Each of 4 tokens prefers another expert, by as much.
    even = 0.1 + 0.8 * np.eye(4)[None]
    assert balance.forward(even, 1, 0.5)[0] == pytest.approx(0.5, rel=1e-14)
    crowded = np.broadcast_to(even[:, :1], (1, 4, 4)).copy()
    # f = 4 for the expert that all prefer, and its share is 0.9 / 1.2.
    assert balance.forward(crowded, 1, 0.5)[0] == pytest.approx(0.5 * 4 * 0.75, rel=1e-14)
