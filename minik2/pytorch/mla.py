"""Multi-head latent attention in torch, expanded form: every head's keys and values are formed."""

from typing import Any

import torch
from torch import Tensor, nn

from minik2.config import ModelConfig
from minik2.pytorch import attention, rope
from minik2.pytorch.norm import RMSNorm


class MLA(nn.Module):
    """One MLA block without its input norm and residual: x (B, T, D) -> (B, T, D).

    cos, sin: (T, R/2) from `rope.table`. saved, if given, takes "attention": its queries, keys and
    scale. Source: arXiv 2412.19437 eq. 1-11.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg, self.scale = cfg, rope.softmax_scale(cfg)
        hidden, heads, rank = cfg.hidden_size, cfg.num_attention_heads, cfg.q_lora_rank
        if rank is None:
            self.q_proj = nn.Linear(hidden, heads * cfg.qk_head_dim, bias=False)
        else:
            self.q_a_proj = nn.Linear(hidden, rank, bias=False)
            self.q_a_layernorm = RMSNorm(rank, cfg.rms_norm_eps)
            self.q_b_proj = nn.Linear(rank, heads * cfg.qk_head_dim, bias=False)
        latent_and_rope = cfg.kv_lora_rank + cfg.qk_rope_head_dim
        self.kv_a_proj_with_mqa = nn.Linear(hidden, latent_and_rope, bias=False)
        self.kv_a_layernorm = RMSNorm(cfg.kv_lora_rank, cfg.rms_norm_eps)
        keys_and_values = heads * (cfg.qk_nope_head_dim + cfg.v_head_dim)
        self.kv_b_proj = nn.Linear(cfg.kv_lora_rank, keys_and_values, bias=False)
        self.o_proj = nn.Linear(heads * cfg.v_head_dim, hidden, bias=False)

    def queries(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(B, T, H, N + R), the rotary part turned."""
        cfg = self.cfg
        if cfg.q_lora_rank is None:
            q = self.q_proj(x)
        else:
            q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        nope, rotary = q.unflatten(-1, (cfg.num_attention_heads, -1)).split(
            [cfg.qk_nope_head_dim, cfg.qk_rope_head_dim], -1
        )
        return torch.cat([nope, rope.rotate(rotary, cos, sin, cfg.rope_interleave)], -1)

    def latents(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """What a cache would hold: normalised latent (B, T, C), turned shared key (B, T, 1, R)."""
        cfg = self.cfg
        latent, rotary = self.kv_a_proj_with_mqa(x).split(
            [cfg.kv_lora_rank, cfg.qk_rope_head_dim], -1
        )
        rotary = rope.rotate(rotary[:, :, None], cos, sin, cfg.rope_interleave)
        return self.kv_a_layernorm(latent), rotary

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, saved: dict[str, Any] | None = None
    ) -> Tensor:
        cfg = self.cfg
        q = self.queries(x, cos, sin)
        latent, rotary = self.latents(x, cos, sin)
        kv = self.kv_b_proj(latent).unflatten(-1, (cfg.num_attention_heads, -1))
        nope, v = kv.split([cfg.qk_nope_head_dim, cfg.v_head_dim], -1)
        k = torch.cat([nope, rotary.expand(*nope.shape[:-1], -1)], -1)
        if saved is not None:
            saved["attention"] = {"q": q, "k": k, "scale": self.scale}
        return self.o_proj(attention.forward(q, k, v, self.scale).flatten(-2))
