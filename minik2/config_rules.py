"""What the values of a ModelConfig must obey, each rule with its sentence.

Unusual here: values are judged by type before they are compared, because JSON gives strings,
booleans, NaN and infinity where a size was meant, and each of them would go far before it hurt.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Any

from minik2.config_json import ConfigError

if TYPE_CHECKING:
    from minik2.config import ModelConfig, RopeScaling

# Sizes and counts that must be at least 1; the two after them may be 0.
POSITIVE = (
    "vocab_size hidden_size num_hidden_layers num_attention_heads kv_lora_rank qk_nope_head_dim "
    "qk_rope_head_dim v_head_dim intermediate_size moe_intermediate_size n_routed_experts "
    "n_shared_experts num_experts_per_tok n_group topk_group max_position_embeddings"
).split()
COUNTS = ["first_k_dense_replace", "num_nextn_predict_layers"]

# How each method of the checkpoints picks experts, and the scores that it goes with.
ROUTERS = {"noaux_tc": "sigmoid", "greedy": "softmax", "group_limited_greedy": "softmax"}


def validate(cfg: ModelConfig) -> None:
    """Raise ConfigError, one sentence, for the first rule that `cfg` breaks."""
    for name in [*POSITIVE, *COUNTS]:
        value, least = getattr(cfg, name), int(name in POSITIVE)
        _must(
            _whole(value) and value >= least,
            f"{name} must be a whole number of at least {least}, but it is {value!r}.",
        )
    rank = cfg.q_lora_rank
    _must(
        rank is None or (_whole(rank) and rank >= 1),
        f"q_lora_rank must be a positive whole number, or null for a plain q_proj, not {rank!r}.",
    )
    for name in ("rope_theta", "rms_norm_eps", "routed_scaling_factor", "initializer_range"):
        value = getattr(cfg, name)
        _must(
            _finite(value) and value > 0,
            f"{name} must be a positive finite number, but it is {value!r}.",
        )
    for name in ("norm_topk_prob", "rope_interleave", "tie_word_embeddings"):
        value = getattr(cfg, name)
        _must(isinstance(value, bool), f"{name} must be true or false, but it is {value!r}.")
    _special_tokens(cfg)
    _must(
        cfg.qk_rope_head_dim % 2 == 0,
        f"qk_rope_head_dim must be even, because RoPE turns pairs; it is {cfg.qk_rope_head_dim}.",
    )
    _must(cfg.rope_theta > 1, f"rope_theta must exceed 1, but it is {cfg.rope_theta!r}.")
    if cfg.rope_scaling is not None:
        _rope_scaling(cfg.rope_scaling)
    _router(cfg)
    if not cfg.is_all_dense:
        _experts(cfg)


def _must(holds: bool, sentence: str) -> None:
    if not holds:
        raise ConfigError(sentence)


def _whole(value: Any) -> bool:
    # Python counts True as an int; a config that says it means something else.
    return isinstance(value, int) and not isinstance(value, bool)


def _finite(value: Any) -> bool:
    is_number = _whole(value) or isinstance(value, float)
    return is_number and abs(value) <= sys.float_info.max


def _special_tokens(cfg: ModelConfig) -> None:
    eos = cfg.eos_token_id if isinstance(cfg.eos_token_id, tuple) else (cfg.eos_token_id,)
    for name, value in [("bos_token_id", cfg.bos_token_id), *(("eos_token_id", e) for e in eos)]:
        _must(
            value is None or (_whole(value) and value >= 0),
            f"{name} must be null or a token id, not {value!r}.",
        )


def _rope_scaling(scaling: RopeScaling) -> None:
    _must(
        dataclasses.is_dataclass(scaling),
        f"rope_scaling must be a RopeScaling or None, not {scaling!r}; from_json takes a dict.",
    )
    for field in dataclasses.fields(scaling):
        value = getattr(scaling, field.name)
        # An mscale of zero switches its term off.
        enough = _finite(value) and (value > 0 or (value == 0 and "mscale" in field.name))
        _must(enough, f"rope_scaling.{field.name} must be a positive finite number, not {value!r}.")
    original = scaling.original_max_position_embeddings
    _must(
        _whole(original),
        "rope_scaling.original_max_position_embeddings must be a whole number of tokens, not "
        f"{original!r}.",
    )
    _must(
        scaling.factor >= 1 and scaling.beta_fast >= scaling.beta_slow,
        "rope_scaling needs factor >= 1 and beta_fast >= beta_slow, but they are "
        f"{scaling.factor}, {scaling.beta_fast} and {scaling.beta_slow}.",
    )


def _router(cfg: ModelConfig) -> None:
    method = cfg.topk_method
    _must(
        isinstance(method, str) and method in ROUTERS,
        f"topk_method must be one of {', '.join(ROUTERS)}, but it is {method!r}.",
    )
    _must(
        cfg.scoring_func == ROUTERS[method],
        f"topk_method {method!r} goes with scoring_func {ROUTERS[method]!r}, but scoring_func is "
        f"{cfg.scoring_func!r}.",
    )


def _experts(cfg: ModelConfig) -> None:
    experts, groups = cfg.n_routed_experts, cfg.n_group
    _must(
        experts % groups == 0,
        f"n_group must divide n_routed_experts, but {groups} does not divide {experts}.",
    )
    _must(
        cfg.topk_group <= groups,
        f"topk_group ({cfg.topk_group}) cannot exceed n_group ({groups}).",
    )
    _must(
        groups == 1 or experts // groups >= 2 or cfg.topk_method != "noaux_tc",
        f"noaux_tc scores a group by its two best experts, but {experts} experts in {groups} "
        "groups leave one each; use fewer groups.",
    )
    _must(
        groups == 1 or cfg.topk_method != "greedy",
        f"topk_method 'greedy' ignores groups, so n_group must be 1, but it is {groups}.",
    )
    allowed = cfg.topk_group * (experts // groups)
    _must(
        cfg.num_experts_per_tok <= allowed,
        f"num_experts_per_tok is {cfg.num_experts_per_tok}, but topk_group x experts per group "
        f"allows only {allowed}; choose fewer experts or more groups.",
    )
