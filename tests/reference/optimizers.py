"""torch.optim.Muon as the oracle, and a true float64 out of it.

It iterates in bfloat16 whatever its parameters are. `iterating_in` lets the tensor method that it
calls for that, .bfloat16(), answer with another precision. Nothing of theirs is copied: their own
code runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from hypothesis import strategies as st

# Their iteration, whose result is theirs to change in place.
THEIRS = torch.optim._muon._zeropower_via_newtonschulz
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
EPS = 1e-7

# For whole steps and iterations in float64: the iteration multiplies what rounding did to the
# smallest singular values by at most 3.4445⁵ = 485, in sums of at most some hundred terms:
# 485 x 100 x 2^-53 = 5e-12.
FLOAT64 = 1e-11


@contextlib.contextmanager
def iterating_in(dtype: torch.dtype) -> Iterator[None]:
    """Inside, torch.optim.Muon's Newton–Schulz computes in `dtype`."""
    # A copy, as a conversion makes: they divide it in place.
    convert = lambda tensor: tensor.to(dtype, copy=True)  # noqa: E731
    with mock.patch.object(torch.Tensor, "bfloat16", convert):
        yield


def their_iteration(G: torch.Tensor, steps: int = 5) -> torch.Tensor:
    return THEIRS(G, COEFFICIENTS, steps, EPS)


@st.composite
def muon_settings(draw: Any) -> dict[str, Any]:
    """Keywords that both Muons take."""
    return {
        "lr": draw(st.sampled_from([1e-4, 1e-2, 0.3])),
        "momentum": draw(st.sampled_from([0.0, 0.3, 0.95])),
        "weight_decay": draw(st.sampled_from([0.0, 0.1, 0.5])),
        "nesterov": draw(st.booleans()),
        "adjust_lr_fn": draw(st.sampled_from(["match_rms_adamw", "original"])),
    }
