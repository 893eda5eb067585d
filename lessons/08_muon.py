# %% [markdown]
# # 08 · Muon
#
# *About 60 minutes. Runs in seconds once the lessons' small model is
# there; the first time it is trained, which takes a minute.*
#
# **After this lesson you can**
#
# - say what Muon changes about a momentum matrix, and show it by its
#   singular values;
# - write Newton–Schulz, which needs products only, and say why its
#   polynomial is so steep at zero;
# - scale an update by the shape of its matrix, and write a step of Muon
#   that equals PyTorch's;
# - treat a stack of experts as what it is: many matrices;
# - tell what a step costs, and what can be saved where.

# %% role="setup"
import numpy as np

from minik2.checks import check

np.set_printoptions(precision=3, suppress=True)

# %%
import sys
import textwrap
from collections import Counter
from unittest import mock

import torch
from tqdm import tqdm

import minik2
from minik2 import pytorch
from minik2.plots import lesson08 as plots
from minik2.plots.model_map import model_map
from minik2.reference import muon
from minik2.reference.newton_schulz import flops, segments
from minik2.training import lesson_model
from minik2.training.corpus import Corpus

rng = np.random.default_rng(8)


def singular_values(X):
    return np.linalg.svd(X, compute_uv=False)


def rms(X):
    return np.sqrt((X**2).mean((-2, -1)))


def off(a, b):
    """Largest difference, as a share of the largest number of b."""
    return float(np.abs(np.asarray(a) - b).max() / np.abs(b).max())

# %% [markdown]
# ## What you have, and what you will add
#
# From lesson 07 you have a gradient for every weight. An **optimizer**
# makes a step of it. K2 was trained with Muon (and with QK-Clip, which
# lesson 09 adds). Muon looks at a weight matrix as a matrix, where other
# optimizers see a bag of numbers.
#
# In answers you may use NumPy, your other answers, and `A, B, C` of
# section 2. `minik2 check` runs these and none of the lesson's other
# cells.

# %%
model_map(["muon"], "Today: what is done with the gradients")

# %% [markdown]
# Some gradients of the small trained model, each of another piece of
# Python. A **momentum** $M$ is their running average,
# $M \leftarrow \mu M + (1 - \mu)\, G$ with $\mu = 0.95$: what the last
# twenty or so gradients $G$ agree on stays, what they differ in is
# averaged away. (Here the model itself stays as it is meanwhile.)

# %%
model, corpus = lesson_model(), Corpus.standard_library()
print("Numba compiles its loops; the first time that takes a while.")
gradients, momenta = [], {}
for _ in tqdm(range(20), ncols=76, file=sys.stdout, unit="batch"):
    batch = corpus.sample("train", 4, 64, rng)
    gradients.append(model.loss_and_grads(*batch)[1])
    for name, G in gradients[-1].items():
        momenta[name] = 0.95 * momenta.get(name, 0) + 0.05 * G
M = momenta["model.layers.1.self_attn.q_b_proj.weight"]
print(f"q_b_proj of layer 1, M: {M.shape[0]} × {M.shape[1]}")

# %% [markdown]
# ## 1. A gradient has few strong directions
#
# Every matrix is a sum of simple ones, its **singular value
# decomposition**:
#
# $$M = \sum_i \sigma_i\, u_i v_i^\top = U\, \Sigma\, V^\top$$
#
# $U$ has the $u_i$ as its columns, $V$ the $v_i$, and $\Sigma$ the
# $\sigma_i$ on its diagonal.
# The $u_i$ are orthogonal to each other and of length 1, the $v_i$ too.
# A weight changed by $u_i v_i^\top$ sees how much of $v_i$ is in its
# input, and writes that much of $u_i$ into its output: one direction in,
# one direction out. The **singular value** $\sigma_i \geq 0$ says how
# strongly $M$ does so. Of the real one:

# %%
squares = singular_values(M) ** 2
share = squares.cumsum() / squares.sum()
for count in (1, 2, 4, 8, 16):
    print(f"the strongest {count:2} of {len(share)} directions hold "
          f"{share[count - 1]:.1%} of the squares of M")

# %% [markdown]
# A step along $M$ moves the weight in a few directions and hardly in the
# many others, though these may be what is left to learn. **Muon** takes
# the directions and drops the strengths: every $\sigma_i$ becomes 1, or
# nearly. What remains is $U V^\top$, the orthogonal matrix nearest to
# $M$. (*Orthogonal* means here that the rows, or of a tall matrix the
# columns, are orthogonal and of length 1.)
#
# The smallest tensor, two by two:

# %%
small = np.array([[2.0, 1.0], [0.0, 1.0]])
u, sigma, vt = np.linalg.svd(small)
print("singular values", sigma)
print("U Vᵀ\n", u @ vt)
print("its rows' products\n", (u @ vt) @ (u @ vt).T)

# %% [markdown]
# ## 2. Orthogonal by products alone
#
# A singular value decomposition of every matrix in every step would be
# far too slow. But a polynomial will do. Take $X = M / \lVert M \rVert$,
# where $\lVert M \rVert$ is the **Frobenius norm**, the root of the sum
# of all squares. Then form
#
# $$X \leftarrow A X + (B R + C R^2)\, X, \qquad R = X X^\top,$$
#
# with three numbers $A$, $B$ and $C$.
# Put $X = U \Sigma V^\top$ in. $R$ is $U \Sigma^2 U^\top$, since
# $V^\top V$ is the identity, and the new $X$ comes out as
#
# $$U\, (A \Sigma + B \Sigma^3 + C \Sigma^5)\, V^\top.$$
#
# The directions stay where they are. Every singular value goes through
# $p(\sigma) = A \sigma + B \sigma^3 + C \sigma^5$ by itself, though none
# of them was ever computed. This is **Newton–Schulz**; Muon takes five
# steps with these coefficients:

# %% role="setup"
A, B, C = 3.4445, -4.7750, 2.0315

# %% [markdown]
# On the smallest tensor:

# %%
X = small / np.linalg.norm(small)
print("singular values at the start", singular_values(X))
for number in range(1, 6):
    R = X @ X.T
    X = A * X + (B * R + C * R @ R) @ X
    print(f"after step {number}", singular_values(X))

# %% [markdown] exercise="muon.newton_schulz"
# Write Newton–Schulz for one matrix of any shape.

# %% exercise="muon.newton_schulz"
def newton_schulz(G: np.ndarray, steps: int) -> np.ndarray:
    """X = G / |G|, then `steps` times X = A X + (B R + C R R) X, R = X X^T.

    G: (r, c), not 0; |G| is its Frobenius norm. Returns (r, c).
    """
    X = G / np.linalg.norm(G)
    for _ in range(steps):
        R = X @ X.T
        X = A * X + (B * R + C * R @ R) @ X
    return X

# %% [markdown] hints="muon.newton_schulz"
# Divide once, before the loop. In the loop, what changes from step to
# step, and what must therefore be formed anew?
#
# ---
#
# `@` multiplies matrices, `*` and `**` multiply number by number. `R @ R`
# is R squared.
#
# ---
#
# `np.linalg.norm(G)` of a matrix is its Frobenius norm. In each step,
# R = X Xᵀ is r by r, and the bracket in front of X is, too.
#
# ---
#
# One line for the start, a loop of two lines, and X is returned.

# %% [markdown]
# The real momentum, step by step. Before the first step its singular
# values span orders of magnitude:

# %%
after = [M / np.linalg.norm(M)]
after += [muon.plain(M, steps) for steps in range(1, 6)]
plots.steps(np.array([singular_values(X) for X in after]))

# %% [markdown]
# They do not end at 1 exactly, and are not meant to. The large ones swing
# around 1 and the small ones come up. This was the engine's plain form of
# the definition. Its fast one (section 7) and the one in PyTorch give the
# same, and so does what needs no iteration of matrices: a decomposition,
# with the polynomial applied to numbers.

# %%
def five_steps(sigma, a=A, b=B, c=C):
    for _ in range(5):
        sigma = a * sigma + b * sigma**3 + c * sigma**5
    return sigma


def by_decomposition(G):
    norm = np.linalg.norm(G, axis=(-2, -1), keepdims=True)
    u, sigma, vt = np.linalg.svd(G / norm, full_matrices=False)
    return u * five_steps(sigma)[..., None, :] @ vt


others = {"by decomposition": by_decomposition(M),
          "engine, NumPy": muon.newton_schulz(M),
          "engine, PyTorch": pytorch.muon.newton_schulz(
              torch.tensor(M)).numpy()}
for name, X in others.items():
    print(f"{name:<18} {off(X, after[5]):.0e}")
    assert off(X, after[5]) < 1e-10

# %% [markdown]
# ## 3. Why so steep at zero?
#
# Near zero only $A \sigma$ counts: each step multiplies a small singular
# value by $A$, five steps by $A^5$. A polynomial that ends at 1 exactly
# has to be tame. The textbook's, $\frac{3}{2}\sigma -
# \frac12 \sigma^3$, has the slope 1.5, and the one of fifth degree, with
# $(A, B, C) = (\frac{15}{8}, -\frac{10}{8}, \frac38)$, has 1.875. Muon's
# gives up the exact end for a slope of 3.4445.

# %%
choices = {"Muon": (A, B, C), "fifth degree": (15 / 8, -10 / 8, 3 / 8),
           "third degree": (3 / 2, -1 / 2, 0)}
for name, choice in choices.items():
    print(f"{name:<13} multiplies a small one by {choice[0]**5:.1f}")
start = np.geomspace(1e-4, 1, 400)
curves = {name: five_steps(start, *choice)
          for name, choice in choices.items()}
plots.slopes(start, curves, singular_values(M / np.linalg.norm(M)))

# %% [markdown]
# What the picture calls *past 0.5* is the point of the exercise: a
# direction that is hundreds of times weaker than the strongest one still
# gets its share. With more steps the tame polynomials get there as well,
# but each step costs as much as the next. Far below a thousandth even
# Muon's five steps leave a direction small.
#
# The other end has its limits, too. From $\sigma = 1.3$ on, each step
# makes it larger still, and off it goes to infinity. That is why $M$ is
# divided by its norm, which no singular value can exceed.

# %% [markdown]
# ## 4. How large is an update?
#
# The **root mean square** (rms) of a matrix is the root of the mean of
# its squared numbers: how far a typical weight is moved. An orthogonal
# matrix with $r$ rows and $c$ columns has $\min(r, c)$ singular values,
# all of them 1. The sum of its squares is the sum of theirs,
# $\min(r, c)$, and the rms is
#
# $$\sqrt{\frac{\min(r, c)}{r\, c}} = \frac{1}{\sqrt{\max(r, c)}}.$$
#
# Large matrices would be moved less than small ones. AdamW, the usual
# optimizer, moves all numbers by about the same, with an rms of 0.2 to
# 0.4 in practice. Moonlight, the model in which Moonshot tried Muon
# before K2, scales each update to an rms of 0.2. So AdamW's learning
# rate and decay could be kept, and one learning rate serves both
# optimizers.

# %% [markdown] exercise="muon.scale"
# By what has an orthogonal matrix (rows, columns) to be multiplied so
# that its rms is 0.2?

# %% exercise="muon.scale"
def scale(rows: int, columns: int) -> float:
    """What makes the rms of an orthogonal matrix (rows, columns) 0.2."""
    return 0.2 * max(rows, columns) ** 0.5

# %% [markdown] hints="muon.scale"
# Which number times the rms above is 0.2?
#
# ---
#
# Try it on an identity matrix of 4 by 4: its rms is 1/2. What is its
# scale?
#
# ---
#
# Dividing by 1/√n is multiplying with √n, and n is the longer side.
#
# ---
#
# 0.2 times the root of the longer side.

# %% [markdown]
# All shapes of matrices that the small model has, with their real
# momenta. PyTorch calls this scale `match_rms_adamw`, and has another,
# `original`: $\sqrt{\max(1, r / c)}$, which wants learning rates of its
# own, near 0.02.

# %%
mine = {name: X for name, X in momenta.items()
        if muon.takes(name, X.shape)}
shapes = {X.shape: X for X in mine.values()}
sized = {"as it comes": np.array([rms(muon.newton_schulz(X))
                                  for X in shapes.values()])}
for label, kind in (("original", "original"),
                    ("0.2 √max", "match_rms_adamw")):
    factors = [muon.scale(*shape, kind) for shape in shapes]
    sized[label] = sized["as it comes"] * factors
plots.sizes([f"{r}\n× {c}" for r, c in shapes], sized)

# %% [markdown]
# The rms stays a little below 0.2: the singular values are near 1 and
# not 1, and a few directions have not come up.
#
# ## 5. One step
#
# With the gradient $G$, the learning rate $\eta$ and the decay $\lambda$:
#
# $$\begin{aligned}
#   M &\leftarrow \mu M + (1 - \mu)\, G \\
#   O &= \text{newton\_schulz}\big((1 - \mu)\, G + \mu M\big)
#        \cdot \text{scale}(r, c) \\
#   W &\leftarrow W - \eta\, (O + \lambda W)
# \end{aligned}$$
#
# The second line is **Nesterov's** look ahead: the new $M$ is averaged
# with the gradient once more, as if the next gradient were the same. The
# third has **weight decay**: a weight that nothing holds shrinks by
# $\eta\lambda$ a step. Moonlight found it needed, for without it weights
# grew until 16-bit numbers were too coarse for them. The decay has the
# plain learning rate; the scale is for $O$ alone.
#
# The papers write $M \leftarrow \mu M + G$, a sum where PyTorch and we
# have an average. The sum is $1 / (1 - \mu)$ times as large, with the
# look ahead as well, and Newton–Schulz starts by dividing by the norm.
# For the weights it is the same.

# %% [markdown] exercise="muon.step"
# Write one step for one matrix, with five steps of Newton–Schulz. Return
# the new weight and the new momentum; leave the arguments as they are.

# %% exercise="muon.step"
def step(
    W: np.ndarray, M: np.ndarray, G: np.ndarray, lr: float,
    momentum: float, weight_decay: float,
) -> dict[str, np.ndarray]:
    """One step of Muon, with Nesterov's look ahead.

    W: weight, M: momentum (an average), G: gradient, (r, c) each.
    Returns {"weight": (r, c), "momentum": (r, c)}, both new.
    """
    M = momentum * M + (1 - momentum) * G
    U = (1 - momentum) * G + momentum * M
    update = scale(*W.shape) * newton_schulz(U, 5)
    W = W - lr * (update + weight_decay * W)
    return {"weight": W, "momentum": M}

# %% [markdown] hints="muon.step"
# Three formulas, in their order. Which M stands in the second one, the
# old or the new?
#
# ---
#
# Your own `newton_schulz` and `scale` are there. `scale(*W.shape)` hands
# over rows and columns.
#
# ---
#
# `M = ...` gives a name to a new array, while `M += ...` changes the
# caller's. The learning rate multiplies the scaled update and the decay.
#
# ---
#
# A line for the momentum, one for the look ahead, one for the update,
# and one for the weight.

# %% [markdown]
# All of the small model's matrices take three steps, with the engine in
# NumPy, the engine in PyTorch, and `torch.optim.Muon`, which nobody here
# wrote. PyTorch's rounds to bfloat16 before it iterates, a format of
# barely three digits. For this comparison that one call keeps float64;
# nothing else of it is changed. Then it is left as it is, to see what the
# format costs.

# %%
how = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.1}
first = {name: model.weights[name] for name in mine}
engine, weights = muon.Muon(**how), {n: W.copy() for n, W in first.items()}
for grads in gradients[:3]:
    engine.step(weights, {name: grads[name] for name in mine})


def in_torch(kind, **more):
    own = {n: torch.nn.Parameter(torch.tensor(W)) for n, W in first.items()}
    optimizer = kind(list(own.values()), **how, **more)
    for grads in gradients[:3]:
        for name, parameter in own.items():
            parameter.grad = torch.tensor(grads[name])
        optimizer.step()
    return {name: p.detach().numpy() for name, p in own.items()}


adamw = {"adjust_lr_fn": "match_rms_adamw"}
results = {"engine, PyTorch": in_torch(pytorch.muon.Muon)}
with mock.patch.object(torch.Tensor, "bfloat16", torch.Tensor.clone):
    results["torch.optim.Muon"] = in_torch(torch.optim.Muon, **adamw)
rounded = in_torch(torch.optim.Muon, **adamw)
moved = {name: weights[name] - first[name] for name in mine}
print(f"{len(mine)} matrices: largest difference from the engine in NumPy,")
print("as a share of the largest change by these three steps")
for whom, found in results.items():
    worst = max(off(found[n] - first[n], moved[n]) for n in mine)
    print(f"{whom:<26} {worst:.0e}")
    assert worst < 1e-8
worst = max(off(rounded[n] - first[n], moved[n]) for n in mine)
print(f"{'the same, in bfloat16':<26} {worst:.0e}")

# %% [markdown]
# That last number is the worst one weight of all. Rounding errs by a share
# of the strongest direction, and weak ones are made strong together with
# their error. Models are trained so all the same.
#
# Which tensors? Matrices that turn a vector into another one. The
# embedding and the head are tables with a row for each token, and the
# norms' weights are no matrices at all: these are AdamW's. K2's report
# does not say where it drew the line; this is Moonlight's.

# %%
for taken in (True, False):
    kinds = {name.split(".")[-2] for name, X in momenta.items()
             if muon.takes(name, X.shape) == taken}
    print(textwrap.fill(", ".join(sorted(kinds)), 76, initial_indent=
                        "Muon:  " if taken else "AdamW: ",
                        subsequent_indent=7 * " "))

# %% [markdown]
# ## 6. A stack of experts
#
# Frameworks keep the experts of a layer as one array (E, r, c), for the
# products' sake. To Muon these are $E$ matrices. A function that knows
# only two axes may be tempted to lay the stack out as one matrix of
# $E\,r$ rows. That has another meaning. Its rows are many, but it still
# has no more than $\min(E\,r, c)$ directions, which all experts must now
# share; and an expert that got few tokens has only a small part in them.

# %% [markdown] exercise="muon.stacked_experts"
# Given the averaged gradients `U` of a stack, return the updates: for
# each expert, five steps of Newton–Schulz times the scale.

# %% exercise="muon.stacked_experts"
def stacked_experts(U: np.ndarray) -> np.ndarray:
    """The scaled update of every expert; U and the result are (E, r, c)."""
    own = [newton_schulz(matrix, 5) for matrix in U]
    return scale(*U.shape[1:]) * np.stack(own)

# %% [markdown] hints="muon.stacked_experts"
# What does a `for` loop over an array of three axes give you?
#
# ---
#
# The scale is that of one expert's matrix. Which two numbers of U.shape
# are its sides?
#
# ---
#
# `np.stack` makes one array of a list of matrices. Each has a norm of
# its own, which `newton_schulz` takes.
#
# ---
#
# A list of one result for each expert, stacked, times one scale.

# %% [markdown]
# The down-projections of layer 1, both ways. The engine knows stacks, and
# is held against a decomposition of every expert:

# %%
name = "model.layers.1.mlp.experts.{}.down_proj.weight"
stack = np.stack([momenta[name.format(e)]
                  for e in range(model.cfg.n_routed_experts)])
E, r, c = stack.shape
each = muon.newton_schulz(stack)
flat = muon.newton_schulz(stack.reshape(E * r, c)).reshape(stack.shape)
print(f"engine - decompositions: {off(each, by_decomposition(stack)):.0e}")
assert off(each, by_decomposition(stack)) < 1e-10
kind = "match_rms_adamw"
plots.experts(
    np.linalg.norm(stack, axis=(1, 2)),
    {"each by itself": singular_values(each),
     "flattened": singular_values(flat)},
    {"each by itself": rms(each) * muon.scale(r, c, kind),
     "flattened": rms(flat) * muon.scale(E * r, c, kind)})

# %% [markdown]
# On the left, what an expert's own update looks like in the end: if the
# stack was flattened, it is far from orthogonal. On the right, how far
# experts move. By themselves all move nearly alike, whatever their
# gradients' sizes; flattened, it depends on what the others have. The
# larger scale, that of $E\,r$ rows, hides this from whoever looks at the
# mean only.
#
# The same care is due wherever one array holds several matrices, such as
# gate and up in one. Whether the heads of attention are matrices of their
# own, or parts of one, is a question on which models differ; K2's report
# does not say that it takes them apart, and this engine does not.
#
# ## 7. What does it cost?
#
# For $r \leq c$ a step of the iteration has three products: $X X^\top$
# with $2 r^2 c$ operations, half of it if the library computes only one
# triangle of a symmetric result, $R^2$ with $r^3$ in the same way, and
# the last one with $2 r^2 c$. The long side counts once and the short
# side twice, so **turn a tall matrix on its side** (or work from the
# right): $X^\top X$ instead of $X X^\top$.
#
# For a very long matrix there is a better way. $X$ after the step is
# $P X$ with $P = A I + B R + C R^2$, $I$ the identity. The next $R$ is
# $P X X^\top P = P R P$, which is small. So steps can be taken on $R$
# alone, the $P$ collected in one $Q$, and $X$ formed once, as $Q X$. The catch is
# rounding:

# %%
def on_gram(X, runs):
    """len(runs) times: so many steps on R = X Xᵀ, and then X = Q X."""
    eye = np.eye(len(X), dtype=X.dtype)
    for steps in runs:
        R, Q = X @ X.T, eye
        for _ in range(steps):
            P = A * eye + B * R + C * R @ R
            R, Q = P @ R @ P, P @ Q
        X = Q @ X
    return X


wide = momenta["model.layers.0.mlp.gate_proj.weight"].T
wide = wide / np.linalg.norm(wide)
errors = {}
for runs in ([1] * 5, [2, 2, 1], [3, 2], [4, 1], [5]):
    label = "+".join(map(str, runs))
    assert off(on_gram(wide, runs), muon.plain(wide)) < 1e-6
    single = on_gram(wide.astype(np.float32), runs)
    errors[label] = off(single, muon.plain(wide))
ratios = np.geomspace(1, 32, 60)
saved = [1 - flops(1024, c, segments(1024, c, 5)) / flops(1024, c, [1] * 5)
         for c in (1024 * ratios).astype(int)]
plots.cost(ratios, np.array(saved), errors)

# %% [markdown]
# $R$ holds squares, so a singular value of a thousandth is a millionth
# in it, next to numbers near 1, and float32 has seven digits. Each step
# on $R$ multiplies small values, and their errors, by $A^2 \approx 12$.
# So the engine takes three steps, forms $X$, takes $R$ afresh from it,
# and goes on; and it takes the plain way for shapes where nothing is
# saved. In the left panel its choice is counted for matrices with 1024
# rows.

# %% [markdown]
# ## In K2
#
# Everything below is computed from K2's published configuration, but for
# the batch of 67 million tokens, which is from its report (§2.5).

# %%
k2, batch = minik2.ModelConfig.preset("kimi-k2"), 67e6
taken = Counter(shape for name, shape in k2.tensors()
                if muon.takes(name, shape))
numbers = sum(n * r * c for (r, c), n in taken.items())
plain = sum(n * flops(*s, [1] * 5) for s, n in taken.items())
gram = sum(n * flops(*s, segments(*s, 5)) for s, n in taken.items())
training = minik2.sizing.flops(k2, 4096).training.total / 4096 * batch
print(f"{taken.total():,} matrices with {numbers:,} numbers")
print(f"orthogonal: {plain:.2e} operations a step, {gram:.2e} by Gram")
print(f"forward and backward: {training:.2e}; Muon adds "
      f"{plain / training:.1%}, or {gram / training:.1%}")
for optimizer in ("adamw", "muonclip"):
    held = minik2.sizing.memory(k2, optimizer=optimizer).optimizer
    print(f"buffers of {optimizer}: {held / 1e12:.2f} TB in float32")

# %% [markdown]
# <div class="alert alert-info">
#
# **In K2** nearly all weights are Muon's, and nearly all of these are
# experts'. Its report gives the step ($M = \mu M + G$, Newton–Schulz, the
# scale $0.2\sqrt{\max}$, decay 0.1, learning rate $2 \cdot 10^{-4}$ for
# most of the way). It does not give $\mu$, the number of steps, the
# coefficients or Nesterov; those here are Moonlight's, and PyTorch's
# defaults. Moonlight's paper puts the time Muon adds at 1 to 3 percent of
# forward and backward, and found that about half of AdamW's training
# operations reach the same loss. Lesson 10 tries that at our size.
#
# </div>

# %% [markdown]
# ## On the back of an envelope
#
# What does Muon add for one of K2's expert matrices, 2048 by 7168? Take
# $2 r^2 c + 2 r^2 c + 2 r^3$ operations a step, five steps. The matrix
# itself costs 6 operations for each of its numbers and each token that
# comes to the expert (2 forward, 4 backward). A batch has 67 million
# tokens, and each goes to 8 of 384 experts. What percentage is added?
#
# <details><summary>Answer</summary>
#
# $67 \cdot 10^6 / 48 = 1.4 \cdot 10^6$ tokens come to the expert: $6 \cdot
# 1.4 \cdot 10^6 = 8.4 \cdot 10^6$ operations for each number of the
# matrix. Muon, for each number, $5 \cdot (4 r + 2 r^2 / c) = 5 \cdot
# (8192 + 1170) = 4.7 \cdot 10^4$. **About half a percent.** With a
# smaller batch it would be more: the gradient costs by the token, and
# Muon by the step. (For the whole model it came out lower: attention's
# matrices meet all tokens, and symmetric products were counted half.)
# The cell below does the arithmetic.
#
# </details>

# %%
r, c = k2.moe_intermediate_size, k2.hidden_size
tokens = batch * k2.num_experts_per_tok / k2.n_routed_experts
print(f"{5 * (4 * r + 2 * r**2 / c) / (6 * tokens):.2%}")

# %% [markdown]
# <div class="alert alert-success">
#
# **Takeaway.** Muon keeps the directions of a momentum matrix and makes
# their strengths alike, with five steps of a polynomial that is steep at
# zero and need not end at 1. Times $0.2 \sqrt{\max(r, c)}$ every matrix
# moves as far as under AdamW. It is about matrices: a stack is many of
# them.
#
# </div>
#
# ## Sources
#
# - Muon: K. Jordan et al., *Muon: An optimizer for hidden layers in
#   neural networks*, 2024, with the coefficients; `torch.optim.Muon`.
# - Momentum, decay and the scale, AdamW's rms, cost, and results:
#   *Muon is Scalable for LLM Training* (Moonlight), arXiv 2502.16982,
#   §2, §3.2, appendix A.
# - K2's step and recipe: *Kimi K2*, arXiv 2507.20534, algorithm 1 and
#   §2.5.
# - Newton–Schulz: Higham, *Functions of Matrices*, SIAM 2008, chapter 8.
#
# **Next:** lesson 09 shows what goes wrong with attention under Muon, and
# how QK-Clip holds it.
