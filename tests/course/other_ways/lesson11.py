"""Right answers to lesson 11, written another way."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import ml_dtypes
import numba
import numpy as np
import torch

from minik2 import sizing
from minik2.config import ModelConfig
from minik2.sizing.parameters import layer as parts_of_layer


def attention_shapes(c):
    heads, head = c["num_attention_heads"], c["qk_nope_head_dim"] + c["qk_rope_head_dim"]
    return [(c["q_lora_rank"], c["hidden_size"]), (heads * head, c["q_lora_rank"]),
            (c["kv_lora_rank"] + c["qk_rope_head_dim"], c["hidden_size"]),
            (heads * (c["qk_nope_head_dim"] + c["v_head_dim"]), c["kv_lora_rank"]),
            (c["hidden_size"], heads * c["v_head_dim"])]


def layer_tensor_by_tensor(config, layer):
    """All shapes of the layer's tensors, one by one."""
    hidden, shapes = config["hidden_size"], attention_shapes(config)
    shapes += [(hidden,), (hidden,), (config["q_lora_rank"],), (config["kv_lora_rank"],)]
    blocks = [config["intermediate_size"]]
    if layer >= config["first_k_dense_replace"]:
        blocks = [config["moe_intermediate_size"]] * (
            config["n_routed_experts"] + config["n_shared_experts"])
        shapes += [(config["n_routed_experts"], hidden), (config["n_routed_experts"],)]
    for width in blocks:
        shapes += [(width, hidden), (width, hidden), (hidden, width)]
    return sum(map(math.prod, shapes))


def config_of(c):
    return ModelConfig.preset("kimi-k2").replace(**c)


def layer_by_sizing(config, layer):
    return sum(parts_of_layer(config_of(config), layer).values())


def layer_in_numpy(config, layer):
    c = {key: np.int64(value) for key, value in config.items()}
    moe = layer >= c["first_k_dense_replace"]
    count = sum(np.prod(shape) for shape in attention_shapes(c))
    count += 2 * c["hidden_size"] + c["q_lora_rank"] + c["kv_lora_rank"]
    width = np.where(moe, c["moe_intermediate_size"] * (
        c["n_routed_experts"] + c["n_shared_experts"]), c["intermediate_size"])
    return count + 3 * c["hidden_size"] * width + moe * c["n_routed_experts"] * (
        c["hidden_size"] + 1)


def model_by_sizing(config):
    counted = sizing.parameters(config_of(config))
    return {"total": counted.total, "active": counted.active_without_embedding}


def model_added_up(config):
    """What is at work counted directly, nothing taken away."""
    table, total = config["vocab_size"] * config["hidden_size"], 0
    active = table + config["hidden_size"]
    for layer in range(config["num_hidden_layers"]):
        total += layer_tensor_by_tensor(config, layer)
        active += layer_tensor_by_tensor(config, layer)
        if layer >= config["first_k_dense_replace"]:
            for _ in range(config["n_routed_experts"] - config["num_experts_per_tok"]):
                active -= 3 * config["hidden_size"] * config["moe_intermediate_size"]
    return {"active": active, "total": total + 2 * table + config["hidden_size"]}


def model_of_fewer_experts(config):
    """The router sees all experts; of the experts themselves only the chosen are there."""
    few = dict(config, n_routed_experts=config["num_experts_per_tok"])
    moe = config["num_hidden_layers"] - config["first_k_dense_replace"]
    unseen = config["n_routed_experts"] - config["num_experts_per_tok"]
    totals = [sum(layer_in_numpy(c, n) for n in range(c["num_hidden_layers"]))
              for c in (config, few)]
    table = config["vocab_size"] * config["hidden_size"]
    active = totals[1] + moe * unseen * (config["hidden_size"] + 1)
    return {"total": totals[0] + 2 * table + config["hidden_size"],
            "active": np.int64(active + table + config["hidden_size"])}


def cache_token_by_token(config, lengths, page, tp):
    """A page is taken whenever a token finds no room."""
    bytes_of_a_page = page * config["num_hidden_layers"] * sum(
        2 * config[key] for key in ("kv_lora_rank", "qk_rope_head_dim"))
    taken = 0
    for length in lengths:
        room = 0
        for _ in range(length):
            if not room:
                taken, room = taken + 1, page
            room -= 1
    return sum(taken * bytes_of_a_page for _ in range(tp))


def cache_by_sizing(config, lengths, page, tp):
    return sum(tp * sizing.kv_cache_bytes(config_of(config), page * math.ceil(length / page))
               for length in lengths)


def cache_in_numpy(config, lengths, page, tp):
    full, over = np.divmod(lengths, page)
    tokens = page * (full + (over > 0)).sum()
    return np.int64(2 * tp * config["num_hidden_layers"]) * tokens * (
        config["kv_lora_rank"] + config["qk_rope_head_dim"])


def rate_by_logarithm(config, always, experts, context, batch, bandwidth):
    rest = math.log1p(-config["num_experts_per_tok"] / config["n_routed_experts"])
    row = config["kv_lora_rank"] + config["qk_rope_head_dim"]
    cache = 2 * batch * context * config["num_hidden_layers"] * row
    return batch * bandwidth / (always + cache - experts * math.expm1(batch * rest))


def rate_token_by_token(config, always, experts, context, batch, bandwidth):
    """Each token finds a share of the experts read already."""
    read, unread = Fraction(0), Fraction(1)
    for _ in range(batch):
        new = unread * Fraction(config["num_experts_per_tok"], config["n_routed_experts"])
        read, unread = read + new, unread - new
    total = always + float(read) * experts
    for _ in range(batch):
        total += 16 / 8 * context * config["num_hidden_layers"] * (
            config["kv_lora_rank"] + config["qk_rope_head_dim"])
    return 1 / (total / bandwidth / batch)


def rate_in_torch(config, always, experts, context, batch, bandwidth):
    c = {key: torch.tensor(float(value)) for key, value in config.items()}
    read = 1 - (1 - c["num_experts_per_tok"] / c["n_routed_experts"]) ** batch
    row = c["num_hidden_layers"] * (c["kv_lora_rank"] + c["qk_rope_head_dim"])
    return batch * bandwidth / (always + experts * read + 2 * batch * context * row)


def states_by_weight(experts, matrices, rest, ep, dp):
    """Line by line, then a sum over kinds."""
    kinds = [(experts / ep, dp, 1), (matrices, ep * dp, 1), (rest, ep * dp, 2)]
    return {"optimizer": sum(n * (4 + 4 * buffers) / holders for n, holders, buffers in kinds),
            "weights": sum(2 * n for n, *_ in kinds), "gradients": sum(4 * n for n, *_ in kinds)}


def states_exactly(experts, matrices, rest, ep, dp):
    mine = Fraction(experts, ep) + matrices + rest
    master = Fraction(4 * (experts + matrices + rest), ep * dp)
    buffers = Fraction(4 * (experts + matrices) + 8 * rest, ep * dp)
    return {"weights": float(mine * 2), "gradients": float(mine * 4),
            "optimizer": float(master + buffers)}


def states_in_numpy(experts, matrices, rest, ep, dp):
    held = np.array([experts / ep, matrices, rest])
    optimizer = held * [8, 8, 12] / np.array([dp, ep * dp, ep * dp])
    return {"weights": 2 * held.sum(), "gradients": 4 * held.sum(), "optimizer": optimizer.sum()}


def fp8_by_ml_dtypes(codes, scales, block):
    rows, columns = codes.shape
    values = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    return values * np.kron(scales, np.ones((block, block)))[:rows, :columns]


def fp8_by_index(codes, scales, block):
    row, column = (np.arange(n) // block for n in codes.shape)
    values = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    return values[codes] * scales[row[:, None], column]


def fp8_in_torch(codes, scales, block):
    values = torch.tensor(codes).view(torch.float8_e4m3fn).to(torch.float32)
    wide = torch.tensor(scales).repeat_interleave(block, 0).repeat_interleave(block, 1)
    return values * wide[: codes.shape[0], : codes.shape[1]].float()


def fp8_padded(codes, scales, block):
    """Filled up to whole blocks, scaled as (blocks, block, blocks, block), cut back."""
    rows, columns = codes.shape
    high, wide = scales.shape
    full = np.zeros((high * block, wide * block))
    full[:rows, :columns] = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    squares = full.reshape(high, block, wide, block) * scales[:, None, :, None]
    return squares.reshape(full.shape)[:rows, :columns]


@numba.njit
def fp8_bit_by_bit(codes, scales, block):
    out = np.empty(codes.shape)
    for r in range(codes.shape[0]):
        for c in range(codes.shape[1]):
            exponent, fraction = (codes[r, c] >> 3) & 15, codes[r, c] & 7
            value = (8 + fraction) * 2.0 ** (np.int64(exponent) - 10)
            if exponent == 0:
                value = fraction / 512
            out[r, c] = (-value if codes[r, c] > 127 else value) * scales[r // block, c // block]
    return out


OTHER_WAYS: dict[str, list[Callable[..., Any]]] = {
    "fullscale.count_layer": [layer_tensor_by_tensor, layer_by_sizing, layer_in_numpy],
    "fullscale.count_model": [model_by_sizing, model_added_up, model_of_fewer_experts],
    "fullscale.cache_bytes": [cache_token_by_token, cache_by_sizing, cache_in_numpy],
    "fullscale.decode_rate": [rate_by_logarithm, rate_token_by_token, rate_in_torch],
    "fullscale.states": [states_by_weight, states_exactly, states_in_numpy],
    "fullscale.dequantize": [fp8_by_ml_dtypes, fp8_by_index, fp8_in_torch, fp8_padded,
                             fp8_bit_by_bit],
}
