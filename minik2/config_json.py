"""Hugging Face's config.json <-> the fields of ModelConfig.

Unusual here: two generations of rope keys are read, and what transformers leaves out because its
model class implies it (the router) is filled in from the model type.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minik2.config import ModelConfig


class ConfigError(ValueError):
    """A configuration that describes no model this engine implements."""


SIGMOID = {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "norm_topk_prob": True}
SOFTMAX = {"scoring_func": "softmax", "topk_method": "greedy", "norm_topk_prob": False}
ROUTER_BY_MODEL_TYPE = {"deepseek_v3": SIGMOID, "kimi_k2": SIGMOID, "deepseek_v2": SOFTMAX}
# Which experts answer hangs on these, every released file has them, and defaults differ from reader
# to reader (transformers: V3's own 8, 4 and 2.5): a file without them is asked for, not guessed at.
ASKED_FOR = ("n_group", "topk_group", "routed_scaling_factor")

# Keys with one implemented value; null and absent mean the same.
ONLY = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "moe_layer_freq": 1,
    "attention_dropout": 0,
}

# Where null is a value of its own. Everywhere else it means "the default".
NULLABLE = ("q_lora_rank", "bos_token_id", "eos_token_id")

YARN = ("factor", "original_max_position_embeddings")
YARN_OPTIONAL = ("beta_fast", "beta_slow", "mscale", "mscale_all_dim")


def normalise(raw: Any, where: str) -> dict[str, Any]:
    """The config of `raw` with today's keys only; `rope_scaling` becomes None or YaRN's fields.

    Raises ConfigError for architectures and settings that minik2 does not implement.
    """
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where} must hold a JSON object, but it holds a {type(raw).__name__}.")
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in ROUTER_BY_MODEL_TYPE:
        raise ConfigError(
            f"{where} is of model_type {model_type!r}, which minik2 does not implement; "
            f"it implements {', '.join(ROUTER_BY_MODEL_TYPE)}."
        )
    for key, value in ONLY.items():
        if raw.get(key) not in (None, value):
            raise ConfigError(
                f"minik2 implements only {key} = {value!r}, but {where} has {raw[key]!r}."
            )
    heads = raw.get("num_attention_heads")
    if raw.get("num_key_value_heads") not in (None, heads):
        raise ConfigError(
            f"MLA has as many key heads as query heads ({heads}), but {where} has "
            f"num_key_value_heads {raw['num_key_value_heads']!r}."
        )
    known = {k: v for k, v in raw.items() if v is not None or k in NULLABLE}
    absent = [key for key in ASKED_FOR if key not in known]
    if absent and ROUTER_BY_MODEL_TYPE[model_type] is SIGMOID:
        raise ConfigError(f"{where} lacks {', '.join(absent)}; add them from the model's source.")
    known = ROUTER_BY_MODEL_TYPE[model_type] | known | _rope(raw, where)
    if isinstance(known.get("eos_token_id"), list):
        known["eos_token_id"] = tuple(known["eos_token_id"])
    return known


def _rope(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """rope_theta and rope_scaling, from the old keys or from transformers 5's."""
    found = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(found, Mapping):
        raise ConfigError(f"The rope settings of {where} must be an object, not {found!r}.")
    theta = found.get("rope_theta", raw.get("rope_theta"))
    out: dict[str, Any] = {"rope_scaling": None} | ({} if theta is None else {"rope_theta": theta})
    kind = found.get("rope_type", found.get("type", "default"))
    if kind == "default":
        return out
    if kind != "yarn":
        raise ConfigError(f"minik2 implements rope scaling 'yarn' or none; {where} has {kind!r}.")
    if found.get("attention_factor") is not None or found.get("truncate") is False:
        raise ConfigError(
            f"{where} sets attention_factor or truncate = false for YaRN, which no model of this "
            "family does and minik2 does not implement; remove them."
        )
    for name in YARN:
        if found.get(name) is None:
            raise ConfigError(f"The YaRN settings of {where} lack {name}; add it.")
    names = YARN + YARN_OPTIONAL
    return out | {"rope_scaling": {n: found[n] for n in names if found.get(n) is not None}}


def from_config(cfg: ModelConfig) -> dict[str, Any]:
    """A config.json dict: the released keys, under the model type that transformers implements."""
    sigmoid = cfg.scoring_func == "sigmoid"
    out = dataclasses.asdict(cfg)
    if cfg.rope_scaling is not None:
        # transformers takes an absent mscale, not a zero, to mean "switched off".
        given = {k: v for k, v in out["rope_scaling"].items() if v or "mscale" not in k}
        out["rope_scaling"] = {"type": "yarn"} | given
    if isinstance(cfg.eos_token_id, tuple):
        out["eos_token_id"] = list(cfg.eos_token_id)
    # minik2 holds no multi-token-prediction layer, so what it saves must not announce one.
    out["num_nextn_predict_layers"] = 0
    return {
        "architectures": ["DeepseekV3ForCausalLM" if sigmoid else "DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v3" if sigmoid else "deepseek_v2",
        **out,
        "num_key_value_heads": cfg.num_attention_heads,
        "moe_layer_freq": 1,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
    }
