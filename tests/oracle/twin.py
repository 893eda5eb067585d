"""transformers' models as the oracle: random ones, and a true float64 out of them.

transformers computes norms, rotation, router and softmax in float32 even in a float64 model, so
a plain comparison bottoms out near 1e-6, and a near-tie may route differently. `in_float64` lets
its modelling files see a torch whose `float32` is `float64`. Nothing of theirs is copied: their
own code runs, one precision up.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
import transformers
from transformers import modeling_rope_utils
from transformers.models.deepseek_v2 import modeling_deepseek_v2 as v2
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as v3

from minik2.config import ModelConfig


class _Torch64:
    """torch, except that single precision is double."""

    float32 = torch.float64
    float = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _apply_rotary_emb64(xq: Any, xk: Any, freqs_cis: Any) -> tuple[Any, Any]:
    """V2 rotates through the tensor method .float(), which no stand-in for torch can reach."""
    turn = freqs_cis.unsqueeze(1)

    def rotate(x: Any) -> Any:
        # A copy, because view_as_complex wants an even offset and x is a slice.
        pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).clone())
        return torch.view_as_real(pairs * turn).flatten(-2).type_as(x)

    return rotate(xq), rotate(xk)


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    """Inside, transformers' DeepSeek models built and run compute in float64 throughout."""
    with contextlib.ExitStack() as stack:
        for module in (v2, v3, modeling_rope_utils):
            stack.enter_context(mock.patch.object(module, "torch", _Torch64()))
        stack.enter_context(mock.patch.object(v2, "apply_rotary_emb", _apply_rotary_emb64))
        yield


def plain(model: Any) -> Any:
    """Loop over experts, plain attention: the paths that keep float64."""
    model.set_experts_implementation("eager")
    model.set_attn_implementation("eager")
    return model.eval()


def build(cfg: ModelConfig, seed: int, dtype: torch.dtype = torch.float64) -> Any:
    """transformers' model of `cfg` with non-trivial weights: norms away from 1, biases away from 0.

    Matrices are scaled so that every layer's output matters; a model whose logits barely depend
    on its layers would hide mistakes in them.
    """
    theirs = transformers.AutoConfig.for_model(**cfg.to_json())
    model = transformers.AutoModelForCausalLM.from_config(theirs).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("inv_freq"):
                continue
            # float64, so that a float32 hidden in a float64 path cannot pass unseen.
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            if "norm" in name:
                tensor.copy_(1 + 0.3 * noise)
            elif name.endswith("e_score_correction_bias"):
                # Large enough to change choices: scores lie between 0 and 1.
                tensor.copy_(0.2 * noise)
            else:
                tensor.copy_(noise / tensor.shape[-1] ** 0.5)
    return plain(model)


def find(held: dict[str, Any], name: str) -> Any:
    """The checkpoint's tensor `name` among transformers' parameters, whose experts are stacked."""
    if ".experts." not in name:
        return held[name]
    stack, expert, matrix, _ = name.rsplit(".", 3)
    if matrix == "down_proj":
        return held[f"{stack}.down_proj"][int(expert)]
    return held[f"{stack}.gate_up_proj"][int(expert)].chunk(2)[matrix == "up_proj"]
