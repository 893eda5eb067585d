"""What one thread of a decoding step does by itself, within the regions of kernels_decode.py.

Unusual here: weights may be bfloat16, stored as uint16, the upper halves of float32. They are
widened in registers, and all arithmetic is that of x. A product reads its matrix row by row: one
vector is all that it is multiplied with, so nothing is gained by tiles, but for the cached rows,
which all heads look at. (Numba's cache of a caller does not notice changes made here: delete
minik2/reference/__pycache__ after one.)
"""

import numpy as np
from numba import njit, types
from numba.extending import overload

from minik2.reference.kernels import FAST, larger, ranked

part = njit(cache=True, fastmath=FAST, error_model="numpy", nogil=True)


def _wide(w):
    """A weight as it is; of bfloat16 the float32 that it is the upper half of."""


@overload(_wide)
def _wide_overload(w):
    if isinstance(w, types.Integer):
        return lambda w: np.uint32(np.uint32(w) << np.uint32(16)).view(np.float32)
    return lambda w: w


@part
def dot(w, x):
    """w · x, in x's dtype."""
    total = x.dtype.type(0)
    for i in range(len(x)):
        total += _wide(w[i]) * x[i]
    return total


@part
def norm(x, gain, eps, y):
    """y = gain x / rms(x)."""
    inverse = x.dtype.type(1) / np.sqrt(dot(x, x) / x.dtype.type(len(x)) + eps)
    for i in range(len(x)):
        y[i] = x[i] * inverse * gain[i]


@part
def rotate(x, cos, sin, step, other, y):
    """y = x with its pairs turned, one token and head of `kernels.rotate_pairs`."""
    for i in range(len(cos)):
        a, b = x[step * i], x[step * i + other]
        y[step * i] = a * cos[i] - b * sin[i]
        y[step * i + other] = a * sin[i] + b * cos[i]


@part
def add_rows(p, rows, y):
    """y += Σ p[n] rows[n], over as many numbers of a row as y has; four rows a pass over y."""
    whole = len(p) - len(p) % 4
    for n in range(0, whole, 4):
        a, b, c, d = p[n], p[n + 1], p[n + 2], p[n + 3]
        ra, rb, rc, rd = rows[n], rows[n + 1], rows[n + 2], rows[n + 3]
        for i in range(len(y)):
            y[i] += a * _wide(ra[i]) + b * _wide(rb[i]) + c * _wide(rc[i]) + d * _wide(rd[i])
    for n in range(whole, len(p)):
        a, ra = p[n], rows[n]
        for i in range(len(y)):
            y[i] += a * _wide(ra[i])


@part
def score(q, rows, scores):
    """scores[h, p] = q[h] · rows[p]; four heads and two positions at a time, kept in registers."""
    heads, count = scores.shape
    tall, even = heads - heads % 4, count - count % 2
    for h in range(0, tall, 4):
        q0, q1, q2, q3 = q[h], q[h + 1], q[h + 2], q[h + 3]
        for p in range(0, even, 2):
            x, y = rows[p], rows[p + 1]
            a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = q.dtype.type(0)
            for i in range(len(x)):
                a0 += q0[i] * x[i]
                a1 += q1[i] * x[i]
                a2 += q2[i] * x[i]
                a3 += q3[i] * x[i]
                b0 += q0[i] * y[i]
                b1 += q1[i] * y[i]
                b2 += q2[i] * y[i]
                b3 += q3[i] * y[i]
            scores[h, p], scores[h, p + 1] = a0, b0
            scores[h + 1, p], scores[h + 1, p + 1] = a1, b1
            scores[h + 2, p], scores[h + 2, p + 1] = a2, b2
            scores[h + 3, p], scores[h + 3, p + 1] = a3, b3
        if even < count:
            for k in range(h, h + 4):
                scores[k, even] = dot(q[k], rows[even])
    for h in range(tall, heads):
        for p in range(count):
            scores[h, p] = dot(q[h], rows[p])


@part
def route(logits, bias, rule, choice, worth, kept, chosen, weights):
    """One token's experts and their weights, as `router.forward` chooses them."""
    sigmoid, group_best, normalise, scaling = rule
    experts, groups = len(logits), len(worth)
    top = logits[0]
    for e in range(experts):
        top = larger(top, logits[e])
    total = logits.dtype.type(0)
    for e in range(experts):
        small = np.exp(-abs(logits[e])) if sigmoid else np.exp(logits[e] - top)
        if sigmoid:
            logits[e] = (1 if logits[e] >= 0 else small) / (1 + small)
        else:
            logits[e] = small
            total += small
    for e in range(experts):
        if not sigmoid:
            logits[e] /= total
        choice[e] = logits[e] + bias[e]
    if groups > 1:
        size = experts // groups
        for g in range(groups):
            first = second = -np.inf
            for e in range(g * size, (g + 1) * size):
                if choice[e] > first or np.isnan(choice[e]):
                    first, second = choice[e], first
                elif choice[e] > second:
                    second = choice[e]
            worth[g] = first + second if group_best == 2 else first
        ranked(worth, kept)
        for e in range(experts):
            inside = False
            for g in kept:
                inside |= g == e // size
            if not inside:
                choice[e] = -np.inf
    ranked(choice, chosen)
    total = logits.dtype.type(1e-20)
    for k in range(len(chosen)):
        weights[k] = logits[chosen[k]]
        total += weights[k]
    for k in range(len(chosen)):
        weights[k] *= scaling / total if normalise else scaling
