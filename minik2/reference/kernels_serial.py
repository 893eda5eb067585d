"""What one thread of a decoding step does by itself, within the regions of kernels_decode.py.

Unusual here: weights may be bfloat16, stored as uint16, the upper halves of float32. They are
widened in registers, and all arithmetic is that of x. A row of an array is named by its number, not
cut out: what is cut out counts its users, and two threads that count on one memory line wait for
each other longer than the row takes to read. (Numba's cache of a caller does not notice changes
made here: delete minik2/reference/__pycache__ after one.)
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
def dot(w, r, x, b):
    """w[r] · x[b], in x's dtype."""
    total = x.dtype.type(0)
    for i in range(x.shape[1]):
        total += _wide(w[r, i]) * x[b, i]
    return total


@part
def norm(x, gain, eps, y):
    """y = gain x / rms(x)."""
    total = x.dtype.type(0)
    for i in range(len(x)):
        total += x[i] * x[i]
    inverse = x.dtype.type(1) / np.sqrt(total / x.dtype.type(len(x)) + eps)
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
def add_rows(p, g, count, rows, start, y, h, width):
    """y[h] += Σ p[g, n] rows[start + n] over n < count, the first `width` numbers of each.

    Four rows a pass over y.
    """
    whole = count - count % 4
    for n in range(0, whole, 4):
        s, a, b, c, d = start + n, p[g, n], p[g, n + 1], p[g, n + 2], p[g, n + 3]
        for i in range(width):
            y[h, i] += (
                a * _wide(rows[s, i]) + b * _wide(rows[s + 1, i])
                + c * _wide(rows[s + 2, i]) + d * _wide(rows[s + 3, i])
            )  # fmt: skip
    for n in range(whole, count):
        for i in range(width):
            y[h, i] += p[g, n] * _wide(rows[start + n, i])


@part
def mix(p, count, rows, start, y):
    """y[h] += Σ p[h, n] rows[start + n] over n < count, for every head.

    Four heads and two rows at a time: each number that is read is used four times.
    """
    heads, width = y.shape
    tall, even = heads - heads % 4, count - count % 2
    for h in range(0, tall, 4):
        for n in range(0, even, 2):
            s = start + n
            a0, a1, a2, a3 = p[h, n], p[h + 1, n], p[h + 2, n], p[h + 3, n]
            b0, b1, b2, b3 = p[h, n + 1], p[h + 1, n + 1], p[h + 2, n + 1], p[h + 3, n + 1]
            for i in range(width):
                u, v = rows[s, i], rows[s + 1, i]
                y[h, i] += a0 * u + b0 * v
                y[h + 1, i] += a1 * u + b1 * v
                y[h + 2, i] += a2 * u + b2 * v
                y[h + 3, i] += a3 * u + b3 * v
        for k in range(h, h + 4 if even < count else h):
            for i in range(width):
                y[k, i] += p[k, even] * rows[start + even, i]
    for h in range(tall, heads):
        add_rows(p, h, count, rows, start, y, h, width)


@part
def score(q, rows, start, count, scores):
    """scores[h, p] = q[h] · rows[start + p], p < count.

    Four heads and two positions at a time, whose sums stay in registers.
    """
    heads, width = q.shape
    tall, even = heads - heads % 4, count - count % 2
    for h in range(0, tall, 4):
        for p in range(0, even, 2):
            s = start + p
            a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = q.dtype.type(0)
            for i in range(width):
                x, y = rows[s, i], rows[s + 1, i]
                q0, q1, q2, q3 = q[h, i], q[h + 1, i], q[h + 2, i], q[h + 3, i]
                a0 += q0 * x
                a1 += q1 * x
                a2 += q2 * x
                a3 += q3 * x
                b0 += q0 * y
                b1 += q1 * y
                b2 += q2 * y
                b3 += q3 * y
            scores[h, p], scores[h, p + 1] = a0, b0
            scores[h + 1, p], scores[h + 1, p + 1] = a1, b1
            scores[h + 2, p], scores[h + 2, p + 1] = a2, b2
            scores[h + 3, p], scores[h + 3, p + 1] = a3, b3
        if even < count:
            for k in range(h, h + 4):
                scores[k, even] = dot(rows, start + even, q, k)
    for h in range(tall, heads):
        for p in range(count):
            scores[h, p] = dot(rows, start + p, q, h)


@part
def highest(scores, h, count, top):
    """The largest of top and scores[h, p], p < count, in four lanes as in the softmax kernel.

    NaN is passed over: its exponential is NaN, and so is the sum that it goes into.
    """
    a = b = c = d = top
    whole = count - count % 4
    for p in range(0, whole, 4):
        a, b = max(a, scores[h, p]), max(b, scores[h, p + 1])
        c, d = max(c, scores[h, p + 2]), max(d, scores[h, p + 3])
    for p in range(whole, count):
        a = max(a, scores[h, p])
    return max(max(a, b), max(c, d))


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
