"""Multi-head latent attention in torch, in two forms that give the same numbers.

Expanded, every head's keys and values are formed from the latents: for training and prompts.
Absorbed, the up-projections are moved to the queries and to what comes out, and the latents
themselves are attended to, as they lie in the cache: for the few new tokens of decoding.
"""

from typing import Any

import torch
from torch import Tensor, nn

from minik2.config import ModelConfig
from minik2.pytorch import attention, rope
from minik2.pytorch.cache import Plan
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
        """(…, T, H, N + R), the rotary part turned."""
        cfg = self.cfg
        if cfg.q_lora_rank is None:
            q = self.q_proj(x)
        else:
            q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        q = q.unflatten(-1, (cfg.num_attention_heads, -1))
        nope, rotary = q.split([cfg.qk_nope_head_dim, cfg.qk_rope_head_dim], -1)
        turned = rope.rotate(rotary, cos, sin, cfg.rope_interleave)
        if torch.is_grad_enabled():
            return torch.cat([nope, turned], -1)
        rotary.copy_(turned)
        return q

    def latents(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """What a cache holds: normalised latent (…, T, C), turned shared key (…, T, 1, R)."""
        cfg = self.cfg
        latent, rotary = self.kv_a_proj_with_mqa(x).split(
            [cfg.kv_lora_rank, cfg.qk_rope_head_dim], -1
        )
        rotary = rope.rotate(rotary.unsqueeze(-2), cos, sin, cfg.rope_interleave)
        return self.kv_a_layernorm(latent), rotary

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, saved: dict[str, Any] | None = None
    ) -> Tensor:
        q = self.queries(x, cos, sin)
        latent, rotary = self.latents(x, cos, sin)
        k, v = self._expand(latent, rotary)
        if saved is not None:
            saved["attention"] = {"q": q, "k": k, "scale": self.scale}
        return self.o_proj(attention.forward(q, k, v, self.scale).flatten(-2))

    def _expand(self, latent: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor]:
        """Keys (B, S, H, N + R) and values (B, S, H, V) of every head."""
        cfg = self.cfg
        kv = self.kv_b_proj(latent).unflatten(-1, (cfg.num_attention_heads, -1))
        nope, v = kv.split([cfg.qk_nope_head_dim, cfg.v_head_dim], -1)
        return torch.cat([nope, rotary.expand(*nope.shape[:-1], -1)], -1), v

    def cached(self, x: Tensor, cos: Tensor, sin: Tensor, rows: Tensor, plan: Plan) -> Tensor:
        """The same for new tokens of several sequences, x (n, D) -> (n, D), over this layer's rows.

        rows: (B, max_tokens, C + R), of which the new tokens' are written first. The forms are
        equal because q · (W c) = (Wᵀ q) · c: Wᵀ q is one vector a head, however many tokens c
        stands for. Source: arXiv 2405.04434 §2.1.2.
        """
        latent, rotary = self.latents(x, cos, sin)
        # One row of a layer after the other, so that all go to their places in one operation.
        rows.flatten(0, 1).index_copy_(0, plan.places, torch.cat([latent, rotary[:, 0]], -1))
        q = self.queries(x, cos, sin)
        attend = self._absorbed if plan.absorbed else self._expanded
        return self.o_proj(attend(q, rows, plan).flatten(-2))

    def _expanded(self, q: Tensor, rows: Tensor, plan: Plan) -> Tensor:
        """q (n, H, N + R) -> (n, H, V)."""
        out = []
        for group in plan.groups:
            held = rows[group.sequences, : group.held]
            latent, rotary = held.split([self.cfg.kv_lora_rank, self.cfg.qk_rope_head_dim], -1)
            k, v = self._expand(latent, rotary.unsqueeze(-2))
            own = q[group.new].unflatten(0, (len(held), -1))
            out.append(attention.forward(own, k, v, self.scale).flatten(0, 1))
        return out[0] if len(out) == 1 else torch.cat(out)

    def _absorbed(self, q: Tensor, rows: Tensor, plan: Plan) -> Tensor:
        """q (n, H, N + R) -> (n, H, V)."""
        cfg = self.cfg
        up = self.kv_b_proj.weight.unflatten(0, (cfg.num_attention_heads, -1))
        keys, values = up.split([cfg.qk_nope_head_dim, cfg.v_head_dim], 1)
        nope, rotary = (q * self.scale).split([cfg.qk_nope_head_dim, cfg.qk_rope_head_dim], -1)
        wide = torch.cat([torch.bmm(nope.transpose(0, 1), keys).transpose(0, 1), rotary], -1)
        out = []
        for group in plan.groups:
            held = rows[group.sequences, : group.held]
            own = wide[group.new].unflatten(0, (len(held), -1))
            last = None
            if plan.ragged or own.shape[1] > 1:
                last = plan.positions[group.new].unflatten(0, (len(held), -1))
            out.append(attention.absorbed(own, held, cfg.kv_lora_rank, last).flatten(0, 1))
        context = out[0] if len(out) == 1 else torch.cat(out)
        return torch.bmm(context.transpose(0, 1), values.transpose(1, 2)).transpose(0, 1)
