"""The Numba loops of one decoding step: one new token a sequence, a layer in eight regions.

Unusual here: all threads meet only where the next product needs every number of the last, since a
meeting costs as much as reading 50 kB. What is small (norms, rotation, the choice of experts) each
thread does over again.
"""

import numpy as np
from numba import prange

from minik2.reference.kernels import _exp, kernel, larger
from minik2.reference.kernels_serial import (
    add_rows,
    dot,
    highest,
    mix,
    norm,
    part,
    rotate,
    route,
    score,
)

# Positions whose scores are made together: 64 rows of 160 numbers stay in the first-level cache.
BLOCK = 64


@part
def angles(positions, inverse, gain, cos, sin):
    """cos and sin (B, R/2) of each sequence's position, as `rope.table` has them."""
    for b in range(len(positions)):
        for i in range(len(inverse)):
            angle = np.float64(positions[b]) * inverse[i]
            cos[b, i], sin[b, i] = np.cos(angle) * gain, np.sin(angle) * gain


@kernel
def normed_products(x, gain, eps, first, second, third, y, normed):
    """y[b] = the products of norm(x[b]) with three matrices, one after the other.

    normed (pieces, B, D) takes each thread's own norm(x).
    """
    pieces, batch, rows = normed.shape[0], x.shape[0], y.shape[1]
    one, two = len(first), len(first) + len(second)
    for p in prange(pieces):
        own = normed[p]
        for b in range(batch):
            norm(x[b], gain, eps, own[b])
        for r in range(rows * p // pieces, rows * (p + 1) // pieces):
            for b in range(batch):
                if r < one:
                    y[b, r] = dot(first, r, own, b)
                elif r < two:
                    y[b, r] = dot(second, r - one, own, b)
                else:
                    y[b, r] = dot(third, r - two, own, b)


@kernel
def move_queries(down, q_gain, q_b, kv_gain, eps, up, cos, sin, turn, rows, lengths, q, inner, own):
    """Each head's query moved to the latents, q (B, H, C + R), and the new token's row written.

    down (B, …): the query's latent, or all queries where q_b is empty, then the new row; up
    (H, N + V, C); rows (B, S, C + R). turn: what lies between pairs, as `rotate_pairs` takes it.
    inner (pieces, B, …) and own (pieces, 1, N + R): each thread's room for the query's latent and
    for one head's query.
    """
    batch, heads, width = q.shape
    latents, pieces, size = up.shape[2], own.shape[0], own.shape[2]
    nope = size - (width - latents)
    before = down.shape[1] - width
    step, other = turn
    for p in prange(pieces):
        query, latent = own[p], inner[p]
        for b in range(batch * p // pieces, batch * (p + 1) // pieces):
            new = rows[b, lengths[b]]
            norm(down[b, before : before + latents], kv_gain, eps, new[:latents])
            rotate(down[b, before + latents :], cos[b], sin[b], step, other, new[latents:])
        for b in range(batch):
            if len(q_b):
                norm(down[b, :before], q_gain, eps, latent[b])
            for h in range(heads * p // pieces, heads * (p + 1) // pieces):
                for i in range(size):
                    if len(q_b):
                        query[0, i] = dot(q_b, h * size + i, latent, b)
                    else:
                        query[0, i] = down[b, h * size + i]
                q[b, h, :latents] = 0
                add_rows(query, 0, nope, up[h], 0, q[b], h, latents)
                rotate(query[0, nope:], cos[b], sin[b], step, other, q[b, h, latents:])


@kernel
def attend(q, rows, lengths, scale, scores, tops, sums, sides):
    """Attention of B queries a head over the rows of their sequences, cut into pieces.

    Every head looks at the same rows, so a block of them is read once for all. Piece s of sequence
    b keeps its heads' largest score in tops[b, s], the sum of e^(scale (score - top)) in sums[b, s]
    and the latents weighed so in sides[b, s] (H, C). scores (B, pieces, H, BLOCK) is scratch.
    """
    batch, pieces, heads, latents = sides.shape
    for place in prange(batch * pieces):
        b, s = place // pieces, place % pieces
        count = lengths[b] + 1
        stop = count * (s + 1) // pieces
        top, total, side, own = tops[b, s], sums[b, s], sides[b, s], scores[b, s]
        queries, held = q[b], rows[b]
        top[:], total[:], side[:] = -np.inf, 0, 0
        for start in range(count * s // pieces, stop, BLOCK):
            some = min(BLOCK, stop - start)
            score(queries, held, start, some, own)
            for h in range(heads):
                largest = highest(own, h, some, top[h])
                # What the earlier blocks made is brought to the new largest score.
                shrink, added = _exp((top[h] - largest) * scale), q.dtype.type(0)
                for p in range(some):
                    own[h, p] = _exp((own[h, p] - largest) * scale)
                    added += own[h, p]
                top[h], total[h] = largest, total[h] * shrink + added
                for i in range(latents):
                    side[h, i] *= shrink
            mix(own, some, held, start, side)


@kernel
def join(tops, sums, sides, scale, up, context):
    """The pieces of `attend` put together, and from latents to each head's value: (B, H V)."""
    batch, pieces, heads, latents = sides.shape
    value = context.shape[1] // heads
    nope = up.shape[1] - value
    for place in prange(batch * heads):
        b, h = place // heads, place % heads
        top = tops[b, 0, h]
        for s in range(1, pieces):
            top = larger(top, tops[b, s, h])
        total, side = sums.dtype.type(0), sides[b, 0, h]
        for s in range(pieces):
            share = _exp((tops[b, s, h] - top) * scale)
            total += share * sums[b, s, h]
            for i in range(latents):
                if s == 0:
                    side[i] *= share
                else:
                    side[i] += share * sides[b, s, h, i]
        own, first = up[h], sides[b, 0]
        for i in range(value):
            context[b, h * value + i] = dot(own, nope + i, first, h) / total


@kernel
def add_product(weight, x, y, pieces):
    """y[b] += weight x[b]."""
    rows = len(weight)
    for p in prange(pieces):
        for r in range(rows * p // pieces, rows * (p + 1) // pieces):
            for b in range(len(x)):
                y[b, r] += dot(weight, r, x, b)


@part
def _silu_product(gate, up, one):
    return up * gate / (one + _exp(-gate))


@kernel
def experts_hidden(normed, gate_up, first, chosen, weights, hidden, shared):
    """The inner numbers of every expert met: silu(gate) x up, times the expert's weight.

    hidden (B, K, I): the chosen experts'; shared (B, I'): the shared ones', whose gate and up stand
    in first from column E on. A dense layer has no experts to choose, and one wide shared one.
    """
    pieces, experts = normed.shape[0], len(gate_up)
    batch, count, width = hidden.shape
    wide, one = shared.shape[1], shared.dtype.type(1)
    for p in prange(pieces):
        own = normed[p]
        for b in range(batch):
            for k in range(count):
                stack, weight = gate_up[chosen[b, k]], weights[b, k]
                for i in range(width * p // pieces, width * (p + 1) // pieces):
                    gate, up = dot(stack, i, own, b), dot(stack, width + i, own, b)
                    hidden[b, k, i] = weight * _silu_product(gate, up, one)
            for i in range(wide * p // pieces, wide * (p + 1) // pieces):
                gate, up = first[b, experts + i], first[b, experts + wide + i]
                shared[b, i] = _silu_product(gate, up, one)


@kernel
def add_experts(hidden, shared, chosen, down, shared_down, y, pieces):
    """y[b] += the experts' outputs, from what `experts_hidden` made, and the shared ones'."""
    rows, count = len(shared_down), chosen.shape[1]
    for p in prange(pieces):
        start, stop = rows * p // pieces, rows * (p + 1) // pieces
        for b in range(len(y)):
            own = hidden[b]
            for r in range(start, stop):
                y[b, r] += dot(shared_down, r, shared, b)
            for k in range(count):
                stack = down[chosen[b, k]]
                for r in range(start, stop):
                    y[b, r] += dot(stack, r, own, k)


@part
def layer(x, weights, scratch, rows, lengths, cos, sin, eps, scale, turn, rule):
    """One layer for one new token a sequence, in place: x (B, D); rows (B, S, C + R) of a cache.

    weights, scratch: what `decode.Decoder` collects, in its order.
    """
    (gain, q_a, q_gain, q_b, kv_a, kv_gain, up, o, mlp_gain, gate, bias, gate_up, down,
     shared_gate, shared_up, shared_down) = weights  # fmt: skip
    (normed, inner, own, first, q, scores, tops, sums, sides, context, mlp_first, choice, worth,
     kept, chosen, shares, hidden, shared) = scratch  # fmt: skip
    pieces = len(normed)
    normed_products(x, gain, eps, q_a, kv_a, kv_a[:0], first, normed)
    move_queries(first, q_gain, q_b, kv_gain, eps, up, cos, sin, turn, rows, lengths, q, inner, own)
    attend(q, rows, lengths, scale, scores, tops, sums, sides)
    join(tops, sums, sides, scale, up, context)
    add_product(o, context, x, pieces)
    normed_products(x, mlp_gain, eps, gate, shared_gate, shared_up, mlp_first, normed)
    if len(gate):
        for b in range(len(x)):
            route(mlp_first[b, : len(gate)], bias, rule, choice, worth, kept, chosen[b], shares[b])
    experts_hidden(normed, gate_up, mlp_first, chosen, shares, hidden, shared)
    add_experts(hidden, shared, chosen, down, shared_down, x, pieces)
