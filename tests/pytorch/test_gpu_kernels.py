"""The Triton kernels and the recorded step against float64, on a GPU."""

import numpy as np
import pytest
import torch

from minik2 import pytorch
from minik2.config import ModelConfig
from minik2.pytorch import attention, decode, grouped, loss, qk_clip
from minik2.pytorch.accelerated import kernels
from tests.pytorch import build
from tests.pytorch.test_grouped import operands, random_choices
from tests.pytorch.test_precision import rms_error

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available() or kernels is None,
                       reason="needs a CUDA device and Triton"),
]  # fmt: skip
BF16, U = torch.bfloat16, 2.0**-8
# Sizes that the kernels take.
CFG = ModelConfig.preset("tiny").replace(
    hidden_size=64, kv_lora_rank=32, qk_rope_head_dim=16, moe_intermediate_size=32
)


def randn(*shape, dtype=BF16):
    return torch.randn(*shape, device="cuda").to(dtype)


@pytest.mark.parametrize(("batch", "heads", "latent", "rotary", "held"), [
    (1, 16, 512, 64, 8192), (3, 5, 32, 16, 100), (2, 64, 512, 64, 1000), (40, 1, 16, 16, 7),
])  # fmt: skip
def test_absorbed_attention(batch, heads, latent, rotary, held):
    q = 0.2 * randn(batch, 1, heads, latent + rotary)
    rows = randn(batch, held + 3, latent + rotary)[:, :held]
    last = torch.randint(held, (batch, 1), device="cuda")
    assert kernels.takes_attention(q, rows, latent)
    got = attention.absorbed(q, rows, latent, last)
    want = attention.absorbed(q.double(), rows.double(), latent, last)
    assert rms_error(got.double().cpu(), want.cpu()) < 2 * U
    # Where all is seen, nothing need be said of it.
    whole = attention.absorbed(q, rows, latent, None)
    want = attention.absorbed(q.double(), rows.double(), latent, None)
    assert rms_error(whole.double().cpu(), want.cpu()) < 2 * U


@pytest.mark.parametrize(("batch", "tokens", "heads", "width"), [
    (2, 300, 3, 192), (1, 1, 2, 48), (1, 65, 1, 32), (2, 128, 2, 256), (1, 70, 2, 90),
])  # fmt: skip
def test_largest_logits(batch, tokens, heads, width):
    q, k = (randn(batch, tokens, heads, width) for _ in range(2))
    assert kernels.takes_logits(q, k)
    got = qk_clip.max_logits(q, k, 0.3)
    want = qk_clip.max_logits(q.double(), k.double(), 0.3)
    assert ((got - want).abs() < 1e-5 * want.abs().max()).all()
    q[-1, -1, 0, 3] = torch.nan
    broken = qk_clip.max_logits(q, k, 0.3)
    assert broken[0].isnan() and not broken[1:].isnan().any()


@pytest.mark.parametrize("tokens", [1, 4])
def test_few_tokens_experts(tokens):
    made = operands(random_choices(tokens, 3, 9), 72, 40, 9, BF16)
    x, indices, *rest = (t.detach().cuda() for t in made)
    with torch.no_grad():
        assert kernels.takes_experts(x, rest[1])
        got = grouped.experts(x, indices, *rest)
        want = grouped._Loop.apply(x.double(), indices, *(t.double() for t in rest))
    assert rms_error(got.double().cpu(), want.cpu()) < 2 * U


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_a_recorded_step_is_the_step(batch):
    """One and three sequences take the experts' kernel, eight the grouped product."""
    model = build.model(CFG, 0, torch.float32, "cuda").to(BF16)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, CFG.vocab_size, (batch, 30))
    counts = rng.integers(1, 15, batch)
    recorded, plain = model.new_cache(batch, 30), model.new_cache(batch, 30)
    assert decode.takes(model, recorded)
    for cache in (recorded, plain):
        model(tokens[:, :15], cache=cache, counts=counts)
    for n in range(10):
        given = tokens[np.arange(batch), counts + n][:, None]
        got = model(given, cache=recorded)
        plan = plain.plan(np.ones(batch, np.int64), absorbed=True)
        with torch.no_grad():
            want = model.appended(torch.from_numpy(given[:, 0]).cuda(), plain.rows, plan)
        plain.lengths += 1
        assert recorded.step is not None and rms_error(
            got[:, 0].double().cpu(), want.double().cpu()) < 8 * U  # fmt: skip
    assert (recorded.lengths == counts + 10).all()


def test_a_recording_repeats_bit_for_bit():
    model = build.model(CFG, 0, torch.float32, "cuda").to(BF16)
    prompt = np.random.default_rng(0).integers(0, CFG.vocab_size, (1, 9))
    first = model.generate(prompt, 20, temperature=0.8, seed=1)
    assert torch.equal(first, model.generate(prompt, 20, temperature=0.8, seed=1))


def test_training_in_mixed_precision_does_not_wait_for_the_device():
    model = build.model(CFG, 0, torch.float32, "cuda")
    mixed, watch = pytorch.Mixed(model), pytorch.Watch(CFG, "cuda")
    tokens = torch.randint(CFG.vocab_size, (2, 64), device="cuda")
    mixed.loss(tokens, tokens, watch=watch).backward()  # libraries set themselves up
    torch.cuda.set_sync_debug_mode("error")
    try:
        mixed.loss(tokens, tokens, watch=watch).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_fused_model_computes_the_same():
    model = build.model(CFG, 0, torch.float32, "cuda")
    tokens = torch.randint(CFG.vocab_size, (2, 64), device="cuda")
    want, grads = model.loss_and_grads(tokens, tokens)
    got, fused = model.fuse().loss_and_grads(tokens, tokens)
    assert abs(got.item() - want.item()) < 1e-5
    for name, grad in grads.items():
        assert rms_error(fused[name].double().cpu(), grad.double().cpu()) < 1e-4, name


def test_a_large_vocabularys_loss_by_blocks(monkeypatch):
    x, weight = randn(100, 64).requires_grad_(), randn(500, 64).requires_grad_()
    targets = torch.randint(500, (100,), device="cuda")
    want = loss.forward(x, weight, targets)
    grads = torch.autograd.grad(want, (x, weight))
    monkeypatch.setattr(loss, "AT_ONCE", 7 * 500)
    got = loss.forward(x, weight, targets)
    assert abs(got.item() - want.item()) < 1e-5
    for ours, theirs in zip(torch.autograd.grad(got, (x, weight)), grads, strict=True):
        assert rms_error(ours.double().cpu(), theirs.double().cpu()) < 2 * U
