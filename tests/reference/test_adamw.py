"""The reference's AdamW against torch.optim.AdamW, step by step in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minik2.reference.adamw import AdamW
from tests.reference.bounds import FLOAT64, relative_error


@st.composite
def adamw_settings(draw):
    return {
        "lr": draw(st.sampled_from([1e-4, 1e-2, 0.3])),
        "betas": (draw(st.sampled_from([0.0, 0.9])), draw(st.sampled_from([0.0, 0.95, 0.999]))),
        "eps": draw(st.sampled_from([1e-8, 1e-2])),
        "weight_decay": draw(st.sampled_from([0.0, 0.1, 0.5])),
    }


@given(shape=st.lists(st.integers(1, 6), min_size=1, max_size=3), options=adamw_settings(),
       size=st.sampled_from([1e-6, 1.0, 1e6]), seed=st.integers(0, 2**31))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_every_step_equals_torch(shape, options, size, seed):
    rng = np.random.default_rng(seed)
    weights = {"a": rng.standard_normal(shape), "b.norm": rng.standard_normal(3)}
    theirs = {n: torch.nn.Parameter(torch.from_numpy(w.copy())) for n, w in weights.items()}
    ours, their_adamw = AdamW(**options), torch.optim.AdamW(theirs.values(), **options)
    for step in range(6):
        # b begins later and pauses: each name counts its own updates, as torch does.
        names = ["a", "b.norm"] if step in (2, 3, 5) else ["a"]
        grads = {name: size * rng.standard_normal(weights[name].shape) for name in names}
        kept = {name: grad.copy() for name, grad in grads.items()}
        for name, parameter in theirs.items():
            parameter.grad = torch.from_numpy(grads[name].copy()) if name in grads else None
        ours.step(weights, grads)
        their_adamw.step()
        for name, weight in weights.items():
            assert relative_error(weight, theirs[name].detach()) < FLOAT64
        assert all((grads[name] == kept[name]).all() for name in names)


def test_the_first_step_is_the_sign_of_the_gradient():
    weight = {"w": np.zeros(3)}
    AdamW(lr=0.5, weight_decay=0.1).step(weight, {"w": np.array([1e-3, -7.0, 1e6])})
    assert weight["w"] == pytest.approx([-0.5, 0.5, -0.5], rel=1e-4)


def test_float32_weights_stay_float32():
    weights, adamw = {"w": np.ones(4, np.float32)}, AdamW(lr=0.1)
    adamw.step(weights, {"w": np.ones(4, np.float32)})
    assert weights["w"].dtype == adamw.means["w"].dtype == adamw.squares["w"].dtype == np.float32


def test_settings_and_shapes_that_cannot_be_meant_get_sentences():
    for wrong in ({"lr": -1.0}, {"lr": 1.0, "betas": (0.9, 1.0)}, {"lr": 1.0, "eps": -1.0},
                  {"lr": float("nan")}):
        with pytest.raises(ValueError, match="AdamW wants lr, eps"):
            AdamW(**wrong)
    with pytest.raises(ValueError, match=r"w is \(2, 3\) and its gradient \(3,\)"):
        AdamW(lr=1.0).step({"w": np.ones((2, 3))}, {"w": np.ones(3)})
