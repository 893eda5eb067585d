"""The draw that both engines share: greedy, temperature, top-k, top-p, and a stream a row."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from minik2 import ModelConfig, sampling
from minik2.sampling import Sampler, Settings

TINY = ModelConfig.preset("tiny")
LOGITS = np.array([2.0, 1.0, 0.0, -1.0, 0.5])
# A few values, so that ties are common; multiples of 1/8, which every precision holds.
VALUES = st.integers(-30, 30).map(lambda n: n / 8)


def shares(logits, temperature):
    e = np.exp((logits - logits.max()) / temperature)
    return e / e.sum()


def draws(logits, count, **how):
    """`count` draws for one row of logits, each with a stream of its own."""
    return Sampler(Settings(**how), count)(np.tile(logits, (count, 1)))


@given(arrays(np.float64, st.integers(1, 12), elements=VALUES))
def test_greedy_takes_the_largest_and_of_equals_the_first(logits):
    (chosen,) = Sampler(Settings(), 1)(logits[None])
    assert chosen == min(i for i, value in enumerate(logits) if value == logits.max())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_draws_follow_the_softmax(temperature):
    count = 20_000
    seen = np.bincount(draws(LOGITS, count, temperature=temperature), minlength=5) / count
    # Hoeffding: each share is off by more than this with probability 2 e^-20 at the most.
    assert np.abs(seen - shares(LOGITS, temperature)).max() < np.sqrt(20 / (2 * count))


def test_the_coldest_and_the_hottest_draws():
    logits = np.array([1.0, 5.0, 5.0 - 1e-3, -800.0])
    for temperature in (1e-300, 1e-30, 1e-6):
        assert (draws(logits, 50, temperature=temperature) == 1).all()
    seen = np.bincount(draws(logits, 20_000, temperature=1e300), minlength=4) / 20_000
    assert np.abs(seen - 1 / 4).max() < np.sqrt(20 / 40_000)


def kept(logits, temperature, top_k, top_p):
    """What may be drawn, by definition: token by token, the likeliest first, equals by id."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:top_k]
    p = shares(logits[order], temperature)
    allowed, total = [], 0.0
    for token, share in zip(order, p, strict=True):
        allowed.append(token)
        total += share
        if total >= top_p:
            break
    return allowed


@given(logits=arrays(np.float64, st.integers(1, 9), elements=VALUES),
       temperature=st.sampled_from([0.3, 1.0, 2.0]), top_k=st.none() | st.integers(1, 10),
       top_p=st.sampled_from([0.013, 0.31, 0.77, 0.973, 1.0]))  # fmt: skip
@settings(max_examples=200)
def test_each_token_has_its_share_of_those_that_are_kept(logits, temperature, top_k, top_p):
    """The whole line from 0 to 1 is cut where the shares' running sums say."""
    allowed = kept(logits, temperature, top_k, top_p)
    how = Settings(temperature, 0, top_k, top_p)
    p, start = shares(logits[allowed], temperature), 0.0
    for token, share in zip(allowed, p, strict=True):
        for inside in (1e-9, 0.5, 1 - 1e-9):
            if share > 1e-6:
                assert sampling.draw(logits, how, start + inside * share) == token
        start += share
    assert sampling.draw(logits, how, 0.0) == allowed[0]
    assert sampling.draw(logits, how, np.nextafter(1.0, 0.0)) in allowed


def test_the_token_that_crosses_top_p_is_kept():
    logits = np.log([0.5, 0.3, 0.2])
    assert set(draws(logits, 500, temperature=1.0, top_p=0.49)) == {0}
    assert set(draws(logits, 500, temperature=1.0, top_p=0.51)) == {0, 1}
    assert set(draws(logits, 500, temperature=1.0, top_p=0.81)) == {0, 1, 2}
    # top_p is of what top_k leaves: of two, the first has 5/8.
    assert set(draws(logits, 500, temperature=1.0, top_k=2, top_p=0.6)) == {0}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_row_draws_alike_whoever_its_neighbours_are(dtype):
    rng, how = np.random.default_rng(0), Settings(1.0, seed=5, top_k=20, top_p=0.9)
    logits = rng.standard_normal((10, 3, 50)).astype(dtype)
    together, alone = Sampler(how, 3), Sampler(how, 1)
    rows = np.array([together(step) for step in logits])
    assert [alone(step[:1])[0] for step in logits] == rows[:, 0].tolist()
    changed = Sampler(how, 3)
    logits[:, 0] = rng.standard_normal((10, 50))
    assert (np.array([changed(step) for step in logits])[:, 1:] == rows[:, 1:]).all()


def test_seeds_and_rows_draw_differently():
    logits = np.zeros((4, 1000))
    first = Sampler(Settings(1.0, seed=0), 4)(logits)
    assert len(set(first)) == 4
    assert (Sampler(Settings(1.0, seed=0), 4)(logits) == first).all()
    assert (Sampler(Settings(1.0, seed=1), 4)(logits) != first).all()


@pytest.mark.parametrize(("how", "error", "words"), [
    ({"temperature": -0.1}, ValueError, "temperature must be 0 (greedy) or positive"),
    ({"temperature": float("nan")}, ValueError, "temperature must be"),
    ({"temperature": float("inf")}, ValueError, "temperature must be"),
    ({"top_k": 0}, ValueError, "top_k must be 1 or more, but it is 0"),
    ({"top_k": -3}, ValueError, "top_k must be 1 or more"),
    ({"top_k": 2.0}, TypeError, "top_k must be a whole number, but it is 2.0"),
    ({"top_k": True}, TypeError, "top_k must be a whole number"),
    ({"top_p": 0}, ValueError, "top_p must be above 0 and at most 1, but it is 0"),
    ({"top_p": 1.1}, ValueError, "top_p must be above 0"),
    ({"top_p": float("nan")}, ValueError, "top_p must be above 0"),
    ({"seed": -1}, ValueError, "seed must be 0 or more, but it is -1"),
    ({"seed": 0.5}, TypeError, "seed must be a whole number"),
])  # fmt: skip
def test_settings_that_cannot_be(how, error, words):
    with pytest.raises(error) as caught:
        Settings(**how)
    assert words in str(caught.value)


@pytest.mark.parametrize(("given", "error", "words"), [
    ({"counts": [1]}, ValueError, "Counts must be 2 whole numbers from 1 to 3"),
    ({"counts": [0, 3]}, ValueError, "from 1 to 3, the tokens of each prompt"),
    ({"counts": [1, 4]}, ValueError, "but they are [1, 4]"),
    ({"counts": [1.0, 2.0]}, TypeError, "Counts must be whole numbers"),
    ({"stop": [256]}, ValueError, "Stop tokens must be ids from 0 to 255, but they are [256]"),
    ({"stop": [-1]}, ValueError, "Stop tokens"),
    ({"stop": [1.5]}, TypeError, "A stop token must be a whole number, but it is 1.5"),
    ({"stop": "ab"}, TypeError, "A stop token must be a whole number, but it is 'a'"),
])  # fmt: skip
def test_requests_that_cannot_be(given, error, words):
    asked = {"stop": (), "counts": None, **given}
    with pytest.raises(error) as caught:
        sampling.request([[1, 2, 3]] * 2, TINY, 4, Settings(), **asked)
    assert words in str(caught.value)
