# %% [markdown]
# # 02 · MLA: attention through a bottleneck
#
# *About 60 minutes. Runs in seconds on any laptop; the first time, it
# trains a small model for a minute, which later lessons open too.*
#
# **After this lesson you can**
#
# - say what it means that keys and values come out of a *latent*, and
#   measure how much of it a trained model uses;
# - read the rows of `kv_b_proj`, head by head;
# - show why rotary positions cannot go through the latent, and write the
#   part that goes around it;
# - write the whole block, and see it equal to the engine, to PyTorch and
#   to transformers on the same trained weights;
# - count its parameters, and say what half as many heads would save.

# %% role="setup"
import numpy as np

from minik2.checks import check

np.set_printoptions(precision=3, suppress=True)

# %%
import torch

import minik2
from minik2 import pytorch, reference
from minik2.plots import lesson02 as plots
from minik2.plots.model_map import model_map
from minik2.training import lesson_model
from minik2.training.corpus import Corpus

rng = np.random.default_rng(2)


def error(a, b):
    """Largest difference, relative to the largest number of b."""
    a, b = np.asarray(a), np.asarray(b)
    return float(np.abs(a - b).max() / np.abs(b).max())

# %% [markdown]
# ## What you have, and what you will add
#
# In lesson 01 a head had three matrices of its own, for queries, keys and
# values, which read the token's whole vector. In K2 they read two small
# vectors instead, the latents, and these are the same for all heads. That
# is *Multi-head Latent Attention*, MLA.
#
# In answers you may use NumPy, your other answers, and four functions:
# `softmax` and `rotate` below, which are lesson 01's, and `rms_norm` and
# `mla_slow` of section 5. `minik2 check` runs these and none of the
# lesson's other cells.

# %%
model_map(["query", "latent", "rope", "attention", "output"],
          "Today: the whole attention block")

# %% role="setup"
def softmax(scores, axis=-1):
    """Positive numbers that sum to 1 along an axis."""
    powers = np.exp(scores - scores.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def rotate(x, positions, theta):
    """Rotary positions. x: (T, R) or (T, H, R); positions: (T,)."""
    size = x.shape[-1]
    angles = np.outer(positions, theta ** (-np.arange(0, size, 2) / size))
    turn = np.exp(1j * angles).reshape(len(x), *[1] * (x.ndim - 2), -1)
    pairs = (x[..., 0::2] + 1j * x[..., 1::2]) * turn
    return np.stack([pairs.real, pairs.imag], -1).reshape(x.shape)

# %% [markdown]
# The weights of today are trained ones: the configuration `small` of
# lesson 00, trained by K2's recipe on the same text.

# %%
model = lesson_model()
cfg = model.cfg
heads, nope = cfg.num_attention_heads, cfg.qk_nope_head_dim
latents = cfg.kv_lora_rank
tokens, targets = Corpus.standard_library().spread("validation", 16, 128)
print("Numba compiles its loops; the first time that takes a while.")
_, saved = model.forward(tokens)
for name, array in model.layers[1]["self_attn"].items():
    print(f"{name:<26} {array.shape!s:<10} numbers from "
          f"{array.min():.2f} to {array.max():.2f}")

# %% [markdown]
# ## 1. Keys and values out of a small vector
#
# While a model writes, it keeps the keys and values of every earlier
# token. Plain attention keeps all of them, for every head. MLA makes them
# in two steps: a matrix brings the token's vector $x$ down to the
# **latent** $c$, a small vector, and a second matrix brings the latent up
# to the keys and values of all heads. Then the latent is enough to keep,
# with one more small vector, the rotary key, of which section 4 tells.

# %%
plots.widths(cfg)

# %% [markdown]
# The smallest case: five tokens of four numbers, a latent of two, and two
# heads with a key of two numbers and a value of one.

# %%
down, up = rng.normal(size=(2, 4)), rng.normal(size=(6, 2))
latent = rng.normal(size=(5, 4)) @ down.T
keys_and_values = latent @ up.T
print("latents\n", latent)
print("keys and values of both heads\n", keys_and_values)
print("singular values", np.linalg.svd(keys_and_values)[1])

# %% [markdown]
# There are six columns, but they hold two independent ones: the *rank* is
# 2, and all singular values after the second are zero to rounding. A
# latent of $C$ numbers can give keys and values of rank $C$ at most. This
# is what the bottleneck costs, in one sentence.
#
# Does it hurt? Take the keys and values of all heads that layer 1 of the
# trained model makes of 2,048 tokens, as one matrix. Keeping its $r$
# largest singular values and dropping the rest is the best that any
# latent of $r$ numbers could do (Eckart and Young). A matrix's length is
# the root of all its numbers' squares, summed. The squares of its singular
# values have the same sum, so the dropped ones say what is lost of it.

# %%
def lost(matrix):
    """What the best approximation of rank 0, 1, 2, … loses of it."""
    squares = np.linalg.svd(matrix, compute_uv=False) ** 2
    rest = np.append(np.cumsum(squares[::-1])[::-1], 0)
    return np.sqrt(rest / rest[0])


def made_by(layer):
    """Keys without position, and values, of all heads and tokens."""
    kept = saved[layer]["self_attn"]["attention"]
    both = [kept["k"][..., :nope], kept["v"]]
    return np.concatenate(both, -1).reshape(tokens.size, -1)


kept = saved[1]["self_attn"]
made = made_by(1)
# The same x through random matrices, without a latent in between.
full = kept["x"].reshape(tokens.size, -1) @ rng.normal(
    size=(cfg.hidden_size, made.shape[1]))
for size in (latents // 4, latents // 2, latents - 1, latents):
    print(f"latent of {size:>2}: {lost(made)[size]:.1e} lost, "
          f"without a bottleneck {lost(full)[size]:.1e}")
assert lost(made)[latents] < 1e-12 and lost(full)[latents] > 1e-2

# %% [markdown]
# At the model's own `kv_lora_rank` nothing is lost. That is no merit, as
# these keys and values did come out of such a latent. What there is to
# see is how evenly the model uses its room. And nothing says that the last
# tenth of the length matters as much as the first. So we ask the loss as
# well: in every layer `kv_b_proj` is projected onto the $r$ best
# directions, which is what a latent of $r$ numbers can do without
# learning anything anew.

# %%
losses, blocks = {}, [layer["self_attn"] for layer in model.layers]
whole = [weights["kv_b_proj.weight"] for weights in blocks]
best = [np.linalg.svd(made_by(layer), full_matrices=False)[2]
        for layer in range(len(blocks))]
for size in np.array([1, 2, 4, 6, 8]) * latents // 8:
    for weights, up, rows in zip(blocks, whole, best, strict=True):
        rows = rows[:size]
        weights["kv_b_proj.weight"] = rows.T @ (rows @ up)
    losses[int(size)] = model.loss(tokens, targets)
    print(f"latents of {size:>2}: {losses[size]:.3f} nats a byte")
for weights, up in zip(blocks, whole, strict=True):
    weights["kv_b_proj.weight"] = up
assert abs(losses[latents] - model.loss(tokens, targets)) < 1e-9

# %%
plots.rank(lost(made), lost(full), losses, latents)

# %% [markdown]
# The dashed line is what numbers look like that came through no
# bottleneck: cut to the same rank, more of them is lost. (They are made
# by random matrices, not by a model that was trained without latents.)
#
# On the right is the loss's own answer, and it need not agree with the
# left. Read the two printed lists at half the latent: a fair part of the
# length is gone there, and what the model pays for it is another number.
# The largest directions come first, and not all length matters alike.

# %% [markdown]
# ## 2. Down, norm, up: head by head
#
# In the checkpoint the way down is called `kv_a_proj_with_mqa`. It makes
# $C + R$ numbers of a token: first the latent, then the rotary key, one
# for all heads. (One key for all heads is what *multi-query attention*
# has, hence `mqa`.) The latent, and the latent only, then goes through an
# RMSNorm with weights $g$, `kv_a_layernorm`:
#
# $$c = g \odot \frac{\tilde c}{\sqrt{\frac1C \sum_i \tilde c_i^2 +
#   \epsilon}}, \qquad \tilde c = W^{DKV} x$$
#
# with $W^{DKV}$ the first $C$ rows of `kv_a_proj_with_mqa`, $\odot$ the
# product number by number and $\epsilon$ a small constant, `rms_norm_eps`.
# However large $x$ was, the latent has the size
# that $g$ gives it. DeepSeek-V2 put norms behind its
# latents because a low rank changes the size of what comes out, and
# training is to stay stable.
#
# The way up is `kv_b_proj`. Its rows go head by head: $N$ rows for the
# head's key, $V$ for its value, then the next head. This is all of it for
# one token and one head:

# %%
def key_and_value(x, weights, head):
    """Key without position (N,), value (V,) of one token x (D,)."""
    latent = weights["kv_a_proj_with_mqa.weight"][:latents] @ x
    latent = latent / (np.mean(latent**2) + cfg.rms_norm_eps) ** 0.5
    latent = latent * weights["kv_a_layernorm.weight"]
    rows = np.split(weights["kv_b_proj.weight"], heads)[head]
    return rows[:nope] @ latent, rows[nope:] @ latent


weights, engine = blocks[1], kept["attention"]
key, value = key_and_value(kept["x"][0, 5], weights, head=2)
apart = [error(engine["k"][0, 5, 2, :nope], key),
         error(engine["v"][0, 5, 2], value)]
print("this - engine, key and value:", *apart)
assert max(apart) < 1e-12

# %% [markdown] exercise="mla.expand_kv"
# Write this for all tokens and all heads of a sequence: compress,
# normalise, expand, and take heads, keys and values apart.

# %% exercise="mla.expand_kv"
def expand_kv(
    x: np.ndarray, kv_a_proj_with_mqa: np.ndarray,
    kv_a_layernorm: np.ndarray, kv_b_proj: np.ndarray, heads: int,
    nope: int, eps: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Keys without position, and values, of every head from x.

    x: (T, D); kv_a_proj_with_mqa: (C + R, D), latent first;
    kv_a_layernorm: (C,); kv_b_proj: (H (N + V), C), head by head, key
    before value; heads: H; nope: N; eps: added to the mean square.
    Returns keys (T, H, N) and values (T, H, V).
    """
    latent = x @ kv_a_proj_with_mqa[: len(kv_a_layernorm)].T
    root = np.sqrt((latent**2).mean(axis=-1, keepdims=True) + eps)
    latent = latent / root * kv_a_layernorm
    kv = (latent @ kv_b_proj.T).reshape(len(x), heads, -1)
    return kv[..., :nope], kv[..., nope:]

# %% [markdown] hints="mla.expand_kv"
# Follow the shapes: (T, D) becomes (T, C + R), then (T, C), then
# (T, H (N + V)), then (T, H, N + V). Which steps are a product, which a
# slice, which a reshape?
#
# ---
#
# $C$ is the length of `kv_a_layernorm`. The mean square is one number a
# token: `(latent**2).mean(axis=-1, keepdims=True)`.
#
# ---
#
# `kv.reshape(T, heads, -1)` is right because the rows of one head stand
# together. Reshaping never moves numbers: had all keys stood before all
# values, it would be wrong.
#
# ---
#
# One product down, one norm, one product up, one reshape, one cut at
# `nope`.

# %% [markdown]
# ## 3. Why positions cannot go through the latent
#
# If the latent is all that is kept, must every head's keys be made anew
# from it at each step? No, and this is the second half of the idea. For
# one head, let $W^{UQ}$ be its rows of `q_b_proj` and $W^{UK}$ its rows of
# `kv_b_proj`, $c^Q_m$ the latent from which the query of token $m$ is made
# and $c_n$ the latent of token $n$. Without positions a score is
#
# $$q_m \cdot k_n = (W^{UQ} c^Q_m)^\top (W^{UK} c_n)
#   = (c^Q_m)^\top \underbrace{{W^{UQ}}^\top W^{UK}}_{A}\; c_n .$$
#
# One matrix $A$ serves all pairs of tokens. The scores come straight
# from the latents, and no key is ever formed. This is called
# *absorption*; lesson 03 is about it. (The square root of the head's size
# is left out here; it divides everything alike.)
#
# Now turn queries and keys by their positions, as in lesson 01. With
# $\Omega_m$ the rotation at position $m$,
#
# $$(\Omega_m q_m) \cdot (\Omega_n k_n)
#   = (c^Q_m)^\top \underbrace{{W^{UQ}}^\top \Omega_{n-m}\, W^{UK}}_{
#   A_{n-m}}\; c_n .$$
#
# The rotation stands between the two matrices, and it is another one for
# each distance. There is no one matrix any more. On the weights of layer
# 1, head 0, as if its part without positions were turned:

# %%
T, spots = 96, np.arange(96)
w_uq = weights["q_b_proj.weight"].reshape(heads, -1, cfg.q_lora_rank)
w_uk = weights["kv_b_proj.weight"].reshape(heads, -1, latents)
w_uq, w_uk = w_uq[0, :nope], w_uk[0, :nope]
c_q, c = kept["q_latent"][0, :T], kept["latent"][0, :T]
query, key = c_q @ w_uq.T, c @ w_uk.T


def omega(distance):
    """The rotation by a distance as an N x N matrix."""
    return rotate(np.eye(nope), [distance] * nope, cfg.rope_theta).T


def off(matrix, right):
    """Length of the scores' error at each distance, relative to theirs.

    matrix: what stands between the latents, by distance.
    """
    pairs = [((c_q[d:] @ matrix(d) * c[: T - d]).sum(axis=1),
              right.diagonal(-d)) for d in distances]
    return np.array([np.linalg.norm(a - b) / np.linalg.norm(b)
                     for a, b in pairs])


distances = [0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
turned = rotate(query, spots, cfg.rope_theta) @ (
    rotate(key, spots, cfg.rope_theta).T)
plain = off(lambda d: w_uq.T @ w_uk, query @ key.T)
every = off(lambda d: w_uq.T @ omega(-d) @ w_uk, turned)
print("not rotated, one matrix for all distances:", plain.max())
print("rotated, one matrix for each distance:    ", every.max())
assert max(plain.max(), every.max()) < 1e-12

# %% [markdown]
# Both derivations hold to rounding. The second one needs a matrix for
# each distance: in K2, for up to 131,072 of them. What if one had to do?
# We try the matrix of distance 0, and the one that is nearest to all of
# them together, which is their mean.

# %%
mean = w_uq.T @ np.mean([omega(-d) for d in spots], axis=0) @ w_uk
zero = off(lambda d: w_uq.T @ w_uk, turned)
best = off(lambda d: mean, turned)
for n in range(0, len(distances), 3):
    print(f"distance {distances[n]:>2}: off by {zero[n]:.1e} with the "
          f"matrix of distance 0, {best[n]:.2f} with the mean")
assert min(zero[1:].min(), best.min()) > 1e-2

# %%
plots.one_matrix(distances, plain, zero, best)

# %% [markdown]
# At distance 0 nothing is turned and the first matrix is exact. From
# distance 1 on it is wrong, by an amount that depends on the distance. The
# mean of the matrices is wrong everywhere: a pair that turns fast points
# everywhere in turn, and the mean of that is next to nothing.
#
# So there is a choice: positions, or keys that need not be formed.

# %% [markdown]
# ## 4. Around the bottleneck: the decoupled rotary part
#
# MLA takes both, side by side. Each query and key is two vectors end to
# end:
#
# - a part without position, $N$ numbers a head ("nope"), made from the
#   latent, which is never turned and may be absorbed;
# - a rotary part, $R$ numbers, which is turned. Its query is the head's
#   own, from the query latent. Its key is made from $x$ directly, it is
#   **one for all heads**, and it is kept beside the latent, turned
#   already.
#
# A dot product of two vectors end to end is the sum of both:
#
# $$q_m \cdot k_n = q^{\text{nope}}_m \cdot k^{\text{nope}}_n +
#   (\Omega_m q^{\text{rope}}_m) \cdot (\Omega_n k^{\text{rope}}_n).$$
#
# That is 16 more numbers to keep for a token here, whatever the number of
# heads. The rotary key has no norm of its own.

# %% [markdown] exercise="mla.split_and_rotate"
# Put queries and keys together. `q` is what `q_b_proj` makes; its numbers
# go head by head, $N$ and then $R$. `compressed` is what
# `kv_a_proj_with_mqa` makes: the latent, then the rotary key. `k_nope` is
# the first result of `mla.expand_kv`. Turn the rotary parts, and only
# those, with `rotate` or your own.

# %% exercise="mla.split_and_rotate"
def split_and_rotate(
    q: np.ndarray, k_nope: np.ndarray, compressed: np.ndarray,
    positions: np.ndarray, theta: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Queries and keys of every head, their rotary parts turned.

    q: (T, H (N + R)); k_nope: (T, H, N); compressed: (T, C + R);
    positions: (T,) of int; pairs are neighbours, with theta as ever.
    Returns queries and keys, both (T, H, N + R), nope part first.
    """
    tokens, heads, nope = k_nope.shape
    q = q.reshape(tokens, heads, -1)
    rotary = q.shape[-1] - nope
    q_rope = rotate(q[..., nope:], positions, theta)
    k_rope = rotate(compressed[:, -rotary:], positions, theta)
    shared = np.broadcast_to(k_rope[:, None], (tokens, heads, rotary))
    return (np.concatenate([q[..., :nope], q_rope], axis=-1),
            np.concatenate([k_nope, shared], axis=-1))

# %% [markdown] hints="mla.split_and_rotate"
# You need $R$, and it is no argument. Which two of the shapes that you
# have give it away?
#
# ---
#
# After `q.reshape(T, H, -1)` the last axis is $N + R$. The rotary key is
# the last $R$ columns of `compressed`.
#
# ---
#
# `np.broadcast_to(k_rope[:, None], (T, H, R))` shows one key to all
# heads. `np.concatenate([a, b], axis=-1)` puts parts end to end.
#
# ---
#
# Reshape the queries, cut both sides in two, turn the second parts, and
# put each side together again.

# %% [markdown]
# What do the two parts say in a trained model? Below are the scores of
# one head on held-out text, the content's and the rotary part's, and the
# mean of each over all pairs at the same distance. Of the four heads of
# layer 2, it is the one whose rotary part depends most on distance alone.
# The rotary part knows more than the distance, since its query and key are
# made from what the tokens are. The other part is told nothing of it; all
# it could know is what earlier layers have left in $x$.

# %%
inside = saved[2]["self_attn"]["attention"]
q, k = (inside[name][0] * inside["scale"]**0.5 for name in "qk")
parts = [np.einsum("thd,shd->hts", q[..., own], k[..., own])
         for own in (slice(nope), slice(nope, None))]
head = int(np.argmax([plots.explained(scores) for scores in parts[1]]))
plots.two_parts(parts[0][head], parts[1][head], head, layer=2)

# %% [markdown]
# ## 5. The whole block
#
# One part is left: queries have a latent as well, with a norm. It saves
# nothing in the cache, since queries are not kept. DeepSeek-V2 names as
# its reason that training has less to store; it saves parameters, too.
# And the softmax has a scale of $1/\sqrt{N+R}$, since the two vectors that
# are multiplied have $N + R$ numbers each. (With YaRN there is a factor
# more: lesson 04.)
#
# The block from end to end, a head and a token at a time, without haste:

# %% role="setup"
def rms_norm(x, gain, eps):
    """x over its root mean square, times gain, along the last axis."""
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * gain


def mla_slow(x, weights, positions, heads, nope, theta, eps):
    """MLA, spelled out. x: (T, D), weights: under checkpoint names."""
    w = {name.removesuffix(".weight"): a for name, a in weights.items()}
    c_q = rms_norm(x @ w["q_a_proj"].T, w["q_a_layernorm"], eps)
    c, k_rope = np.split(x @ w["kv_a_proj_with_mqa"].T,
                         [len(w["kv_a_layernorm"])], axis=1)
    c = rms_norm(c, w["kv_a_layernorm"], eps)
    k_rope = rotate(k_rope, positions, theta)
    y = np.zeros_like(x)
    for head in range(heads):
        up_q = np.split(w["q_b_proj"], heads)[head]
        up_kv = np.split(w["kv_b_proj"], heads)[head]
        out = np.split(w["o_proj"], heads, axis=1)[head]
        q_rope = rotate(c_q @ up_q[nope:].T, positions, theta)
        for m in range(len(x)):
            q = up_q[:nope] @ c_q[m]
            scores = [(q @ (up_kv[:nope] @ c[n]) + q_rope[m] @ k_rope[n])
                      / len(up_q) ** 0.5 for n in range(m + 1)]
            chances = softmax(np.array(scores))
            y[m] += out @ sum(chances[n] * (up_kv[nope:] @ c[n])
                              for n in range(m + 1))
    return y

# %% [markdown] exercise="mla.forward"
# Write the whole block for one sequence, without a loop over tokens or
# heads. `weights` has the seven arrays of section 1, under the same names.
# You may use `expand_kv` and `split_and_rotate`.

# %% exercise="mla.forward"
def forward(
    x: np.ndarray, weights: dict[str, np.ndarray], positions: np.ndarray,
    heads: int, nope: int, theta: float, eps: float,
) -> np.ndarray:
    """Causal multi-head latent attention.

    x: (T, D); weights: the seven arrays of section 1, by their names,
    matrices as (out, in); positions: (T,) of int; heads: H; nope: N;
    theta: RoPE's; eps: of both norms. Returns (T, D).
    """
    w = {name.removesuffix(".weight"): a for name, a in weights.items()}
    q = rms_norm(x @ w["q_a_proj"].T, w["q_a_layernorm"], eps)
    q = q @ w["q_b_proj"].T
    k_nope, v = expand_kv(x, w["kv_a_proj_with_mqa"], w["kv_a_layernorm"],
                          w["kv_b_proj"], heads, nope, eps)
    compressed = x @ w["kv_a_proj_with_mqa"].T
    q, k = split_and_rotate(q, k_nope, compressed, positions, theta)

    scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(q.shape[-1])
    seen = np.tri(len(x), dtype=bool)
    weights_of_keys = softmax(np.where(seen, scores, -np.inf))
    context = np.einsum("hts,shv->thv", weights_of_keys, v)
    return context.reshape(len(x), -1) @ w["o_proj"].T

# %% [markdown] hints="mla.forward"
# Three stages: queries, keys and values with shapes (T, H, ·); lesson
# 01's attention for every head; and the way back to (T, D). Two of your
# answers are most of the first stage.
#
# ---
#
# The queries go down, through their norm, and up: `q_a_proj`,
# `q_a_layernorm`, `q_b_proj`. `np.einsum("thd,shd->hts", q, k)` is the
# scores of all heads, keys along the last axis.
#
# ---
#
# Mask and softmax work on the last axis of (H, T, T) as they did on that
# of (T, T). The means of values must come out as (T, H, V) before
# `reshape(T, -1)`, so that a token's heads stand side by side.
#
# ---
#
# One norm and two products for the queries, two calls, scores, mask,
# softmax, means, and `o_proj`.

# %% [markdown]
# Now one held-out text through layer 1, four ways: the loops above, both
# engines of this course, and the block that Hugging Face's transformers
# has for DeepSeek-V3. All of them take the same trained weights, in
# float64.

# %%
x, positions = kept["x"][0, :T], np.arange(T)
slow = mla_slow(x, weights, positions, heads, nope, cfg.rope_theta,
                cfg.rms_norm_eps)

cos, sin = reference.rope.table(cfg, positions, np.float64)
by_hand, _ = reference.mla.forward(x[None], weights, cfg, cos, sin)

in_torch = {name: torch.tensor(array) for name, array in weights.items()}
block = pytorch.mla.MLA(cfg).double()
block.load_state_dict(in_torch)
with torch.inference_mode():
    twin = block(torch.tensor(x)[None], torch.tensor(cos),
                 torch.tensor(sin))

assert np.abs(weights["kv_a_layernorm.weight"] - 1).max() > 0.01
print("loops - NumPy engine:", error(by_hand[0], slow))
print("loops - torch engine:", error(twin[0], slow))
assert max(error(by_hand[0], slow), error(twin[0], slow)) < 1e-12

# %% [markdown]
# transformers computes its norms in float32 whatever the weights are, so
# as it stands it agrees to float32's rounding only. For a sharper look we
# give its block PyTorch's own RMSNorm, which stays in float64, with the
# constant 1e-6 that transformers has there whatever a config says. The
# angles are an argument of the block; it wants all cosines twice.

# %%
try:
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as v3
except ImportError:
    print("transformers is not installed here, so this comparison is left "
          'out;\n.venv/bin/python -m pip install -e ".[test]" gets it.')
else:
    config = v3.DeepseekV3Config(**cfg.to_json())
    config._attn_implementation = "sdpa"
    theirs = v3.DeepseekV3Attention(config, 0).double()
    theirs.load_state_dict(in_torch)
    angles = tuple(torch.tensor(np.tile(a, 2))[None] for a in (cos, sin))
    with torch.inference_mode():
        as_it_is = theirs(torch.tensor(x)[None], angles, None)[0][0]
        for name in ("q_a_layernorm", "kv_a_layernorm"):
            gain = in_torch[f"{name}.weight"]
            setattr(theirs, name, torch.nn.RMSNorm(len(gain), 1e-6))
            getattr(theirs, name).weight.data = gain
        exact = theirs(torch.tensor(x)[None], angles, None)[0][0]
    print("loops - transformers, as it is:        ", error(as_it_is, slow))
    print("loops - transformers, norms in float64:", error(exact, slow))
    assert error(as_it_is, slow) < 1e-5 and error(exact, slow) < 1e-12

# %% [markdown]
# ## 6. What it weighs
#
# The block is five matrices and two small norms. Which of them is heavy?

# %% [markdown] exercise="mla.parameters"
# Count the weights of the five matrices of one layer's attention from a
# config: `q_a_proj`, `q_b_proj`, `kv_a_proj_with_mqa`, `kv_b_proj`,
# `o_proj`. The norms are left out. The keys that you need: `hidden_size`,
# `num_attention_heads`, `q_lora_rank`, `kv_lora_rank`,
# `qk_nope_head_dim`, `qk_rope_head_dim`, `v_head_dim`.

# %% exercise="mla.parameters"
def parameters(config: dict) -> int:
    """Weights of the five matrices of one MLA block, norms left out.

    config: a config.json as a dict. Returns a whole number.
    """
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    q_rank, latent = config["q_lora_rank"], config["kv_lora_rank"]
    nope, rotary = config["qk_nope_head_dim"], config["qk_rope_head_dim"]
    value = config["v_head_dim"]
    down = hidden * (q_rank + latent + rotary)
    up = heads * ((nope + rotary) * q_rank + (nope + value) * latent)
    return down + up + heads * value * hidden

# %% [markdown] hints="mla.parameters"
# Section 1 prints the shapes of the small model's matrices. Which letters
# of the alphabet of axes is each number a product of?
#
# ---
#
# Two matrices read $x$ and end in a latent; two read a latent and end in
# heads; one reads the heads and ends in the model's width.
#
# ---
#
# Rows a head: `q_b_proj` has $N + R$, `kv_b_proj` has $N + V$, and
# `o_proj` has $V$ columns. The one rotary key is in
# `kv_a_proj_with_mqa`, which has $C + R$ rows in all.
#
# ---
#
# What leads down is shared; what leads up and out is counted once a head.

# %% [markdown]
# ## In K2
#
# From its published configuration, beside plain attention with heads of
# the same sizes.

# %%
def matrices(cfg):
    """Weights of each matrix of one layer's attention, as stored."""
    prefix, shapes = "model.layers.0.self_attn.", cfg.tensor_shapes()
    return {name.removeprefix(prefix).removesuffix(".weight"):
            int(np.prod(shape)) for name, shape in shapes.items()
            if name.startswith(prefix) and len(shape) == 2}


k2 = minik2.ModelConfig.preset("kimi-k2")
ours, width = matrices(k2), k2.num_attention_heads * k2.hidden_size
plain = {"q_proj": width * k2.qk_head_dim, "k_proj": width * k2.qk_head_dim,
         "v_proj": width * k2.v_head_dim, "o_proj": width * k2.v_head_dim}
counted = minik2.sizing.parameters(k2).by_part["attention"]
assert sum(ours.values()) * k2.num_hidden_layers == counted
cache = minik2.sizing.cache(k2, tokens=1)
print(f"{k2.num_attention_heads} heads of {k2.qk_nope_head_dim} + "
      f"{k2.qk_rope_head_dim} numbers, values of {k2.v_head_dim}; latents "
      f"of {k2.q_lora_rank:,} and {k2.kv_lora_rank}")
print(f"weights of a layer: {sum(ours.values()) / 1e6:.1f} million, "
      f"without latents {sum(plain.values()) / 1e6:.1f}")
print(f"kept of a token in a layer: {cache.numbers} numbers, without the "
      f"latent {cache.others['MHA'][0]:,}")
print(f"as much as keys and values of {k2.qk_nope_head_dim} numbers from "
      f"{cache.numbers / (2 * k2.qk_nope_head_dim)} heads")
plots.projections(ours, plain, "K2")

# %% [markdown]
# <div class="alert alert-info">
#
# **In K2** the latent is wider than any one head, and far narrower than
# all of them together. The last line above is how DeepSeek-V2 puts it
# (Table 1): MLA keeps as much as grouped-query attention with 2.25 groups.
# The heaviest matrix is the one that no latent touches, `o_proj`. How good
# attention through a latent is, at equal size, no count can say; that is
# measured in DeepSeek-V2's appendix D, and not here.
#
# </div>

# %% [markdown]
# ## On the back of an envelope
#
# DeepSeek-V3 has 128 heads where K2 has 64, and the sizes of hidden
# state, latents and heads are the same. What does K2 save by that, for
# each layer: in weights of the attention, and in numbers kept of a token?
# Answer in words and to one digit before you look.
#
# <details><summary>Answer</summary>
#
# The matrices that lead down do not know how many heads there are; the
# other three halve. A head costs
# $192 \cdot 1536 + 256 \cdot 512 + 128 \cdot 7168 \approx 1.3$ million
# weights, so 64 heads fewer save **about 90 million of 190**.
# In the cache they save **nothing**: latent and rotary key are the same
# for any number of heads. What fewer heads do save there is work, in
# every step, on a long context (K2's report, §2.3). The cell below counts
# both.
#
# </details>

# %%
for each in (minik2.ModelConfig.preset("deepseek-v3"), k2):
    print(f"{each.num_attention_heads:>3} heads: "
          f"{sum(matrices(each).values()) / 1e6:.1f} million weights, "
          f"{each.kv_lora_rank + each.qk_rope_head_dim} numbers kept")

# %% [markdown]
# <div class="alert alert-success">
#
# **Takeaway.** MLA makes the keys and values of all heads from one small
# latent. A rotation between the two matrices would tie them to a distance,
# so positions go around the bottleneck: a rotary key of its own, one for
# all heads. Latent and rotary key are all that has to be kept.
#
# </div>
#
# ## Sources
#
# - MLA, absorption, the decoupled rotary key: DeepSeek-V2, arXiv
#   2405.04434, §2.1.2 and §2.1.3; what is kept beside other kinds of
#   attention: Table 1.
# - The norms on both latents: the same paper, §3.1.2.
# - The block as equations: DeepSeek-V3, arXiv 2412.19437, eq. 1 to 11.
# - K2's sizes and its choice of 64 heads: *Kimi K2*, arXiv 2507.20534,
#   §2.3 and Table 2.
# - The best approximation of lower rank: Eckart and Young, *The
#   approximation of one matrix by another of lower rank*, Psychometrika 1
#   (1936).
# - The other implementation: transformers, `DeepseekV3Attention` in
#   `models/deepseek_v3/modeling_deepseek_v3.py`.
#
# **Next:** lesson 03 keeps the latents in a cache, and never forms a key
# again.
