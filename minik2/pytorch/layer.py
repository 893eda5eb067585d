"""One layer in torch, attention and then experts, and the trunk of all layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from minik2.config import ModelConfig
from minik2.pytorch.cache import Plan
from minik2.pytorch.ffn import FFN
from minik2.pytorch.mla import MLA
from minik2.pytorch.moe import MoE
from minik2.pytorch.norm import RMSNorm


class Layer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); x (B, T, D).

    saved, if given, takes what attention and router leave there.
    """

    def __init__(self, cfg: ModelConfig, number: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
        self.self_attn = MLA(cfg)
        self.post_attention_layernorm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
        moe = cfg.is_moe(number)
        self.mlp = MoE(cfg) if moe else FFN(cfg.hidden_size, cfg.intermediate_size)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, saved: dict[str, Any] | None = None
    ) -> Tensor:
        return self._mlp(x + self.self_attn(self.input_layernorm(x), cos, sin, saved), saved)

    def cached(self, x: Tensor, cos: Tensor, sin: Tensor, rows: Tensor, plan: Plan) -> Tensor:
        """The same for new tokens (n, D), over this layer's rows of a cache."""
        y = self.self_attn.cached(self.input_layernorm(x), cos, sin, rows, plan)
        return self._mlp(x + y, None)

    def fuse(self) -> None:
        """Have torch.compile join the small operations, in training and in decoding."""
        self.compile(dynamic=False)
        self.cached = torch.compile(self.cached, dynamic=False)  # type: ignore[method-assign]

    def _mlp(self, x: Tensor, saved: dict[str, Any] | None) -> Tensor:
        y = self.post_attention_layernorm(x)
        return x + (self.mlp(y, saved) if isinstance(self.mlp, MoE) else self.mlp(y))


class Trunk(nn.Module):
    """Everything but the head; it exists so that names start with `model.`, as the checkpoint's."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(cfg.vocab_size, cfg.hidden_size)
        self.layers = nn.ModuleList(Layer(cfg, n) for n in range(cfg.num_hidden_layers))
        self.norm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
