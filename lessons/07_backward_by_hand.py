# %% [markdown]
# # 07 · Backward by hand
#
# *About 60 minutes. Runs in seconds once the lessons' small model is
# there; the first time it is trained, which takes a minute.*
#
# **After this lesson you can**
#
# - check any gradient against its function, with a step that is neither
#   too large nor too small, and say why there is such a step;
# - write the gradients of RMSNorm, of softmax attention, of an expert and
#   of the router, each derived in a few lines;
# - say what the choice of experts does to a gradient, and why the
#   correction bias has none;
# - put the parts together into the gradient of a layer, and hold a whole
#   model's against two libraries that find theirs by themselves.

# %% role="setup"
import numpy as np

from minik2.checks import check

np.set_printoptions(precision=3, suppress=True)

# %%
import inspect
import tempfile
import types

import torch
import torch.nn.functional as F

import minik2
from minik2 import pytorch
from minik2.plots import lesson07 as plots
from minik2.plots.model_map import model_map
from minik2.reference import attention, ffn, loss, mla, moe, norm, router
from minik2.training import lesson_model
from minik2.training.corpus import encode

rng = np.random.default_rng(7)


def off(claimed, right):
    return np.abs(claimed - right).max() / (np.abs(right).max() or 1)


def agree(what, ours, theirs, limit=1e-12):
    apart = [off(*pair) for pair in zip(ours, theirs, strict=True)]
    print(f"{what:<36}", *(f"{error:.0e}" for error in apart))
    assert max(apart) < limit


def autograd(f, dy, *inputs):
    inputs = [torch.tensor(a, requires_grad=True) for a in inputs]
    f(*inputs).backward(torch.tensor(dy))
    return [a.grad.numpy() for a in inputs]

# %% [markdown]
# ## What you have, and what you will add
#
# From lessons 01 to 06 you have the forward pass: every part turns an
# input into an output. Training needs the way back. PyTorch finds it by
# itself; today you do it by hand, for the parts of which K2 is made, and
# it will turn out to be a page of formulas.
#
# Three helpers stand in the cell above. `off` is the largest error of an
# array relative to its largest number, `agree` prints it for pairs of
# arrays and insists that it is small, and `autograd` asks PyTorch for the
# gradients of a function.
#
# In answers you may use NumPy, your other answers, and `wave` of
# section 1. `minik2 check` runs these and none of the lesson's other
# cells.

# %%
model_map(["backward", "loss", "attention", "latent", "rope", "router",
           "experts", "shared"], "Today: the way back through all of it")

# %% [markdown]
# The numbers come from the small trained model of these lessons, in
# float64, and from a piece of Python that it reads.

# %%
model = lesson_model()
cfg = model.cfg
text = inspect.getsource(norm.forward)[:97]  # Python it has never seen
tokens, targets = encode(text)[None, :-1], encode(text)[None, 1:]
print("Numba compiles its loops; the first time that takes a while.")
logits, saved = model.forward(tokens)
_, saved_loss = loss.forward(logits, targets, cfg)

# %% [markdown]
# ## 1. A gradient is a claim about slopes
#
# Write $L$ for the loss, and $dy$ for $\partial L / \partial y$: how much
# the loss grows for each number of $y$ that grows. It has the shape of
# $y$, and every array of this lesson has such a companion, `dx` for `x`,
# `dweight` for `weight`.
#
# A part's **backward pass** is given $dy$ of its output and returns $dx$
# of its input and $dW$ of its weights. It need not know what the loss is.
# To look at one part by itself we choose some $dy$ and take the simplest
# loss that has it, $L = \sum dy \cdot y$ over all numbers.
#
# The smallest part is a product, $y = x W^\top$, so
# $y_{ti} = \sum_j x_{tj} W_{ij}$. Every $x_{tj}$ goes into all $y_{ti}$
# of its token $t$ with the factor $W_{ij}$, and every $W_{ij}$ into the
# $y_{ti}$ of all tokens with the factor $x_{tj}$:
#
# $$dx_{tj} = \sum_i dy_{ti} W_{ij}, \qquad
#   dW_{ij} = \sum_t dy_{ti}\, x_{tj}
#   \qquad\text{or}\qquad dx = dy\, W, \quad dW = dy^\top x.$$
#
# In numbers, for two tokens. Then the claim is tried: $W_{01}$ is moved
# a little to both sides.

# %%
x = np.array([[1.0, 2, 0], [0, 1, -1]])
W = np.array([[1.0, 0, 2], [3, 1, 0]])
dy = np.array([[1.0, -1], [2, 0]])
print("dx\n", dy @ W, "\ndW\n", dy.T @ x)
h = np.array([[0, 0.001, 0], [0, 0, 0]])
up, down = ((dy * (x @ moved.T)).sum() for moved in (W + h, W - h))
print("slope of L by W[0, 1]:", (up - down) / 0.002)

# %% [markdown]
# This **central difference**, $(f(x+h) - f(x-h)) / 2h$, is how a gradient
# is checked. It knows nothing of the derivation, so it cannot share a
# mistake with it. But which $h$? Two errors pull in opposite directions:
#
# - *bending*: the function is no straight line. What is left of the
#   Taylor series is $\frac{h^2}{6} f'''$, so a smaller step is better;
# - *rounding*: $f$ is known to a relative error of $\varepsilon$, the
#   spacing of floating-point numbers. That error is divided by $h$, so a
#   larger step is better.
#
# Here is their sum, for an RMSNorm of the trained model and one of its
# tokens, moved along a random direction that is as long as the token.
# What is right, PyTorch says. (`terms` is how much larger than the
# slope the terms are of which it is the sum: rounding is of their size.)

# %%
def rms_norm(x, weight, eps):
    return weight * x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)


kept = saved[1]["input_layernorm"]
x, weight, eps = kept["x"][0, 20], kept["weight"], cfg.rms_norm_eps
dy, along = rng.normal(size=(2, *x.shape))
along *= np.linalg.norm(x) / np.linalg.norm(along)
exact = along @ autograd(lambda x: F.rms_norm(
    x, x.shape, torch.tensor(weight), eps), dy, x)[0]
terms = np.linalg.norm(dy * rms_norm(x, weight, eps)) / abs(exact)

steps, errors = 10.0 ** np.arange(0, -12.5, -0.5), {}
for t in (np.float64, np.float32):
    x_, w, d, dy_, h = (a.astype(t) for a in (x, weight, along, dy, steps))
    up, down = ((dy_ * rms_norm(x_ + step, w, t(eps))).sum(-1).astype(float)
                for step in (h[:, None] * d, -h[:, None] * d))
    errors[t.__name__] = np.abs((up - down) / (2 * steps) / exact - 1)
assert errors["float64"].min() < 1e-8
plots.step_sizes(steps, errors, terms)

# %% [markdown]
# The lowest point lies where both errors are about equal, near
# $h = \sqrt[3]{\varepsilon}$, and what is left there is about
# $\varepsilon^{2/3}$. In float64 that leaves some ten good digits; in
# float32 four or five, too few to tell a small mistake from rounding.
# That is why the engine has a float64 mode: proofs are made in it. (Far
# to the left the float32 step is lost altogether: $x + h$ is $x$ again,
# the slope comes out as 0, and the error as 1.)
#
# Now write the check. So that it can be checked in turn, it is about a
# family of functions with arrays $a$ and $b$ of the shape of $x$:

# %% role="setup"
def wave(x, a, b):
    """f(x), the sum of b sin(a x). x, a, b: of one shape."""
    return float((b * np.sin(a * x)).sum())

# %% [markdown] exercise="backward.check_gradient"
# Somebody claims to have the gradient of $f(x)$ = `wave(x, a, b)` at `x`.
# Find the slope by every number of `x` with central differences, and
# return the error of the claim as one number: the largest
# $|\text{claimed} - \text{slope}|$ over the largest $|\text{slope}|$ of
# all. Mind that `x` may have one axis or two.
#
# (You could write down the derivative of a sine. A check that knows the
# answer would be no check, though.)

# %% exercise="backward.check_gradient"
def check_gradient(
    x: np.ndarray, a: np.ndarray, b: np.ndarray, claimed: np.ndarray
) -> float:
    """max |claimed - slope| / max |slope|; all (D,), or all (T, D)."""
    slopes, h = np.zeros_like(x), 1e-5
    for i in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[i] += h
        down[i] -= h
        slopes[i] = (wave(up, a, b) - wave(down, a, b)) / (2 * h)
    return np.abs(claimed - slopes).max() / np.abs(slopes).max()

# %% [markdown] hints="backward.check_gradient"
# One number of x is moved at a time; all others stay where they are.
# How many times is f evaluated for an x of shape (3, 4)?
#
# ---
#
# `for i in np.ndindex(x.shape)` runs over the indices of any array.
# Take two copies of x, and move number `i` up in one and down in the
# other.
#
# ---
#
# The two points are 2h apart; a good h is the cube root of eps, 1e-5 or
# so. At the end: absolute values first, then the largest of each, then
# one division.
#
# ---
#
# A loop over all numbers, two copies and two values each, and a ratio of
# two maxima.

# %% [markdown]
# The same for any function, which the rest of the lesson uses:

# %%
def slopes(f, x, h=1e-5):
    moves = h * np.eye(x.size).reshape(-1, *x.shape)
    return np.array([(f(x + m) - f(x - m)) / (2 * h)
                     for m in moves]).reshape(x.shape)

# %% [markdown]
# ## 2. RMSNorm
#
# Forward, for one row $x$ of $D$ numbers with the weight $w$:
#
# $$y_i = w_i\, n_i, \qquad n_i = r\, x_i, \qquad
#   r = \Big(\tfrac1D \sum_j x_j^2 + \epsilon\Big)^{-1/2}$$
#
# ($\epsilon$ is `rms_norm_eps`.) Backward, start at the end. $y_i$ hangs
# on $w_i$ by the factor $n_i$, and on $n_i$ by the factor $w_i$. So the
# weight gets $dw_i = \sum dy_i\, n_i$ over all rows, and $g_i = w_i\,dy_i$
# goes on to $n_i$. From there, $x_j$ is reached on two ways: directly,
# and through $r$, which hangs on every number of the row:
#
# $$\frac{\partial r}{\partial x_j} = -\tfrac12 r^3 \cdot \tfrac{2}{D} x_j
#   = -r^2\, \frac{n_j}{D}, \qquad
#   dx_j = r\, g_j + \sum_i g_i x_i \frac{\partial r}{\partial x_j}
#        = r\, \Big( g_j - n_j\, \tfrac1D \sum_i g_i n_i \Big).$$
#
# The smallest tensor: one row of two numbers.

# %%
x, weight, dy = np.array([2.0, 1.0]), np.ones(2), np.array([0.5, 1.0])
r = 1 / np.sqrt((x**2).mean())
n, g = r * x, weight * dy
taken = n * (g * n).mean()
print("n", n, " g", g, " taken away", taken, " dx", r * (g - taken))
print("slopes", slopes(lambda x: (dy * rms_norm(x, weight, 0.0)).sum(), x))
plots.norm_plane(n, g, g - taken)

# %% [markdown]
# All rows of two numbers come out on one circle, however long they were
# ($\epsilon$ is 0 in this picture). So there is nothing to be won by
# making $x$ longer or shorter, and the second term takes exactly that
# part out of $g$. Forget it, and the gradient still looks plausible.

# %% [markdown] exercise="backward.rms_norm"
# Write the backward pass of RMSNorm for `T` rows. Return the gradients
# by name, as all backward passes of this lesson do.

# %% exercise="backward.rms_norm"
def rms_norm_backward(
    dy: np.ndarray, x: np.ndarray, weight: np.ndarray, eps: float
) -> dict[str, np.ndarray]:
    """Backward of y = weight x / sqrt(mean(x^2) + eps), row by row.

    dy, x: (T, D); weight: (D,). Returns {"x": (T, D), "weight": (D,)}.
    """
    r = 1 / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps)
    n, g = r * x, dy * weight
    dx = r * (g - n * (g * n).mean(axis=-1, keepdims=True))
    return {"x": dx, "weight": (dy * n).sum(axis=0)}

# %% [markdown] hints="backward.rms_norm"
# Compute r and n again as the forward pass did, with its eps. Which axis
# does each mean run over, and which axis does the weight's sum run over?
#
# ---
#
# `keepdims=True` keeps a mean of the rows as (T, 1), so that it meets its
# own row in a product. The weight is shared by all rows: its gradient is
# a sum over them.
#
# ---
#
# With g = weight dy, everything of dx is in the last formula above: g,
# less n times the mean of g n, all of it times r.
#
# ---
#
# Four lines: r, then n and g, then the two gradients.

# %% [markdown]
# The engine's own, PyTorch's and the slopes, on three tokens of the
# trained model:

# %%
x, weight = kept["x"][0, 20:23], kept["weight"]
dy = rng.normal(size=x.shape)
dx, own = norm.backward(dy, norm.forward(x, weight, eps)[1])
right = slopes(lambda x: (dy * rms_norm(x, weight, eps)).sum(), x)
agree("engine - slopes", [dx], [right], 1e-6)
agree("engine - torch", (dx, own["weight"]), autograd(
    lambda x, w: F.rms_norm(x, w.shape, w, eps), dy, x, weight))

# %% [markdown]
# ## 3. Softmax attention
#
# One causal head, as in lesson 01, with $c = 1/\sqrt d$ (K2's is larger
# by a factor, see lesson 04; nothing else changes):
#
# $$S = c\, q k^\top \text{ with the mask}, \qquad
#   P = \mathrm{softmax}(S) \text{ by rows}, \qquad y = P v.$$
#
# The last step is a product again, of $P$ and $v$: $dv = P^\top dy$ and
# $dP = dy\, v^\top$. Value $n$ collects from all tokens that looked at
# it, each as much as it looked.
#
# The softmax: a weight $p_i = e^{s_i} / \sum_j e^{s_j}$ grows with its
# own score, and falls when another's grows:
# $\partial p_i / \partial s_j = p_i\, (\delta_{ij} - p_j)$, where
# $\delta_{ij}$ is 1 for $i = j$ and else 0. So, for one row,
#
# $$ds_j = \sum_i dp_i\, p_i\, (\delta_{ij} - p_j)
#        = p_j \Big( dp_j - \sum_i p_i\, dp_i \Big).$$
#
# Training goes against $ds$. So it pushes a score up where looking there
# is better for the loss than what the row has on average now. Masked
# scores have $p = 0$ and get nothing. The scores are a product once more:
# $dq = c\, dS\, k$ and $dk = c\, dS^\top q$.
#
# In numbers, for three tokens:

# %%
def causal(q, k, v, c):
    scores = np.where(np.tri(len(q), dtype=bool), c * q @ k.T, -np.inf)
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    weights = powers / powers.sum(-1, keepdims=True)
    return weights @ v, weights


q, k, v, dy = rng.normal(size=(4, 3, 2))
_, P = causal(q, k, v, 2**-0.5)
dP = dy @ v.T
dS = P * (dP - (P * dP).sum(-1, keepdims=True))
print("P\n", P, "\ndP\n", dP, "\ndS\n", dS)

# %% [markdown]
# Now a real one. From the loss down to the last layer's attention it is
# five steps, each a function of the engine. (The loss itself is a softmax
# too: the gradient of the logits is *probability minus 1* at the token
# that came, and the probability everywhere else.)

# %%
last, below, final = cfg.num_hidden_layers - 1, *saved[-2:]
d = loss.backward(1.0, saved_loss) @ model.head  # logits = x headᵀ
d, _ = norm.backward(d, final["norm"])
inner, _ = moe.backward(d, below["mlp"])
inner, _ = norm.backward(inner, below["post_attention_layernorm"])
d = d + inner  # x went around the experts and through them
d = d @ model.layers[last]["self_attn"]["o_proj.weight"]
d = d.reshape(*tokens.shape, cfg.num_attention_heads, cfg.v_head_dim)[0]

# %% [markdown]
# That is $dy$ for all heads of the last layer. We look at the head of
# which the loss asks most, and at its first 14 tokens.

# %%
keys = below["self_attn"]["attention"]
c = keys["scale"]
pick = int(np.abs(d).max(axis=(0, 2)).argmax())
q, k, v = (keys[name][0, :, pick] for name in "qkv")
P, dP = causal(q, k, v, c)[1], d[:, pick] @ v.T
dS = P * (dP - (P * dP).sum(-1, keepdims=True))
plots.attention(text[:14], *(a[:14, :14] for a in (P, dP, dS)))

# %% [markdown]
# Green is below zero, purple above, and a purple score makes the loss
# grow: training lowers purple scores and raises green ones.

# %% [markdown] exercise="backward.attention"
# Write the backward pass of one causal head with the scale $1/\sqrt d$.
# You are given what went in, and have to form $P$ again. (The engine does
# that too: to keep it would cost T × T numbers a head.)

# %% exercise="backward.attention"
def attention_backward(
    dy: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray
) -> dict[str, np.ndarray]:
    """Backward of y = softmax(q k^T / sqrt(d), causal) v.

    dy, v: (T, V); q, k: (T, d). Returns {"q", "k", "v"}, as q, k, v.
    """
    c = q.shape[-1] ** -0.5
    scores = np.where(np.tri(len(q), dtype=bool), c * q @ k.T, -np.inf)
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    P = powers / powers.sum(axis=-1, keepdims=True)
    dP = dy @ v.T
    dS = c * P * (dP - (P * dP).sum(axis=-1, keepdims=True))
    return {"q": dS @ k, "k": dS.T @ q, "v": P.T @ dy}

# %% [markdown] hints="backward.attention"
# First the forward pass up to P, with scale and mask, as in lesson 01.
# Then go back from y: which two gradients does the product P v give?
#
# ---
#
# `P.T @ dy` is dv and `dy @ v.T` is dP. The softmax takes dP to
# `P * (dP - ...)`, where the dots are one number a row.
#
# ---
#
# That number is the row's sum of P dP, with `keepdims=True`. Then the
# scale, once. Query m is row m of dS, key n is column n of it: one of
# dq and dk has a transpose, and square matrices will not tell you which.
#
# ---
#
# Three lines to form P again, and one line for each of dP, dS and the
# three results.

# %% [markdown]
# The engine's, PyTorch's fused kernel, and the slopes by all queries:

# %%
dy = rng.normal(size=v.shape)
_, kept = attention.forward(*(a[None, :, None] for a in (q, k, v)), c)
ours = [g[0, :, 0] for g in attention.backward(dy[None, :, None], kept)]
agree("engine - slopes", ours[:1], [
    slopes(lambda q: (dy * causal(q, k, v, c)[0]).sum(), q)], 1e-6)
agree("engine - torch", ours, autograd(
    lambda *qkv: F.scaled_dot_product_attention(
        *(a[None] for a in qkv), is_causal=True, scale=c)[0], dy, q, k, v))

# %% [markdown]
# ### What is left of MLA
#
# Around the heads MLA has products and norms, which you have, rotations,
# and one thing more: it uses numbers twice. One rotary key serves all
# heads, and one latent makes the keys *and* the values of all heads.
#
# - A rotation turned forward is turned **back**: its gradient is the
#   rotation by the opposite angle, as $\Omega^{-1} = \Omega^\top$.
# - What was **copied** forward is **summed** backward. If $y_1 = x$ and
#   $y_2 = x$, then $dx = dy_1 + dy_2$. You met it in $dW$, which sums
#   over tokens, and in $d$ + `inner` above.
#
# `mla.backward` is these pieces in a row, about twenty lines; the sum over
# heads stands there as `dk[..., nope:].sum(axis=2)`. Section 6 holds all
# of it against PyTorch.
#
# ## 4. An expert, and the router
#
# **An expert** makes $y = W_d\, h$ of $h = \mathrm{silu}(a) \cdot u$,
# with $a = W_g x$, $u = W_u x$ (its `gate_proj`, `up_proj`, `down_proj`).
# The $\mathrm{silu}$ is $a\,\sigma(a)$ with
# $\sigma(a) = 1/(1 + e^{-a})$. And $\sigma' = \sigma (1 - \sigma)$, so
#
# $$\mathrm{silu}'(a) = \sigma + a\,\sigma (1 - \sigma), \qquad
#   du = dh \cdot \mathrm{silu}(a), \qquad
#   da = dh \cdot u \cdot \mathrm{silu}'(a).$$
#
# The rest is three products. Against the engine's `ffn.backward` (and
# in section 6, with all else of a layer, against autograd):

# %%
mlp = model.layers[1]["mlp"]
own = mlp["shared_experts"]
x = saved[1]["mlp"]["router"]["x"][:5]
dy = rng.normal(size=x.shape)
gate, up, down = (own[f"{n}_proj.weight"] for n in ("gate", "up", "down"))
a, u = x @ gate.T, x @ up.T
sigma = 1 / (1 + np.exp(-a))
du = dy @ down * a * sigma
da = dy @ down * u * (sigma + a * sigma * (1 - sigma))
ours = (da @ gate + du @ up, da.T @ x, du.T @ x, dy.T @ (a * sigma * u))

dx, grads = ffn.backward(dy, ffn.forward(x, own)[1])
agree("by hand - engine", ours, (dx, *grads.values()))

# %% [markdown]
# A routed expert's output is multiplied with its token's weight $w_k$, so
# it is given $w_k\, dy$; and the weight is given one number,
# $dw_k = dy \cdot y_k$: did this expert push the right way?
#
# **The router**, with $s$ the sigmoid of the logits $l = x W^\top$ and
# $\kappa$ the `routed_scaling_factor`, makes
# $w_k = \kappa\, s_k / \sum_j s_j$. The sum runs over the $K$ chosen
# experts. Each chosen score stands above the line once and below it in
# all $K$ weights:
#
# $$ds_k = \frac{\kappa}{\sum_j s_j}
#   \Big( dw_k - \sum_i dw_i \frac{s_i}{\sum_j s_j} \Big), \qquad
#   dl_k = ds_k\, s_k (1 - s_k).$$
#
# It is the softmax's pattern: only an expert that did better than the
# token's average gains. Experts that were not chosen get
# exactly 0. And the correction bias, which had its say in the choice,
# stands in no formula here.

# %% [markdown] exercise="backward.router"
# Write the router's backward pass. Column $k$ of `dweights` is about the
# experts in column $k$ of `indices`, which are in no particular order, and
# `scale` is $\kappa$. The bias, which the choice added to the scores, is
# there because the forward pass had it.

# %% exercise="backward.router"
def router_backward(
    dweights: np.ndarray, x: np.ndarray, weight: np.ndarray,
    bias: np.ndarray, indices: np.ndarray, scale: float,
) -> dict[str, np.ndarray]:
    """Backward of scale * s / (sum of the chosen s), s = sigmoid(x W^T).

    dweights, indices: (T, K); x: (T, D); weight: W, (E, D); bias: (E,).
    Returns {"x": (T, D), "weight": (E, D)}.
    """
    scores = 1 / (1 + np.exp(-x @ weight.T))
    chosen = np.take_along_axis(scores, indices, axis=1)
    shares = chosen / chosen.sum(axis=1, keepdims=True)
    mean = (dweights * shares).sum(axis=1, keepdims=True)
    dchosen = scale * (dweights - mean) / chosen.sum(axis=1, keepdims=True)
    dlogits = np.zeros_like(scores)
    np.put_along_axis(dlogits, indices, dchosen * chosen * (1 - chosen), 1)
    return {"x": dlogits @ weight, "weight": dlogits.T @ x}

# %% [markdown] hints="backward.router"
# Form the scores again. Then take, for every token, its K chosen ones as
# a (T, K) array: everything up to dl can be done in that shape.
#
# ---
#
# `np.take_along_axis(scores, indices, axis=1)` takes them, and
# `np.put_along_axis(dlogits, indices, values, axis=1)` puts numbers back
# into a (T, E) array of zeros. Neither minds the order.
#
# ---
#
# In the mean, the shares sum to 1: the scale stands in front of it all,
# once. The logits were a product with W: dx = dl W, dW = dlᵀ x.
#
# ---
#
# Scores, chosen ones, shares; the mean of dweights under the shares; the
# two factors; zeros with K numbers a row put in; two products. The bias
# is not used.

# %% [markdown]
# The engine's router and PyTorch's autograd, on all tokens of the text,
# with the biases that training has left:

# %%
kept = saved[1]["mlp"]["router"]
bias = torch.tensor(mlp["gate.e_score_correction_bias"],
                    requires_grad=True)
dweights = rng.normal(size=kept["weights"].shape)
dx, own = router.backward(dweights, kept)


def route(x, weight):
    scores = (x @ weight.T).sigmoid()
    chosen = (scores + bias).topk(cfg.num_experts_per_tok).indices
    share = scores.gather(1, chosen)
    return cfg.routed_scaling_factor * share / share.sum(-1, keepdim=True)


agree("engine - torch", (dx, own["weight"]),
      autograd(route, dweights, kept["x"], mlp["gate.weight"]))
print("the bias's gradient in torch:", bias.grad)

# %% [markdown]
# `None`: autograd does not find a way from the loss to the bias. `topk`
# gave it indices, and whole numbers have no slope.
#
# ## 5. Where there is no slope
#
# Two experts whose biased scores are equal stand at a **tie**. Move one
# of them up a little, and the other one is replaced as a whole: the loss
# jumps. To see it we take the last layer, where one token's loss hangs on
# its own experts alone, and the expert that just missed being chosen for
# it. (The cell picks the token whose jump and slope are both easy to
# see.) A multiple of the token's own vector, added to that expert's row of
# `gate.weight`, moves its logit and nothing else.
#
# `end` is the end of the model, from the last experts to the loss, and
# back to the gate; `move` shifts one expert's logit for one token.

# %%
below, mlp = saved[last], model.layers[last]["mlp"]
seen = below["mlp"]["router"]["x"]  # (T, D), what the experts are given
around = below["post_attention_layernorm"]["x"]
gate, bias = mlp["gate.weight"], mlp["gate.e_score_correction_bias"]
gain = model.weights["model.norm.weight"]


def end(own, changed):
    y, experts = moe.forward(seen[None, own], mlp | changed, cfg)
    z, normed = norm.forward(around[:, own] + y, gain, eps)
    value, kept = loss.forward(z @ model.head.T, targets[:, own], cfg)
    d, _ = norm.backward(loss.backward(1.0, kept) @ model.head, normed)
    return value, moe.backward(d, experts)[1]["gate.weight"]


def move(token, expert, shift):
    own = np.arange(len(gate)) == expert
    along = np.outer(own, seen[token] / (seen[token] @ seen[token]))
    value, grad = end([token], {"gate.weight": gate + shift * along})
    return value, (grad * along).sum()


scores, ties = below["mlp"]["router"]["scores"], []
for token, row in enumerate(np.argsort(-(scores + bias), axis=1)):
    weakest, missed = row[cfg.num_experts_per_tok - 1:][:2]
    needed = scores[token, weakest] + bias[weakest] - bias[missed]
    if 0.01 < needed < 0.99:  # otherwise no logit reaches the tie
        at = np.log(needed / (1 - needed)) - seen[token] @ gate[missed]
        a, b, c = (move(token, missed, at + s)[0] for s in (-1e-9, 1e-9, 1))
        ties.append((min(abs(b - a), 2 * abs(c - b)), token, missed, at))
_, token, missed, at = max(ties)

# %%
shifts = np.linspace(-1.5, 1.5, 300)
losses = np.array([move(token, missed, at + s)[0] for s in shifts])
tangents = [(s, *move(token, missed, at + s)) for s in (-0.8, 0.3, 1.1)]
one, places = np.arange(len(bias)) == missed, np.linspace(-0.3, 0.3, 241)
staircase = np.array([end(slice(None), {
    "gate.e_score_correction_bias": bias + s * one})[0] for s in places])
plots.tie(shifts, losses, tangents, places, staircase)

# %% [markdown]
# Left of the tie the expert is not chosen: the loss is flat in its logit,
# and the gradient says 0. Right of it the gradient says how this expert's
# weight should change. Both are right, each on its side, and central
# differences confirm them. At the tie itself they find no slope, but the
# jump divided by an ever smaller step, $10^{-2}$, $10^{-4}$, $10^{-6}$.

# %%
def difference(shift, h=1e-5):
    up, down = (move(token, missed, at + shift + s)[0] for s in (h, -h))
    return (up - down) / (2 * h)


for shift, _, slope in tangents:
    agree(f"slope {slope:+.6f}", [slope], [difference(shift)], 1e-6)
print("at the tie:", *(f"{difference(0, 10**-n):,.0f}" for n in (2, 4, 6)))

# %% [markdown]
# The right half of the figure is the same for the correction bias. It
# acts through the choice alone, so everything between its jumps is flat:
# its gradient is not small, or noisy, or approximated. It is 0 wherever
# it exists.
#
# So a router learns how much, and never whom. Gradients make a chosen
# expert's score rise or fall until another one overtakes it, and nothing
# told them that this was near. That is why the bias needs a rule of its
# own, the one of lesson 05, which counts tokens and asks no gradient.
#
# ## 6. All of it
#
# A layer is two halves, $x + \mathrm{attention}(\mathrm{norm}(x))$ and
# $x + \mathrm{experts}(\mathrm{norm}(x))$. In each, $x$ was copied, so
# two gradients are summed. Here is the backward pass of a whole layer
# with experts, of functions that you know. (Norms and shared expert are
# left to the comparison after this one.)

# %%
def layer_backward(dy, kept):
    d, experts = moe.backward(dy, kept["mlp"])
    dy = dy + norm.backward(d, kept["post_attention_layernorm"])[0]
    d, heads = mla.backward(dy, kept["self_attn"])
    dx = dy + norm.backward(d, kept["input_layernorm"])[0]
    return dx, {"mlp": experts, "self_attn": heads}


folder = tempfile.TemporaryDirectory()
model.save_pretrained(folder.name)
twin = pytorch.Model.from_pretrained(folder.name, dtype=torch.float64)
layer = twin.model.layers[1]
turn = pytorch.rope.table(cfg, torch.arange(tokens.size), torch.float64)
dy = rng.normal(size=(*tokens.shape, cfg.hidden_size))
dx, parts = layer_backward(dy, saved[1])
agree("dx", [dx], autograd(lambda x: layer(x, *turn), dy,
                           saved[1]["input_layernorm"]["x"]), 1e-10)
for part, own in parts.items():
    for name, p in getattr(layer, part).named_parameters():
        if name in own:
            agree(name, [own[name]], [p.grad.numpy()], 1e-10)

# %% [markdown]
# The whole model is `loss_and_grads`: loss and head, the layers from the
# last to the first, and the embedding, which collects at each row what
# all uses of that byte say.
#
# We hold it against two others that find their gradients by themselves:
# this course's PyTorch engine, through autograd, and transformers, whose
# DeepseekV3 nobody here wrote.
#
# transformers computes a few things in float32 even in a float64 model.
# For this comparison its files see a torch whose float32 is float64,
# until the notebook is restarted; nothing else of them is changed. (It
# stacks experts as our twin does, so the twin takes over its gradients
# and shows them one by one.)

# %%
_, grads = model.loss_and_grads(tokens, targets)
others = {"autograd": twin.loss_and_grads(tokens, targets)[1]}
try:
    import transformers
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as v3
except ImportError:
    print("transformers is not installed here; make test installs it")
else:
    transformers.logging.disable_progress_bar()
    double = {"float32": torch.float64, "float": torch.float64}
    v3.torch = types.SimpleNamespace(**vars(torch) | double)
    transformers.modeling_rope_utils.torch = v3.torch
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder.name, dtype=torch.float64, attn_implementation="eager")
    theirs.set_experts_implementation("eager")
    F.cross_entropy(theirs(torch.from_numpy(tokens)).logits[0],
                    torch.from_numpy(targets[0])).backward()
    twin.load_state_dict(
        {n: p.grad for n, p in theirs.named_parameters()}, strict=False)
    others["transformers"] = twin.weights

errors = {whom: {name: off(g, theirs[name].detach().numpy())
                 for name, g in grads.items()}
          for whom, theirs in others.items()}
assert max(max(own.values()) for own in errors.values()) < 1e-9
plots.agreement(errors)

# %% [markdown]
# ## In K2
#
# Everything below is computed from K2's published configuration.

# %%
k2 = minik2.ModelConfig.preset("kimi-k2")
numbers = sum(np.prod(shape) for name, shape in k2.tensors()
              if "correction_bias" not in name)
print(f"{numbers:,} numbers with a gradient")
for mode in ("none", "selective", "full"):
    kept = minik2.sizing.activations(k2, 4096, recompute=mode).bytes / 1e9
    print(f"kept for the way back, recomputing {mode}: {kept:.1f} GB")

# %% [markdown]
# <div class="alert alert-info">
#
# **In K2** the way back costs two products for each one forward, dx and
# dW, and it needs what the way forward has seen. K2's report (§2.4) says
# what is not kept but computed again: norms, SwiGLU, MLA's
# up-projections and the experts' down-projections; the inputs of the
# experts' up-projections and of SwiGLU are kept in 8 bits. That is
# *selective* above, in our count for one sequence of 4,096 tokens; the
# report gives no figure of its own.
#
# </div>

# %% [markdown]
# ## On the back of an envelope
#
# Central differences would train a model, too: two forward passes for
# each parameter give the whole gradient. Suppose that a cluster takes one
# second for K2's forward pass over a batch. How long for one gradient by
# differences, and how long by a backward pass? Answer to a power of ten
# before you look.
#
# <details><summary>Answer</summary>
#
# $10^{12}$ parameters, two passes each: $2 \cdot 10^{12}$ seconds, and a
# year has $3 \cdot 10^7$ of them. **About 65,000 years, against two
# seconds.** A backward pass costs two forward passes whatever the number
# of parameters is. That one fact is why there are large models at all.
# The cell below does the arithmetic.
#
# </details>

# %%
print(f"{2 * numbers / (365.25 * 24 * 3600):,.0f} years")

# %% [markdown]
# <div class="alert alert-success">
#
# **Takeaway.** Every part turns $dy$ into $dx$ and $dW$; products give
# products, copies give sums, and what was normalised has the mean taken
# out again. A gradient is a claim about slopes: check it in float64 with
# a step near $\sqrt[3]{\varepsilon}$. It says nothing of jumps, so a
# router learns how much, and never whom.
#
# </div>
#
# ## Sources
#
# - The way back as such: Rumelhart, Hinton and Williams, *Learning
#   representations by back-propagating errors*, Nature 323, 1986.
# - RMSNorm: Zhang and Sennrich, arXiv 1910.07467, §4. SwiGLU: Shazeer,
#   arXiv 2002.05202, §2.
# - Forming attention's weights again instead of keeping them: Dao et al.,
#   *FlashAttention*, arXiv 2205.14135, §3.1 and appendix B.
# - The router and its bias: DeepSeek-V3, arXiv 2412.19437, §2.1.2, eq. 12
#   to 16. What K2 keeps for the way back: *Kimi K2*, arXiv 2507.20534,
#   §2.4.
# - The best step of a difference: Press et al., *Numerical Recipes*, §5.7
#   ("Numerical Derivatives").
#
# **Next:** lesson 08 takes these gradients and makes steps of them: Muon.
