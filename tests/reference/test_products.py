"""Our own matrix product against NumPy's, in every size and layout, and on other processors."""

import os
import subprocess
import sys

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minik2.reference import products
from minik2.reference.gemm import gemm
from tests.reference.gemm_cases import LAYOUTS, bound, laid_out

SIZES = st.one_of(st.integers(1, 9), st.integers(1, 150))
SEEDS = st.integers(0, 2**31)
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@DTYPES
@given(sizes=st.tuples(SIZES, SIZES, SIZES), seed=SEEDS,
       layouts=st.tuples(*[st.sampled_from(LAYOUTS)] * 3))  # fmt: skip
@settings(max_examples=150, deadline=None)
@pytest.mark.parametrize("threads", [None, 1, 2])
def test_any_product_is_numpys(dtype, threads, sizes, seed, layouts):
    """In any layout, within the rounding of one sum, and nothing beside c is written."""
    rng, (tall, deep, wide) = np.random.default_rng(seed), sizes
    a = laid_out(rng.standard_normal((tall, deep)).astype(dtype), layouts[0])
    b = laid_out(rng.standard_normal((deep, wide)).astype(dtype), layouts[1])
    a.flags.writeable = b.flags.writeable = False
    c = laid_out(np.full((tall, wide), np.nan, dtype), layouts[2])
    around = c.base if c.base is not None else c
    mark = np.array(around)
    if threads is None:
        gemm(a, b, c)
    else:
        before = numba.get_num_threads()
        numba.set_num_threads(min(threads, before))
        try:
            products.multiply(a, b, c)
        finally:
            numba.set_num_threads(before)
    assert (abs(c - a.astype(np.longdouble) @ b) <= bound(a, b)).all()
    c[...] = np.nan
    assert np.array_equal(around, mark, equal_nan=True)


@DTYPES
def test_a_token_does_not_depend_on_its_company(dtype):
    """One sum a number, k after k: alone, or in any batch, the same bits."""
    rng = np.random.default_rng(5)
    x, weight = rng.standard_normal((70, 90)).astype(dtype), rng.standard_normal((50, 90))
    weight = weight.astype(dtype)
    whole = products.product(x, weight)
    for start, stop in ((0, 1), (3, 20), (17, 70), (69, 70)):
        assert (products.product(x[start:stop], weight) == whole[start:stop]).all()


def test_infinite_and_nan_stay_in_their_rows():
    a, b = np.ones((7, 5)), np.ones((5, 21))
    a[2, 3], a[4, 0], a[5, 1] = np.nan, np.inf, -np.inf
    c = np.empty((7, 21))
    products.multiply(a, b, c)
    assert np.isnan(c[2]).all() and (c[4] == np.inf).all() and (c[5] == -np.inf).all()
    assert (c[[0, 1, 3, 6]] == 5).all()


def test_shapes_and_dtypes_that_do_not_fit():
    a, b, c = np.ones((3, 4)), np.ones((4, 5)), np.empty((3, 5))
    with pytest.raises(ValueError, match=r"\(3, 4\) times \(4, 5\) into \(3, 6\) is not a product"):
        products.multiply(a, b, np.empty((3, 6)))
    with pytest.raises(ValueError, match="not a product of matrices"):
        products.multiply(a, b.T, c)
    with pytest.raises(TypeError):
        products.multiply(a, b.astype(np.float32), c)


@pytest.mark.slow
@pytest.mark.parametrize("features", ["+avx2,+fma,+avx", "+sse4.2"])
def test_narrower_registers(features, tmp_path):
    """The tiles that a processor without AVX-512 gets, compiled for one and run here."""
    environment = os.environ | {
        "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": features,
        "NUMBA_CACHE_DIR": str(tmp_path),
    }  # fmt: skip
    ran = subprocess.run([sys.executable, "-m", "tests.reference.gemm_cases"], env=environment,
                         capture_output=True, text=True, timeout=300)  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "widest tile 1, 200 products right"
