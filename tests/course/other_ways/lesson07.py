"""Right answers to lesson 07, written another way."""

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
import torch.nn.functional as F


def wave(x, a, b):
    return math.fsum((b * np.sin(a * x)).ravel())


def ratio(claimed, slopes):
    return np.max(np.abs(np.asarray(claimed) - slopes)) / np.max(np.abs(slopes))


def check_flat(x, a, b, claimed):
    """Rows of an identity matrix as directions, the last number first."""
    unit, flat = np.eye(x.size), np.zeros(x.size)
    for i in reversed(range(x.size)):
        ahead, behind = (wave(x + s * 3e-6 * unit[i].reshape(x.shape), a, b) for s in (1, -1))
        flat[i] = (ahead - behind) / 6e-6
    return float(ratio(claimed, flat.reshape(x.shape)))


def check_fourth_order(x, a, b, claimed):
    slopes, h = np.empty_like(x), 1e-3
    for i, _ in np.ndenumerate(x):
        f = {}
        for step in (-2, -1, 1, 2):
            moved = x.copy()
            moved[i] += step * h
            f[step] = wave(moved, a, b)
        slopes[i] = (8 * (f[1] - f[-1]) - f[2] + f[-2]) / (12 * h)
    return ratio(claimed, slopes)


def check_relative_step(x, a, b, claimed):
    """The step is a part of the number itself, and one array is moved there and back."""
    slopes, x = np.zeros(x.shape), np.array(x)
    for i in np.ndindex(*x.shape):
        value = x[i]
        h = 2e-6 * max(1.0, abs(value))
        x[i] = value + h
        up = wave(x, a, b)
        x[i] = value - h
        down = wave(x, a, b)
        x[i] = value
        slopes[i] = (up - down) / (2 * h)
    return ratio(claimed, slopes)


def check_in_torch(x, a, b, claimed):
    """torch's own forward mode, which is no difference at all; a tensor of one number."""
    x, a, b, claimed = (torch.tensor(n) for n in (x, a, b, claimed))
    slopes = torch.func.grad(lambda x: (b * torch.sin(a * x)).sum())(x)
    return (claimed - slopes).abs().max() / slopes.abs().max()


def norm_loops(dy, x, weight, eps):
    """The derivative of every output by every input, one after the other."""
    tokens, width = x.shape
    dx, dweight = np.zeros_like(x), np.zeros(width)
    for t in range(tokens):
        rms = math.sqrt(math.fsum(n * n for n in x[t]) / width + eps)
        for i in range(width):
            dweight[i] += dy[t, i] * x[t, i] / rms
            for j in range(width):
                slope = (i == j) / rms - x[t, i] * x[t, j] / (width * rms**3)
                dx[t, j] += dy[t, i] * weight[i] * slope
    return {"weight": dweight, "x": dx}


def norm_einsum(dy, x, weight, eps):
    r = (np.einsum("td,td->t", x, x) / x.shape[1] + eps) ** -0.5
    along = np.einsum("td,td,d->t", dy, x, weight) * r**3 / x.shape[1]
    dx = np.einsum("t,td,d->td", r, dy, weight) - np.einsum("t,td->td", along, x)
    return {"x": dx, "weight": np.einsum("td,td,t->d", dy, x, r)}


def norm_in_torch(dy, x, weight, eps):
    x, weight = (torch.tensor(a, dtype=torch.float32, requires_grad=True) for a in (x, weight))
    F.rms_norm(x, weight.shape, weight, eps).backward(torch.tensor(dy, dtype=torch.float32))
    return {"x": x.grad, "weight": weight.grad}


def norm_float32(dy, x, weight, eps):
    dy, x, weight = (a.astype(np.float32) for a in (dy, x, weight))
    return norm_einsum(dy, x, weight, np.float32(eps))


@numba.njit
def _norm_rows(dy, x, weight, eps, dx, dweight):
    for t in range(x.shape[0]):
        r = 1 / np.sqrt(np.mean(x[t] ** 2) + eps)
        along = np.mean(dy[t] * weight * x[t]) * r * r
        dx[t] = r * (dy[t] * weight - x[t] * along)
        dweight += dy[t] * x[t] * r


def norm_numba(dy, x, weight, eps):
    dx, dweight = np.empty_like(x), np.zeros_like(weight)
    _norm_rows(dy, x, weight, eps, dx, dweight)
    return {"x": dx, "weight": dweight}


def attention_loops(dy, q, k, v):
    """Query by query, with the softmax's whole matrix of slopes."""
    c, dq, dk, dv = 1 / math.sqrt(q.shape[1]), *(np.zeros_like(a) for a in (q, k, v))
    for m in range(len(q)):
        scores = c * k[: m + 1] @ q[m]
        p = np.exp(scores - scores.max())
        p /= p.sum()
        ds = (np.diag(p) - np.outer(p, p)) @ (v[: m + 1] @ dy[m])
        for n in range(m + 1):
            dv[n] += p[n] * dy[m]
            dq[m] += c * ds[n] * k[n]
            dk[n] += c * ds[n] * q[m]
    return {"q": dq, "k": dk, "v": dv}


def attention_einsum(dy, q, k, v):
    """The sum of P dP as dy times y, as FlashAttention has it."""
    c = q.shape[1] ** -0.5
    scores = c * np.einsum("td,sd->ts", q, k) + np.triu(np.full((len(q),) * 2, -np.inf), 1)
    p = np.exp(scores - np.logaddexp.reduce(scores, axis=1, keepdims=True))
    mean = np.einsum("tv,ts,sv->t", dy, p, v)
    ds = p * (np.einsum("tv,sv->ts", dy, v) - mean[:, None])
    return {"q": c * np.einsum("ts,sd->td", ds, k), "k": c * np.einsum("ts,td->sd", ds, q),
            "v": np.einsum("ts,tv->sv", p, dy)}


def attention_in_torch(dy, q, k, v):
    q, k, v = (torch.tensor(a, dtype=torch.float32, requires_grad=True) for a in (q, k, v))
    y = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]
    y.backward(torch.tensor(dy, dtype=torch.float32))
    return {"v": v.grad, "k": k.grad, "q": q.grad}


def attention_float32(dy, q, k, v):
    return attention_einsum(*(a.astype(np.float32) for a in (dy, q, k, v)))


def attention_last_first(dy, q, k, v):
    """The same sums from the last query to the first, and the scale on the queries and keys."""
    size = len(q[0]) ** 0.25
    q, k = q / size, k / size
    dq, dk, dv = (np.zeros_like(a) for a in (q, k, v))
    for m in reversed(range(len(q))):
        p = np.exp(k[: m + 1] @ q[m] - (k[: m + 1] @ q[m]).max())
        p = p / p.sum()
        dp = v[: m + 1] @ dy[m]
        ds = p * dp - p * (p @ dp)
        dq[m] = ds @ k[: m + 1]
        dk[: m + 1] += np.outer(ds, q[m])
        dv[: m + 1] += np.outer(p, dy[m])
    return {"q": dq / size, "k": dk / size, "v": dv}


def router_loops(dweights, x, weight, bias, indices, scale):
    """The derivative of every weight by every chosen score."""
    dx, dweight = np.zeros_like(x), np.zeros_like(weight)
    for t in range(len(x)):
        s = {int(e): 1 / (1 + math.exp(-(weight[e] @ x[t]))) for e in indices[t]}
        total = math.fsum(s.values())
        for e in s:
            ds = sum(dw * scale * ((e == f) / total - s[int(f)] / total**2)
                     for dw, f in zip(dweights[t], indices[t], strict=True))
            dl = ds * s[e] * (1 - s[e])
            dx[t] += dl * weight[e]
            dweight[e] += dl * x[t]
    return {"x": dx, "weight": dweight}


def router_einsum(dweights, x, weight, bias, indices, scale):
    """Over all experts, with a mask instead of indices."""
    s = 1 / (1 + np.exp(-np.einsum("td,ed->te", x, weight)))
    hot = np.eye(len(weight))[indices]
    chosen, d = np.einsum("te,tke->te", s, hot), np.einsum("tk,tke->te", dweights, hot)
    total = chosen.sum(1, keepdims=True)
    w = chosen / total
    dl = scale * w * (d - np.einsum("te,te->t", d, w)[:, None]) * (1 - s)
    return {"x": np.einsum("te,ed->td", dl, weight), "weight": np.einsum("te,td->ed", dl, x)}


def router_in_torch(dweights, x, weight, bias, indices, scale):
    x, weight = (torch.tensor(a, dtype=torch.float32, requires_grad=True) for a in (x, weight))
    chosen = F.linear(x, weight).sigmoid().gather(1, torch.tensor(indices))
    share = scale * chosen / chosen.sum(-1, keepdim=True)
    share.backward(torch.tensor(dweights, dtype=torch.float32))
    return {"x": x.grad, "weight": weight.grad}


def router_float32(dweights, x, weight, bias, indices, scale):
    dweights, x, weight = (a.astype(np.float32) for a in (dweights, x, weight))
    return router_einsum(dweights, x, weight, bias, indices, np.float32(scale))


def router_by_logs(dweights, x, weight, bias, indices, scale):
    """log w = log s - log of the sum, differentiated."""
    logits = np.take_along_axis(x @ weight.T, indices, 1)
    s = np.exp(-np.logaddexp(0, -logits))
    w = scale * s / s.sum(1, keepdims=True)
    pull = dweights * w
    dl = (pull - w / scale * pull.sum(1, keepdims=True)) * (1 - s)
    dx, dweight = np.zeros_like(x), np.zeros_like(weight)
    for k in range(indices.shape[1]):
        dx += dl[:, k, None] * weight[indices[:, k]]
        np.add.at(dweight, indices[:, k], dl[:, k, None] * x)
    return {"x": dx, "weight": dweight}


OTHER_WAYS: dict[str, list[Callable[..., Any]]] = {
    "backward.check_gradient": [check_flat, check_fourth_order, check_relative_step,
                                check_in_torch],
    "backward.rms_norm": [norm_loops, norm_einsum, norm_in_torch, norm_float32, norm_numba],
    "backward.attention": [attention_loops, attention_einsum, attention_in_torch,
                           attention_float32, attention_last_first],
    "backward.router": [router_loops, router_einsum, router_in_torch, router_float32,
                        router_by_logs],
}
