"""Right answers to lesson 00, written another way."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def read_step_by_step(config):
    answer = {"layers": config["num_hidden_layers"], "heads": config["num_attention_heads"]}
    answer["moe_layers"] = sum(
        n >= config["first_k_dense_replace"] for n in range(config["num_hidden_layers"]))
    answer["experts"] = config["n_routed_experts"]
    answer["experts_per_token"] = config["num_experts_per_tok"]
    answer["sparsity"] = answer["experts"] / answer["experts_per_token"]
    try:
        answer["rope_theta"] = config["rope_theta"]
    except KeyError:
        answer["rope_theta"] = config["rope_parameters"]["rope_theta"]
    return answer


def read_flat(config):
    flat = {**config, **config.get("rope_parameters", {})}
    names = {"layers": "num_hidden_layers", "heads": "num_attention_heads",
             "experts": "n_routed_experts", "experts_per_token": "num_experts_per_tok",
             "rope_theta": "rope_theta"}
    out = {name: flat[key] for name, key in names.items()}
    layers = range(out["layers"])[flat["first_k_dense_replace"]:]
    return out | {"moe_layers": len(layers),
                  "sparsity": np.float32(out["experts"]) / np.float32(out["experts_per_token"])}


def read_in_torch(config):
    answer = read_step_by_step(config)
    answer["sparsity"] = torch.tensor(answer["experts"]) / answer["experts_per_token"]
    answer["layers"] = torch.tensor(answer["layers"])
    answer["heads"] = np.int64(answer["heads"])
    return answer


def count_expert_by_matrix(config):
    hidden, width = config["hidden_size"], config["moe_intermediate_size"]
    shapes = {"gate_proj": (width, hidden), "up_proj": (width, hidden),
              "down_proj": (hidden, width)}
    return sum(math.prod(shape) for shape in shapes.values())


def count_expert_in_torch(config):
    sizes = config["hidden_size"], config["moe_intermediate_size"]
    with torch.device("meta"):
        expert = torch.nn.ModuleList([
            torch.nn.Linear(*sizes, bias=False), torch.nn.Linear(*sizes, bias=False),
            torch.nn.Linear(*reversed(sizes), bias=False)])
    return sum(p.numel() for p in expert.parameters())


def count_expert_in_numpy(config):
    return np.prod([3, config["hidden_size"], config["moe_intermediate_size"]], dtype=np.int64)


def cache_numbers_by_layer(config):
    numbers = 0
    for _ in range(config["num_hidden_layers"]):
        numbers += config["kv_lora_rank"]
        numbers += config["qk_rope_head_dim"]
    return numbers


def cache_numbers_by_shape(config):
    latents = np.empty((config["num_hidden_layers"], 1, config["kv_lora_rank"]), np.int8)
    keys = np.empty((config["num_hidden_layers"], 1, config["qk_rope_head_dim"]), np.int8)
    return latents.size + keys.size


def cache_numbers_in_numpy(config):
    a_layer = np.array([config["kv_lora_rank"], config["qk_rope_head_dim"]])
    return (config["num_hidden_layers"] * a_layer).sum()


OTHER_WAYS: dict[str, list[Callable[..., Any]]] = {
    "config.read": [read_step_by_step, read_flat, read_in_torch],
    "config.count_expert": [count_expert_by_matrix, count_expert_in_torch, count_expert_in_numpy],
    "config.cache_numbers": [cache_numbers_by_layer, cache_numbers_by_shape,
                             cache_numbers_in_numpy],
}
