# %% [markdown]
# # 04 · Long context: YaRN
#
# *About 55 minutes. Computing takes half a minute on any laptop.*
#
# K2 was trained on pieces of 4,096 tokens for most of its life, and it
# reads 131,072. What had to change in the model for that are 12 numbers
# of its rotation, and one factor before the softmax.
#
# **After this lesson you can**
#
# - say which of K2's rotary pairs come to angles that training never
#   showed, and why the others do not;
# - name the price of doing nothing, and that of slowing every pair;
# - compute YaRN's boundaries, its frequencies and its softmax scale from
#   any `config.json`, and see why K2's ramp is a hard step;
# - stretch a trained model to eight times its window without training,
#   and measure what that did to it.

# %% role="setup"
import math

import numpy as np

from minik2.checks import check

np.set_printoptions(precision=4, suppress=True)

# %%
import os
import sys
import tempfile
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import torch
import torch.nn.functional as F
from tqdm import tqdm

import minik2
from minik2 import pytorch
from minik2.config import RopeScaling
from minik2.plots import lesson04 as plots
from minik2.plots.model_map import model_map
from minik2.reference import rope
from minik2.training import lesson_model
from minik2.training.corpus import Corpus

rng = np.random.default_rng(4)
k2, v3 = map(minik2.ModelConfig.preset, ("kimi-k2", "deepseek-v3"))


def error(a, b):
    """Largest difference of two arrays, as a share of the largest b."""
    return float(np.abs(np.asarray(a) - b).max() / np.abs(b).max())

# %% [markdown]
# ## What you have, and what you will add
#
# From lesson 01 you have rotary positions, from lesson 02 a head whose
# numbers are N without position and R that turn. Today you change the
# speeds at which they turn, and the scale before the softmax.
#
# In answers you may use NumPy, `math`, your other answers, and what is
# defined for it in section 1: `toy` and `plain_frequencies`.

# %%
model_map(["rope", "attention"], "Today: slower clocks, a sharper softmax")

# %% [markdown]
# ## 1. What 4,096 tokens show, and what they do not
#
# Pair $i$ of a rotary vector is a clock hand. Its speed, in radians a
# token, is $\omega_i = \theta^{-2i/R}$, with $R$ the number of rotary
# numbers and $\theta$ the config's `rope_theta`. It goes round once in
# $2\pi / \omega_i$ tokens, its *wavelength*. A score feels the angle
# $d\,\omega_i$, where $d$ is how many tokens back the key stands.
#
# In training, $d$ went from 0 to $L - 1$, with $L$ the context. A fast
# hand has shown every angle then. A slow one, whose wavelength is longer
# than the context, has shown an arc only.
#
# The smallest case: four pairs, trained on 16 tokens, asked for 64. A
# config says it like this; the keys of `rope_scaling` you will need one
# by one.

# %% role="setup"
toy = {
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "rope_theta": 100.0,
    "max_position_embeddings": 64, "rope_scaling": {
        "original_max_position_embeddings": 16, "factor": 4.0,
        "beta_fast": 1.0, "beta_slow": 1.0,
        "mscale": 1.0, "mscale_all_dim": 1.0}}


def plain_frequencies(config):
    """Radians a token of each pair before YaRN: (R/2,), from lesson 01."""
    size = config["qk_rope_head_dim"]
    return config["rope_theta"] ** (-np.arange(0, size, 2) / size)

# %%
plain_toy = plain_frequencies(toy)
print("wavelengths, tokens ", 2 * np.pi / plain_toy)
print("turns in 16 tokens  ", 16 * plain_toy / (2 * np.pi))
print("turns in 64 tokens  ", 64 * plain_toy / (2 * np.pi))

# %% [markdown]
# Pair 0 went round more than twice in training: at 64 tokens it has
# nothing new to show. The other three made less than one turn, and all
# three come to angles that the model never saw. What its weights make of
# these, nobody has told them.
#
# The same for K2, for seven of its 32 pairs:

# %%
trained = k2.rope_scaling.original_max_position_embeddings
served = k2.max_position_embeddings
plain = rope.inverse_frequencies(k2.replace(rope_scaling=None))
pairs = [0, 10, 19, 20, 22, 25, 31]
plots.angles({"unchanged": plain}, plain, trained, served, pairs)

# %% [markdown]
# ## 2. Two simple ways, and their prices
#
# **Do nothing.** Then the slow pairs go where they never were.
#
# **Divide all positions by 32**, so that 131,072 becomes 4,096. It is
# called *position interpolation*, and no pair sees a new angle. But two
# neighbours, one radian apart on pair 0 until now, are 1/32 apart.
#
# Both prices can be measured without a model. Near by: the head of lesson
# 01 that looks one token back, its query and key made of rotation alone.
# How much less does it like two tokens back, or the token itself? Far
# away: 200 random queries and keys, and of their scores the part that
# comes from the pairs with less than one turn in training. In training
# each of these scores moved within some range. Where is it at a distance
# of $d$?

# %%
far = np.unique(np.geomspace(1, served, 100).astype(int))
slow_pairs = plain * trained < 2 * np.pi
q, k = rng.normal(size=(2, 200, len(plain), 2)) @ [1, 1j]
partial = (q * k.conj())[:, slow_pairs]  # a pair as one complex number


def look_back(frequencies):
    """Scores at 0 to 8 tokens back, for a head that wants 1."""
    return np.cos(np.outer(np.arange(9) - 1, frequencies)).mean(1)


def slow_scores(distances, frequencies):
    """(distances, 200): the slow pairs' part of random scores."""
    turned = np.exp(1j * np.outer(distances, frequencies[slow_pairs]))
    return (turned @ partial.T).real


in_training = slow_scores(np.arange(0, trained + 1, 4), plain)
least, most = in_training.min(0), in_training.max(0)


def outside(frequencies):
    """Share of the 200 that left their range by over 1% of it."""
    scores, room = slow_scores(far, frequencies), 0.01 * (most - least)
    return ((scores < least - room) | (scores > most + room)).mean(1)


ways = {"unchanged": plain, "all divided": plain / k2.rope_scaling.factor}
plots.prices({name: look_back(w) for name, w in ways.items()}, far,
             {name: outside(w) for name, w in ways.items()}, trained)

# %% [markdown]
# Beyond 4,096 tokens more than half of these scores leave the range that
# they had in training, where pairs are unchanged. Where all are divided
# none does, but the head that wanted the token before can no longer tell
# it from those around it.
#
# Yet the two prices are paid by different pairs. It is the *fast* ones
# that tell neighbours apart, and they have seen all angles. It is the
# *slow* ones that come to new angles, and neighbours hardly move them.

# %% [markdown]
# ## 3. Which pairs are slow?
#
# YaRN counts turns. Within a context of $L$ tokens pair $i$ makes
# $L\,\omega_i / 2\pi$ of them. Set that to $\beta$ and solve for $i$:
#
# $$i(\beta) = \frac{R\,\ln\!\big(L / (2\pi\beta)\big)}{2 \ln\theta}$$
#
# A pair with more than `beta_fast` turns keeps its speed; one with fewer
# than `beta_slow` is divided by `factor`. The two places are rounded away
# from each other to whole pairs, and kept within the vector:
#
# $$\mathrm{low} = \max\big(\lfloor i(\beta_\mathrm{fast})\rfloor,
#   0\big), \qquad
#   \mathrm{high} = \min\big(\lceil i(\beta_\mathrm{slow})\rceil,
#   R - 1\big)$$
#
# $L$ is `original_max_position_embeddings`, the context before. ($R - 1$
# is what the released code says, though the last pair is $R/2 - 1$. In no
# released model is `high` that large, so we keep to the code.)

# %% [markdown] exercise="yarn.boundary_pairs"
# Compute `low` and `high` from a config such as `toy`, and return both.

# %% exercise="yarn.boundary_pairs"
def boundary_pairs(config: dict) -> np.ndarray:
    """The pairs between which YaRN's ramp rises.

    config: the keys of a config.json that `toy` has. Returns (2,) of
    int: low, up to which pairs keep their speed, and high, from which
    on they are divided; 0 <= low, and high <= R - 1.
    """
    yarn, size = config["rope_scaling"], config["qk_rope_head_dim"]
    context = yarn["original_max_position_embeddings"]

    def place(turns):
        tokens = context / turns  # that one turn takes
        return (size * math.log(tokens / (2 * math.pi))
                / (2 * math.log(config["rope_theta"])))

    low = max(math.floor(place(yarn["beta_fast"])), 0)
    high = min(math.ceil(place(yarn["beta_slow"])), size - 1)
    return np.array([low, high])

# %% [markdown] hints="yarn.boundary_pairs"
# Everything is in the config. Which of its two context lengths decides
# what the pairs have shown in training? And which of the two betas
# belongs to the lower pair number?
#
# ---
#
# Write a helper `place(turns)` for the formula: the logarithm of the
# context over `2 * math.pi * turns`, times R, over twice the logarithm of
# `rope_theta`. For `toy` it gives 0.81.
#
# ---
#
# `math.floor` and `math.ceil` round down and up, after the helper and
# before the clamps. `max(..., 0)` for the low one, `min(..., R - 1)` for
# the high one, with R = `config["qk_rope_head_dim"]`.
#
# ---
#
# One helper for the formula, called with each of the betas; then round
# outwards and clamp.

# %%
assumed = k2.replace(rope_scaling=replace(k2.rope_scaling, beta_fast=32.0))
configs = {"Kimi K2": k2, "DeepSeek-V3": v3, "K2, 32 assumed": assumed}
for name, cfg in configs.items():
    low, high = rope.yarn_boundaries(cfg, cfg.rope_scaling)
    print(f"{name:<14} beta_fast {cfg.rope_scaling.beta_fast:>2g}: "
          f"low {low}, high {high}")

# %% [markdown]
# DeepSeek-V3 has the YaRN paper's 32 and 1, and a ramp of 13 steps. K2
# has 1 and 1: both places are the same, 19.2, and only the rounding makes
# two pairs of it. Nothing lies between 19 and 20.
#
# The last line is what a library does to K2 that takes the default of 32
# for granted: it slows pairs 9 to 19, which K2 keeps. No shape is wrong,
# nothing fails. So read the betas from the file, and assume none.

# %% [markdown]
# ## 4. The ramp
#
# Between the boundaries the two speeds are blended:
#
# $$\omega'_i = (1 - r_i)\,\omega_i + r_i\,\frac{\omega_i}{s},
#   \qquad r_i = \mathrm{clip}\!\left(
#   \frac{i - \mathrm{low}}{\mathrm{high} - \mathrm{low}}, 0, 1\right)$$
#
# with $s$ the config's `factor`. Where `low` and `high` are the same
# pair, the width is taken as 0.001, so that nothing is divided by zero.
# On four pairs, whose boundaries are 0 and 1:

# %%
ramp = np.clip((np.arange(4) - 0) / (1 - 0), 0, 1)  # 0, 1, 1, 1
stretched = (1 - ramp) * plain_toy + ramp * plain_toy / 4
print("angle at 16, before", 16 * plain_toy)
print("angle at 64, now   ", 64 * stretched)

# %% [markdown]
# The three slow pairs stand at 64 tokens exactly where they stood at 16.
# Pair 0 has gone on round its circle.

# %% [markdown] exercise="yarn.inverse_frequencies"
# Write the speeds of all pairs under YaRN, for any config. You may use
# your `boundary_pairs`, and `plain_frequencies` from section 1.

# %% exercise="yarn.inverse_frequencies"
def inverse_frequencies(config: dict) -> np.ndarray:
    """Radians a token of each rotary pair under YaRN: (R/2,).

    config: the keys of a config.json that `toy` has. Up to pair low
    theta^(-2i/R), from pair high on that over `factor`, and a linear
    blend between; a width of 0 is taken as 0.001.
    """
    size, yarn = config["qk_rope_head_dim"], config["rope_scaling"]
    plain = config["rope_theta"] ** (-np.arange(0, size, 2) / size)
    turns = yarn["original_max_position_embeddings"] / (2 * np.pi)
    low, high = (
        size / 2 * np.log(turns / yarn[beta]) / np.log(config["rope_theta"])
        for beta in ("beta_fast", "beta_slow")
    )
    low, high = max(np.floor(low), 0), min(np.ceil(high), size - 1)
    pair, width = np.arange(size // 2), high - low or 0.001
    ramp = np.clip((pair - low) / width, 0, 1)
    return plain * (1 - ramp) + plain / yarn["factor"] * ramp

# %% [markdown] hints="yarn.inverse_frequencies"
# Three arrays of R/2 numbers each: the old speeds, the old speeds over
# the factor, and the ramp that says how much of which.
#
# ---
#
# The ramp counts *pairs*: `np.arange(R // 2)`. It is 0 for the fast
# pairs, which come first, and `np.clip(..., 0, 1)` holds its ends.
#
# ---
#
# `width = high - low or 0.001` gives 0.001 where the difference is 0. The
# result is `plain * (1 - ramp) + plain / factor * ramp`.
#
# ---
#
# Boundaries, ramp, blend. Here the boundaries are computed on the spot;
# with `low, high = boundary_pairs(config)` it is four lines.

# %%
plain_v3 = rope.inverse_frequencies(v3.replace(rope_scaling=None))
k2_now, v3_now = (rope.inverse_frequencies(c) for c in (k2, v3))
plots.ramps({"Kimi K2": (plain, k2_now), "DeepSeek-V3": (plain_v3, v3_now)},
            trained)

# %% [markdown]
# K2's rule can be said in one sentence: *who has been round the circle is
# left alone; who has not is slowed by 32, and at 131,072 tokens stands
# where it stood at 4,096.*

# %%
plots.angles({"unchanged": plain, "YaRN": k2_now}, plain, trained, served,
             pairs)

# %% [markdown]
# With all pairs divided the faces would look like the lower row, too: a
# face is full, whether its pair makes 650 turns or 20,000. What YaRN keeps
# and that way loses is near by.

# %%
ways["YaRN"] = k2_now
plots.prices({name: look_back(w) for name, w in ways.items()}, far,
             {name: outside(w) for name, w in ways.items()}, trained)

# %% [markdown]
# YaRN keeps the peak of the one and the range of the other. These are
# angles and random vectors, no trained model; section 6 has one.

# %% [markdown]
# ## 5. A sharper softmax
#
# The angles are old ones now, but something else is new: a query chooses
# among 32 times as many keys. Let one key fit with a score of 6, and all
# others be noise, normal random scores. Each noise key takes little, and
# there are many of them.
#
# YaRN's answer is to multiply every score by $m^2$, with
#
# $$m = 0.1\,a \ln s + 1$$
#
# where $s$ is `factor` and $a$ a strength, `mscale_all_dim`, 1 in K2. (It
# is squared because $m$ belongs to the query and once more to the key.)
# The form and the 0.1 are no theorem: they were *fitted*, by the paper's
# authors, to the perplexity of LLaMA models.

# %%
keys = np.geomspace(trained, served, 6).astype(int)
noise = rng.normal(size=served)


def weight(fit, count, times):
    """Softmax weight of a key of score `fit` among `count` of noise."""
    others = np.exp(times * (noise[:count] - fit)).sum()
    return 1 / (1 + others)


def grown(factor, strength=1.0):
    """m squared."""
    return (0.1 * strength * math.log(factor) + 1) ** 2


hot = [weight(6, n, grown(n / trained)) for n in keys]
cold = [weight(6, n, 1) for n in keys]
models = {}
for name in ("kimi-k2", "deepseek-v3", "deepseek-v2-lite"):
    yarn = minik2.ModelConfig.preset(name).rope_scaling
    models[name] = yarn.factor, grown(yarn.factor, yarn.mscale_all_dim)
factors = np.geomspace(1, 128, 50)
plots.temperature((factors, [grown(s) for s in factors]), models, keys,
                  np.array(cold), np.array(hot))

# %% [markdown]
# For this key the two nearly cancel. That is luck of the number 6:

# %%
print("score that fits   4,096 keys   131,072   131,072 with m²")
for fit in (4, 6, 8, 10):
    shares = [weight(fit, *more) for more in (
        (trained, 1), (served, 1), (served, grown(served / trained)))]
    print(f"{fit:>15} {shares[0]:12.2%} {shares[1]:9.2%} {shares[2]:17.2%}")

# %% [markdown]
# A key that stands out is helped too much, one that does not too little.
# One number for all heads can be right on average only.

# %% [markdown] exercise="yarn.softmax_scale"
# What multiplies $q \cdot k$ before the softmax? Without YaRN it is
# $1/\sqrt{N + R}$. Write it with YaRN, from the config.

# %% exercise="yarn.softmax_scale"
def softmax_scale(config: dict) -> float:
    """What multiplies q·k before the softmax: m² / sqrt(N + R).

    config: the keys of a config.json that `toy` has; N is its
    qk_nope_head_dim and R its qk_rope_head_dim.
    m = 0.1 mscale_all_dim ln(factor) + 1.
    """
    yarn = config["rope_scaling"]
    head = config["qk_nope_head_dim"] + config["qk_rope_head_dim"]
    m = 0.1 * yarn["mscale_all_dim"] * math.log(yarn["factor"]) + 1
    return m**2 / math.sqrt(head)

# %% [markdown] hints="yarn.softmax_scale"
# Two factors: one from the size of a head, one from the stretching. For
# `toy` the first is 0.25.
#
# ---
#
# A head's query has N numbers without position and R with. `math.log` is
# the natural logarithm; its argument is the factor, no number of tokens.
#
# ---
#
# `m = 0.1 * yarn["mscale_all_dim"] * math.log(yarn["factor"]) + 1`. It
# enters squared.
#
# ---
#
# The old scale times m squared. K2: 0.0722 becomes 0.1309.

# %% [markdown]
# These are the engine's functions for both exercises, frequencies and
# scale, held against PyTorch's twins of them and against transformers, if
# you have it. (transformers computes frequencies in float32. To compare in
# float64, its module is shown a torch in which single precision is
# double.)

# %%
try:
    import transformers
    from transformers import modeling_rope_utils
    from transformers.models.deepseek_v3 import modeling_deepseek_v3
except ImportError:
    transformers = None
    print("transformers is not installed here; `make test` brings it")
double = SimpleNamespace(**{**vars(torch), "float": torch.float64,
                            "float32": torch.float64})
configs["an odd one"] = k2.replace(
    qk_rope_head_dim=24, rope_theta=777.0, max_position_embeddings=6300,
    rope_scaling=RopeScaling(7.0, 900, 11.0, 0.7, 0.6, 0.6))
for name, cfg in configs.items():
    speeds, scale = rope.inverse_frequencies(cfg), rope.softmax_scale(cfg)
    off = [error(pytorch.rope.inverse_frequencies(cfg), speeds),
           error(pytorch.rope.softmax_scale(cfg), scale)]
    if transformers:
        config = transformers.AutoConfig.for_model(**cfg.to_json())
        with mock.patch.object(modeling_rope_utils, "torch", double):
            their = modeling_deepseek_v3.DeepseekV3RotaryEmbedding(config)
        off += [error(their.inv_freq, speeds),
                error(modeling_deepseek_v3.yarn_apply_mscale(
                    config.rope_parameters, cfg.qk_head_dim**-0.5), scale)]
    print(f"{name:<14} scale {cfg.qk_head_dim**-0.5:.4f} -> {scale:.4f}; "
          f"largest error {max(off):.0e} of {len(off)} comparisons")
    assert max(off) < 1e-14

# %% [markdown]
# The config has two strengths, `mscale_all_dim` and `mscale`, and each
# makes an $m$. The first goes into this scale, and so to all numbers of a
# head. The rotated numbers alone are multiplied by the second $m$ divided
# by the first; in every released model of this family the two strengths
# are equal, and the quotient is 1. (The YaRN paper, whose models turn all
# numbers of a head, puts $m$ into the rotation.)
#
# Now put everything together.

# %% [markdown] exercise="yarn.score"
# One query at position `m`, one key at position `n`: the score that goes
# into the softmax. The first N numbers of each are not turned. The last R
# are turned at YaRN's speeds, neighbours being pairs, (0, 1), (2, 3), ….
# (`mscale` and `mscale_all_dim` are equal here. The letters `m` and `n`
# are positions again, as in lesson 01; the $m$ of the temperature stays
# inside `softmax_scale`.)

# %% exercise="yarn.score"
def score(
    q: np.ndarray, k: np.ndarray, m: int, n: int, config: dict
) -> float:
    """The score of one query and one key, scaled, before the softmax.

    q, k: (N + R,), numbers without position first; m, n: their
    positions; config: the keys of a config.json that `toy` has.
    """
    cut = config["qk_nope_head_dim"]
    turn = np.exp(1j * (m - n) * inverse_frequencies(config))
    q_pairs = q[cut::2] + 1j * q[cut + 1::2]
    k_pairs = k[cut::2] + 1j * k[cut + 1::2]
    rotary = (q_pairs * turn * k_pairs.conj()).real.sum()
    return (q[:cut] @ k[:cut] + rotary) * softmax_scale(config)

# %% [markdown] hints="yarn.score"
# Cut both vectors at N. One part is a plain dot product. The other you
# wrote in lesson 01: turn both sides, then multiply. Only the speeds are
# new.
#
# ---
#
# With `w = inverse_frequencies(config)` the query's angles are `m * w`
# and the key's `n * w`. First members of the pairs are `x[cut::2]`, second
# ones `x[cut + 1::2]`, where `cut` is N.
#
# ---
#
# Turn as `a * cos - b * sin` and `a * sin + b * cos`. Add both parts, then
# multiply the sum by `softmax_scale(config)`.
#
# ---
#
# Only the difference of the positions counts, so it is enough to turn the
# query by $m - n$; as complex numbers a turn is one product, and the dot
# product of two pairs is the real part of one times the other's conjugate.

# %% [markdown]
# And the engine's: its table of cosines, its rotation, its scale, with
# K2's own numbers, at the far end of K2's context.

# %%
q, k = rng.normal(size=(2, k2.qk_head_dim))
m, n, cut = served - 1, 7, k2.qk_nope_head_dim
cos, sin = rope.table(k2, np.array([m, n]), np.float64)
rotary = np.stack([q, k])[:, None, cut:]  # (T, heads, R)
turned = rope.rotate(rotary, cos, sin)[:, 0]
ours = rope.softmax_scale(k2) * (q[:cut] @ k[:cut] + turned[0] @ turned[1])
a, b = rotary[:, 0].reshape(2, -1, 2) @ [1, 1j]  # pairs, as above
by_hand = (q[:cut] @ k[:cut] + (a * b.conj() * np.exp(
    1j * (m - n) * k2_now)).real.sum()) * k2.qk_head_dim**-0.5 * grown(32)
print(f"engine {ours:.6f}, by hand - engine: {abs(by_hand - ours):.0e}")
assert abs(by_hand - ours) < 1e-9

# %% [markdown]
# ## 6. A trained model, past its window
#
# The small model of these lessons was trained on windows of 128 bytes. We
# let it read 1,024, eight times as many, with the weights that it has and
# without one step of training more. Its config has no `rope_scaling` yet;
# adding one is all there is to stretching a model:

# %%
model = lesson_model("float32")
small, window, length = model.cfg, 128, 1024
plain_small = rope.inverse_frequencies(small)
old_scale = rope.softmax_scale(small)
schemes = {"unchanged": (plain_small, old_scale),
           "all divided": (plain_small / 8, old_scale)}
STEP, RAMP = "YaRN's step (K2)", "YaRN's ramp (V3)"
for name, beta_fast in ((STEP, 1.0), (RAMP, 32.0)):
    cfg = small.replace(rope_scaling=RopeScaling(
        factor=length / window, original_max_position_embeddings=window,
        beta_fast=beta_fast, mscale=1.0, mscale_all_dim=1.0))
    schemes[name] = rope.inverse_frequencies(cfg), rope.softmax_scale(cfg)
for name, (w, scale) in schemes.items():
    print(f"{name:<17} scores × {scale / old_scale:.2f}, speeds of pairs "
          f"0 to 3 × {w[:4] / plain_small[:4]}")

# %% [markdown]
# "All divided" is no YaRN and no config can say it. So, to treat all four
# alike, we lend the engine the frequencies and the scale that it asks
# `rope` for. That this is the same as changing the config, a whole model
# shows: lent to this engine, and read from a config.json by the other.

# %%
texts = 3 if os.environ.get("MINIK2_SHORT") else 8
tokens, targets = Corpus.standard_library().spread("validation", texts,
                                                   length)


def read(frequencies, scale, tokens=tokens):
    """Logits and what was saved, with this rotation in the engine."""
    with mock.patch.multiple(rope, softmax_scale=lambda cfg: scale,
                             inverse_frequencies=lambda cfg: frequencies):
        return model.forward(tokens)


with tempfile.TemporaryDirectory() as folder:
    model.cfg = cfg  # the same weights under another config.json
    model.save_pretrained(folder)
    model.cfg = small
    twin = pytorch.Model.from_pretrained(folder, dtype=torch.float32)
with torch.inference_mode():
    apart = error(twin(tokens[:1]), read(*schemes[RAMP], tokens[:1])[0])
print(f"torch - engine: {apart:.0e} of the largest logit, in float32")
assert apart < 1e-3

# %%
def nats(logits):
    """Loss of each token, averaged over the texts: (T,)."""
    every = F.cross_entropy(torch.tensor(logits).mT, torch.tensor(targets),
                            reduction="none")
    return every.mean(0).numpy()


losses, seen = {}, {}
for name, scheme in tqdm(schemes.items(), file=sys.stdout, ncols=76):
    logits, saved = read(*scheme)
    losses[name] = nats(logits)
    seen[name] = [layer["self_attn"]["attention"] for layer in saved[:-1]]
plots.loss_by_position(losses, window)

# %%
for name, each in losses.items():
    print(f"{name:<17} bytes 0 to 63: {each[:64].mean():.2f}, 64 to 127: "
          f"{each[64:128].mean():.2f}, from 128: {each[128:].mean():.2f}")

# %% [markdown]
# What follows is about the model of 300 steps, which you have unless
# MINIK2_SHORT is set. (That makes it 60 steps, for tests. Such a model
# hardly uses positions yet, and the four are much the same.)
#
# *Unchanged* is best where the model was trained, and lost beyond. *All
# divided* pays everywhere, from the first tokens on: neighbours look
# alike. YaRN gives up something near by, and goes on far past the window.
# None of the four reaches beyond 128 what the unchanged model reaches
# before it: for that, one would train on.
#
# What happens inside? This is the head that changes most: how much of its
# weight lies within so many tokens, for queries past position 512; and, in
# blue, what the same head did inside its window.

# %%
def by_distance(name, layer, head, first=512, last=length):
    """Mean weight on the token 0, 1, 2, … back in text 0: (length,)."""
    q, k = (seen[name][layer][part][0, :, head] for part in "qk")
    out = np.zeros(length)
    for m in range(first, last, 4):
        scores = schemes[name][1] * (k[:m + 1] @ q[m])
        powers = np.exp(scores - scores.max())[::-1]
        out[:m + 1] += powers / powers.sum()
    return out / out.sum()


heads = np.ndindex(small.num_hidden_layers, small.num_attention_heads)
layer, head = max(heads, key=lambda place: (
    by_distance("unchanged", *place) - by_distance(RAMP, *place)
)[window:].sum())
weights = {"inside the window": by_distance("unchanged", layer, head, 64,
                                            window)}
weights |= {name: by_distance(name, layer, head)
            for name in ("unchanged", STEP, RAMP)}
plots.where_it_looks(weights, window, layer, head)

# %% [markdown]
# In the window this head looks at the last few tokens. Unchanged and past
# the window, it is drawn to places that it never learned to avoid. YaRN
# brings much of it back, and not all.
#
# ### Why the step does worse here
#
# On this model the ramp, V3's way, comes out ahead of the hard step, K2's
# way, and the step pays even *inside* the window, from 64 on. Between 32
# and 128 tokens back, which token gets most of this head's weight under
# the step, and where do the pairs stand there?

# %%
peak = 32 + int(weights[STEP][32:window].argmax())
for name in ("unchanged", STEP):
    print(f"{peak} tokens back, turns of pairs 0 to 3, {name}:\n   ",
          peak * schemes[name][0][:4] / (2 * np.pi))

# %% [markdown]
# A pair that stands near a whole number of turns says "no distance at
# all". Where the fast pairs nearly agree on that, it is the next slower
# pair that knows better, and it is just this one that the step has slowed
# by eight. A ramp changes the pairs' company more gently.
#
# With 8 pairs, each four times slower than the one before, such chance
# agreements are common. K2 has 32 pairs, each 1.4 times slower, and it was
# *trained* with long texts afterwards. So this says nothing against K2's
# choice. Why K2 chose 1 and 1 is not published.

# %% [markdown]
# ### And the temperature?
#
# The paper's authors found $m$ by trying. So can we: YaRN's ramp, and
# every score multiplied by a number.

# %%
formula = schemes[RAMP][1] / old_scale
tried = np.array([0.8, 1.0, 1.2, formula, 1.8, 2.4])
after = [nats(read(schemes[RAMP][0], old_scale * times)[0])[window:].mean()
         for times in tqdm(tried, file=sys.stdout, ncols=76)]
plots.sharpness(tried, np.array(after), formula, window)

# %% [markdown]
# The formula was fitted to models of billions of parameters and to other
# text, and this model has 1.7 million. It need not fit; the title says how
# well it does.

# %% [markdown]
# ## In K2

# %%
print(f"{(k2_now < plain).sum()} of {len(plain)} pairs divided by "
      f"{served / trained:g}, scores × {grown(served / trained):.4f}")
for pair in (0, 19, 20, 31):
    print(f"wavelength of pair {pair:>2}: {2 * np.pi / plain[pair]:>9,.0f} "
          f"tokens before, {2 * np.pi / k2_now[pair]:>9,.0f} now")

# %% [markdown]
# <div class="alert alert-info">
#
# **In K2** YaRN is 12 of 32 frequencies divided by 32, and scores
# multiplied by 1.81. No weight changes, and the cache is no larger for a
# token. All this comes from the released `config.json`. What the file
# cannot say: by its report, K2 was trained on 4,096 tokens nearly all the
# way, then on 60 billion tokens in pieces of 32k, and YaRN extended it to
# 128k. So it has practised at lengths between the two.
#
# </div>
#
# Not known: whether the logits that QK-Clip held at 100 in K2's training
# (lesson 09) carried this factor of 1.81 already while the context was
# 4,096. The report does not say.

# %% [markdown]
# ## On the back of an envelope
#
# Somebody wants K2 at a million tokens, $2^{20}$, by YaRN alone. What
# would `factor` be? Which pairs would be slowed then, more than now? And
# by how much would the scores be multiplied? ($\ln 2 \approx 0.69$.)
#
# <details><summary>Answer</summary>
#
# $2^{20} / 2^{12} = 2^8$, so the factor is **256**. **The same 12 pairs**:
# boundaries count turns in the *old* context, and the factor does not
# appear in them. $\ln 256 = 8 \cdot 0.69 = 5.5$, so $m = 1.55$ and scores
# are multiplied by **2.4**. Nothing forbids it. Whether the model can still
# use such a context is another question, which only measuring answers.
#
# </details>

# %%
million = k2.replace(rope_scaling=replace(k2.rope_scaling, factor=256.0))
slowed = rope.inverse_frequencies(million) < plain
print(f"{slowed.sum()} pairs slowed, from pair {slowed.argmax()} on; "
      f"scores × {grown(256):.2f}")

# %% [markdown]
# <div class="alert alert-success">
#
# **Takeaway.** A pair that has been round its circle in training has
# nothing new to show at any distance; one that has not must be slowed, or
# it comes to angles that no weight was trained for. YaRN slows exactly
# these, and sharpens the softmax for the many more keys.
#
# </div>
#
# ## Sources
#
# - Turns, ramp and temperature: Peng et al., *YaRN*, arXiv 2309.00071,
#   §3.2 to §3.4.
# - Dividing all positions: Chen et al., *Position Interpolation*, arXiv
#   2306.15595.
# - The form used here, with `mscale_all_dim` in the softmax scale:
#   DeepSeek-V3's `inference/model.py`; the two phases of V3's extension:
#   arXiv 2412.19437, §4.3.
# - K2's context in training: *Kimi K2*, arXiv 2507.20534, §2.5; its betas:
#   the released `config.json`, as `minik2/presets/kimi-k2.json` has it.
#
# **Next:** lesson 05 leaves attention, and asks which experts a token is
# sent to.
