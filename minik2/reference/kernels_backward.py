"""The Numba loops of the backward pass and the loss, beside `kernels.py`'s of the forward pass.

Unusual here: no two threads ever add to one number. A sum over rows is cut into a number of parts
that does not depend on the number of threads, and rows that belong to one token are gathered by
that token, so a gradient is the same bit by bit however often it is computed.
"""

import math

from numba import prange

from minik2.reference.kernels import _exp, _largest, kernel


@kernel
def rms_norm_backward(dy, x, weight, scale, dx, parts):
    """dx of weight x / rms(x), and in parts (P, D) the sums over P blocks of rows of dy x / rms(x).

    With g = weight dy and n = x scale, scale = 1 / rms(x): dx = scale (g - n mean(g n)).
    """
    rows, width = x.shape
    count = parts.shape[0]
    for p in prange(count):
        for i in range(width):
            parts[p, i] = 0
        for r in range(rows * p // count, rows * (p + 1) // count):
            along = x.dtype.type(0)
            for i in range(width):
                along += dy[r, i] * weight[i] * x[r, i]
            along *= scale[r] * scale[r] / x.dtype.type(width)
            for i in range(width):
                dx[r, i] = scale[r] * (dy[r, i] * weight[i] - x[r, i] * along)
                parts[p, i] += dy[r, i] * x[r, i] * scale[r]


@kernel
def part_heads(dk, dv, dkv, dshared):
    """What `kernels.join_heads` joined, taken apart: dkv (B, T, H, N + V) = the first N numbers of
    dk (B, T, H, N + R) and then dv (B, T, H, V); dshared (B, T, R) = the sum of dk's others."""
    batch, tokens, heads, width = dk.shape
    own = width - dshared.shape[2]
    for r in prange(batch * tokens):
        b, t = r // tokens, r % tokens
        for i in range(width - own):
            dshared[b, t, i] = 0
        for h in range(heads):
            for i in range(own):
                dkv[b, t, h, i] = dk[b, t, h, i]
            for i in range(dv.shape[3]):
                dkv[b, t, h, own + i] = dv[b, t, h, i]
            for i in range(width - own):
                dshared[b, t, i] += dk[b, t, h, own + i]


@kernel
def swiglu_backward(dy, gate_up, d):
    """d (rows, 2I), the gradient of gate_up, from dy (rows, I), that of y = silu(gate) x up.

    With σ = 1 / (1 + e^-gate): silu = gate σ and silu' = σ (1 + gate (1 - σ)).
    """
    width = dy.shape[1]
    one = dy.dtype.type(1)
    for r in prange(dy.shape[0]):
        for i in range(width):
            gate = gate_up[r, i]
            sigma = one / (one + _exp(-gate))
            d[r, i] = dy[r, i] * gate_up[r, width + i] * sigma * (one + gate * (one - sigma))
            d[r, width + i] = dy[r, i] * gate * sigma


@kernel
def log_sum_exp(logits, tops, logs):
    """Of each row of logits, tops[r] its largest and logs[r] = log Σ e^(logit - tops[r]).

    Not added up here: beside a top of 100 the digits of a small log would be lost.
    """
    rows, width = logits.shape
    for r in prange(rows):
        tops[r] = _largest(logits[r], width)
        total = logits.dtype.type(0)
        for i in range(width):
            total += _exp(logits[r, i] - tops[r])
        logs[r] = math.log(total)


@kernel
def cross_entropy_backward(logits, targets, log_sums, dloss, d):
    """d[r] = dloss (softmax(logits[r]) - 1 at the target); 0 for a negative target."""
    rows, width = logits.shape
    for r in prange(rows):
        if targets[r] < 0:
            for i in range(width):
                d[r, i] = 0
        else:
            for i in range(width):
                d[r, i] = dloss * _exp(logits[r, i] - log_sums[r])
            d[r, targets[r]] -= dloss


@kernel
def sum_rows(rows, order, offsets, y):
    """y[s] = Σ rows[order[j]] over j from offsets[s] to offsets[s + 1]: one thread a sum."""
    for s in prange(y.shape[0]):
        for i in range(y.shape[1]):
            y[s, i] = 0
        for j in range(offsets[s], offsets[s + 1]):
            for i in range(y.shape[1]):
                y[s, i] += rows[order[j], i]

