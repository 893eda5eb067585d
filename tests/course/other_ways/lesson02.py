"""Right answers to lesson 02, written another way."""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
import torch.nn.functional as F


def rms_norm(x, gain, eps):
    mean_square = np.einsum("...c,...c->...", x, x) / x.shape[-1]
    return gain * x * np.power(mean_square + eps, -0.5)[..., None]


def turned(x, positions, theta):
    """x (T, H, R): the 2 x 2 matrix of each pair."""
    size = x.shape[-1]
    angles = np.einsum("t,i->ti", positions, theta ** (-2 * np.arange(size // 2) / size))
    turns = np.array([[np.cos(angles), -np.sin(angles)], [np.sin(angles), np.cos(angles)]])
    return np.einsum("abti,thib->thia", turns, x.reshape(*x.shape[:2], -1, 2)).reshape(x.shape)


def expand_loops(x, kv_a_proj_with_mqa, kv_a_layernorm, kv_b_proj, heads, nope, eps):
    latents, rows = len(kv_a_layernorm), len(kv_b_proj) // heads
    keys, values = np.zeros((len(x), heads, nope)), np.zeros((len(x), heads, rows - nope))
    for t, token in enumerate(x):
        latent = np.array([row @ token for row in kv_a_proj_with_mqa[:latents]])
        root = (sum(number**2 for number in latent) / latents + eps) ** 0.5
        latent = [gain * number / root for gain, number in zip(kv_a_layernorm, latent, strict=True)]
        for h in range(heads):
            for n in range(rows):
                number = sum(a * b for a, b in zip(kv_b_proj[h * rows + n], latent, strict=True))
                if n < nope:
                    keys[t, h, n] = number
                else:
                    values[t, h, n - nope] = number
    return keys, values


def expand_einsum(x, kv_a_proj_with_mqa, kv_a_layernorm, kv_b_proj, heads, nope, eps):
    size = len(kv_a_layernorm)
    latent = rms_norm(np.einsum("td,cd->tc", x, kv_a_proj_with_mqa[:size]), kv_a_layernorm, eps)
    up = kv_b_proj.reshape(heads, -1, size)
    return (np.einsum("tc,hnc->thn", latent, up[:, :nope]),
            np.einsum("tc,hvc->thv", latent, up[:, nope:]))


def expand_gain_in_the_matrix(x, kv_a_proj_with_mqa, kv_a_layernorm, kv_b_proj, heads, nope, eps):
    """The norm's weights belong to kv_b_proj as well, and its root may be divided out last."""
    size = len(kv_a_layernorm)
    raw = x @ kv_a_proj_with_mqa[:size].T
    kv = raw @ (kv_b_proj * kv_a_layernorm).T
    kv = (kv / np.sqrt((raw**2).mean(1, keepdims=True) + eps)).reshape(len(x), heads, -1)
    return [kv[:, :, :nope], kv[:, :, nope:]]


def expand_in_torch(x, kv_a_proj_with_mqa, kv_a_layernorm, kv_b_proj, heads, nope, eps):
    x, down, gain, up = (torch.tensor(a, dtype=torch.float32) for a in (
        x, kv_a_proj_with_mqa, kv_a_layernorm, kv_b_proj))
    latent = F.linear(x, down).split([len(gain), len(down) - len(gain)], -1)[0]
    kv = F.linear(F.rms_norm(latent, gain.shape, gain, eps), up).unflatten(-1, (heads, -1))
    return kv.split([nope, kv.shape[-1] - nope], -1)


def expand_float32(x, kv_a_proj_with_mqa, kv_a_layernorm, kv_b_proj, heads, nope, eps):
    arrays = (a.astype(np.float32) for a in (x, kv_a_proj_with_mqa, kv_a_layernorm, kv_b_proj))
    return expand_einsum(*arrays, heads, nope, np.float32(eps))


@numba.njit
def expand_numba(x, kv_a_proj_with_mqa, kv_a_layernorm, kv_b_proj, heads, nope, eps):
    size, rows = len(kv_a_layernorm), len(kv_b_proj) // heads
    keys, values = np.zeros((len(x), heads, nope)), np.zeros((len(x), heads, rows - nope))
    for t in range(len(x)):
        latent = np.zeros(size)
        for c in range(size):
            latent[c] = np.sum(kv_a_proj_with_mqa[c] * x[t])
        latent = latent / np.sqrt(np.mean(latent**2) + eps) * kv_a_layernorm
        for row in range(heads * rows):
            h, n = row // rows, row % rows
            number = np.sum(kv_b_proj[row] * latent)
            if n < nope:
                keys[t, h, n] = number
            else:
                values[t, h, n - nope] = number
    return keys, values


def split_loops(q, k_nope, compressed, positions, theta):
    tokens, heads, nope = k_nope.shape
    size = q.shape[1] // heads
    rotary = size - nope
    queries, keys = np.zeros((tokens, heads, size)), np.zeros((tokens, heads, size))
    for t in range(tokens):
        for h in range(heads):
            queries[t, h] = q[t, h * size:(h + 1) * size]
            keys[t, h, :nope] = k_nope[t, h]
            keys[t, h, nope:] = compressed[t, -rotary:]
            for vector in (queries[t, h], keys[t, h]):
                for i in range(rotary // 2):
                    angle = positions[t] / theta ** (2 * i / rotary)
                    a, b = vector[nope + 2 * i:nope + 2 * i + 2].copy()
                    vector[nope + 2 * i] = a * np.cos(angle) - b * np.sin(angle)
                    vector[nope + 2 * i + 1] = a * np.sin(angle) + b * np.cos(angle)
    return queries, keys


def split_einsum(q, k_nope, compressed, positions, theta):
    heads, nope = k_nope.shape[1:]
    q = q.reshape(len(q), heads, -1)
    k_rope = compressed[:, None, compressed.shape[1] - (q.shape[2] - nope):]
    k_rope = np.broadcast_to(turned(k_rope, positions, theta), (*k_nope.shape[:2],
                                                                k_rope.shape[-1]))
    return (np.dstack([q[..., :nope], turned(q[..., nope:], positions, theta)]),
            np.dstack([k_nope, k_rope]))


def split_all_at_once(q, k_nope, compressed, positions, theta):
    """The rotary key as one more head beside the queries, all turned in one go."""
    tokens, heads, nope = k_nope.shape
    q = q.reshape(tokens, heads, -1).copy()
    rotary = q.shape[2] - nope
    together = np.concatenate([q[..., nope:], compressed[:, None, -rotary:]], 1)
    pairs = np.ascontiguousarray(together).view(np.complex128)
    frequencies = theta ** (-np.arange(0, rotary, 2) / rotary)
    together = (pairs * np.exp(1j * positions[:, None, None] * frequencies)).view(np.float64)
    k = np.empty_like(q)
    q[..., nope:], k[..., :nope], k[..., nope:] = together[:, :-1], k_nope, together[:, -1:]
    return q, k


def split_in_torch(q, k_nope, compressed, positions, theta):
    q, k_nope, compressed = (torch.tensor(a, dtype=torch.float32) for a in (q, k_nope, compressed))
    heads, nope = k_nope.shape[1:]
    q_nope, q_rope = q.unflatten(1, (heads, -1)).tensor_split([nope], -1)
    rotary = q_rope.shape[-1]
    angles = torch.outer(torch.tensor(positions).float(),
                         theta ** (-torch.arange(0, rotary, 2) / rotary))
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]

    def rotate(x):
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * turn).flatten(-2)

    k_rope = rotate(compressed[:, None, -rotary:]).expand(-1, heads, -1)
    return torch.cat([q_nope, rotate(q_rope)], -1), torch.cat([k_nope, k_rope], -1)


def split_float32(q, k_nope, compressed, positions, theta):
    q, k_nope, compressed = (a.astype(np.float32) for a in (q, k_nope, compressed))
    return tuple(a.astype(np.float32)
                 for a in split_einsum(q, k_nope, compressed, positions, theta))


def forward_loops(x, weights, positions, heads, nope, theta, eps):
    """A head and a token at a time."""
    w = {name.split(".")[0]: matrix for name, matrix in weights.items()}
    latents, size = len(w["kv_a_layernorm"]), len(w["q_b_proj"]) // heads
    rows = len(w["kv_b_proj"]) // heads
    y = np.zeros(x.shape)
    for h in range(heads):
        queries, keys, values = [], [], []
        for token, position in zip(x, positions, strict=True):
            q = rms_norm(w["q_a_proj"] @ token, w["q_a_layernorm"], eps)
            q = w["q_b_proj"][h * size:(h + 1) * size] @ q
            both = w["kv_a_proj_with_mqa"] @ token
            latent = rms_norm(both[:latents], w["kv_a_layernorm"], eps)
            kv = w["kv_b_proj"][h * rows:(h + 1) * rows] @ latent
            q_rope, k_rope = (turned(part[None, None], np.array([position]), theta)[0, 0]
                              for part in (q[nope:], both[latents:]))
            queries.append(np.append(q[:nope], q_rope))
            keys.append(np.append(kv[:nope], k_rope))
            values.append(kv[nope:])
        for m, query in enumerate(queries):
            powers = np.exp([query @ keys[n] / np.sqrt(size) for n in range(m + 1)])
            mean = sum(power * value for power, value in zip(powers, values[:m + 1], strict=True))
            width = rows - nope
            y[m] += w["o_proj"][:, h * width:(h + 1) * width] @ (mean / powers.sum())
    return y


def forward_einsum(x, weights, positions, heads, nope, theta, eps):
    w = {name.removesuffix(".weight"): matrix for name, matrix in weights.items()}
    q = np.einsum("tq,nq->tn", rms_norm(x @ w["q_a_proj"].T, w["q_a_layernorm"], eps),
                  w["q_b_proj"])
    size = len(w["kv_a_layernorm"])
    both = x @ w["kv_a_proj_with_mqa"].T
    k_nope, v = expand_einsum(x, w["kv_a_proj_with_mqa"], w["kv_a_layernorm"], w["kv_b_proj"],
                              heads, nope, eps)
    q = q.reshape(len(x), heads, -1)
    scores = np.einsum("thn,shn->hts", q[..., :nope], k_nope)
    scores += np.einsum("thr,sr->hts", turned(q[..., nope:], positions, theta),
                        turned(both[:, None, size:], positions, theta)[:, 0])
    scores = scores / np.sqrt(q.shape[-1]) + np.triu(np.full((len(x), len(x)), -np.inf), 1)
    powers = np.exp(scores - np.logaddexp.reduce(scores, axis=2, keepdims=True))
    return np.einsum("hts,shv,dhv->td", powers, v, w["o_proj"].reshape(-1, heads, v.shape[2]))


def forward_absorbed(x, weights, positions, heads, nope, theta, eps):
    """Lesson 03's form: no head's keys or values are ever made."""
    w = {name.removesuffix(".weight"): matrix for name, matrix in weights.items()}
    size = len(w["kv_a_layernorm"])
    both = x @ w["kv_a_proj_with_mqa"].T
    latent = rms_norm(both[:, :size], w["kv_a_layernorm"], eps)
    rows = np.hstack([latent, turned(both[:, None, size:], positions, theta)[:, 0]])
    q = rms_norm(x @ w["q_a_proj"].T, w["q_a_layernorm"], eps) @ w["q_b_proj"].T
    q = q.reshape(len(x), heads, -1)
    up = w["kv_b_proj"].reshape(heads, -1, size)
    wide = np.concatenate([np.einsum("thn,hnc->thc", q[..., :nope], up[:, :nope]),
                           turned(q[..., nope:], positions, theta)], -1)
    scores = wide.transpose(1, 0, 2) @ rows.T / q.shape[-1] ** 0.5
    powers = np.exp(scores - scores.max(-1, keepdims=True)) * np.tri(len(x))
    context = powers / powers.sum(-1, keepdims=True) @ latent
    context = np.einsum("htc,hvc->thv", context, up[:, nope:])
    return context.reshape(len(x), -1) @ w["o_proj"].T


def forward_in_torch(x, weights, positions, heads, nope, theta, eps):
    w = {name.removesuffix(".weight"): torch.tensor(matrix, dtype=torch.float32)
         for name, matrix in weights.items()}
    x32 = torch.tensor(x, dtype=torch.float32)
    gain = w["q_a_layernorm"]
    q = F.linear(F.rms_norm(F.linear(x32, w["q_a_proj"]), gain.shape, gain, eps), w["q_b_proj"])
    k_nope, v = expand_in_torch(
        x, *(weights[f"{n}.weight"] for n in ("kv_a_proj_with_mqa", "kv_a_layernorm",
                                              "kv_b_proj")), heads, nope, eps)
    q, k = split_in_torch(q.numpy(), k_nope.numpy(),
                          F.linear(x32, w["kv_a_proj_with_mqa"]).numpy(), positions, theta)
    context = F.scaled_dot_product_attention(
        *(a.transpose(0, 1)[None] for a in (q, k, v)), is_causal=True)
    return F.linear(context[0].transpose(0, 1).flatten(1), w["o_proj"])


def forward_float32(x, weights, positions, heads, nope, theta, eps):
    weights = {name: matrix.astype(np.float32) for name, matrix in weights.items()}
    return forward_absorbed(x.astype(np.float32), weights, positions, heads, nope, theta,
                            np.float32(eps)).astype(np.float32)


def parameters_of_shapes(config):
    h, d, c = config["num_attention_heads"], config["hidden_size"], config["kv_lora_rank"]
    q, r = config["q_lora_rank"], config["qk_rope_head_dim"]
    n, v = config["qk_nope_head_dim"], config["v_head_dim"]
    shapes = [(q, d), (h * (n + r), q), (c + r, d), (h * (n + v), c), (d, h * v)]
    return sum(rows * columns for rows, columns in shapes)


def parameters_by_head(config):
    d, c, q = config["hidden_size"], config["kv_lora_rank"], config["q_lora_rank"]
    n, r, v = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    head = (n + r) * q + (n + v) * c + v * d
    return np.int64(d * (q + c + r) + config["num_attention_heads"] * head)


def parameters_by_arrays(config):
    h, d, c = config["num_attention_heads"], config["hidden_size"], config["kv_lora_rank"]
    q, r = config["q_lora_rank"], config["qk_rope_head_dim"]
    n, v = config["qk_nope_head_dim"], config["v_head_dim"]
    rows, columns = np.array([q, h * (n + r), c + r, h * (n + v), d]), np.array([d, q, d, c, h * v])
    return int(rows @ columns)


OTHER_WAYS: dict[str, list[Callable[..., Any]]] = {
    "mla.expand_kv": [expand_loops, expand_einsum, expand_gain_in_the_matrix, expand_in_torch,
                      expand_float32, expand_numba],
    "mla.split_and_rotate": [split_loops, split_einsum, split_all_at_once, split_in_torch,
                             split_float32],
    "mla.forward": [forward_loops, forward_einsum, forward_absorbed, forward_in_torch,
                    forward_float32],
    "mla.parameters": [parameters_of_shapes, parameters_by_head, parameters_by_arrays],
}
