"""The routed experts of a layer, whole experts side by side, each on one thread.

Unusual here: no thread is told beforehand which experts are its own. Whoever is done takes the next
one, so that threads which other programs hold up do not keep the rest waiting.
"""

import numpy as np
from numba import njit, prange

from minik2.reference.gemm import gemm
from minik2.reference.instructions import take
from minik2.reference.kernels import _exp, kernel


@njit(error_model="numpy")
def _gathered(x, token):
    """x[token], as loops that need no interpreter."""
    rows = np.empty((len(token), x.shape[1]), x.dtype)
    for r in range(len(token)):
        for i in range(x.shape[1]):
            rows[r, i] = x[token[r], i]
    return rows


@kernel
def experts(x, token, busy, offsets, gate_up_proj, down_proj, gate_up, out, threads, counter):
    """out, sorted as `token` is: what each row's expert makes of it.

    x (tokens, D); busy: the experts that have rows, in the order in which they are taken up;
    expert e's rows of token and out (rows, D) are offsets[e] to offsets[e + 1], and its part of
    gate_up, which is flat, gets what its first product gave, (2I, rows). counter: (1,) int64, zero.
    """
    double, width = gate_up_proj.shape[1], down_proj.shape[2]
    for _ in prange(threads):
        n = take(counter)
        while n < len(busy):
            e = busy[n]
            start, stop = offsets[e], offsets[e + 1]
            count = stop - start
            rows = _gathered(x, token[start:stop])
            gates = gate_up[double * start : double * stop].reshape(double, count)
            gemm(gate_up_proj[e], rows.T, gates)
            hidden = np.empty((width, count), x.dtype)
            for i in range(width):
                for r in range(count):
                    gate = gates[i, r]
                    hidden[i, r] = gate / (x.dtype.type(1) + _exp(-gate)) * gates[width + i, r]
            gemm(down_proj[e], hidden, out[start:stop].T)
            n = take(counter)


@kernel
def experts_backward(
    dy, x, weights, token, busy, offsets, gate_up_proj, down_proj, gate_up, dweights,
    dgate_up_proj, ddown_proj, drows, threads, counter,
):  # fmt: skip
    """What `experts` was given and kept, and dy (tokens, D), a gradient of the weighted sums.

    weights, dweights (rows,): sorted as token is; dgate_up_proj and ddown_proj: laid out as the
    stacks, written for busy experts only; drows (rows, D).
    """
    double, width = gate_up_proj.shape[1], down_proj.shape[2]
    one = x.dtype.type(1)
    for _ in prange(threads):
        n = take(counter)
        while n < len(busy):
            e = busy[n]
            start, stop = offsets[e], offsets[e + 1]
            count = stop - start
            rows, dout = _gathered(x, token[start:stop]), _gathered(dy, token[start:stop])
            gates = gate_up[double * start : double * stop].reshape(double, count)
            hidden, dgates = np.empty((width, count), x.dtype), np.empty_like(gates)
            dhidden = np.empty_like(hidden)
            gemm(down_proj[e].T, dout.T, dhidden)
            found = dweights[start:stop]
            found[:] = 0
            for i in range(width):
                for r in range(count):
                    gate, up = gates[i, r], gates[width + i, r]
                    sigma = one / (one + _exp(-gate))
                    silu, d = gate * sigma, dhidden[i, r]
                    w = weights[start + r]
                    found[r] += d * silu * up
                    hidden[i, r] = silu * up * w
                    dgates[i, r] = d * w * up * sigma * (one + gate * (one - sigma))
                    dgates[width + i, r] = d * w * silu
            gemm(dout.T, hidden.T, ddown_proj[e])
            gemm(dgates, rows, dgate_up_proj[e])
            gemm(dgates.T, gate_up_proj[e], drows[start:stop])
            n = take(counter)
