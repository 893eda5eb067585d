# %% [markdown]
# # 01 · Attention and rotary positions
#
# *About 50 minutes. Runs in seconds on any laptop.*
#
# **After this lesson you can**
#
# - show that attention by itself cannot tell the order of its tokens;
# - write causal softmax attention without a loop;
# - write rotary positions, and prove in two lines that scores then
#   depend on the difference of two positions and on nothing else;
# - move weights between the two RoPE layouts that exist in the wild;
# - run one attention head from input to output, three ways, and see the
#   three agree to rounding.

# %% role="setup"
import numpy as np

from minik2.checks import check

np.set_printoptions(precision=3, suppress=True)

# %%
import torch
import torch.nn.functional as F

import minik2
from minik2 import reference
from minik2.plots import lesson01 as plots
from minik2.plots.model_map import model_map
from minik2.training.corpus import encode

rng = np.random.default_rng(1)


def error(a, b):
    """Largest difference of two arrays, tensors or lists."""
    return float(np.abs(np.asarray(a) - np.asarray(b)).max())

# %% [markdown]
# ## What you have, and what you will add
#
# From lesson 00 you have the finished model, as a black box that works.
# Today you open two of its boxes: how a token looks at earlier tokens,
# and how it knows where they stand.
#
# In answers you may use NumPy, your other answers, and what section 1 to
# 3 define for it: `softmax`, `attend`, `causal_slow`, `rotate_slow`.
# `minik2 check` runs these and none of the lesson's other cells. If you
# would rather have PyTorch, import it in the answer.

# %%
model_map(["attention", "rope"], "Today: attention, and positions")

# %% [markdown]
# ## 1. Attention does not see the order
#
# Attention is a weighted mean. Every token asks a question (its *query*
# $q$), every token shows a label (its *key* $k$), and where the two fit,
# the token's content (its *value* $v$) is taken in:
#
# $$y_m = \sum_n w_{mn}\, v_n, \qquad
#   w_{mn} = \mathrm{softmax}_n\!\left(\frac{q_m \cdot k_n}{\sqrt d}
#   \right)$$
#
# with $d$ the length of $q$. The dot product of $d$ independent numbers
# of variance 1 with another $d$ has the variance $d$; dividing by
# $\sqrt d$ brings it back to 1, and keeps long vectors from putting all
# the weight on one token.
#
# The smallest case: three words, four numbers each, and to begin with
# query, key and value are all the word's own vector.

# %%
words = ["dog", "bites", "man"]
sentence = rng.normal(size=(3, 4))
print(sentence)

# %% role="setup"
def softmax(scores):
    """Rows of positive numbers that sum to 1."""
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def attend(q, k, v):
    """q, k: (T, d), v: (T, V) -> outputs (T, V) and weights (T, T)."""
    weights = softmax(q @ k.T / np.sqrt(q.shape[-1]))
    return weights @ v, weights

# %%
y, weights = attend(sentence, sentence, sentence)
print("scores\n", sentence @ sentence.T / np.sqrt(4))
print("weights\n", weights)

# %% [markdown]
# Subtracting the row's maximum changes nothing (it cancels in the
# fraction) and keeps `exp` from overflowing.
#
# Now let the man bite the dog.

# %%
shuffle = [2, 1, 0]
y_shuffled, weights_shuffled = attend(*[sentence[shuffle]] * 3)
plots.order(words, weights, weights_shuffled, shuffle)

# %% [markdown]
# "bites" gives *dog* 0.19 and *man* 0.32 in both sentences. Its output
# is the same vector, so whatever comes after cannot know who bit whom.
#
# In matrices: let $S$ be the scores, $W$ the weights, and $P$ a
# permutation. The scores become $P S P^\top$; softmax works row by row
# and does not mind; and $(P W P^\top)(P v) = P (W v)$, since
# $P^\top P = 1$. Shuffling the input shuffles the output and does nothing
# else.

# %%
print("error:", error(y_shuffled, y[shuffle]))
assert error(y_shuffled, y[shuffle]) < 1e-12

# %% [markdown]
# ## 2. No looking ahead
#
# A language model predicts the next token, so a token may look at itself
# and at earlier ones only. Before the softmax, scores of later tokens
# are set to $-\infty$; their weights become exactly 0, and each row
# still sums to 1.

# %%
q, k = 2 * rng.normal(size=(2, 5, 4))
scores = q @ k.T / np.sqrt(4)
masked = np.where(np.tri(5, dtype=bool), scores, -np.inf)
plots.causal_mask(scores, masked, softmax(masked))

# %% [markdown]
# This is the definition, with loops and without haste. Read it once: the
# exercise asks for the same numbers without a loop.

# %% role="setup"
def causal_slow(q, k, v):
    """Causal attention, spelled out. q, k: (T, d), v: (T, V)."""
    y = np.zeros((len(q), v.shape[1]))
    for m in range(len(q)):
        scores = [q[m] @ k[n] / np.sqrt(q.shape[1]) for n in range(m + 1)]
        powers = np.exp(scores - np.max(scores))
        for n in range(m + 1):
            y[m] += powers[n] / powers.sum() * v[n]
    return y

# %% [markdown] exercise="attention.causal"
# Write `causal_slow` without a Python loop over tokens. (The check does
# not look for loops.)

# %% exercise="attention.causal"
def causal(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Causal softmax attention of one head.

    q, k: (T, d) queries and keys; v: (T, V) values; scale 1/sqrt(d).
    Returns (T, V): row m is a mean of v[0], ..., v[m].
    """
    scores = q @ k.T / np.sqrt(q.shape[-1])
    scores = np.where(np.tri(len(q), dtype=bool), scores, -np.inf)
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True) @ v

# %% [markdown] hints="attention.causal"
# Three steps: all scores as one (T, T) matrix, then the mask, then the
# softmax of each row. Which of the three must come first, and why may
# the mask not come last?
#
# ---
#
# `q @ k.T` has the query along the rows. `np.tri(T, dtype=bool)` is true
# where the key is not later than the query.
#
# ---
#
# `np.where(seen, scores, -np.inf)` masks. For the softmax, subtract the
# row's maximum with `scores.max(axis=-1, keepdims=True)`; without
# `keepdims` the subtraction runs along the wrong axis and does not fail.
#
# ---
#
# Scores, mask, softmax, weighted mean: one line each. Because
# $e^{-\infty} = 0$, the mask needs no special case in the softmax.

# %% [markdown]
# Now the same through the engine that lesson 00 ran on, and through
# PyTorch's fused kernel. Both take batches and heads, so one head gets
# two axes of size 1: `(B, T, H, d)` in the engine, `(B, H, T, d)` in
# torch.

# %%
v = rng.normal(size=(5, 3))
slow = causal_slow(q, k, v)
ours, _ = reference.attention.forward(
    q[None, :, None], k[None, :, None], v[None, :, None], 4**-0.5
)
theirs = F.scaled_dot_product_attention(
    *(torch.tensor(a)[None, None] for a in (q, k, v)), is_causal=True
)
print("loops - engine:", error(slow, ours[0, :, 0]))
print("loops - torch: ", error(slow, theirs[0, 0]))
assert max(error(slow, ours[0, :, 0]), error(slow, theirs[0, 0])) < 1e-12

# %% [markdown]
# The mask already leaks a little about order: the first token sees one
# token, the second two. But within one layer, *which* of the earlier
# tokens came first it does not say.

# %% [markdown]
# ## 3. Positions as rotation
#
# Rotary positions (RoPE) take the numbers of a query or key in pairs and
# turn every pair, as a clock hand, by an angle that grows with the
# token's position. With $R$ the number of rotary numbers there are $R/2$
# pairs, and pair $i$ has its own speed:
#
# $$\begin{pmatrix} a' \\ b' \end{pmatrix} =
# \begin{pmatrix} \cos m\omega_i & -\sin m\omega_i \\
#                 \sin m\omega_i & \cos m\omega_i \end{pmatrix}
# \begin{pmatrix} a \\ b \end{pmatrix},
# \qquad \omega_i = \theta^{-2i/R}$$
#
# with $m$ the position and $\theta$ a constant of the model (`rope_theta`
# in config.json). The smallest case: one pair, one radian a position.

# %%
pair = np.array([1.0, 0.0])
for m in range(4):
    c, s = np.cos(m), np.sin(m)
    print(m, np.array([[c, -s], [s, c]]) @ pair)

# %% [markdown]
# A vector of eight numbers has four hands, each ten times slower than
# the one before if $\theta$ = 10,000. The numbers that make a pair are
# *neighbours*: (0, 1), (2, 3), and so on. That is how DeepSeek's and
# K2's checkpoints store them.

# %% role="setup"
def rotate_slow(x, positions, theta):
    """Rotary positions, spelled out. x: (T, R), positions: (T,)."""
    y = np.zeros_like(x)
    size = x.shape[1]
    for t, m in enumerate(positions):
        for i in range(size // 2):
            angle = m * theta ** (-2 * i / size)
            a, b = x[t, 2 * i], x[t, 2 * i + 1]
            y[t, 2 * i] = a * np.cos(angle) - b * np.sin(angle)
            y[t, 2 * i + 1] = a * np.sin(angle) + b * np.cos(angle)
    return y

# %%
same = np.tile([1.0, 0.0], (7, 4))  # the same vector at 7 positions
turned = rotate_slow(same, np.arange(7), 10_000)
print(turned)
plots.clock_hands(turned, 10_000.0 ** (-np.arange(4) / 4))

# %% [markdown] exercise="rope.rotate"
# Write `rotate_slow` without a loop over tokens or pairs.

# %% exercise="rope.rotate"
def rotate(
    x: np.ndarray, positions: np.ndarray, theta: float
) -> np.ndarray:
    """Turn every pair of neighbours of x by its token's angle.

    x: (T, R) with pairs (0, 1), (2, 3), ...; positions: (T,) of int.
    Pair i turns by position * theta^(-2i/R) radians. Returns (T, R).
    """
    size = x.shape[-1]
    frequencies = theta ** (-np.arange(0, size, 2) / size)
    angles = np.outer(positions, frequencies)
    cos, sin = np.cos(angles), np.sin(angles)
    even, odd = x[:, 0::2], x[:, 1::2]
    y = np.empty_like(x)
    y[:, 0::2] = even * cos - odd * sin
    y[:, 1::2] = even * sin + odd * cos
    return y

# %% [markdown] hints="rope.rotate"
# First make all the angles: one for every token and every pair. What
# shape is that?
#
# ---
#
# `np.outer(positions, frequencies)` is (T, R/2). The first members of
# all pairs are `x[:, 0::2]`, the second ones `x[:, 1::2]`, (T, R/2) too.
#
# ---
#
# The exponent is $-2i/R$ with $i$ the number of the *pair*;
# `np.arange(0, R, 2)` counts $2i$ already. Write the two results into
# `y[:, 0::2]` and `y[:, 1::2]` of a new array, so that x stays as it is.
#
# ---
#
# Two lines for the angles, two for the rotation: the matrix of the
# formula, applied to all pairs at once.

# %% [markdown]
# The engine computes the cosines once for all layers and heads
# (`rope.table`) and turns pairs with them (`rope.rotate`). In torch there
# is a shorter way to say it: a pair is a complex number, and turning it
# is multiplying by $e^{\mathrm{i} m \omega}$. DeepSeek's own code does
# that.

# %%
cfg = minik2.ModelConfig.preset("tiny").replace(
    qk_rope_head_dim=8, rope_theta=10_000.0, rope_scaling=None
)
positions = np.arange(6)
x = rng.normal(size=(6, 8))
cos, sin = reference.rope.table(cfg, positions, np.float64)
ours = reference.rope.rotate(x[:, None], cos, sin)[:, 0]


def rotate_complex(x, positions, theta):
    """The same in torch, a pair as one complex number."""
    frequencies = theta ** (-torch.arange(0, x.shape[1], 2).double()
                            / x.shape[1])
    angles = torch.outer(torch.as_tensor(positions).double(), frequencies)
    pairs = torch.view_as_complex(torch.tensor(x).unflatten(1, (-1, 2)))
    turned = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(turned).flatten(1)


slow = rotate_slow(x, positions, 10_000)
theirs = rotate_complex(x, positions, 10_000)
print("loops - engine:       ", error(slow, ours))
print("loops - complex torch:", error(slow, theirs))
assert max(error(slow, ours), error(slow, theirs)) < 1e-12

# %% [markdown]
# ## 4. Scores depend on the difference of positions only
#
# Let $\Omega_m$ be the whole rotation at position $m$. Turning back is
# transposing, and angles add up. So, in two lines,
#
# $$(\Omega_m q) \cdot (\Omega_n k) = q^\top \Omega_m^\top \Omega_n\, k
#   = q^\top \Omega_{n-m}\, k,$$
#
# and $m$ and $n$ are gone: only $n-m$ is left, its sign included.
# Absolute positions went in, a relative one came out.
#
# On tensors: one query and one key, each put at 24 positions.

# %%
spots = np.arange(24)
q, k = rng.normal(size=(2, 8))
q_turned = rotate_slow(np.tile(q, (24, 1)), spots, 10_000)
k_turned = rotate_slow(np.tile(k, (24, 1)), spots, 10_000)
scores = q_turned @ k_turned.T
plots.relative(scores)

# %%
spread = max(np.ptp(np.diagonal(scores, d)) for d in range(-23, 24))
print("largest spread along a diagonal:", spread)

shifted = rotate_slow(np.tile(q, (24, 1)), spots + 5000, 10_000)
shifted = shifted @ rotate_slow(np.tile(k, (24, 1)), spots + 5000, 10_000).T
print("everything 5,000 tokens later:  ", error(shifted, scores))

lengths = np.linalg.norm(q_turned, axis=1) - np.linalg.norm(q)
print("change of the query's length:   ", np.abs(lengths).max())
assert spread < 1e-12 and error(shifted, scores) < 1e-9

# %% [markdown]
# The second error is larger than the others. The angles are near 5,000
# radians there, and float64 knows such a number to 12 digits after the
# point instead of 16. (In float32 it would be 3 digits. That is why the
# engine computes angles in float64 whatever the model's dtype is.)
#
# And the dog? Turn queries and keys by their places in the sentence, and
# the same shuffle of the same vectors is felt.

# %%
places = np.arange(3)


def with_positions(x):
    turned = rotate_slow(x, places, 10_000)
    return attend(turned, turned, x)


y, weights = with_positions(sentence)
y_shuffled, weights_shuffled = with_positions(sentence[shuffle])
print("change of what 'bites' takes in:", error(y_shuffled[1], y[1]))
assert error(y_shuffled[1], y[1]) > 1e-3
plots.order(words, weights, weights_shuffled, shuffle)

# %% [markdown]
# To "bites", dog and man are both one word away. It is the sign of the
# difference that tells the one before from the one after. Apart from the
# little that the mask leaks, this is all that tells K2 the order.
#
# Values are not turned. A token should pass on the same content wherever
# it stands; only *how much* of it is taken in depends on the positions.

# %% [markdown]
# ## 5. Two layouts, one permutation apart
#
# Which numbers form a pair is a convention, and there are two. Released
# checkpoints of this family *interleave*: pairs are (0, 1), (2, 3), ….
# Much other code pairs number $i$ with number $i + R/2$: the first
# *half* of the vector against the second.

# %%
plots.layouts(reference.rope.to_halves(8))

# %% [markdown] exercise="rope.to_halves"
# Interleaved, numbers $2i$ and $2i+1$ are a pair; in the halves layout
# numbers $i$ and $i+R/2$ are. Write the permutation that leads from the
# first to the second (the lesson draws it): the index array `p` for which
# `interleaved[..., p]` is the same vector in the halves layout.

# %% exercise="rope.to_halves"
def to_halves(size: int) -> np.ndarray:
    """The permutation from neighbours to halves.

    size: R, even. Returns (R,) of int: halves = interleaved[..., p].
    """
    even, odd = np.arange(0, size, 2), np.arange(1, size, 2)
    return np.concatenate([even, odd])

# %% [markdown] hints="rope.to_halves"
# `p[j]` answers: which number of the interleaved vector goes to place
# `j` of the halves vector? Write it down for R = 4; the lower row of the
# lesson's figure is that for R = 8.
#
# ---
#
# The first half holds the first members of all pairs. At which places
# are these in the interleaved vector?
#
# ---
#
# All even indices, then all odd ones. `np.arange(0, size, 2)` makes the
# even ones, `np.concatenate` puts two arrays end to end.
#
# ---
#
# Even indices, then odd ones. Another way to say it:
# `np.arange(size).reshape(-1, 2).T.flatten()`.

# %% [markdown]
# In the halves layout the rotation is usually written with a helper that
# swaps the halves. This is the formula that transformers uses, in torch:

# %%
def rotate_halves(x, positions, theta):
    """Rotary positions where number i is paired with number i + R/2."""
    size = x.shape[1]
    frequencies = theta ** (-torch.arange(0, size, 2).double() / size)
    angles = torch.outer(torch.as_tensor(positions).double(), frequencies)
    angles = torch.cat([angles, angles], -1)
    first, second = x.chunk(2, -1)
    return x * angles.cos() + torch.cat([-second, first], -1) * angles.sin()


p = reference.rope.to_halves(8)
x = rng.normal(size=(6, 8))
in_halves = rotate_halves(torch.tensor(x[:, p]), positions, 10_000)
permuted = rotate_slow(x, positions, 10_000)[:, p]
print("same numbers:", error(in_halves, permuted))
assert error(in_halves, permuted) < 1e-12

# %% [markdown]
# A dot product does not care in which order its terms are added. So both
# layouts give the same scores, as long as query and key use the same
# one. Rows of `q_proj` and `k_proj` can be permuted once, when a file is
# loaded, and nobody notices afterwards.
#
# If only one side is permuted, or the weights of one layout are run
# with the rotation of the other, no shape is wrong and nothing fails.
# The numbers are just different:

# %%
q, k = rng.normal(size=(2, 6, 8))
right = rotate_slow(q, positions, 10_000) @ (
    rotate_slow(k, positions, 10_000).T)
both = rotate_halves(torch.tensor(q[:, p]), positions, 10_000) @ (
    rotate_halves(torch.tensor(k[:, p]), positions, 10_000).T)
one = rotate_halves(torch.tensor(q[:, p]), positions, 10_000) @ (
    rotate_halves(torch.tensor(k), positions, 10_000).T)
none = rotate_halves(torch.tensor(q), positions, 10_000) @ (
    rotate_halves(torch.tensor(k), positions, 10_000).T)
print("both permuted:    ", error(both, right))
print("only the queries: ", error(one, right))
print("neither of them:  ", error(none, right))
assert error(both, right) < 1e-12
assert min(error(one, right), error(none, right)) > 0.1

# %% [markdown]
# ## 6. One head, from end to end
#
# A head has four matrices. Three make queries, keys and values from the
# tokens' vectors; the fourth brings the result back to the width $D$ of
# the model. Checkpoints store a matrix as (out, in), so it is applied as
# `x @ weight.T`.
#
# $$q = x W_q^\top, \quad k = x W_k^\top, \quad v = x W_v^\top, \qquad
#   y = \mathrm{attention}\big(\Omega q, \Omega k, v\big)\, W_o^\top$$
#
# where $\Omega$ turns each row by its own token's position.

# %% [markdown] exercise="attention.one_head"
# Put `attention.causal` and `rope.rotate` together: project, turn queries
# and keys, attend causally, project back. All $d$ numbers of the head are
# turned. (You may use NumPy only, or your own `causal` and `rotate`.)

# %% exercise="attention.one_head"
def one_head(
    x: np.ndarray, q_proj: np.ndarray, k_proj: np.ndarray,
    v_proj: np.ndarray, o_proj: np.ndarray, positions: np.ndarray,
    theta: float,
) -> np.ndarray:
    """One causal attention head with rotary positions.

    x: (T, D); q_proj, k_proj: (d, D); v_proj: (V, D); o_proj: (D, V);
    positions: (T,) of int; theta: RoPE's constant. Returns (T, D).
    """
    q, k, v = x @ q_proj.T, x @ k_proj.T, x @ v_proj.T

    size = q.shape[-1]
    frequencies = theta ** (-np.arange(0, size, 2) / size)
    turn = np.exp(1j * np.outer(positions, frequencies))

    def rotated(z):
        pairs = (z[:, 0::2] + 1j * z[:, 1::2]) * turn
        return np.stack([pairs.real, pairs.imag], -1).reshape(z.shape)

    scores = rotated(q) @ rotated(k).T / np.sqrt(size)
    scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True) @ v @ o_proj.T

# %% [markdown] hints="attention.one_head"
# Write down the shape of every intermediate result first. Which product
# turns (T, D) and (d, D) into (T, d)?
#
# ---
#
# Only queries and keys are turned, after their projection and before
# the scores. Values are left alone.
#
# ---
#
# `causal(rotate(x @ q_proj.T, positions, theta), ...)` is most of it. The
# scale is $1/\sqrt d$ with $d$ the size of the *head*, not of the model.
#
# ---
#
# Four products, two rotations, one attention. With `causal` and `rotate`
# from above it is three lines; here they are written out, the rotation
# with complex numbers for a change.

# %% [markdown]
# To compare it, we take a head that can be understood: one that looks
# exactly one token back, whatever the tokens are. No training is needed.
# Give every token a constant 1 as its last number, and let the key be a
# fixed vector $u$ made from it. A query of $\Omega_{-1} u$, turned at
# position $m$, is $\Omega_{m-1} u$: it fits best the key at position
# $m - 1$. Here $\theta$ is 100 instead of 10,000, so that more of the
# pairs turn fast enough to tell neighbours apart. (With 10,000 the
# weights below would begin at 0.91.)

# %%
text = "def f(x):\n    return x"
D, d = 33, 32
x = np.ones((len(text), D))
x[:, :-1] = rng.normal(size=(256, D - 1))[encode(text)]
positions = np.arange(len(text))

u = np.tile([5.0, 0.0], d // 2)
q_proj, k_proj = np.zeros((2, d, D))
q_proj[:, -1] = rotate_slow(u[None], [-1], 100.0)[0]
k_proj[:, -1] = u
v_proj, o_proj = np.eye(d, D), np.eye(D, d)

# %%
cfg = cfg.replace(qk_rope_head_dim=d, rope_theta=100.0)
cos, sin = reference.rope.table(cfg, positions, np.float64)
heads = [(x @ w.T)[None, :, None] for w in (q_proj, k_proj, v_proj)]
q, k = (reference.rope.rotate(a, cos, sin) for a in heads[:2])
out, _ = reference.attention.forward(q, k, heads[2], d**-0.5)
engine = out[0, :, 0] @ o_proj.T

slow = causal_slow(*(rotate_slow(x @ w.T, positions, 100.0)
                     for w in (q_proj, k_proj)), x @ v_proj.T) @ o_proj.T

qt, kt = (rotate_complex(x @ w.T, positions, 100.0)
          for w in (q_proj, k_proj))
vt = torch.tensor(x @ v_proj.T)
both = F.scaled_dot_product_attention(qt[None, None], kt[None, None],
                                      vt[None, None], is_causal=True)
torch_head = both[0, 0] @ torch.tensor(o_proj).T

print("loops - engine:", error(slow, engine))
print("loops - torch: ", error(slow, torch_head))
assert max(error(slow, engine), error(slow, torch_head)) < 1e-12

# %%
scores = q[0, :, 0] @ k[0, :, 0].T / np.sqrt(d)
weights = softmax(np.where(np.tri(len(text), dtype=bool), scores, -np.inf))
back = np.diagonal(weights, -1)
print(f"weight on the token before: {back.min():.3f} to {back.max():.3f}")
assert back.min() > 0.9
plots.one_head(text, weights)

# %% [markdown]
# Heads like this one appear by themselves in trained models; lesson 00
# found one. They are one half of a circuit called *induction heads*, by
# which a model continues a pattern that it has seen before: a later head
# looks for tokens whose predecessor is the present token.

# %% [markdown]
# ## In K2
#
# Everything below is computed from K2's published configuration.

# %%
k2 = minik2.ModelConfig.preset("kimi-k2")
plain = k2.replace(rope_scaling=None)  # YaRN is lesson 04
frequencies = reference.rope.inverse_frequencies(plain)
slowed = (reference.rope.inverse_frequencies(k2) < frequencies).sum()
turns = 2 * np.pi / frequencies
trained = k2.rope_scaling.original_max_position_embeddings
served = k2.max_position_embeddings
print(f"{k2.num_attention_heads} heads in each of "
      f"{k2.num_hidden_layers} layers")
print(f"a head's query and key: {k2.qk_head_dim} numbers, of which "
      f"{k2.qk_rope_head_dim} are turned")
print(f"theta {k2.rope_theta:,.0f}: {len(turns)} pairs, one turn in "
      f"{turns[0]:.1f} to {turns[-1]:,.0f} tokens")
print(f"(that is before YaRN slows the last {slowed} of them)")
plots.wavelengths(frequencies, trained, served)

# %% [markdown]
# <div class="alert alert-info">
#
# **In K2** only a third of each query and key is rotary. The other
# numbers carry content and no position at all; lesson 02 shows why the two
# had to be kept apart. Pairs that do not finish a turn within the 4,096
# tokens of pre-training have angles that it never shows: from pair 22 on,
# most of them. Lesson 04 is about what K2 does with these pairs to reach
# 131,072.
#
# </div>

# %% [markdown]
# ## On the back of an envelope
#
# Attention as written here makes a (T, T) matrix of weights for every
# head. For **one** layer of K2, 131,072 tokens of context, two bytes a
# number: how much memory is that? Answer to one digit before you look.
#
# <details><summary>Answer</summary>
#
# $131{,}072^2 \approx 1.7 \cdot 10^{10}$ weights a head, times 64 heads is
# $1.1 \cdot 10^{12}$ numbers, times two bytes: **about 2.2 TB**, for one
# layer of 61. The mask halves it, and it is still more than the whole
# checkpoint. So nobody stores that matrix. The engine takes a few queries
# of one head at a time (here 16: 8 megabytes in float32), PyTorch's kernel
# a block of queries and keys. The cell below does the same arithmetic.
#
# </details>

# %%
numbers = served**2 * k2.num_attention_heads
print(f"{numbers * 2 / 1e12:.2f} TB a layer")

# %% [markdown]
# <div class="alert alert-success">
#
# **Takeaway.** Attention is a weighted mean that knows no order. RoPE
# turns queries and keys by their positions, so that each score depends on
# what the two tokens are and on the difference of their positions, its
# sign included, and on nothing else.
#
# </div>
#
# ## Sources
#
# - Attention, the mask, the scale: Vaswani et al., *Attention Is All You
#   Need*, arXiv 1706.03762, §3.2.
# - Rotary positions: Su et al., *RoFormer*, arXiv 2104.09864, §3.2 and
#   eq. 34 for the form used in code.
# - Heads that look one token back, and what they are for: Olsson et al.,
#   *In-context Learning and Induction Heads*, arXiv 2209.11895.
# - Rotary and other numbers kept apart: DeepSeek-V2, arXiv 2405.04434,
#   §2.1.3. K2's head counts: *Kimi K2*, arXiv 2507.20534, Table 2.
#
# **Next:** lesson 02 replaces the three projections by a bottleneck, and
# gets Multi-head Latent Attention.
