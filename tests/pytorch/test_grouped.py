"""The routed experts: the loop against its definition and gradients, and PyTorch's kernel."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from minik2.config import ModelConfig
from minik2.pytorch import grouped
from tests.pytorch import build
from tests.reference.bounds import FLOAT64, relative_error

SIZES = st.integers(1, 9)


def operands(choices, hidden, width, experts, dtype=torch.float64, seed=0):
    """x, indices, weights and the two stacks; choices: the chosen experts of every token."""
    generator = torch.Generator().manual_seed(seed)

    def numbers(*shape):
        made = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return made.to(dtype).requires_grad_()

    indices = torch.tensor(choices)
    return (numbers(len(indices), hidden), indices, numbers(*indices.shape),
            numbers(experts, 2 * width, hidden), numbers(experts, hidden, width))  # fmt: skip


def random_choices(tokens, chosen, experts, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(tokens, experts, generator=generator).topk(chosen).indices.tolist()


def pair_by_pair(x, indices, weights, gate_up_proj, down_proj):
    y = []
    for token, chosen, shares in zip(x, indices, weights, strict=True):
        total = torch.zeros_like(token)
        for expert, share in zip(chosen, shares, strict=True):
            gate, up = (gate_up_proj[expert] @ token).chunk(2)
            total = total + share * (down_proj[expert] @ (F.silu(gate) * up))
        y.append(total)
    return torch.stack(y)


def answers(experts, x, indices, *rest):
    """The sum over experts and all gradients of a weighted sum of it."""
    y = experts(x, indices, *rest)
    weigh = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).reshape(y.shape).to(y)
    return [y.detach(), *torch.autograd.grad((y * weigh).sum(), (x, *rest))]


@given(chosen=st.integers(1, 4), others=st.integers(0, 5), hidden=SIZES, width=SIZES,
       seed=st.integers(0, 99))  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_a_single_token_is_read_expert_by_expert(chosen, others, hidden, width, seed):
    choices = random_choices(1, chosen, chosen + others, seed)
    given_ = operands(choices, hidden, width, chosen + others, seed=seed)
    with torch.no_grad():
        before = [operand.clone() for operand in given_]
        got, want = grouped.experts(*given_), pair_by_pair(*given_)
    assert relative_error(got, want) < FLOAT64
    assert all(torch.equal(a, b) for a, b in zip(given_, before, strict=True))


@given(tokens=SIZES, chosen=st.integers(1, 3), others=st.integers(0, 5), hidden=SIZES,
       width=SIZES, seed=st.integers(0, 99))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_the_loop_is_the_definition(tokens, chosen, others, hidden, width, seed):
    """Odd sizes, and experts without a row at the start, in the middle and at the end."""
    experts = chosen + others
    choices = random_choices(tokens, chosen, experts, seed)
    given_ = operands(choices, hidden, width, experts, seed=seed)
    got = answers(grouped.experts, *given_)
    for ours, want in zip(got, answers(pair_by_pair, *given_), strict=True):
        assert relative_error(ours, want) < FLOAT64


def test_gradients_of_the_loop_equal_finite_differences():
    x, indices, *rest = operands([[1, 4], [4, 2], [1, 3]], 3, 2, 6)
    assert torch.autograd.gradcheck(
        lambda a, *others: grouped.experts(a, indices, *others), (x, *rest)
    )


def test_an_expert_without_rows_gets_no_gradient():
    """Though memory that is handed over unset may hold anything."""
    given_ = operands([[1], [1]], 4, 3, 3)
    junk = [torch.full((3, 6, 4), 7.0, dtype=torch.float64) for _ in range(20)]
    del junk
    *_, dgate_up_proj, ddown_proj = answers(grouped.experts, *given_)
    for stack in (dgate_up_proj, ddown_proj):
        assert (stack[[0, 2]] == 0).all() and (stack[1] != 0).all()


def test_a_gradient_of_stride_zero_is_taken():
    given_ = operands([[0, 1], [2, 0]], 4, 3, 3)
    inputs = [t for t in given_ if t.requires_grad]
    got = torch.autograd.grad(grouped.experts(*given_).sum(), inputs)
    want = torch.autograd.grad(pair_by_pair(*given_).sum(), inputs)
    for ours, theirs in zip(got, want, strict=True):
        assert relative_error(ours, theirs) < FLOAT64


def test_a_second_derivative_is_refused_rather_than_wrong():
    x, *rest = operands([[0, 1], [2, 0]], 4, 3, 3)
    y = grouped.experts(x, *rest).pow(2).sum()
    (dx,) = torch.autograd.grad(y, x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        dx.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_runs_repeat_bit_for_bit(dtype):
    given_ = operands(random_choices(300, 3, 8), 64, 48, 8, dtype)
    first = answers(grouped.experts, *given_)
    for _ in range(3):
        for again, before in zip(answers(grouped.experts, *given_), first, strict=True):
            assert torch.equal(again, before)


def test_only_gate_up_waits_for_the_backward_pass():
    """A training step's memory: of numbers for each (token, choice), 2I and their places."""
    tokens, chosen, hidden, width = 50, 3, 16, 8
    given_ = operands(random_choices(tokens, chosen, 4), hidden, width, 4)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        grouped.experts(*given_)
    inputs = {t.data_ptr() for t in given_}
    made = sum(t.numel() for t in kept if t.data_ptr() not in inputs)
    assert 0 < made <= tokens * chosen * (2 * width + 2)


@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this PyTorch has no grouped_mm")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chosen", [1, 2, 5])
def test_pytorchs_kernel_and_the_loop_are_equal(monkeypatch, dtype, chosen):
    given_ = operands(random_choices(15, chosen, 5), 24, 16, 6, dtype)
    both_are_near_the_exact(monkeypatch, given_)


def both_are_near_the_exact(monkeypatch, given_):
    """Both round each intermediate once, in another order: their errors are of one size."""
    wide = [t.detach().double().requires_grad_() if t.requires_grad else t for t in given_]
    exact = answers(grouped.experts, *wide)
    found = []
    for fits in (False, True):
        monkeypatch.setattr(grouped, "fits_the_kernel", lambda x, weight, fits=fits: fits)
        found.append(answers(grouped.experts, *given_))
    # Between input and gradient lie at most nine roundings, of which sums take the square root.
    unit = 9 * torch.finfo(given_[0].dtype).eps
    for loop, kernel, want in zip(*found, exact, strict=True):
        assert relative_error(loop.double().cpu(), want.cpu()) < unit
        assert relative_error(kernel.double().cpu(), want.cpu()) < unit


@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this PyTorch has no grouped_mm")
def test_a_model_through_the_kernel_learns_as_through_the_loop(monkeypatch):
    """The whole path, with gradients as the layers around the kernel hand them on."""
    cfg = ModelConfig.preset("tiny")
    built = build.model(cfg, 0, torch.float32)
    tokens = torch.arange(24).reshape(2, 12)

    def gradients():
        built.zero_grad()
        built.loss(tokens, tokens.roll(-1, 1)).backward()
        return {name: p.grad.clone() for name, p in built.named_parameters()}

    loop = gradients()
    monkeypatch.setattr(grouped, "fits_the_kernel", lambda x, weight: True)
    kernel = gradients()
    for name, want in loop.items():
        # Some hundred rounded terms a number, three layers there and back.
        assert relative_error(kernel[name], want) < 1e4 * 2**-24, name


def operand(dtype=torch.bfloat16, device="cuda", shape=(4, 16, 32)):
    return SimpleNamespace(dtype=dtype, device=torch.device(device), shape=shape,
                           element_size=lambda: dtype.itemsize)  # fmt: skip


def test_where_the_kernel_is_used(monkeypatch):
    monkeypatch.setattr(F, "grouped_mm", lambda *a, **k: None, raising=False)
    fits = grouped.fits_the_kernel
    assert fits(operand(), operand())
    assert not fits(operand(device="cpu"), operand(device="cpu"))
    for dtype in (torch.float64, torch.float32, torch.float16):
        assert not fits(operand(dtype), operand(dtype))
    assert not fits(operand(), operand(torch.float32))
    # 7 numbers of two bytes: rows that do not begin at multiples of 16 bytes.
    for shape in ((4, 7, 32), (4, 16, 7)):
        assert not fits(operand(), operand(shape=shape))
    monkeypatch.delattr(F, "grouped_mm")
    assert not fits(operand(), operand())
