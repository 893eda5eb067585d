"""Weights made on the fly: their definition, products and keys, and how random they are."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minik2.config import ModelConfig
from minik2.fullsize import Weights, kernels

TINY = ModelConfig.preset("tiny")
DTYPES = ["float32", "float64"]
NAME = "model.layers.7.mlp.experts.3.up_proj.weight"


def row_key(base: int, row: int) -> int:
    """`kernels.row_key` in whole numbers of any length."""
    z = (base + row) * 0x9E3779B97F4A7C15 % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def number(key: int, column: int) -> int:
    """A weight before its scale, in whole numbers of any length."""
    high, h = key >> 32, (column * 0x9E3779B9 + key) % 2**32
    turned = (high >> 16) + (high << 16) % 2**32
    h = ((h ^ (h >> 17)) + turned) * 0xED5AD4BB % 2**32
    h = (h ^ (h >> 11) ^ high) * 0xAC4C1B51 % 2**32
    h = (h ^ (h >> 15)) * 0x31848BAB % 2**32
    return h - 2**32 if h >= 2**31 else h


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_weight_is_what_its_definition_says(dtype):
    weights = Weights(TINY, seed=5, dtype=dtype)
    base, shape = int(weights.base(NAME)), (3, 2 * kernels.BLOCK + 7)
    plain = [[number(row_key(base, r), c) for c in range(shape[1])] for r in range(shape[0])]
    scale = weights.dtype.type(math.sqrt(3) * TINY.initializer_range / 2**31)
    assert np.array_equal(weights.tensor(NAME, shape), np.array(plain, dtype) * scale)


def test_row_keys_are_the_published_numbers_of_splitmix64():
    """splitmix64's first numbers for the state 1234567, as Rosetta Code lists them."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423,
                 4593380528125082431, 16408922859458223821]  # fmt: skip
    base = 1234567 * pow(0x9E3779B97F4A7C15, -1, 2**64) % 2**64
    assert [int(kernels.row_key(np.uint64(base), r)) for r in range(1, 6)] == published


@pytest.mark.parametrize("preset", ModelConfig.presets())
def test_no_two_rows_of_a_model_have_one_key(preset):
    """Keys are a bijection of base + row mod 2^64, so the tensors' stretches must not meet."""
    cfg = ModelConfig.preset(preset)
    for seed in (0, 1, 2):
        weights = Weights(cfg, seed)
        spans = sorted((int(weights.base(name)), shape[0] if len(shape) == 2 else 1)
                       for name, shape in cfg.tensors())
        following = [*(base for base, _ in spans[1:]), spans[0][0] + 2**64]
        assert all(base + rows <= after
                   for (base, rows), after in zip(spans, following, strict=True))


def test_any_part_of_a_tensor_is_the_part_of_the_whole():
    weights = Weights(TINY)
    whole = weights.tensor(NAME, (300, 130))
    some = [299, 0, 17, 17]
    assert np.array_equal(weights.rows(NAME, some, 130), whole[some])
    # Columns too: a narrower tensor of the name is the left of a wider one.
    assert np.array_equal(weights.tensor(NAME, (300, 31)), whole[:, :31])


def test_vectors_are_ones_for_norms_and_a_matrix_row_for_the_bias():
    weights = Weights(TINY)
    assert np.array_equal(weights.tensor("model.norm.weight", (9,)), np.ones(9))
    bias = weights.tensor("model.layers.1.mlp.gate.e_score_correction_bias", (8,))
    assert bias.shape == (8,) and len(set(bias)) == 8


def bound(w, x, dtype):
    """How far a sum in any order may be off: terms x roundoff x sum of |terms|, and the scale's."""
    return (w.shape[-1] + 4) * np.finfo(dtype).eps * (np.abs(x) @ np.abs(w).swapaxes(-1, -2))


SIZES = st.integers(1, 9) | st.sampled_from([kernels.BLOCK - 1, kernels.BLOCK + 5])


@pytest.mark.parametrize("dtype", DTYPES)
@given(groups=st.integers(1, 5), batch=st.integers(1, 5), rows=SIZES, width=SIZES,
       first=st.integers(0, 4), more=st.integers(0, 4), seed=st.integers(0, 2**31))  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_products_are_those_with_the_tensor_read_whole(
    dtype, groups, batch, rows, width, first, more, seed
):
    weights, stride = Weights(TINY, seed, dtype), rows + first + more
    w = weights.tensor(NAME, (groups * stride, width)).reshape(groups, stride, width)
    w = w[:, first : first + rows]
    x = np.random.default_rng(seed).standard_normal((groups, batch, width)).astype(dtype)
    y = weights.products(NAME, x, rows, first, stride)
    assert y.dtype == dtype and (np.abs(y - x @ w.swapaxes(1, 2)) <= bound(w, x, dtype)).all()
    assert (weights.made, weights.flops) == (w.size, 2 * batch * w.size)

    x = np.random.default_rng(seed).standard_normal((groups, batch, rows)).astype(dtype)
    y, turned = weights.products_from_left(NAME, x, width, first, stride), w.swapaxes(1, 2)
    assert y.dtype == dtype and (np.abs(y - x @ w) <= bound(turned, x, dtype)).all()
    assert (weights.made, weights.flops) == (2 * w.size, 4 * batch * w.size)


def test_a_large_product_is_the_same_on_any_number_of_threads():
    import numba

    x = np.random.default_rng(0).standard_normal((3, 700)).astype(np.float32)
    found = []
    for threads in {1, numba.config.NUMBA_NUM_THREADS}:
        before = numba.get_num_threads()
        numba.set_num_threads(threads)
        found.append(Weights(TINY).product(NAME, x, 333))
        numba.set_num_threads(before)
    assert all(np.array_equal(y, found[0]) for y in found)


def correlation(a, b) -> float:
    """In standard errors of what independent numbers would have."""
    a, b = a.ravel(), b.ravel()
    return float(abs(np.corrcoef(a, b)[0, 1]) * math.sqrt(a.size))


SHAPE = (1000, 1024)


@pytest.fixture(scope="module")
def tensor():
    return Weights(TINY, 0, "float64").tensor(NAME, SHAPE)


def test_mean_variance_and_distribution_are_those_of_the_uniform(tensor):
    std, count = TINY.initializer_range, tensor.size
    assert abs(tensor.mean()) < 5 * std / math.sqrt(count)
    # The variance of a square of a uniform number is 4/5 of its mean, squared.
    assert abs(tensor.var() / std**2 - 1) < 5 * math.sqrt(0.8 / count)
    limit = math.sqrt(3) * std
    for bins in (7, 256):
        seen = np.histogram(tensor, bins, (-limit, limit))[0]
        chi = ((seen - count / bins) ** 2 / (count / bins)).sum()
        assert abs(chi - bins + 1) < 5 * math.sqrt(2 * (bins - 1))


def test_rows_and_columns_have_means_as_scattered_as_independent_numbers(tensor):
    for axis in (0, 1):
        means = tensor.mean(axis) / TINY.initializer_range * math.sqrt(SHAPE[axis])
        assert np.abs(means).max() < 5.5
        assert abs(means.var() - 1) < 5 * math.sqrt(2 / means.size)


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 7, 8, 16, 64, 128, 256, 511])
def test_neighbours_in_rows_and_columns_do_not_know_each_other(tensor, lag):
    assert correlation(tensor[lag:], tensor[:-lag]) < 5
    assert correlation(tensor[:, lag:], tensor[:, :-lag]) < 5
    # Squares and signs too: numbers may be strangers and their sizes not.
    assert correlation(tensor[lag:] ** 2, tensor[:-lag] ** 2) < 5
    assert correlation(tensor[:, lag:] ** 2, tensor[:, :-lag] ** 2) < 5


@pytest.mark.parametrize("other", [
    NAME.replace("up_proj", "gate_proj"), NAME.replace("experts.3", "experts.4"),
    NAME.replace("layers.7", "layers.8"), NAME.replace("experts.3", "experts.30"),
])  # fmt: skip
def test_tensors_of_other_names_do_not_know_each_other(tensor, other):
    theirs = Weights(TINY, 0, "float64").tensor(other, SHAPE)
    assert correlation(tensor, theirs) < 5 and correlation(tensor**2, theirs**2) < 5


@pytest.mark.parametrize("seed", [1, 2, 256, 2**32, 2**63])
def test_models_of_other_seeds_do_not_know_each_other(tensor, seed):
    theirs = Weights(TINY, seed, "float64").tensor(NAME, SHAPE)
    assert correlation(tensor, theirs) < 5 and correlation(tensor**2, theirs**2) < 5


def test_singular_values_end_where_those_of_random_matrices_do(tensor):
    """Marchenko and Pastur: between std (√rows ± √columns), to the edge's width of n^(-2/3)."""
    values = np.linalg.svd(tensor[:, :500] / TINY.initializer_range, compute_uv=False)
    high, low = math.sqrt(1000) + math.sqrt(500), math.sqrt(1000) - math.sqrt(500)
    assert abs(values[0] / high - 1) < 0.03 and abs(values[-1] / low - 1) < 0.06


def test_rows_with_neighbouring_keys_are_strangers():
    """Keys that differ in one bit: pairs of rows, all 64 bits, no sum of products stands out."""
    keys = np.random.default_rng(0).integers(0, 2**64, 50, np.uint64)
    rows = np.empty((1, 2, 4096))
    for bit in range(64):
        total = 0.0
        for key in keys:
            for r, own in enumerate((key, key ^ np.uint64(1) << np.uint64(bit))):
                kernels.make(own, 0, rows.shape[2], rows, 0, r)
            total += (rows[0, 0] / 2**31 * (rows[0, 1] / 2**31)).sum()
        # Each product of two uniform numbers has the variance 1/9.
        assert abs(total) < 5 * math.sqrt(len(keys) * 4096 / 9), f"bit {bit}"


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, True, None, "0"])
def test_a_seed_that_is_none_is_refused(seed):
    with pytest.raises(ValueError, match="seed must be a whole number"):
        Weights(TINY, seed)


def test_other_number_formats_are_refused():
    with pytest.raises(TypeError, match="float32 or float64, not in float16"):
        Weights(TINY, dtype="float16")
