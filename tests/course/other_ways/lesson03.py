"""Right answers to lesson 03, written another way."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numba
import numpy as np
import torch


def bytes_counted(config, tokens, sequences, bits):
    total = 0
    for _ in range(config["num_hidden_layers"]):
        for part in ("kv_lora_rank", "qk_rope_head_dim"):
            total += config[part] * tokens * sequences * bits
    return total >> 3


def bytes_in_numpy(config, tokens, sequences, bits):
    c = {key: np.int64(value) for key, value in config.items()}
    numbers = c["num_hidden_layers"] * (c["kv_lora_rank"] + c["qk_rope_head_dim"])
    return numbers * tokens * sequences * bits // 8


def bytes_as_a_shape(config, tokens, sequences, bits):
    shape = (config["num_hidden_layers"], sequences, tokens,
             config["kv_lora_rank"] + config["qk_rope_head_dim"])
    return int(Fraction(bits, 8) * math.prod(shape))


def query_loops(q_nope, kv_b_proj):
    tokens, heads, nope = q_nope.shape
    rows = len(kv_b_proj) // heads
    out = np.zeros((tokens, heads, kv_b_proj.shape[1]))
    for t in range(tokens):
        for h in range(heads):
            for n in reversed(range(nope)):
                out[t, h] += q_nope[t, h, n] * kv_b_proj[h * rows + n]
    return out


def query_by_head(q_nope, kv_b_proj):
    parts = np.split(kv_b_proj, q_nope.shape[1])
    return np.stack([q_nope[:, h] @ part[: q_nope.shape[2]] for h, part in enumerate(parts)], 1)


def query_transposed(q_nope, kv_b_proj):
    _, heads, nope = q_nope.shape
    w = kv_b_proj.T.reshape(kv_b_proj.shape[1], heads, -1)[:, :, :nope]
    return np.einsum("chn,thn->thc", w, q_nope)


def query_in_torch(q_nope, kv_b_proj):
    q, w = (torch.tensor(a, dtype=torch.float32) for a in (q_nope, kv_b_proj))
    w = w.unflatten(0, (q.shape[1], -1))[:, : q.shape[2]]
    return torch.bmm(q.transpose(0, 1), w).transpose(0, 1)


def query_float32(q_nope, kv_b_proj):
    return query_by_head(q_nope.astype(np.float32), kv_b_proj.astype(np.float32))


@numba.njit
def query_numba(q_nope, kv_b_proj):
    tokens, heads, nope = q_nope.shape
    rows = kv_b_proj.shape[0] // heads
    out = np.zeros((tokens, heads, kv_b_proj.shape[1]))
    for t in range(tokens):
        for h in range(heads):
            for n in range(nope):
                for c in range(kv_b_proj.shape[1]):
                    out[t, h, c] += q_nope[t, h, n] * kv_b_proj[h * rows + n, c]
    return out


def output_loops(mixed, kv_b_proj, nope):
    tokens, heads, _ = mixed.shape
    rows = len(kv_b_proj) // heads
    out = np.zeros((tokens, heads, rows - nope))
    for t in range(tokens):
        for h in range(heads):
            for v in range(rows - nope):
                row = kv_b_proj[h * rows + nope + v]
                out[t, h, v] = math.fsum(a * b for a, b in zip(row, mixed[t, h], strict=True))
    return out


def output_by_head(mixed, kv_b_proj, nope):
    parts = np.split(kv_b_proj, mixed.shape[1])
    return np.stack([(part[nope:] @ mixed[:, h].T).T for h, part in enumerate(parts)], 1)


def output_everything_then_cut(mixed, kv_b_proj, nope):
    """All rows of all heads, and of them a head's own: wasteful, and right."""
    heads = mixed.shape[1]
    every = (mixed @ kv_b_proj.T).reshape(*mixed.shape[:2], heads, -1)
    return every[:, np.arange(heads), np.arange(heads), nope:]


def output_in_torch(mixed, kv_b_proj, nope):
    m, w = (torch.tensor(a, dtype=torch.float32) for a in (mixed, kv_b_proj))
    return torch.einsum("thc,hvc->thv", m, w.unflatten(0, (m.shape[1], -1))[:, nope:])


def output_float32(mixed, kv_b_proj, nope):
    return output_by_head(mixed.astype(np.float32), kv_b_proj.astype(np.float32), nope)


def turn(x, position, theta):
    """One vector (R,) turned, its pairs as complex numbers."""
    speed = theta ** (-np.arange(0, len(x), 2) / len(x))
    pairs = np.ascontiguousarray(x).view(np.complex128)
    return (pairs * np.exp(1j * position * speed)).view(np.float64)


def new_row(new, rows, norm, theta):
    latent = new[: len(norm)]
    latent = latent / math.sqrt(float(latent @ latent) / len(latent) + 1e-6) * norm
    return np.concatenate([latent, turn(new[len(norm):], len(rows), theta)])


def step_expanded(q, new, rows, norm, kv_b_proj, theta):
    """Keys and values of every head formed anew: slower, and the same."""
    rank, cached = len(norm), len(rows)
    nope = q.shape[1] - (len(new) - rank)
    rows = np.vstack([rows, new_row(new, rows, norm, theta)])
    kv = (rows[:, :rank] @ kv_b_proj.T).reshape(len(rows), len(q), -1)
    y = []
    for h, query in enumerate(q):
        key = np.hstack([kv[:, h, :nope], rows[:, rank:]])
        query = np.concatenate([query[:nope], turn(query[nope:], cached, theta)])
        scores = key @ query / np.sqrt(len(query))
        weights = np.exp(scores - np.logaddexp.reduce(scores))
        y.append(weights @ kv[:, h, nope:])
    return np.array(y), rows


def step_one_pass(q, new, rows, norm, kv_b_proj, theta):
    """A running maximum and sum over the cached rows, newest first."""
    heads, rank, cached = len(q), len(norm), len(rows)
    nope = q.shape[1] - (len(new) - rank)
    size = len(kv_b_proj) // heads
    rows = np.append(rows, new_row(new, rows, norm, theta)[None], axis=0)
    y = np.empty((heads, size - nope))
    for h in range(heads):
        w = kv_b_proj[h * size : (h + 1) * size]
        wide = np.append(w[:nope].T @ q[h, :nope], turn(q[h, nope:], cached, theta))
        top, total, mixed = -math.inf, 0.0, np.zeros(rank)
        for row in rows[::-1]:
            score = float(wide @ row) / math.sqrt(q.shape[1])
            higher = max(top, score)
            shrink, power = math.exp(top - higher), math.exp(score - higher)
            total, mixed = total * shrink + power, mixed * shrink + power * row[:rank]
            top = higher
        y[h] = w[nope:] @ (mixed / total)
    return y, rows


def step_in_torch(q, new, rows, norm, kv_b_proj, theta):
    """Attention of one key and value head, as PyTorch's own kernel takes it."""
    heads, rank, cached = len(q), len(norm), len(rows)
    nope = q.shape[1] - (len(new) - rank)
    held = torch.tensor(np.vstack([rows, new_row(new, rows, norm, theta)]))
    turned = torch.tensor(np.array([turn(part, cached, theta) for part in q[:, nope:]]))
    up = torch.tensor(kv_b_proj).unflatten(0, (heads, -1))
    wide = torch.cat([torch.einsum("hn,hnc->hc", torch.tensor(q[:, :nope]), up[:, :nope]),
                      turned], 1)
    mixed = torch.nn.functional.scaled_dot_product_attention(
        wide[None], held[None], held[None, :, :rank], scale=q.shape[1] ** -0.5)[0]
    return torch.einsum("hc,hvc->hv", mixed, up[:, nope:]), held


def step_float32(q, new, rows, norm, kv_b_proj, theta):
    y, rows = step_expanded(q, new, rows, norm, kv_b_proj, theta)
    return y.astype(np.float32), rows.astype(np.float32)


OTHER_WAYS: dict[str, list[Callable[..., Any]]] = {
    "cache.bytes": [bytes_counted, bytes_in_numpy, bytes_as_a_shape],
    "mla.absorb_query": [query_loops, query_by_head, query_transposed, query_in_torch,
                         query_float32, query_numba],
    "mla.absorb_output": [output_loops, output_by_head, output_everything_then_cut,
                          output_in_torch, output_float32],
    "mla.decode_step": [step_expanded, step_one_pass, step_in_torch, step_float32],
}
