"""The Numba loops: everything between two matrix products that NumPy would do in many passes.

Unusual here: float32 exponentials are our own polynomial, because it becomes vector code (0.07 ns
a number where the C library's takes 0.9) and errs by less than one unit in the last place, 1.2e-7;
float64 keeps the C library's.
"""

import math

import numpy as np
from numba import njit, prange, types
from numba.extending import overload

# Contraction and reordering only: infinities and NaN must survive, they are how trouble shows.
FAST = {"contract", "reassoc", "nsz", "arcp"}
kernel = njit(parallel=True, cache=True, fastmath=FAST, error_model="numpy", nogil=True)


def _exp(x):
    """e^x; inside compiled code, the implementation below."""
    return math.exp(x)


# Not "reassoc" here: free to, the compiler joins the two subtractions below, and errs three times
# as much.
@overload(_exp, jit_options={"fastmath": {"contract"}})
def _exp_overload(x):
    if not (isinstance(x, types.Float) and x.bitwidth == 32):
        return lambda x: math.exp(x)

    def exp32(x):
        # e^x = 2^n e^f with n the nearest whole number to x / ln 2 and |f| <= ln 2 / 2; ln 2 is
        # subtracted in two parts so that f keeps all its bits; e^f is Taylor's series, its last
        # coefficients moved to the least error on the interval.
        x = min(max(x, np.float32(-87.0)), np.float32(88.0))
        n = np.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
        f = (x - n * np.float32(0.693145751953125)) - n * np.float32(1.428606820309417e-06)
        p = np.float32(1.9875691500e-4)
        p = p * f + np.float32(1.3981999507e-3)
        p = p * f + np.float32(8.3334519073e-3)
        p = p * f + np.float32(4.1665795894e-2)
        p = p * f + np.float32(1.6666665459e-1)
        p = p * f + np.float32(5.0000001201e-1)
        p = p * f * f + f + np.float32(1.0)
        # 2^n, written straight into a float's exponent bits.
        bits = np.int32((np.int32(n) + np.int32(127)) << np.int32(23))
        return p * bits.view(np.float32)

    return exp32


@kernel
def rms_norm(x, weight, eps, y, scale):
    """y[r] = weight x[r] / rms(x[r]) over rows; scale[r] keeps 1 / rms for the backward pass."""
    rows, width = x.shape
    for r in prange(rows):
        total = x.dtype.type(0)
        for i in range(width):
            total += x[r, i] * x[r, i]
        inverse = x.dtype.type(1) / np.sqrt(total / x.dtype.type(width) + eps)
        scale[r] = inverse
        for i in range(width):
            y[r, i] = x[r, i] * inverse * weight[i]


@kernel
def rotate_pairs(x, cos, sin, y, step, other):
    """Turn pair i of every head, x[t, h, step i] with x[t, h, step i + other], by token t's angle.

    step 2, other 1: interleaved pairs; step 1, other R/2: two halves. x (tokens, heads, R).
    """
    tokens, heads, _ = x.shape
    for t in prange(tokens):
        for h in range(heads):
            for i in range(cos.shape[1]):
                a, b = x[t, h, step * i], x[t, h, step * i + other]
                y[t, h, step * i] = a * cos[t, i] - b * sin[t, i]
                y[t, h, step * i + other] = a * sin[t, i] + b * cos[t, i]


@kernel
def join_heads(content, shared, y):
    """y[b, t, h] = the first numbers of content[b, t, h] and then shared[b, t], the same for all h.

    content (B, T, H, at least N); shared (B, T, R); y (B, T, H, N + R).
    """
    batch, tokens, heads, width = y.shape
    own = width - shared.shape[2]
    for r in prange(batch * tokens):
        b, t = r // tokens, r % tokens
        for h in range(heads):
            for i in range(own):
                y[b, t, h, i] = content[b, t, h, i]
            for i in range(own, width):
                y[b, t, h, i] = shared[b, t, i - own]


@njit(cache=True)
def larger(a, b):
    # A comparison with NaN is false, so NaN is carried on purpose.
    return b if b > a or b != b else a


@njit(cache=True)
def _largest(row, stop):
    """The largest of row[:stop], NaN where there is one.

    Four at a time: a single chain of comparisons would wait for each of them.
    """
    a = b = c = d = row[0]
    whole = stop - stop % 4
    for s in range(0, whole, 4):
        a, b = larger(a, row[s]), larger(b, row[s + 1])
        c, d = larger(c, row[s + 2]), larger(d, row[s + 3])
    top = larger(larger(a, b), larger(c, d))
    for s in range(whole, stop):
        top = larger(top, row[s])
    return top


@kernel
def causal_softmax(scores, tops, start, scale):
    """In place: scores (heads, queries, keys) become softmax(scale x scores) over visible keys.

    Query j stands at position start + j and sees keys 0 to start + j; the others become 0. tops
    (heads, queries) takes each query's largest visible score, before the scaling.
    """
    heads, queries, keys = scores.shape
    for r in prange(heads * queries):
        row = scores[r // queries, r % queries]
        visible = start + r % queries + 1
        top = _largest(row, visible)
        tops[r // queries, r % queries] = top
        total = row.dtype.type(0)
        for s in range(visible):
            row[s] = _exp((row[s] - top) * scale)
            total += row[s]
        inverse = row.dtype.type(1) / total
        for s in range(visible):
            row[s] *= inverse
        for s in range(visible, keys):
            row[s] = row.dtype.type(0)


@kernel
def swiglu(gate_up, y):
    """y = silu(gate) x up, with silu(g) = g / (1 + e^-g).

    gate_up (rows, 2I): gate in the first half of a row, up in the second; y (rows, I).
    """
    width = y.shape[1]
    for r in prange(y.shape[0]):
        for i in range(width):
            gate = gate_up[r, i]
            y[r, i] = gate / (y.dtype.type(1) + _exp(-gate)) * gate_up[r, width + i]


@njit(cache=True)
def ranked(scores, chosen):
    """chosen = places of the largest of scores (E,), largest first, the lower place on a tie.

    NaN counts as largest, as in NumPy and torch: an expert that went bad shows at once.
    """
    for k in range(len(chosen)):
        best, where = -np.inf, -1
        for e in range(len(scores)):
            taken = False
            for j in range(k):
                taken |= chosen[j] == e
            score = scores[e]
            larger = score > best or (np.isnan(score) and not np.isnan(best))
            if not taken and (where < 0 or larger):
                best, where = score, e
        chosen[k] = where


@kernel
def top_k(scores, chosen):
    """chosen[t] = columns of the largest scores[t], as `ranked` finds them."""
    for t in prange(len(scores)):
        ranked(scores[t], chosen[t])


@kernel
def combine(rows, position, weights, y):
    """y[t] += sum over k of weights[t, k] rows[position[t, k]]: experts' outputs back to tokens."""
    for t in prange(y.shape[0]):
        for k in range(position.shape[1]):
            w, p = weights[t, k], position[t, k]
            for i in range(y.shape[1]):
                y[t, i] += w * rows[p, i]
