"""The grouped product: the loop against its definition and gradients, and PyTorch's kernel."""

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

COUNTS = st.lists(st.integers(0, 5), min_size=1, max_size=7).filter(sum)
SIZES = st.integers(1, 9)


def operands(counts, width, out, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(counts), width, generator=generator, dtype=dtype)
    weight = torch.randn(len(counts), out, width, generator=generator, dtype=dtype)
    return x.requires_grad_(), weight.requires_grad_(), torch.tensor(counts)


def row_by_row(x, weight, counts):
    experts = torch.repeat_interleave(torch.arange(len(counts)), counts)
    return torch.stack([weight[e] @ row for e, row in zip(experts, x, strict=True)])


def answers(product, x, weight, counts):
    """The product and both gradients of a weighted sum of it."""
    y = product(x, weight, counts)
    weigh = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).reshape(y.shape).to(y)
    return [y, *torch.autograd.grad((y * weigh).sum(), (x, weight))]


@given(counts=COUNTS, width=SIZES, out=SIZES)
@settings(max_examples=60, deadline=None)
def test_the_loop_is_the_definition(counts, width, out):
    """Odd sizes, and experts without a row at the start, in the middle and at the end."""
    x, weight, count = operands(counts, width, out)
    got = answers(grouped.product, x, weight, count)
    for ours, want in zip(got, answers(row_by_row, x, weight, count), strict=True):
        assert relative_error(ours.detach(), want.detach()) < FLOAT64


def test_gradients_of_the_loop_equal_finite_differences():
    x, weight, counts = operands([0, 3, 0, 1, 2, 0], 3, 2)
    assert torch.autograd.gradcheck(lambda a, b: grouped.product(a, b, counts), (x, weight))


def test_an_expert_without_rows_gets_no_gradient():
    x, weight, counts = operands([0, 2, 0], 4, 3)
    _, dx, dweight = answers(grouped.product, x, weight, counts)
    assert (dweight[[0, 2]] == 0).all() and (dweight[1] != 0).all() and (dx != 0).all()


def test_a_gradient_of_stride_zero_is_taken():
    x, weight, counts = operands([2, 1], 4, 3)
    dx, dweight = torch.autograd.grad(grouped.product(x, weight, counts).sum(), (x, weight))
    want = torch.autograd.grad(row_by_row(x, weight, counts).sum(), (x, weight))
    assert relative_error(dx, want[0]) < FLOAT64 and relative_error(dweight, want[1]) < FLOAT64


def test_a_second_derivative_is_refused_rather_than_wrong():
    x, weight, counts = operands([2, 1], 4, 3)
    y = grouped.product(x, weight, counts).pow(2).sum()
    (dx,) = torch.autograd.grad(y, x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        dx.sum().backward()


@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this PyTorch has no grouped_mm")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("counts", [[3, 1, 4, 7], [0, 5, 0, 0, 9, 0], [16], [0, 0, 1]])
def test_pytorchs_kernel_and_the_loop_are_equal(monkeypatch, dtype, counts):
    width, out = 24, 16
    x, weight, count = operands(counts, width, out, dtype)
    loop = answers(grouped.product, x, weight, count)
    monkeypatch.setattr(grouped, "fits_the_kernel", lambda x, weight: True)
    kernel = answers(grouped.product, x, weight, count)
    # Both add the same products in single precision, in another order, and round once.
    unit = torch.finfo(dtype).eps + 2 * max(width, out, max(counts)) * 2**-23
    sizes = answers(grouped.product, x.abs().detach().requires_grad_(),
                    weight.abs().detach().requires_grad_(), count)  # fmt: skip
    longest = max(t.abs().max() for t in (x, weight)) * max(width, out, max(counts))
    for ours, theirs, size in zip(kernel, loop, sizes, strict=True):
        difference = (ours.double() - theirs.double()).abs()
        assert (difference <= unit * torch.maximum(size.double().abs(), longest.double())).all()
        assert difference.max() < 0.1 * theirs.double().abs().max()


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
