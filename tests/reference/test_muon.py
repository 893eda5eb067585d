"""The reference's Newton–Schulz and Muon against the formula, an SVD, and torch.optim.Muon."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minik2.reference import muon, newton_schulz
from minik2.reference.muon import Muon
from tests.reference.optimizers import FLOAT64, iterating_in, muon_settings, their_iteration
from tests.reference.spectra import INPUTS, error, mostly_zero

SEEDS = st.integers(0, 2**31)
SIDES = st.integers(1, 40)
examples = settings(max_examples=40, deadline=None)
# Shapes on both sides of both choices: few rows or many, near square or not, lying or standing.
SHAPES = [(3, 40), (64, 64), (128, 256), (150, 160), (300, 130), (160, 560)]


def draws(kind, shape, count, dtype=np.float32):
    rng = np.random.default_rng([len(kind), *shape])
    return [INPUTS[kind](rng, *shape).astype(dtype) for _ in range(count)]


@given(rows=SIDES, columns=SIDES, steps=st.integers(1, 7), kind=st.sampled_from(list(INPUTS)),
       seed=SEEDS)  # fmt: skip
@examples
def test_plain_is_an_odd_polynomial_of_the_singular_values(rows, columns, steps, kind, seed):
    G = INPUTS[kind](np.random.default_rng(seed), rows, columns)
    left, values, right = np.linalg.svd(G, full_matrices=False)
    values = values / max(np.sqrt((values**2).sum()), 1e-7)
    for _ in range(steps):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    assert error(newton_schulz.plain(G, steps), (left * values) @ right) < FLOAT64


@given(rows=SIDES, columns=SIDES, steps=st.integers(1, 7), kind=st.sampled_from(list(INPUTS)),
       seed=SEEDS)  # fmt: skip
@examples
def test_plain_equals_torch_in_float64(rows, columns, steps, kind, seed):
    G = INPUTS[kind](np.random.default_rng(seed), rows, columns)
    with iterating_in(torch.float64):
        want = their_iteration(torch.from_numpy(G), steps)
    assert error(newton_schulz.plain(G, steps), want) < FLOAT64


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", INPUTS)
def test_both_ways_are_the_plain_iteration_in_float64(kind, shape):
    (G,) = draws(kind, shape, 1, np.float64)
    want = newton_schulz.plain(G)
    assert error(newton_schulz.newton_schulz(G), want) < FLOAT64
    X = newton_schulz._start(G, 5)
    for lengths in ([1, 1, 1, 1, 1], [3, 2]):
        got = newton_schulz._iterate(X, lengths)
        assert error(got if shape[0] <= shape[1] else got.T, want) < FLOAT64


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", INPUTS)
def test_float32_errs_at_most_twice_as_much_as_the_plain_iteration(kind, shape):
    """Against float64, over some draws, more where few numbers let luck in; an error of less than
    one rounding is luck too, and counts as one."""
    ours, theirs, count = [], [], 32 if np.prod(shape) < 1000 else 4
    for G in draws(kind, shape, count):
        exact = newton_schulz.plain(G.astype(np.float64))
        ours.append(error(newton_schulz.newton_schulz(G), exact))
        theirs.append(error(newton_schulz.plain(G), exact))
    assert np.hypot.reduce(ours) <= 2 * max(np.hypot.reduce(theirs), count**0.5 * 2.0**-24)


@pytest.mark.parametrize("shape", [(128, 256), (300, 130)])
@pytest.mark.parametrize("kept", [1, 4, 64])
def test_zero_rows_cost_the_gram_matrix_digits_but_not_many(kept, shape):
    """There the plain iteration has nothing small to blow up. Ours has R, and stays within what
    five steps make of a rounding at a singular value of 0."""
    rng = np.random.default_rng(kept)
    worst = 2 * 3.4445**5 * 2.0**-24
    for _ in range(3):
        G = mostly_zero(rng, *shape, kept)
        exact = newton_schulz.plain(G)
        assert error(newton_schulz.newton_schulz(G.astype(np.float32)), exact) < worst


def test_without_a_restart_float32_loses_half_of_its_digits():
    (G,) = draws("condition 1e4", (128, 256), 1)
    exact, X = newton_schulz.plain(G.astype(np.float64)), newton_schulz._start(G, 5)
    assert error(newton_schulz._iterate(X, [5]), exact) > 1e-4
    assert error(newton_schulz._iterate(X, [3, 2]), exact) < 1e-5


def test_singular_values_land_near_one():
    (G,) = draws("gaussian", (128, 512), 1, np.float64)
    values = np.linalg.svd(newton_schulz.newton_schulz(G), compute_uv=False)
    assert 0.68 < values.min() < values.max() < 1.14


@pytest.mark.parametrize(
    "shape", [(5, 3, 8), (3, 128, 256), (3, 140, 300), (2, 300, 140), (1, 6, 6), (300, 40, 9)]
)
def test_a_stack_is_taken_matrix_by_matrix(shape):
    G = np.random.default_rng(0).standard_normal(shape)
    G[0] *= 100  # one norm for the whole stack would show
    got = newton_schulz.newton_schulz(G)
    assert got.shape == shape
    for one, whole, defined in zip(G, got, newton_schulz.plain(G), strict=True):
        assert error(whole, newton_schulz.plain(one)) < FLOAT64
        assert error(defined, newton_schulz.plain(one)) < FLOAT64
    changed = G.copy()
    changed[0] = 1.0
    assert (newton_schulz.newton_schulz(changed)[1:] == got[1:]).all()


def test_the_argument_is_left_alone_and_views_will_do():
    G = np.random.default_rng(0).standard_normal((2, 300, 140))
    before = G.copy()
    turned = newton_schulz.newton_schulz(G.swapaxes(1, 2))
    assert (before == G).all()
    assert error(turned.swapaxes(1, 2), newton_schulz.newton_schulz(G)) < FLOAT64


def test_a_vanishing_gradient_is_not_blown_up():
    G = np.random.default_rng(0).standard_normal((4, 9))
    assert np.abs(newton_schulz.newton_schulz(G * 1e-20)).max() < 1e-9
    assert not newton_schulz.newton_schulz(np.zeros((4, 9))).any()


class Counting(np.ndarray):
    """An array that adds up the work of the matrix products it takes part in."""

    work = 0

    def __array_ufunc__(self, ufunc, method, *inputs, **keywords):
        plain = [np.asarray(x) for x in inputs]
        if ufunc is np.matmul:
            a, b = plain
            twice = 2 * a.shape[0] * a.shape[1] * b.shape[1]
            own = a.ctypes.data == b.ctypes.data and a.strides == b.strides[::-1]
            Counting.work += twice // 2 if own and a.shape == b.shape[::-1] else twice
        if "out" in keywords:
            keywords["out"] = tuple(np.asarray(x) for x in keywords["out"])
        result = getattr(ufunc, method)(*plain, **keywords)
        return result.view(Counting)


@pytest.mark.parametrize("shape", [(8, 20), (128, 256), (140, 150), (130, 400)])
@pytest.mark.parametrize("lengths", [[1, 1, 1, 1, 1], [3, 2], [4]])
def test_flops_counts_what_is_done(shape, lengths):
    Counting.work = 0
    X = newton_schulz._start(np.random.default_rng(0).standard_normal(shape), 5)
    newton_schulz._iterate(X.view(Counting), lengths)
    assert Counting.work == newton_schulz.flops(*shape, lengths)


def test_the_shape_decides():
    assert newton_schulz.segments(512, 256, 5) == [3, 2] == newton_schulz.segments(2048, 7168, 5)
    assert newton_schulz.segments(1408, 2048, 5) == [1] * 5 == newton_schulz.segments(512, 512, 5)
    assert newton_schulz.segments(64, 4096, 5) == [1] * 5
    assert newton_schulz.segments(7168, 2048, 8) == [3, 3, 2]
    assert newton_schulz.segments(7168, 2048, 2) == [2]


@pytest.mark.parametrize("function", [newton_schulz.newton_schulz, newton_schulz.plain])
def test_what_is_no_matrix_gets_a_sentence(function):
    for shape in ((5,), (2, 3, 4, 5), ()):
        with pytest.raises(ValueError, match=r"a matrix \(r, c\) or a stack"):
            function(np.ones(shape))
    with pytest.raises(TypeError, match="float32 or float64, not float16"):
        function(np.ones((2, 2), np.float16))
    with pytest.raises(ValueError, match="at least one step, not 0"):
        function(np.ones((2, 2)), 0)


@given(rows=SIDES, columns=SIDES, options=muon_settings(), size=st.sampled_from([1e-9, 1.0, 1e6]),
       seed=SEEDS)  # fmt: skip
@examples
def test_every_step_equals_torch_in_float64(rows, columns, options, size, seed):
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((rows, columns))
    theirs = torch.nn.Parameter(torch.from_numpy(weight.copy()))
    our_muon, their_muon = Muon(**options), torch.optim.Muon([theirs], **options)
    for _ in range(6):
        grad = size * rng.standard_normal((rows, columns))
        before = grad.copy()
        theirs.grad = torch.from_numpy(grad.copy())
        our_muon.step({"w": weight}, {"w": grad})
        with iterating_in(torch.float64):
            their_muon.step()
        assert error(weight, theirs.detach()) < FLOAT64
        assert (grad == before).all()


@pytest.mark.parametrize("shape", [(130, 300), (300, 130), (256, 256), (5, 160, 300)])
def test_whole_steps_on_the_gram_matrix_and_in_pieces_equal_torchs(shape):
    """The stack is more than one thread takes at a time."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal(shape)
    options = {"lr": 0.02, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    apart = [torch.nn.Parameter(torch.from_numpy(one.copy()))
             for one in weight.reshape(-1, *shape[-2:])]  # fmt: skip
    our_muon, their_muon = Muon(**options), torch.optim.Muon(apart, **options)
    for _ in range(3):
        grad = rng.standard_normal(shape)
        for one, own in zip(apart, grad.reshape(-1, *shape[-2:]), strict=True):
            one.grad = torch.from_numpy(own.copy())
        our_muon.step({"w": weight}, {"w": grad})
        with iterating_in(torch.float64):
            their_muon.step()
        want = torch.stack([one.detach() for one in apart]).reshape(shape)
        assert error(weight, want) < FLOAT64


@given(options=muon_settings(), experts=st.integers(1, 4),
       batch=st.sampled_from([1, 120, newton_schulz.BATCH]), seed=SEEDS)  # fmt: skip
@examples
def test_experts_named_apart_and_stacked_are_updated_alike(options, experts, batch, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(newton_schulz, "BATCH", batch)  # one thread's piece: one matrix, two, all
        updated_alike(options, experts, seed)


def updated_alike(options, experts, seed):
    rng = np.random.default_rng(seed)
    names = [f"model.layers.{layer}.mlp.experts.{expert}.{matrix}.weight"
             for layer in (1, 12) for expert in range(experts)
             for matrix in ("up_proj", "down_proj")]  # fmt: skip
    shapes = {name: (6, 9) if "up_proj" in name else (9, 6) for name in names}
    apart = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    alone = {name: array.copy() for name, array in apart.items()}
    ups = [name for name in names if "12" in name and "up_proj" in name]
    stack = {"stack": np.stack([apart[name] for name in ups])}
    ours, singly, stacked = Muon(**options), Muon(**options), Muon(**options)
    for _ in range(3):
        grads = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
        ours.step(apart, grads)
        for name in names:
            singly.step(alone, {name: grads[name]})
        stacked.step(stack, {"stack": np.stack([grads[name] for name in ups])})
    for name in names:
        assert error(apart[name], alone[name]) < FLOAT64
    for name, matrix in zip(ups, stack["stack"], strict=True):
        assert error(apart[name], matrix) < FLOAT64


def test_the_update_has_the_size_of_adamws():
    """0.2 sqrt(max) times an orthogonal matrix: rms 0.2, less what singular values lack of 1."""
    for shape in ((130, 300), (300, 130), (8, 4096)):
        weight = np.zeros(shape)
        grad = np.random.default_rng(0).standard_normal(shape)
        Muon(lr=1.0).step({"w": weight}, {"w": grad})
        assert 0.68 * 0.2 < np.sqrt((weight**2).mean()) < 1.13 * 0.2
    assert muon.scale(400, 100, "match_rms_adamw") == pytest.approx(4)
    assert muon.scale(400, 100, "original") == 2 and muon.scale(100, 400, "original") == 1


def test_settings_and_shapes_that_cannot_be_meant_get_sentences():
    for wrong in ({"lr": -1.0}, {"lr": 1.0, "momentum": 1.0}, {"lr": 1.0, "weight_decay": -0.1},
                  {"lr": math.nan}, {"lr": 1.0, "weight_decay": math.inf}):
        with pytest.raises(ValueError, match="Muon wants lr"):
            Muon(**wrong)
    for steps in (0, 2.5):
        with pytest.raises(ValueError, match="a whole number of steps, 1 up"):
            Muon(lr=1.0, steps=steps)
    with pytest.raises(ValueError, match="not 'spectral'"):
        Muon(lr=1.0, adjust_lr_fn="spectral")
    weights = {"a": np.ones((2, 3)), "b": np.ones((3, 2)), "norm": np.ones(3)}
    for name, grad in (("b", np.ones((2, 3))), ("norm", np.ones(3))):
        with pytest.raises(ValueError, match=name):
            Muon(lr=1.0).step(weights, {"a": np.ones((2, 3)), name: grad})
    assert (weights["a"] == 1).all(), "nothing is updated where one gradient is refused"
