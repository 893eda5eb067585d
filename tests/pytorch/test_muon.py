"""Muon and MuonClip in torch against torch.optim and the reference."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from minik2 import pytorch, reference
from minik2.config import ModelConfig
from minik2.pytorch import muon, newton_schulz, qk_clip
from minik2.pytorch.muon import Muon, MuonClip
from tests.oracle.configs import configs
from tests.pytorch import build
from tests.reference.optimizers import FLOAT64, iterating_in, muon_settings, their_iteration
from tests.reference.spectra import INPUTS, error, mostly_zero

SEEDS = st.integers(0, 2**31)
SIDES = st.integers(1, 40)
KINDS = st.sampled_from(list(INPUTS))
examples = settings(max_examples=40, deadline=None)
SHAPES = [(3, 40), (64, 64), (128, 256), (150, 160), (300, 130), (160, 560)]
# Roundings on the way of one step: R, b R + c R² and X are stored, five times.
BFLOAT16_STEP = 5 * 3 * 2.0**-8
TINY = ModelConfig.preset("tiny")


def parameter(array, dtype=torch.float64):
    return torch.nn.Parameter(torch.from_numpy(np.array(array)).to(dtype))


def noise_like(tensor, rng):
    return torch.from_numpy(rng.standard_normal(tuple(tensor.shape))).to(tensor.dtype)


def draws(kind, shape, count):
    rng = np.random.default_rng([len(kind), *shape])
    return [torch.from_numpy(INPUTS[kind](rng, *shape)).float() for _ in range(count)]


def exactly(G, steps=5):
    return reference.muon.plain(G.double().numpy(), steps)


@given(rows=SIDES, columns=SIDES, steps=st.integers(1, 7), kind=KINDS, seed=SEEDS)
@examples
def test_the_iteration_equals_torchs_and_the_references(rows, columns, steps, kind, seed):
    G = torch.from_numpy(INPUTS[kind](np.random.default_rng(seed), rows, columns))
    got = newton_schulz.newton_schulz(G, steps)
    assert got.dtype == torch.float64
    with iterating_in(torch.float64):
        assert error(got, their_iteration(G, steps)) < FLOAT64
    assert error(got, reference.muon.newton_schulz(G.numpy(), steps)) < FLOAT64


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", INPUTS)
def test_both_ways_are_the_plain_iteration_in_float64(kind, shape):
    G = draws(kind, shape, 1)[0].double()
    want = exactly(G)
    assert error(newton_schulz.newton_schulz(G), want) < FLOAT64
    X, wide = newton_schulz._start(G[None], torch.float64), shape[0] <= shape[1]
    X = newton_schulz._gram_steps(newton_schulz._gram_steps(X, wide, 3), wide, 2)
    assert error(X[0], want) < FLOAT64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", INPUTS)
def test_low_precision_errs_at_most_twice_as_much_as_torchs_own(kind, shape, dtype):
    """Against float64, over some draws, more where few numbers let luck in; an error of less than
    one rounding is luck too, and counts as one."""
    ours, theirs, count = [], [], 32 if math.prod(shape) < 1000 else 4
    for G in draws(kind, shape, count):
        exact = exactly(G)
        ours.append(error(newton_schulz.newton_schulz(G, dtype=dtype).double(), exact))
        with iterating_in(dtype):
            theirs.append(error(their_iteration(G).double(), exact))
    one = count**0.5 * torch.finfo(dtype).eps / 2
    assert np.hypot.reduce(ours) <= 2 * max(np.hypot.reduce(theirs), one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(128, 256), (300, 130)])
@pytest.mark.parametrize("kept", [1, 4, 64])
def test_zero_rows_err_at_most_twice_as_much_as_torchs_on_ill_conditioned(kept, shape, dtype):
    """torch's own errs far less on zero rows: only the Gram matrix has something small there."""
    rng = np.random.default_rng(kept)
    ours, theirs = [], []
    for _ in range(3):
        G = torch.from_numpy(mostly_zero(rng, *shape, kept)).float()
        ours.append(error(newton_schulz.newton_schulz(G, dtype=dtype).double(), exactly(G)))
        G = torch.from_numpy(INPUTS["condition 1e8"](rng, *shape)).float()
        with iterating_in(dtype):
            theirs.append(error(their_iteration(G).double(), exactly(G)))
    assert np.hypot.reduce(ours) <= 2 * np.hypot.reduce(theirs)


def test_without_a_restart_bfloat16_loses_everything():
    (G,) = draws("condition 1e4", (128, 256), 1)
    X = newton_schulz._start(G[None], torch.bfloat16)
    assert error(newton_schulz._gram_steps(X, True, 5)[0].double(), exactly(G)) > 1
    assert error(newton_schulz.newton_schulz(G, dtype=torch.bfloat16).double(), exactly(G)) < 0.2


@pytest.mark.parametrize("shape", [(5, 3, 8), (3, 140, 300), (2, 300, 140), (1, 6, 6)])
def test_a_stack_is_taken_matrix_by_matrix(shape):
    G = torch.from_numpy(np.random.default_rng(0).standard_normal(shape))
    G[0] *= 100  # one norm for the whole stack would show
    before = G.clone()
    got = newton_schulz.newton_schulz(G)
    assert got.shape == shape and (before == G).all()
    for one, whole in zip(G, got, strict=True):
        assert error(whole, exactly(one)) < FLOAT64


@pytest.mark.parametrize("shape", [(8, 20), (128, 256), (140, 150), (400, 130)])
def test_flops_counts_what_is_done(shape):
    with FlopCounterMode(display=False) as counter:
        newton_schulz.newton_schulz(torch.ones(3, *shape))
    lengths = newton_schulz.segments(*shape, 5)
    assert counter.get_total_flops() == 3 * newton_schulz.flops(*shape, lengths)
    with FlopCounterMode(display=False) as counter, iterating_in(torch.float32):
        their_iteration(torch.ones(shape))
    assert counter.get_total_flops() == newton_schulz.flops(*shape, [1] * 5)


def test_the_shape_decides():
    assert newton_schulz.segments(512, 256, 5) == [3, 2] == newton_schulz.segments(2048, 7168, 5)
    assert newton_schulz.segments(1408, 2048, 5) == [1] * 5 == newton_schulz.segments(512, 512, 5)
    assert newton_schulz.segments(64, 4096, 5) == [1] * 5


def test_the_iterations_precision_follows_the_processor(monkeypatch):
    for native, want in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(newton_schulz, "_multiplies_bfloat16", lambda device, n=native: n)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            G = torch.ones(2, 2, dtype=dtype)
            assert newton_schulz.newton_schulz(G).dtype == want
        assert newton_schulz.newton_schulz(torch.ones(2, 2).double()).dtype == torch.float64
    assert newton_schulz.newton_schulz(torch.ones(2, 2), dtype=torch.float16).dtype == torch.float16


def test_what_is_no_matrix_gets_a_sentence():
    for shape in ((5,), (2, 3, 4, 5), ()):
        with pytest.raises(ValueError, match=r"a matrix \(r, c\) or a stack"):
            newton_schulz.newton_schulz(torch.ones(shape))
    with pytest.raises(ValueError, match="at least one step, not 0"):
        newton_schulz.newton_schulz(torch.ones(2, 2), 0)


@given(rows=SIDES, columns=SIDES, options=muon_settings(), size=st.sampled_from([1e-9, 1.0, 1e6]),
       seed=SEEDS)  # fmt: skip
@examples
def test_every_step_equals_torchs_and_the_references(rows, columns, options, size, seed):
    rng = np.random.default_rng(seed)
    start = rng.standard_normal((rows, columns))
    ours, theirs, by_hand = parameter(start), parameter(start), start.copy()
    our_muon, their_muon = Muon([ours], **options), torch.optim.Muon([theirs], **options)
    hand_muon = reference.muon.Muon(**options)
    for _ in range(6):
        ours.grad = size * noise_like(ours, rng)
        theirs.grad, before = ours.grad.clone(), ours.grad.clone()
        our_muon.step()
        hand_muon.step({"w": by_hand}, {"w": before.numpy()})
        with iterating_in(torch.float64):
            their_muon.step()
        assert error(ours.detach(), theirs.detach()) < FLOAT64
        assert error(ours.detach(), by_hand) < FLOAT64
        assert (ours.grad == before).all()


@given(experts=st.integers(1, 4), split=st.integers(1, 3), rows=SIDES, columns=SIDES,
       options=muon_settings(), batch=st.sampled_from([1, 900, muon.CPU_BATCH]),
       seed=SEEDS)  # fmt: skip
@examples
def test_a_stack_split_or_whole_equals_torch_looped_over_its_matrices(
    experts, split, rows, columns, options, batch, seed
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(muon, "CPU_BATCH", batch)  # in one piece, or in many
        equals_torch_looped(experts, split, rows, columns, options, seed)


@pytest.mark.parametrize("shape", [(1, 1, 130, 300), (1, 2, 300, 130), (5, 1, 160, 300),
                                   (3, 2, 256, 256)])  # fmt: skip
def test_whole_steps_on_the_gram_matrix_and_in_pieces_equal_torchs(shape):
    options = {"lr": 0.02, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    equals_torch_looped(*shape, options, seed=0)


def equals_torch_looped(experts, split, rows, columns, options, seed):
    rng = np.random.default_rng(seed)
    start = rng.standard_normal((experts, split * rows, columns))
    stack = parameter(start)
    apart = [parameter(block) for expert in start for block in expert.reshape(split, rows, columns)]
    our_muon = Muon([{"params": [stack], "split": split}], **options)
    their_muon = torch.optim.Muon(apart, **options)
    for _ in range(3):
        stack.grad = noise_like(stack, rng)
        blocks = stack.grad.reshape(-1, rows, columns)
        for one, grad in zip(apart, blocks, strict=True):
            one.grad = grad.clone()
        our_muon.step()
        with iterating_in(torch.float64):
            their_muon.step()
        want = torch.stack([one.detach() for one in apart]).reshape(stack.shape)
        assert error(stack.detach(), want) < FLOAT64


def test_a_matrix_may_be_split_too():
    whole, halves = parameter(np.ones((6, 5))), [parameter(np.ones((3, 5))) for _ in range(2)]
    whole.grad = noise_like(whole, np.random.default_rng(0))
    halves[0].grad, halves[1].grad = whole.grad[:3].clone(), whole.grad[3:].clone()
    Muon([{"params": [whole], "split": 2}], lr=0.1).step()
    Muon(halves, lr=0.1).step()
    assert error(whole.detach(), torch.cat([half.detach() for half in halves])) < FLOAT64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(64, 64), (128, 300)])
def test_whole_steps_in_bfloat16_are_within_its_bound_of_torchs(shape, dtype):
    """As both run by default: each update may be off by the roundings of its iteration."""
    rng = np.random.default_rng(0)
    start = rng.standard_normal(shape)
    ours, theirs = parameter(start, dtype), parameter(start, dtype)
    options = {"lr": 0.01, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    our_muon = Muon([ours], iteration_dtype=torch.bfloat16, **options)
    their_muon = torch.optim.Muon([theirs], **options)
    rms = lambda x: float(x.double().square().mean().sqrt())  # noqa: E731
    stored = torch.finfo(dtype).eps * rms(theirs.detach())
    for step in range(1, 6):
        ours.grad = noise_like(ours, rng)
        theirs.grad = ours.grad.clone()
        our_muon.step()
        their_muon.step()
        # An update's rms is at most 0.2 lr times 1.13; weights round where they are stored.
        bound = step * (2 * BFLOAT16_STEP * 0.01 * 0.2 * 1.13 + 2 * stored)
        assert rms(ours.detach().double() - theirs.detach().double()) < bound


def test_the_optimizer_is_torchs(tmp_path):
    """Schedulers, closures, gradients that are not there, and going on from a saved state."""
    rng = np.random.default_rng(0)
    start = rng.standard_normal((4, 3))
    first, second, still = parameter(start), parameter(start), parameter(start)
    muons = [Muon([p, still], lr=0.1) for p in (first, second)]
    grads = [noise_like(first, rng) for _ in range(4)]
    for n, grad in enumerate(grads):
        first.grad = grad.clone()
        assert muons[0].step(lambda: 7.0) == 7.0
        if n == 1:
            torch.save({"muon": muons[0].state_dict(), "p": first.detach()}, tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)
    with torch.no_grad():
        second.copy_(state["p"])
    muons[1].load_state_dict(state["muon"])
    for grad in grads[2:]:
        second.grad = grad.clone()
        muons[1].step()
    assert (first == second).all() and (still.detach().numpy() == start).all()
    torch.optim.lr_scheduler.LambdaLR(muons[1], lambda step: 0.5)
    assert muons[1].param_groups[0]["lr"] == 0.05


def test_settings_and_shapes_that_cannot_be_meant_get_sentences():
    p = parameter(np.ones((2, 3)))
    for wrong in ({"lr": -1.0}, {"lr": 1.0, "momentum": 1.0}, {"lr": 1.0, "weight_decay": -0.1},
                  {"lr": math.nan}, {"lr": 1.0, "weight_decay": math.inf}):
        with pytest.raises(ValueError, match="Muon wants lr"):
            Muon([p], **wrong)
    for steps in (0, 2.5):
        with pytest.raises(ValueError, match="a whole number of steps, 1 up"):
            Muon([p], lr=1.0, steps=steps)
    with pytest.raises(ValueError, match="not 'spectral'"):
        Muon([p], lr=1.0, adjust_lr_fn="spectral")
    muon = Muon([p], lr=1.0)
    for shape in ((3,), (2, 2, 2, 2), (0, 7)):
        with pytest.raises(ValueError, match="leave it to AdamW"):
            Muon([parameter(np.ones(shape))], lr=1.0)
        with pytest.raises(ValueError, match="leave it to AdamW"):
            muon.add_param_group({"params": [parameter(np.ones(shape))]})
    assert len(muon.param_groups) == 1
    with pytest.raises(ValueError, match="r a multiple of 2"):
        Muon([{"params": [parameter(np.ones((3, 4)))], "split": 2}], lr=1.0)


# MuonClip.


def no_clip(cfg):
    return torch.zeros(cfg.num_hidden_layers, cfg.num_attention_heads, dtype=torch.float64)


def with_gradients(model, seed):
    rng = np.random.default_rng(seed)
    for p in model.parameters():
        p.grad = noise_like(p, rng)
    return model


@given(cfg=configs(), seed=SEEDS)
@settings(max_examples=20, deadline=None)
def test_every_tensor_of_the_checkpoint_is_updated_by_the_optimizer_it_belongs_to(cfg, seed):
    """Two steps, with torch's optimizers on the checkpoint's tensors one by one."""
    model = build.model(cfg, seed)
    apart = {name: torch.nn.Parameter(tensor.detach().clone())
             for name, tensor in model.weights.items() if "correction_bias" not in name}
    aside = {name for name in apart
             if "norm" in name or "embed_tokens" in name or "lm_head" in name}
    theirs = [
        torch.optim.Muon([p for name, p in apart.items() if name not in aside], lr=0.01,
                         weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([apart[name] for name in aside], lr=0.02, betas=(0.9, 0.95),
                          weight_decay=0.1),
    ]  # fmt: skip
    ours = MuonClip(model, lr=0.01, adamw_lr=0.02)
    for step in range(2):
        with_gradients(model, seed + step)
        grads = gradients_by_name(model)
        for name, p in apart.items():
            p.grad = grads[name].clone()
        assert (ours.step(no_clip(cfg)) == 1).all()
        with iterating_in(torch.float64):
            for optimizer in theirs:
                optimizer.step()
    for name, p in apart.items():
        assert error(model.weights[name].detach(), p.detach()) < FLOAT64, name


def gradients_by_name(model):
    """The gradients under the checkpoint's names: a model whose weights are the gradients."""
    shadow = pytorch.Model.empty(model.cfg, "cpu", torch.float64)
    with torch.no_grad():
        for copy, p in zip(shadow.parameters(), model.parameters(), strict=True):
            copy.copy_(p.grad)
    return {name: tensor.detach() for name, tensor in shadow.weights.items()}


def test_both_engines_draw_the_same_line():
    for name, shape in ModelConfig.preset("kimi-k2").tensors():
        wanted = len(shape) == 2 and name.split(".")[-2] not in ("embed_tokens", "lm_head")
        assert muon.takes(name, shape) == reference.muon.takes(name, shape) == wanted
        for how in ("match_rms_adamw", "original"):
            assert muon.scale(7, 3, how) == reference.muon.scale(7, 3, how)


def test_a_head_past_tau_is_clipped_after_the_update():
    tops = no_clip(TINY)
    tops[1, 0], tops[2, 1] = 400.0, 101.0
    models = [with_gradients(build.model(TINY, 0), 1) for _ in range(2)]
    gamma = MuonClip(models[0], lr=0.01).step(tops)
    MuonClip(models[1], lr=0.01).step(no_clip(TINY))
    want = torch.ones_like(gamma)
    want[1, 0], want[2, 1] = 0.25, 100 / 101
    assert torch.allclose(gamma, want, rtol=1e-15)
    for layer, row in zip(models[1].model.layers, tops, strict=True):
        qk_clip.clip(dict(layer.self_attn.named_parameters()), row, TINY)
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert (one == other).all()


def test_it_learns_and_goes_on_from_a_saved_state():
    """Float32, as it runs by default; the second half again from the middle gives the same bits."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 256, (4, 17))
    inputs, targets = tokens[:, :-1], torch.from_numpy(tokens[:, 1:])

    def train(model, optimizer, steps):
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = model.loss(inputs, targets)
            loss.backward()
            optimizer.step(no_clip(TINY))
            losses.append(loss.item())
        return losses

    model = pytorch.Model.init(TINY, seed=0)
    optimizer = MuonClip(model, lr=0.02)
    losses = train(model, optimizer, 10)
    again = pytorch.Model.init(TINY, seed=1)
    again.load_state_dict(model.state_dict())
    resumed = MuonClip(again, lr=0.5)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert losses[-1] < losses[0] - 0.5
    assert train(model, optimizer, 5) == train(again, resumed, 5)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = [p.detach().clone() for p in model.parameters()]
    train(model, optimizer, 1)
    assert all((p == old).all() for p, old in zip(model.parameters(), before, strict=True))
