"""Right answers to lesson 04, written another way."""

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch


def boundary_pairs_by_search(config):
    """Count pairs up from the fastest until one makes fewer turns than asked for."""
    yarn, size = config["rope_scaling"], config["qk_rope_head_dim"]
    context = yarn["original_max_position_embeddings"]

    def turns(pair):
        return context / (2 * math.pi) * config["rope_theta"] ** (-2 * pair / size)

    low = 0
    while turns(low + 1) > yarn["beta_fast"]:
        low += 1
    high = -size
    while high < size - 1 and turns(high) > yarn["beta_slow"]:
        high += 1
    return low, high


def boundary_pairs_in_numpy(config):
    yarn, size = config["rope_scaling"], config["qk_rope_head_dim"]
    turn = yarn["original_max_position_embeddings"] / np.array(
        [yarn["beta_fast"], yarn["beta_slow"]])
    places = np.log(turn / (2 * np.pi)) / np.log(config["rope_theta"]) * size / 2
    low, high = np.floor(places[0]), np.ceil(places[1])
    return np.clip([low, high], [0, -size], [size, size - 1]).astype(np.int32)


def boundary_pairs_in_torch(config):
    yarn, size = config["rope_scaling"], config["qk_rope_head_dim"]
    betas = torch.tensor([yarn["beta_fast"], yarn["beta_slow"]], dtype=torch.float32)
    step = 2 * math.log(config["rope_theta"]) / size
    places = (math.log(yarn["original_max_position_embeddings"] / math.tau) - betas.log()) / step
    return torch.stack([places[0].floor().clamp(min=0), places[1].ceil().clamp(max=size - 1)]).int()


def boundary_pairs_as_transformers(config):
    yarn, dim = config["rope_scaling"], config["qk_rope_head_dim"]

    def find_correction_dim(rotations):
        length = yarn["original_max_position_embeddings"]
        return dim * math.log(length / (rotations * 2 * math.pi)) / (
            2 * math.log(config["rope_theta"]))

    return [max(math.floor(find_correction_dim(yarn["beta_fast"])), 0),
            min(math.ceil(find_correction_dim(yarn["beta_slow"])), dim - 1)]


def frequencies_loops(config):
    low, high = boundary_pairs_as_transformers(config)
    size, factor = config["qk_rope_head_dim"], config["rope_scaling"]["factor"]
    out = []
    for pair in range(size // 2):
        speed = 1 / config["rope_theta"] ** (2 * pair / size)
        if pair <= low:
            out.append(speed)
        elif pair >= high:
            out.append(speed / factor)
        else:
            share = (pair - low) / (high - low)
            out.append(speed * (1 + share * (1 / factor - 1)))
    return out


def frequencies_interpolated(config):
    """The multiplier of a pair by NumPy's own interpolation between the two ends of the ramp."""
    low, high = boundary_pairs_in_numpy(config)
    pair = np.arange(config["qk_rope_head_dim"] // 2)
    ends = [low, max(high, low + 0.001)]
    times = np.interp(pair, ends, [1, 1 / config["rope_scaling"]["factor"]])
    return np.exp(-2 * pair / config["qk_rope_head_dim"] * np.log(config["rope_theta"])) * times


def frequencies_in_torch(config):
    low, high = boundary_pairs_as_transformers(config)
    pair = torch.arange(config["qk_rope_head_dim"] // 2)
    plain = config["rope_theta"] ** (-2 * pair / config["qk_rope_head_dim"])
    slow = ((pair - low) / (high - low or 0.001)).clamp(0, 1)
    return torch.lerp(plain, plain / config["rope_scaling"]["factor"], slow)


def frequencies_float32(config):
    return np.asarray(frequencies_loops(config), np.float32)


@numba.njit
def _ramped(plain, low, high, factor):
    out = np.empty_like(plain)
    for i in range(len(plain)):
        slow = min(max((i - low) / max(high - low, 1), 0.0), 1.0)
        out[i] = plain[i] / factor * slow + plain[i] * (1 - slow)
    return out


def frequencies_numba(config):
    size = config["qk_rope_head_dim"]
    plain = config["rope_theta"] ** (-np.arange(0, size, 2) / size)
    return _ramped(plain, *boundary_pairs_as_transformers(config), config["rope_scaling"]["factor"])


def scale_by_sides(config):
    """Queries times m, keys times m, as the paper says it."""
    yarn = config["rope_scaling"]
    m = 1 + yarn["mscale_all_dim"] * math.log(yarn["factor"]) / 10
    head = config["qk_nope_head_dim"] + config["qk_rope_head_dim"]
    return (m * m) / math.sqrt(head)


def scale_in_torch(config):
    yarn = config["rope_scaling"]
    m = 0.1 * yarn["mscale_all_dim"] * torch.tensor(yarn["factor"]).log() + 1
    return m.square() * (config["qk_nope_head_dim"] + config["qk_rope_head_dim"]) ** -0.5


def scale_float32(config):
    yarn = config["rope_scaling"]
    scale = np.float32(config["qk_nope_head_dim"] + config["qk_rope_head_dim"]) ** np.float32(-0.5)
    if yarn["mscale_all_dim"]:
        scale *= np.float32(np.log1p(yarn["factor"] - 1) * 0.1 * yarn["mscale_all_dim"] + 1) ** 2
    return np.float32(scale)


def score_loops(q, k, m, n, config):
    cut, size = config["qk_nope_head_dim"], config["qk_rope_head_dim"]
    total = sum(q[i] * k[i] for i in reversed(range(cut)))
    for pair, speed in enumerate(frequencies_loops(config)):
        a, b = q[cut + 2 * pair], q[cut + 2 * pair + 1]
        c, d = k[cut + 2 * pair], k[cut + 2 * pair + 1]
        angle = (m - n) * speed
        total += (a * c + b * d) * math.cos(angle) + (a * d - b * c) * math.sin(angle)
    assert size == 2 * (pair + 1)
    return total * scale_by_sides(config)


def score_complex(q, k, m, n, config):
    """A pair as one complex number: the rotary part is Re(q conj(k) e^(i (m - n) w))."""
    cut = config["qk_nope_head_dim"]
    qc, kc = (np.ascontiguousarray(x[cut:]).view(np.complex128) for x in (q, k))
    turn = np.exp(1j * (m - n) * frequencies_interpolated(config))
    return scale_by_sides(config) * (q[:cut] @ k[:cut] + (qc * kc.conj() * turn).sum().real)


def score_by_matrices(q, k, m, n, config):
    """One orthogonal matrix a position, the identity on the part without position."""
    def whole(position):
        out = np.eye(len(q))
        for pair, speed in enumerate(frequencies_loops(config)):
            at = config["qk_nope_head_dim"] + 2 * pair
            c, s = math.cos(position * speed), math.sin(position * speed)
            out[at:at + 2, at:at + 2] = [[c, -s], [s, c]]
        return out

    return (whole(m) @ q) @ (whole(n) @ k) * scale_by_sides(config)


def score_in_torch(q, k, m, n, config):
    q, k = torch.tensor(q, dtype=torch.float32), torch.tensor(k, dtype=torch.float32)
    cut, w = config["qk_nope_head_dim"], frequencies_in_torch(config)

    def turned(x, position):
        pairs = torch.view_as_complex(x[cut:].unflatten(0, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(w), position * w)).flatten()

    return scale_in_torch(config) * (q[:cut] @ k[:cut] + turned(q, m) @ turned(k, n))


OTHER_WAYS: dict[str, list[Callable[..., Any]]] = {
    "yarn.boundary_pairs": [boundary_pairs_by_search, boundary_pairs_in_numpy,
                            boundary_pairs_in_torch, boundary_pairs_as_transformers],
    "yarn.inverse_frequencies": [frequencies_loops, frequencies_interpolated,
                                 frequencies_in_torch, frequencies_float32, frequencies_numba],
    "yarn.softmax_scale": [scale_by_sides, scale_in_torch, scale_float32],
    "yarn.score": [score_loops, score_complex, score_by_matrices, score_in_torch],
}
