"""The torch engine on a GPU against itself on the CPU and against the reference."""

import numpy as np
import pytest
import torch

from minik2 import pytorch
from minik2.config import ModelConfig
from minik2.pytorch import grouped
from tests.pytorch import build
from tests.pytorch.test_grouped import both_are_near_the_exact, operands, random_choices
from tests.pytorch.test_precision import BF16, U, rms_error, rounded_often
from tests.reference import build as reference_build
from tests.reference.bounds import FLOAT64, relative_error

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = "cuda"
TINY = ModelConfig.preset("tiny")
# Widths that are multiples of 16 bytes, so that the grouped kernel takes them.
CONFIGS = {
    "K2": TINY,
    "V3": TINY.replace(n_group=4, topk_group=2),
    "V2": TINY.replace(scoring_func="softmax", topk_method="greedy", norm_topk_prob=False,
                       q_lora_rank=None, tie_word_embeddings=True),
    "odd": TINY.replace(moe_intermediate_size=13, qk_nope_head_dim=7, v_head_dim=9),
}  # fmt: skip
configs = pytest.mark.parametrize("cfg", CONFIGS.values(), ids=CONFIGS)
TOKENS = np.random.default_rng(0).integers(0, 256, (2, 200))


def logits(built, tokens=TOKENS) -> np.ndarray:
    with torch.no_grad():
        return built(tokens).double().cpu().numpy()


@configs
def test_float64_equals_the_reference(cfg):
    want = reference_build.model(cfg, 0)(TOKENS)
    assert relative_error(logits(build.model(cfg, 0, device=DEVICE)), want) < FLOAT64


@configs
def test_float32_is_as_near_as_its_roundings_allow(cfg):
    cfg = cfg.replace(num_experts_per_tok=cfg.topk_group * 8 // cfg.n_group)
    single = build.model(cfg, 0, torch.float32, DEVICE)
    want = reference_build.model(cfg, 0)(TOKENS)
    # Sums of up to 200 products, each rounded at every step.
    assert rms_error(logits(single), want) < 15 * rounded_often(2**-24, cfg)


@configs
def test_bfloat16_is_as_near_as_its_roundings_allow(cfg):
    """Every expert is chosen, so that no rounding can change a choice."""
    cfg = cfg.replace(num_experts_per_tok=8, n_group=1, topk_group=1)
    rounded = build.model(cfg, 0, torch.float64, DEVICE).to(BF16)
    exact = build.model(cfg, 0, torch.float64, DEVICE).to(BF16).double()
    assert U / 4 < rms_error(logits(rounded), logits(exact)) < rounded_often(U, cfg)


@pytest.mark.parametrize("chosen", [1, 2, 5])
def test_the_kernel_and_the_loop_are_equal(monkeypatch, chosen):
    made = operands(random_choices(15, chosen, 5), 32, 16, 6, BF16)
    moved = [t.detach().to(DEVICE).requires_grad_(t.requires_grad) for t in made]
    fits = grouped.fits_the_kernel(moved[0], moved[-1])
    assert fits == hasattr(torch.nn.functional, "grouped_mm")
    both_are_near_the_exact(monkeypatch, moved)


def test_gradients_of_a_bfloat16_model_are_finite_and_near_the_cpus():
    cfg = TINY.replace(num_experts_per_tok=8)
    grads = []
    for device in ("cpu", DEVICE):
        built = build.model(cfg, 0, torch.float64, device).to(BF16)
        built.loss(TOKENS, np.roll(TOKENS, -1, axis=1)).backward()
        grads.append({n: p.grad.double().cpu().numpy() for n, p in built.named_parameters()})
    for name, want in grads[0].items():
        # Both are off by what a pass there and back rounds.
        assert rms_error(grads[1][name], want) < 2 * np.sqrt(2) * rounded_often(U, cfg), name


def test_the_same_seed_gives_the_same_weights_and_the_same_greedy_text():
    there, here = (pytorch.Model.init(TINY, seed=4, device=d, dtype=torch.float64)
                   for d in (DEVICE, "cpu"))  # fmt: skip
    assert all(torch.equal(there.weights[n].cpu(), w) for n, w in here.weights.items())
    out = there.generate(TOKENS[:, :9], 20)
    assert out.device.type == "cuda" and torch.equal(out.cpu(), here.generate(TOKENS[:, :9], 20))
    drawn = [there.generate(TOKENS[:, :9], 20, 1.0, seed=s).tolist() for s in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_tokens_may_be_on_either_side():
    built = build.model(TINY, 0, device=DEVICE)
    on_device = torch.from_numpy(TOKENS).to(DEVICE)
    assert (logits(built, on_device) == logits(built)).all()
    assert (logits(built, on_device.int()) == logits(built)).all()
    assert built.loss(on_device, on_device).item() == built.loss(TOKENS, TOKENS).item()
    with pytest.raises(TypeError, match="must be int32 or int64"):
        built(on_device.float())
    with pytest.raises(ValueError, match=r"one sequence goes in as tokens\[None\]"):
        built(on_device[0])
    with pytest.raises(ValueError, match="600 tokens exceed the model's 512 positions"):
        built(on_device.repeat(1, 3))


def test_a_model_comes_back_from_the_device_as_it_went():
    built = build.model(TINY, 0, torch.float32)
    before = {name: w.clone() for name, w in built.weights.items()}
    back = built.to(DEVICE).to("cpu")
    assert all(torch.equal(back.weights[name], w) for name, w in before.items())


def test_a_watch_sees_what_it_sees_on_the_cpu_and_does_not_wait():
    seen = []
    for device in ("cpu", DEVICE):
        built, watch = build.model(TINY, 0, device=device), pytorch.Watch(TINY, device)
        for _ in range(2):
            built.loss(TOKENS, TOKENS, 0.1, watch).backward()
        assert watch.seconds > 0
        seen.append((watch.max_logits.cpu(), watch.loads.cpu()))
    assert relative_error(seen[1][0], seen[0][0]) < FLOAT64
    assert torch.equal(seen[1][1], seen[0][1])
    q = torch.ones(1, 100, 2, 16, device=DEVICE)
    indices = torch.zeros(100, 2, dtype=torch.int64, device=DEVICE)
    saved = {"attention": {"q": q, "k": q, "scale": 0.5}, "router": {"indices": indices}}
    watch.reset()
    torch.cuda.set_sync_debug_mode("error")
    try:
        watch.take(1, saved)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert watch.max_logits[1].tolist() == [8.0, 8.0] and watch.loads[1, 0] == 200
