"""Models for the GPU benchmarks: Moonlight's shapes with random weights, ours and transformers'."""

from __future__ import annotations

from typing import Any

import torch

from minik2 import ModelConfig, pytorch

SHAPE = "moonlight-16b-a3b"


def config(layers: int | None = None) -> ModelConfig:
    """Moonlight, whole or with its first layers only."""
    cfg = ModelConfig.preset(SHAPE)
    return cfg if layers is None else cfg.replace(num_hidden_layers=layers)


@torch.no_grad()
def randomise(model: torch.nn.Module) -> None:
    """Weights as at the start of training, drawn on the device."""
    for p in model.parameters():
        p.normal_(0, 0.02) if p.ndim > 1 else p.fill_(1)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.zero_()


def ours(cfg: ModelConfig, dtype: torch.dtype) -> pytorch.Model:
    model = pytorch.Model.empty(cfg, "cuda", dtype)
    randomise(model)
    return model


def theirs(cfg: ModelConfig, experts: str) -> Any:
    """transformers' DeepseekV3 in bfloat16; experts: its way to run them."""
    import transformers

    own = transformers.DeepseekV3Config(**cfg.to_json())
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            model = transformers.DeepseekV3ForCausalLM(own)
    finally:
        torch.set_default_dtype(before)
    randomise(model)
    model.set_experts_implementation(experts)
    return model
