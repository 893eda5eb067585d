"""bfloat16 and float32: what stays wide, and how far rounding may carry the rest."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from minik2 import pytorch
from minik2.config import ModelConfig
from minik2.pytorch import rope
from minik2.pytorch.norm import RMSNorm
from tests.pytorch import build

TINY = ModelConfig.preset("tiny")
TOKENS = np.random.default_rng(0).integers(0, 256, (2, 40))
F32, BF16, U = (
    torch.float32,
    torch.bfloat16,
    2.0**-8,
)  # one rounding to bfloat16 changes a number by this share
BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"


@pytest.mark.parametrize("name", ["bfloat16", "half", "float", "double"])
def test_the_bias_is_never_narrower_than_float32(name):
    built = build.model(TINY, 0, torch.float32)
    before = built.weights[BIAS].clone()
    for moved in (copy.deepcopy(built), built):
        moved = getattr(moved, name)()
        after = moved.weights[BIAS]
        assert after.dtype == (torch.float64 if name == "double" else torch.float32)
        assert (after == before).all()
        rest = {t.dtype for n, t in moved.weights.items() if not n.endswith("bias")}
        assert rest == {getattr(torch, name)}
    assert (build.model(TINY, 0).to(BF16).weights[BIAS] == before).all()


def test_a_model_made_in_bfloat16_has_wide_biases_too():
    for built in (pytorch.Model.init(TINY, dtype=BF16), pytorch.Model.empty(TINY, "meta", BF16)):
        assert built.weights[BIAS].dtype == torch.float32
        assert built.weights["lm_head.weight"].dtype == BF16


def test_the_bias_is_saved_but_not_trained():
    built = build.model(TINY, 0, torch.float32)
    name = BIAS
    assert name in built.state_dict() and name not in dict(built.named_parameters())
    built.loss(TOKENS, TOKENS).backward()
    assert built.weights[name].grad is None and not built.weights[name].requires_grad
    assert all(p.grad is not None for p in built.parameters())


def test_norms_of_bfloat16_take_their_statistics_in_float32():
    """7,168 squares added in bfloat16 would stick at 256 times the first."""
    x = torch.randn(3, 7168, generator=torch.Generator().manual_seed(0)).to(BF16)
    norm = RMSNorm(7168, 1e-6).to(BF16)
    wide = x.double()
    want = wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    # The result is rounded, and before that perhaps the normalised vector.
    assert ((norm(x).double() - want).abs() <= 2.1 * U * want.abs()).all()
    assert norm(x).dtype == BF16


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, BF16])
def test_the_norms_gradients_equal_pytorchs_own(dtype):
    """A gain, an epsilon and a scale that all show; the oracle in float64."""
    generator = torch.Generator().manual_seed(0)
    x, dy = torch.randn(2, 2, 40, 24, generator=generator, dtype=torch.float64).to(dtype)
    gain = torch.randn(24, generator=generator, dtype=torch.float64).to(dtype)
    norm = RMSNorm(24, 0.1).to(dtype)
    norm.weight.data.copy_(gain)
    x, wide = x.requires_grad_(), x.double().requires_grad_()
    got = torch.autograd.grad(norm(x), (x, norm.weight), dy)
    gain = gain.double().requires_grad_()
    want = torch.autograd.grad(F.rms_norm(wide, (24,), gain, 0.1), (wide, gain), dy.double())
    for ours, exact in zip(got, want, strict=True):
        assert ours.dtype == dtype
        # Sums of 80 products in float32 at least, and one rounding at the end.
        unit = torch.finfo(dtype).eps + 80 * torch.finfo(torch.promote_types(dtype, F32)).eps
        assert (ours.double() - exact).abs().max() <= unit * exact.abs().max()


def test_bfloat16_is_turned_in_float32():
    x = torch.randn(1, 50, 2, 8, generator=torch.Generator().manual_seed(0)).to(BF16)
    positions = torch.arange(50) + 460
    got = rope.rotate(x, *rope.table(TINY, positions, torch.float32))
    want = rope.rotate(x.double(), *rope.table(TINY, positions, torch.float64))
    assert got.dtype == BF16
    assert ((got.double() - want).abs() <= U * want.abs() + 4 * 2**-24 * x.abs().max()).all()


def test_the_router_scores_bfloat16_in_float32():
    gate = build.model(TINY, 0, torch.float32).to(BF16).model.layers[1].mlp.gate
    x = torch.randn(500, 32, generator=torch.Generator().manual_seed(0)).to(BF16)
    indices, weights = gate(x)
    assert weights.dtype == BF16
    exact = copy.deepcopy(gate).double()
    want_indices, want_weights = exact(x.double())
    scores = (x.double() @ exact.weight.T).sigmoid() + exact.e_score_correction_bias
    ordered = scores.sort(dim=1).values
    # Two sums of 32 products in float32 cannot change places over more than this.
    clear = (ordered[:, -2] - ordered[:, -3]) > 64 * 2**-24
    assert clear.sum() > 450
    same = (indices.sort().values == want_indices.sort().values).all(dim=1)
    assert same[clear].all()
    both = (indices == want_indices).all(dim=1)
    error = (weights.double() - want_weights).abs()[both]
    assert (error <= (U + 1e-5) * want_weights[both]).all()


# What one layer rounds on its way: two norms, five projections of the attention, rotation,
# attention's weights and values, the experts' three products, their activation, two sums, ...
ROUNDINGS_PER_LAYER = 18


def rounded_often(unit: float, cfg: ModelConfig) -> float:
    """The relative error, root of the mean square, that a model's roundings add up to.

    A rounding's own is at most unit / √3; independent ones add as squares do. Twice that, because
    a layer that shrinks what it is given passes errors on enlarged.
    """
    count = ROUNDINGS_PER_LAYER * cfg.num_hidden_layers + 2
    return 2 * unit * np.sqrt(count / 3)


def rms_error(got, want) -> float:
    return float(np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2)))


@pytest.mark.parametrize("dense", [0, 1, 3])
def test_a_bfloat16_model_is_as_near_as_its_roundings_allow(dense):
    """Every expert is chosen, so that no rounding can change a choice and hide behind it."""
    cfg = TINY.replace(first_k_dense_replace=dense, num_experts_per_tok=8)
    rounded = build.model(cfg, 0).to(BF16)
    exact = copy.deepcopy(rounded).double()
    got, want = rounded(TOKENS).detach().double().numpy(), build.logits(exact, TOKENS)
    # And it was bfloat16 that computed: the last rounding alone leaves a quarter of U.
    assert U / 4 < rms_error(got, want) < rounded_often(U, cfg)


def test_a_float32_model_is_as_near_as_its_roundings_allow():
    cfg = TINY.replace(num_experts_per_tok=8)
    single = build.model(cfg, 0, torch.float32)
    got, want = build.logits(single, TOKENS), build.logits(copy.deepcopy(single).double(), TOKENS)
    # Sums of up to 64 products are rounded at every step here, not only at their end.
    assert 2**-26 < rms_error(got, want) < 8 * rounded_often(2**-24, cfg)


# The loss and its gradients.


@pytest.mark.parametrize("dtype", [BF16, torch.float32, torch.float64])
def test_the_loss_is_the_mean_cross_entropy_in_float32_at_least(dtype):
    built = build.model(TINY, 0, torch.float32).to(dtype)
    targets = TOKENS.copy()
    targets[0, :7] = -100
    loss = built.loss(TOKENS, targets)
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    logits = built(TOKENS).detach().double().numpy().reshape(-1, 256)
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    counted = targets.ravel() != -100
    want = -np.log(chances[counted, targets.ravel()[counted]]).mean()
    assert loss.item() == pytest.approx(want, rel=1e-5 if dtype != torch.float64 else 1e-12)
    assert built.loss(torch.from_numpy(TOKENS), torch.from_numpy(targets)).item() == loss.item()


@pytest.mark.parametrize(
    ("targets", "error", "sentence"),
    [
        (TOKENS[:, 1:], ValueError, "Targets must have the tokens' shape (2, 40)"),
        (TOKENS * 1.0, TypeError, "Targets must be whole numbers"),
        (TOKENS + 200, ValueError, "is outside the vocabulary of 256 ids"),
        (TOKENS - 1000, ValueError, "is outside the vocabulary"),
        (TOKENS * 0 - 100, ValueError, "Every target is -100"),
    ],
)
def test_targets_that_make_no_loss_are_refused(targets, error, sentence):
    with pytest.raises(error) as caught:
        build.model(TINY, 0).loss(TOKENS, targets)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [{}, {"n_group": 4, "topk_group": 2}, {"q_lora_rank": None, "tie_word_embeddings": True},
     {"scoring_func": "softmax", "topk_method": "greedy", "norm_topk_prob": False}],
    ids=["K2", "groups", "plain query", "softmax"],
)  # fmt: skip
def test_gradients_equal_finite_differences(changes):
    """Each parameter along a random direction: its slope is the gradient's share in it."""
    built = build.model(TINY.replace(**changes), 0)
    targets = np.roll(TOKENS, -1, axis=1)
    built.loss(TOKENS, targets).backward()
    generator, step = torch.Generator().manual_seed(1), 1e-5
    for name, parameter in built.named_parameters():
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        slope = float((parameter.grad * direction).sum())
        losses = []
        with torch.no_grad():
            for side in (step, -step):
                parameter += side * direction
                losses.append(float(built.loss(TOKENS, targets)))
                parameter -= side * direction
        measured = (losses[0] - losses[1]) / (2 * step)
        # Third derivatives cost step², the losses' own rounding 1e-15 / step.
        scale = float(parameter.grad.norm() * direction.norm())
        assert measured == pytest.approx(slope, abs=1e-6 * scale + 1e-9), name


def test_loss_is_cross_entropys_own():
    built = build.model(TINY, 0)
    want = F.cross_entropy(built(TOKENS).flatten(0, 1), torch.from_numpy(TOKENS).flatten())
    assert built.loss(TOKENS, TOKENS).item() == want.item()
