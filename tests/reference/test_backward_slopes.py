"""The backward pass of each part, and of whole models, against differences of the function."""

import numpy as np
import pytest

from minik2.config import ModelConfig
from minik2.reference import attention, balance, embedding, ffn, loss, mla, moe, norm, rope, router
from tests.reference import build
from tests.reference.gradients import assert_slopes

TINY = ModelConfig.preset("tiny").replace(vocab_size=40)
VARIANTS = {
    "K2": TINY,
    "V3": TINY.replace(n_group=4, topk_group=2, first_k_dense_replace=2),
    "V2": TINY.replace(scoring_func="softmax", topk_method="greedy", norm_topk_prob=False,
                       q_lora_rank=None, tie_word_embeddings=True),
    "V2 in groups": TINY.replace(scoring_func="softmax", topk_method="group_limited_greedy",
                                 n_group=4, topk_group=2, rope_interleave=False),
    "dense": TINY.replace(first_k_dense_replace=3, rope_scaling=None),
}  # fmt: skip
variants = pytest.mark.parametrize("cfg", VARIANTS.values(), ids=VARIANTS)
with_experts = pytest.mark.parametrize(
    "cfg", [cfg for cfg in VARIANTS.values() if not cfg.is_all_dense],
    ids=[name for name, cfg in VARIANTS.items() if not cfg.is_all_dense],
)  # fmt: skip
SHAPE = (2, 9)
BIAS = "gate.e_score_correction_bias"


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def test_loss():
    targets = np.array([[3, -100, 1], [0, 2, -100]])
    logits = 3 * normal(0, 2, 3, 40)
    d = loss.backward(1.0, loss.forward(logits, targets, TINY)[1])
    assert_slopes(lambda i: loss.forward(i["x"], targets, TINY)[0], {"x": logits}, {"x": d})


def test_embedding():
    tokens, dy = np.array([[3, 0, 3], [1, 3, 0]]), normal(0, 2, 3, 5)
    inputs = {"weight": normal(1, 40, 5)}
    grads = embedding.backward(dy, embedding.forward(tokens, inputs["weight"])[1])
    assert_slopes(lambda i: (dy * embedding.forward(tokens, i["weight"])[0]).sum(), inputs, grads)


def test_norm():
    dy, inputs = normal(0, *SHAPE, 7), {"x": normal(1, *SHAPE, 7), "weight": normal(2, 7)}
    dx, grads = norm.backward(dy, norm.forward(**inputs, eps=1e-2)[1])
    assert_slopes(lambda i: (dy * norm.forward(**i, eps=1e-2)[0]).sum(), inputs, grads | {"x": dx})


@pytest.mark.parametrize("interleave", [True, False])
def test_rotation(interleave):
    table = rope.table(TINY, np.arange(9), np.float64)
    x, dy = normal(0, 2, *SHAPE, 3, 8)
    assert_slopes(lambda i: (dy * rope.rotate(i["x"], *table, interleave)).sum(), {"x": x},
                  {"x": rope.backward(dy, *table, interleave)})  # fmt: skip


def test_attention():
    inputs = {"q": normal(0, *SHAPE, 3, 5), "k": normal(1, *SHAPE, 3, 5),
              "v": normal(2, *SHAPE, 3, 4)}  # fmt: skip
    dy = normal(3, *SHAPE, 3, 4)
    grads = attention.backward(dy, attention.forward(**inputs, scale=0.6)[1])
    assert_slopes(lambda i: (dy * attention.forward(**i, scale=0.6)[0]).sum(), inputs,
                  dict(zip("qkv", grads, strict=True)))  # fmt: skip


@variants
def test_mla(cfg):
    inputs = build.model(cfg, 1).layers[0]["self_attn"] | {"x": normal(0, *SHAPE, 32)}
    table, dy = rope.table(cfg, np.arange(9), np.float64), normal(1, *SHAPE, 32)
    dx, grads = mla.backward(dy, mla.forward(inputs["x"], inputs, cfg, *table)[1])
    assert_slopes(lambda i: (dy * mla.forward(i["x"], i, cfg, *table)[0]).sum(), inputs,
                  grads | {"x": dx})  # fmt: skip


def test_ffn():
    inputs = build.model(TINY, 1).layers[0]["mlp"] | {"x": normal(0, *SHAPE, 32)}
    dy = normal(1, *SHAPE, 32)
    dx, grads = ffn.backward(dy, ffn.forward(inputs["x"], inputs)[1])
    assert_slopes(lambda i: (dy * ffn.forward(i["x"], i)[0]).sum(), inputs, grads | {"x": dx})


@with_experts
def test_router(cfg):
    mlp = build.model(cfg, 1).layers[2]["mlp"]
    inputs, bias = {"x": normal(3, 9, 32), "weight": mlp["gate.weight"]}, mlp.get(BIAS)
    (indices, weights), saved = router.forward(**inputs, bias=bias, cfg=cfg)
    dweights = normal(1, *weights.shape)

    def value(i):
        (chosen, weights), _ = router.forward(**i, bias=bias, cfg=cfg)
        assert (chosen == indices).all(), "another choice: take another seed"
        return (dweights * weights).sum()

    dx, grads = router.backward(dweights, saved)
    assert_slopes(value, inputs, grads | {"x": dx})


@with_experts
def test_moe(cfg):
    mlp, x, dy = build.model(cfg, 1).layers[2]["mlp"], normal(3, *SHAPE, 32), normal(1, *SHAPE, 32)
    shared = {f"shared {name}": w for name, w in mlp["shared_experts"].items()}
    _, saved = moe.forward(x, mlp, cfg)

    def value(i):
        own = {name: i[f"shared {name}"] for name in mlp["shared_experts"]}
        y, kept = moe.forward(i["x"], i | {"shared_experts": own}, cfg)
        same = kept["router"]["indices"] == saved["router"]["indices"]
        assert same.all(), "another choice: take another seed"
        return (dy * y).sum()

    dx, grads = moe.backward(dy, saved)
    own = {f"shared {name}": g for name, g in grads.pop("shared_experts").items()}
    assert_slopes(value, mlp | shared | {"x": x}, grads | own | {"x": dx})


def test_balance():
    scores = np.random.default_rng(0).uniform(0.2, 1, (2, 9, 8))
    d = balance.backward(1.0, balance.forward(scores, 3, 0.5)[1])
    assert_slopes(lambda i: balance.forward(i["s"], 3, 0.5)[0], {"s": scores}, {"s": d})


@variants
def test_a_whole_model_with_its_balance_loss(cfg):
    """Every tensor of the checkpoint that has a gradient; the correction bias has none."""
    model = build.model(cfg, 2)
    tokens = np.random.default_rng(0).integers(0, 40, (2, 7))
    targets = np.roll(tokens, -1, axis=1)
    targets[:, -1] = -100
    _, grads = model.loss_and_grads(tokens, targets, balance_alpha=0.3)
    start, choices = {name: array.copy() for name, array in model.weights.items()}, []

    def value(weights):
        for name, array in model.weights.items():
            array[...] = weights[name]
        logits, saved = model.forward(tokens)
        routers = [kept["mlp"]["router"] for kept in saved[:-1] if "router" in kept["mlp"]]
        choices.append([(r["indices"].tolist(), best_two(r["scores"])) for r in routers])
        assert choices[-1] == choices[0], "another choice: take another seed"
        scores = [r["scores"].reshape(*tokens.shape, -1) for r in routers]
        prices = [balance.forward(s, cfg.num_experts_per_tok, 0.3)[0] for s in scores]
        return loss.forward(logits, targets, cfg)[0] + sum(prices)

    assert_slopes(value, start, grads)


def best_two(scores):
    """The balance loss counts the best scores before the bias."""
    return np.sort(scores.argsort(axis=1)[:, -2:]).tolist()
