# %% [markdown]
# # 03 · The latent cache and absorption
#
# *About 60 minutes. Runs in half a minute on any laptop, the first time in
# one.*
#
# **After this lesson you can**
#
# - say what K2 has to remember of a token, and how many bytes that is;
# - derive *absorption* in three lines, and show on a trained model that it
#   changes nothing but the cost;
# - write the step that K2 runs for every token it writes: one token
#   against a cache of latents, without a key or a value;
# - say from operations and bytes when to absorb and when not, and hold
#   that against your own machine's clock.

# %% role="setup"
import numpy as np

from minik2.checks import check

np.set_printoptions(precision=3, suppress=True)

# %%
import os
import sys
import tempfile
import time

import torch
from tqdm import tqdm

import minik2
from minik2 import cost, pytorch, reference, sizing
from minik2.plots import lesson03 as plots
from minik2.plots.model_map import model_map
from minik2.training import lesson_model
from minik2.training.corpus import decode, encode


def error(a, b):
    """Largest difference of two arrays or tensors."""
    return float(np.abs(np.asarray(a) - np.asarray(b)).max())

# %% [markdown]
# ## What you have, and what you will add
#
# From lesson 02 you have the whole MLA block: a token's vector is squeezed
# into a *latent* $c$ of $C$ numbers, and the keys and values of all $H$
# heads are made from it. Today you will see what that is good for. A model
# that writes needs keys and values of everything before, at every step.
# K2 keeps the latents instead, and then never makes the keys and values
# at all.
#
# In answers you may use NumPy, your other answers, and what is defined
# for it in sections 2 (`config`), 3 (`softmax`, `rotate`) and 5
# (`rms_norm`). `minik2 check` runs these and none of the lesson's other
# cells.

# %%
model_map(["latent", "cache", "attention", "output"],
          "Today: what a token leaves behind, and how to look at it")

# %% [markdown]
# ## 1. Nothing about the past changes
#
# Here is the small model that the lessons share, and a text for it.

# %%
model = lesson_model()
cfg = model.cfg
text = "def area(self, width, height):\n    return self.width * "
tokens = encode(text)[None]
logits, saved = model.forward(tokens)
H, N, C = cfg.num_attention_heads, cfg.qk_nope_head_dim, cfg.kv_lora_rank
print(f"{tokens.shape[1]} tokens; H = {H} heads, N = {N}, C = {C}")

# %% [markdown]
# A token looks at itself and at earlier ones only. So whatever comes later
# cannot change anything about it. We cut the text after 20 tokens, and
# compare the 20 in the last layer, where everything before has had its
# effect:

# %%
_, start = model.forward(tokens[:, :20])
for name in ("latent", "k_rope"):
    long, cut = (m[-2]["self_attn"][name][:, :20] for m in (saved, start))
    print(f"{name:>7}: the two differ by {error(long, cut):.0e}")
    assert error(long, cut) < 1e-10

# %% [markdown]
# When the model writes token 21, all it needs of the first 20 is there
# already, if somebody kept it. That is the **cache**. Without it, every
# new token would send the whole text through the whole model again.
#
# What is enough to keep? A token is asked for its keys and its values.
# Both come from its latent $c$, after the norm, and from its rotary key
# $k^R$, after the turn. So these two are enough: one row of $C + R$
# numbers for each token and layer. Three rows of layer 1, a few numbers
# of each:

# %%
kept = saved[1]["self_attn"]
rows = np.concatenate([kept["latent"], kept["k_rope"]], -1)[0]
print("rows of the cache, layer 1:", rows.shape)
for t in range(3):
    print(repr(text[t]), "latent", rows[t, :5], "… rotary", rows[t, -4:])

# %% [markdown]
# ## 2. What is kept, and what it weighs
#
# Before MLA there were three answers. *Multi-head attention* (MHA) keeps a
# key and a value for each head. *Grouped* attention (GQA) lets a few heads
# share one key and one value; *multi-query* attention (MQA) lets all of
# them. Sharing saves memory, and costs quality: DeepSeek-V2's report found
# both behind MHA. MLA lets all heads share one *latent*, and each makes
# something of its own from it.
#
# K2's heads, 131,072 tokens, two bytes a number:

# %%
k2 = minik2.ModelConfig.preset("kimi-k2")
longest = k2.max_position_embeddings
numbers = {kind: {"keys": n * k2.qk_nope_head_dim,
                  "rotary keys": n * k2.qk_rope_head_dim,
                  "values": n * k2.v_head_dim}
           for kind, n in (("MHA", 64), ("GQA, 8 groups", 8), ("MQA", 1))}
numbers["MLA"] = {"latents": k2.kv_lora_rank,
                  "rotary keys": k2.qk_rope_head_dim}
for kind, parts in numbers.items():
    print(f"{kind:>14}: {sum(parts.values()):>6,} numbers a token a layer")
mha = sum(numbers["MHA"].values())
assert mha == sizing.cache(k2, 1).others["MHA"][0]
plots.stacked_cache(numbers, k2, longest)

# %% [markdown]
# One head's key and value together would be less than a latent, and that
# is what MQA keeps. The latent is larger because 64 heads live on it, and
# far smaller than what they make of it.
#
# K2's configuration, as its config.json has it:

# %% role="setup"
import importlib.resources
import json

presets = importlib.resources.files("minik2") / "presets"
config = json.loads((presets / "kimi-k2.json").read_text())
for key in list(config)[3:14]:
    print(f"{key:>22} {config[key]}")

# %% [markdown] exercise="cache.bytes"
# How many bytes does the latent cache of a whole machine take, that serves
# several conversations (`sequences`) of `tokens` tokens each, in numbers of
# `bits` bits? In lesson 00 you counted the numbers of one token; here are
# the factors that make them matter.

# %% exercise="cache.bytes"
def cache_bytes(
    config: dict, tokens: int, sequences: int, bits: int
) -> int:
    """Bytes of an MLA cache.

    config: a config.json as a dict; tokens: in each sequence; bits: of a
    cached number (16 for bfloat16). Returns a whole number of bytes.
    """
    row = config["kv_lora_rank"] + config["qk_rope_head_dim"]
    rows = config["num_hidden_layers"] * tokens * sequences
    return row * rows * bits // 8

# %% [markdown] hints="cache.bytes"
# Begin with one row of the cache: which two parts does it have? Then ask of
# every other number of the config whether a second row would come from it.
#
# ---
#
# There is a row for each token of each sequence, in each layer. Not one for
# each head, and not one for keys and one for values.
#
# ---
#
# `kv_lora_rank + qk_rope_head_dim` numbers, times layers, times tokens,
# times sequences; eight bits are a byte.
#
# ---
#
# Five factors and a division: `bits // 8` first would make 0 of 4 bits, so
# the division comes last.

# %% [markdown]
# The engine's cache is one array of that size, made once. A row is filled
# when its token comes; nothing is moved or copied afterwards.

# %%
cache = model.new_cache(batch=2, max_tokens=100)
print("rows", cache.rows.shape, cache.rows.dtype, f"{cache.nbytes:,} bytes")
assert cache.nbytes == sizing.kv_cache_bytes(
    cfg, tokens=100, batch=2, bytes_per_number=8)

# %% [markdown]
# ## 3. A key that is never made
#
# So far the cache has saved memory, at a price: to use a row, each head
# must make its key and value of it first, for every token, at every step.
# Here is how to get around that.
#
# A head's key has two parts: $N$ numbers of content,
# $k^N_n = W^{UK} c_n$ (the *nope* part), and the $R$ rotary numbers
# $k^R_n$ that carry the position. $W^{UK}$ is the head's part of
# `kv_b_proj`, (N, C). The score of query $m$ and key $n$ is, up to its
# scale,
#
# $$q_m \cdot k_n
#   = q^N_m \cdot (W^{UK} c_n) + q^R_m \cdot k^R_n
#   = (W^{UK\top} q^N_m) \cdot c_n + q^R_m \cdot k^R_n .$$
#
# Nothing happened but that a matrix changed sides. But now it stands with
# the query, of which there is one, and no longer with the keys, of which
# there is one for each token. We say the query has *absorbed* the matrix.
# For the values, with $p_n$ the attention weights and $W^{UV}$ (V, C),
#
# $$\sum_n p_n \,(W^{UV} c_n) = W^{UV} \sum_n p_n\, c_n ,$$
#
# which is once more a matrix that leaves a sum. The third line is what we
# have gained: per head, with $[\,;\,]$ for end to end,
#
# $$\text{query } [W^{UK\top} q^N;\; q^R], \qquad
#   \text{key } [c;\; k^R] = \text{the cached row}, \qquad
#   \text{value } c .$$
#
# That is multi-query attention: $H$ queries of $C + R$ numbers, and one
# key and one value that all heads share. The smallest case, in whole
# numbers: $N = 2$, $C = 3$, two cached tokens.

# %%
w_uk = np.array([[1, 0, 2], [0, 3, 1]])
latents = np.array([[1, 2, 0], [2, 0, 1]])
q = np.array([2, 1])
print("keys made of the latents:\n", latents @ w_uk.T)
print("query on the keys:      ", latents @ w_uk.T @ q)
print("the query moved:        ", q @ w_uk)
print("on the latents as cached:", latents @ (q @ w_uk))

# %% [markdown]
# In `kv_b_proj` the matrices of all heads lie below each other, head by
# head: the $N$ rows of $W^{UK}$ of head 0, the $V$ rows of its $W^{UV}$,
# then head 1.

# %% [markdown] exercise="mla.absorb_query"
# Move the queries of all heads into the space of the latents. There is no
# argument for $V$; the shapes tell.

# %% exercise="mla.absorb_query"
def absorb_query(q_nope: np.ndarray, kv_b_proj: np.ndarray) -> np.ndarray:
    """Each head's query times its key rows: W_UK^T q.

    q_nope: (T, H, N), the part of the queries without position;
    kv_b_proj: (H (N + V), C), head by head N key rows, then V value rows.
    Returns (T, H, C).
    """
    heads, nope = q_nope.shape[1:]
    per_head = kv_b_proj.reshape(heads, -1, kv_b_proj.shape[1])
    return np.einsum("thn,hnc->thc", q_nope, per_head[:, :nope])

# %% [markdown] hints="mla.absorb_query"
# First cut `kv_b_proj` into heads: what shape has an array in which
# `w[h]` is all that belongs to head h?
#
# ---
#
# `kv_b_proj.reshape(H, -1, C)` is (H, N + V, C): rows that belong together
# stay together. The first N of a head's rows are its key rows.
#
# ---
#
# The sum runs over N, for each token and each head by itself.
# `np.einsum("thn,hnc->thc", …)` says just that; with `@`, the heads must be
# the first axis of both sides.
#
# ---
#
# A reshape, a slice and one product.

# %% [markdown]
# Now on the trained model: layer 1, all heads, all tokens. The engine saved
# its queries `q` and keys `k`, both (T, H, N + R) with the rotary part
# last, and `scale`, which is $(N + R)^{-1/2}$. (YaRN changes it; that is
# lesson 04.) The scale stays that of the *original* vectors: moving a matrix
# changes how long the vectors are, and not what their product is.

# %%
attention = kept["attention"]
q, k = attention["q"][0], attention["k"][0]
up = kept["weights"]["kv_b_proj.weight"]
w_uk, w_uv = np.split(up.reshape(H, -1, C), [N], axis=1)
moved = np.concatenate(
    [np.einsum("thn,hnc->thc", q[..., :N], w_uk), q[..., N:]], -1)
by_keys = np.einsum("thd,shd->hts", q, k)
by_latents = np.einsum("thd,sd->hts", moved, rows)
print(f"scores up to {np.abs(by_keys).max():.0f}; the two ways differ by "
      f"{error(by_keys, by_latents):.0e}")
assert error(by_keys, by_latents) < 1e-10 * np.abs(by_keys).max()

# %% role="setup"
def softmax(scores):
    """Rows of positive numbers that sum to 1."""
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)

# %%
seen = np.tri(len(rows), dtype=bool)
p, p_moved = (softmax(np.where(seen, scores * attention["scale"], -np.inf))
              for scores in (by_keys, by_latents))
hard = p.max(-1).mean(-1).argmax()  # the head that looks hardest
plots.same_weights(text[:24], p[hard, :24, :24], p_moved[hard, :24, :24])

# %% [markdown]
# ### Why the rotary part stands apart
#
# Lesson 02 found no single matrix for scores with a rotation in between,
# and printed how far off they are. Here is the same seen from the query.
# Suppose the whole key were turned, and not an extra part of it. With
# $\Omega_n$ the rotation at position $n$, the score would be
#
# $$(\Omega_m q) \cdot (\Omega_n W^{UK} c_n)
#   = (W^{UK\top} \Omega_{n-m}^\top\, q) \cdot c_n ,$$
#
# and there is a rotation between the query and the matrix. The moved query
# would be another one for each distance $m - n$ (here with $\theta$ = 100):

# %% role="setup"
def rotate(x, positions, theta):
    """Rows of x (T, R) turned by their positions (T,), or all by one."""
    size = x.shape[-1]
    speed = theta ** (-np.arange(0, size, 2) / size)
    turn = np.exp(1j * np.outer(positions, speed))
    pairs = (x[:, 0::2] + 1j * x[:, 1::2]) * turn
    return np.stack([pairs.real, pairs.imag], -1).reshape(x.shape)

# %%
for distance in range(3):
    turned = rotate(q[20, :1, :N], distance, 100.0)  # head 0, token 20
    print(f"{distance} tokens back:", (turned @ w_uk[0])[0, :6], "…")

# %% [markdown]
# One query for each cached token is no better than one key for each. So
# MLA keeps content and position apart: what goes through the latent is
# never turned, and what is turned never goes through the latent. That is
# what *decoupled* means in DeepSeek-V2's report.

# %% [markdown]
# ## 4. A value that is never made
#
# The weights $p$ are the same, so the sum over tokens can be taken over
# latents. Each head gets one mean latent, `mixed` (T, H, C), and makes one
# value of it, not one for each cached token.

# %% [markdown] exercise="mla.absorb_output"
# Lead the weighted latents of all heads through their value rows. (Here
# `nope` is $N$: of `mixed` alone one could not tell it.)

# %% exercise="mla.absorb_output"
def absorb_output(
    mixed: np.ndarray, kv_b_proj: np.ndarray, nope: int
) -> np.ndarray:
    """Each head's weighted latent through its value rows: W_UV mixed.

    mixed: (T, H, C); kv_b_proj: (H (N + V), C), head by head N key rows,
    then V value rows; nope: N. Returns (T, H, V).
    """
    heads = mixed.shape[1]
    per_head = kv_b_proj.reshape(heads, -1, kv_b_proj.shape[1])
    return np.einsum("thc,hvc->thv", mixed, per_head[:, nope:])

# %% [markdown] hints="mla.absorb_output"
# The same cut into heads as for the queries. Which rows are left when the
# key rows are taken away?
#
# ---
#
# `per_head[:, nope:]` is (H, V, C). The sum runs over C this time.
#
# ---
#
# `np.einsum("thc,hvc->thv", …)`. Written with `@`, the rows must be
# transposed: a value is `w @ latent`, and here the latents stand on the
# left.
#
# ---
#
# The same reshape, the other slice, the other axis.

# %% [markdown]
# The two halves together, against what the engine made of keys and values
# when the model ran, and against the engine's own absorbed form and its
# twin in torch:

# %%
mixed = np.einsum("hts,sc->thc", p_moved, rows[:, :C])
by_hand = np.einsum("thc,hvc->thv", mixed, w_uv)
expanded = kept["context"][0].reshape(by_hand.shape)

engine = np.empty_like(by_hand)
reference.attention.absorbed(q, rows, up, engine, attention["scale"])

wide = torch.from_numpy(moved * attention["scale"])[None]
held, last = torch.from_numpy(rows)[None], torch.arange(len(rows))[None]
twin = pytorch.attention.absorbed(wide, held, C, last)[0]
twin = torch.einsum("thc,hvc->thv", twin, torch.from_numpy(w_uv))

size = np.abs(expanded).max()
for name, y in ("by hand", by_hand), ("engine", engine), ("torch", twin):
    print(f"expanded - absorbed, {name:>7}: "
          f"{error(expanded, y) / size:.0e} of the largest number")
    assert error(expanded, y) < 1e-10 * size

# %% [markdown]
# ## 5. One token at a time
#
# A model that writes gets one token, and all else is in the cache. Of this
# token a layer makes its queries, and the $C + R$ numbers that leave
# `kv_a_proj_with_mqa`, as in lesson 02. What follows is yours. `softmax`
# and `rotate` stand above; this is the norm:

# %% role="setup"
def rms_norm(x, weight):
    """x: (..., C) divided by its root mean square, times weight: (C,)."""
    mean_square = np.mean(x * x, axis=-1, keepdims=True)
    return weight * x / np.sqrt(mean_square + 1e-6)

# %% [markdown] exercise="mla.decode_step"
# One token comes to a cache of $S$ others. Make its row, put it into the
# cache, and let its queries look at all rows, in the absorbed form. Nothing
# is normed or turned yet in `q` and `new`; all is, in the rows that are
# there. The tokens stand at 0, 1, 2, …, and the scale is $(N + R)^{-1/2}$.
# Give back what the heads bring home, and the longer cache.

# %% exercise="mla.decode_step"
def decode_step(
    q: np.ndarray, new: np.ndarray, rows: np.ndarray, norm: np.ndarray,
    kv_b_proj: np.ndarray, theta: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Attention of one new token over a latent cache.

    q: (H, N + R), rotary part last; new: (C + R), the token's output of
    kv_a_proj_with_mqa; rows: (S, C + R), the cache, S may be 0; norm:
    (C,), kv_a_layernorm's weight; kv_b_proj: (H (N + V), C).
    Returns values (H, V) and a new array of rows (S + 1, C + R).
    """
    position, heads, size = len(rows), len(q), len(norm)
    nope = q.shape[1] - (len(new) - size)
    per_head = kv_b_proj.reshape(heads, -1, size)

    key = rotate(new[None, size:], position, theta)[0]
    row = np.concatenate([rms_norm(new[:size], norm), key])
    rows = np.concatenate([rows, row[None]])

    moved = np.einsum("hn,hnc->hc", q[:, :nope], per_head[:, :nope])
    turned = rotate(q[:, nope:], position, theta)
    scores = np.concatenate([moved, turned], axis=1) @ rows.T
    mixed = softmax(scores * q.shape[1] ** -0.5) @ rows[:, :size]
    return np.einsum("hc,hvc->hv", mixed, per_head[:, nope:]), rows

# %% [markdown] hints="mla.decode_step"
# Five steps: the new row; the longer cache; the moved queries; scores and
# weights; values. Write the shape of each result beside it first. How do
# you get $N$, $R$, $C$ and $S$ from the arguments?
#
# ---
#
# The position is the number of tokens that are there already. Only the
# latent goes through the norm, only the rotary key is turned, and the query
# stands at the same position as the new key. `rotate` wants rows, so a
# single vector becomes `new[None, C:]`.
#
# ---
#
# `np.concatenate([moved, turned], axis=1) @ rows.T` is all scores at once,
# (H, S + 1): the rotary part is in the row already. No mask is needed,
# because nothing in the cache is later than the new token. The scale stays
# $(N + R)^{-1/2}$: `q.shape[1]`.
#
# ---
#
# Your two functions with `softmax` between them, after the new row has been
# normed, turned and added. (`absorb_query` and `absorb_output` take T
# tokens, so give them `q[None, :, :N]` and `mixed[None]`.)

# %% [markdown]
# The engine does this in every layer, when it is given a cache. We write
# the text into it token by token, and compare with the logits of all
# tokens at once, from the beginning of the lesson. For torch, and for
# transformers below, the model is saved and opened again.

# %%
print("Numba compiles; the first time that takes half a minute.")
with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    twin = pytorch.Model.from_pretrained(folder, dtype=torch.float64)
    try:
        import transformers
        transformers.utils.logging.disable_progress_bar()
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float64).eval()
        theirs.set_experts_implementation("eager")
    except ImportError:
        theirs = None


def token_by_token(model, tokens):
    """Logits (T, vocab) of a model that sees one token at a time."""
    cache = model.new_cache(batch=1, max_tokens=tokens.shape[1])
    steps = [model(tokens[:, t : t + 1], cache=cache)
             for t in range(tokens.shape[1])]
    return np.concatenate([np.asarray(step[0]) for step in steps])


with torch.inference_mode():
    apart = {name: np.abs(token_by_token(m, tokens) - logits[0]).max(-1)
             for name, m in (("NumPy", model), ("torch", twin))}
largest = np.abs(logits).max()
for name, differences in apart.items():
    print(f"{name}: token by token and at once differ by "
          f"{differences.max() / largest:.0e} of the largest logit")
    assert differences.max() < 1e-10 * largest

# %%
plots.token_by_token(text, apart, largest)

# %% [markdown]
# The third opinion is that of transformers, with a cache of its own. It
# computes norms, rotation and router in float32 in any model, so its logits
# agree to float32's rounding and no further; the text that it writes is the
# same. All three take the most likely byte each time.

# %%
start, length = encode("def __init__(self, ")[None], 40
written, by_torch = (np.asarray(m.generate(start, length)[0])
                     for m in (model, twin))
print(repr(decode(written)))
assert (written == by_torch).all()
if theirs is None:
    print("transformers is not installed here; make test installs it")
else:
    with torch.inference_mode():
        its_logits = theirs(torch.from_numpy(tokens)).logits
        out = theirs.generate(torch.from_numpy(start), do_sample=False,
                              max_new_tokens=length, eos_token_id=None)
    print(f"transformers: logits differ by "
          f"{error(its_logits, logits) / largest:.0e} of the largest")
    assert error(its_logits, logits) < 1e-4 * largest
    assert (written == out[0].numpy()).all()

# %% [markdown]
# transformers 5 keeps the latents too. (Earlier versions kept keys and
# values of all heads, as for any other model: what MLA saves is only saved
# by those who make use of it.) But it forms all keys and values anew from
# them at every step. That is one of three ways.

# %% [markdown]
# ## 6. When it pays
#
# Absorbed, a head does not compare $N + R$ numbers with each cached token
# but $C + R$, and sums $C$ numbers and not $V$: in K2 2·512 + 64 = 1,088
# multiply-adds instead of 128 + 64 + 128 = 320. So absorption costs *more*
# operations than attention over keys and values would, if they lay there.
# They do not: either somebody keeps them, or they are made anew from the
# latents. This is what the three ways cost for one new token at the end of
# K2's longest context, in attention alone and without its matrices:

# %%
everything = 2 * k2.num_hidden_layers * longest * mha
latent_cache = sizing.kv_cache_bytes(k2, longest)
work = sizing.flops(k2, longest)
ways = {  # operations; bytes moved; bytes kept until the next token
    "keep keys, values": (work.decode_expanded, everything, everything),
    "form them anew": (  # read the latents; write and read what is made
        work.decode_rebuilt, latent_cache + 2 * everything, latent_cache),
    "absorb": (work.decode_absorbed, latent_cache, latent_cache),
}
ways = {way: (did.attention, *sizes) for way, (did, *sizes) in ways.items()}
plots.three_ways(ways, longest - 1)

# %% [markdown]
# For one token nothing else comes near: a machine that decodes waits for
# its memory. But now let many new tokens come at once, as when a long
# prompt is read. The keys and values are then formed once for all of them,
# and the larger vectors are paid for by each of them. With $T$ new tokens
# after a long context, and two operations a multiply-add, *for each cached
# token and head*,
#
# $$\underbrace{2\,(2C + R)\,T}_{\text{absorbed}} \quad\text{against}\quad
#   \underbrace{2\,C\,(N + V)}_{\text{formed once}} +
#   \underbrace{2\,(N + R + V)\,T}_{\text{expanded}} ,$$
#
# which is even at $T = C (N + V) / (2C - N - V)$; with K2's numbers,
# $512 \cdot 256 / 768 \approx 171$. The heads have dropped out. So we can
# measure with K2's own sizes, and 4 heads for 64. The engine does both
# forms; here they are timed in turns, and of several rounds the fastest
# counts, since other programs can only add to it.

# %%
few = k2.replace(num_attention_heads=4)
cached, grid = 2048, (1, 4, 16, 64, 256, 1024)
if os.environ.get("MINIK2_SHORT"):
    cached, grid = 512, (1, 8, 64, 512)
N, R, V = few.qk_nope_head_dim, few.qk_rope_head_dim, few.v_head_dim
C = few.kv_lora_rank
rng = np.random.default_rng(3)
rows = rng.normal(size=(cached + grid[-1], C + R)).astype("float32")
up = (rng.normal(size=(4 * (N + V), C)) / C**0.5).astype("float32")
scale = reference.rope.softmax_scale(few)


def in_latents(q, held):
    y = np.empty((len(q), 4, V), np.float32)
    reference.attention.absorbed(q, held, up, y, scale)
    return y


def in_heads(q, held):
    kv = (held[:, :C] @ up.T).reshape(1, len(held), 4, -1)
    shared = held[None, :, None, C:].repeat(4, axis=2)
    k = np.concatenate([kv[..., :N], shared], -1)
    return reference.attention.forward(q[None], k, kv[..., N:], scale)[0][0]


seconds = np.full((2, len(grid)), np.inf)
for new in tqdm(4 * grid, file=sys.stdout, ncols=76, unit="point"):
    q = rng.normal(size=(new, 4, N + R)).astype("float32")
    place, results = grid.index(new), []
    for side, form in enumerate((in_latents, in_heads)):
        begin = time.perf_counter()
        results.append(form(q, rows[: cached + new]))
        passed = time.perf_counter() - begin
        seconds[side, place] = min(seconds[side, place], passed)
    assert error(*results) < 1e-3

# %%
books = [[form(few, new, cached) for new in grid]
         for form in (cost.absorbed, cost.expanded)]
plots.crossover(grid, {
    "operations": [[c.flops for c in side] for side in books],
    "bytes": [[c.bytes for c in side] for side in books],
    "seconds": seconds}, cached)

# %% [markdown]
# A dashed line marks where two curves meet. It is found by a straight
# line between two points of the grid, and new tokens look at each other
# too; so for operations it is near 171, and not exactly there.
#
# The clock may cross on either side of that. What is expanded must be
# written to memory and read again, and that takes time that no count of
# operations sees: bytes push the crossing up. But the expanded form's
# products make better use of the processor, and that pushes it down.
#
# The engine asks `minik2.cost` before every call, which counts a byte as
# much as twenty operations. That is an estimate: in the course's own
# measurements the form that it took was up to 1.24 times as slow as the
# other. It absorbs when it writes, and expands when it reads a long text.

# %%
for new in (1, 64, 1024, 4096):
    form = "absorbed" if cost.absorb(k2, new, longest - new) else "expanded"
    print(f"{new:>5,} new tokens at the end of K2's context: {form}")

# %% [markdown]
# ## In K2
#
# Computed from its published configuration, beside that of DeepSeek-V3,
# which has twice the heads:

# %%
for name in ("kimi-k2", "deepseek-v3"):
    c = minik2.ModelConfig.preset(name)
    held = sizing.cache(c, longest)
    print(f"""{name}: {c.num_attention_heads} heads
    {held.numbers} numbers a token a layer, MHA {held.others["MHA"][0]:,}
    as many as {held.numbers / held.others["MQA"][1]} groups of GQA
    {held.bytes_per_token:,} bytes a token, {held.bytes:,} in all""")

# %% [markdown]
# <div class="alert alert-info">
#
# **In K2** a token leaves 576 numbers in each of 61 layers, where its heads'
# keys and values would be 20,480. K2 has half of V3's heads and not a byte
# less of cache: the latent knows nothing of heads, so what fewer heads save
# is work and weights. The 2.25 groups of GQA are also what DeepSeek-V2's
# report has in its Table 1, for the same latent. (Its "93.3% less cache" is
# another comparison, with DeepSeek 67B, a GQA model. It comes out exactly
# if the new cache is counted with the 6 bits a number that the report
# mentions and the old one with 16, which the report does not spell out.)
#
# </div>

# %% [markdown]
# ## On the back of an envelope
#
# An H200 reads 4.8 TB a second from its memory. Leave everything out but
# the cache: how many tokens a second could it write for **one** conversation
# of 131,072 tokens, absorbed? And if K2's heads kept their keys and values?
# Answer to one digit before you look.
#
# <details><summary>Answer</summary>
#
# Each token reads the whole cache once: $131{,}072 \times 61 \times 576
# \times 2 \approx 9.2$ GB, so $4.8 \cdot 10^{12} / 9.2 \cdot 10^9 \approx$
# **500 tokens a second**. Keys and values of all heads are 36 times as
# much: **15 tokens a second**, if they fitted; they are 330 GB, and an H200
# has 141. The weights come on top, some 30 GB a token in FP8; but what
# several conversations need of them is read once for all, and a cache
# serves only its own. The cell below does the arithmetic, and asks
# `sizing.decode` for a whole node.
#
# </details>

# %%
one, node = sizing.machine("h200"), sizing.machine("8xh200")
for kind, (_, used, _) in ways.items():
    print(f"{kind:>17}: {used / 1e9:5.1f} GB a token, "
          f"{one.bandwidth / used:4.0f} tokens a second")
for batch in (1, 8):
    step = sizing.decode(k2, node, longest, batch, weights="float8")
    print(f"8 H200, weights in FP8, {batch} at once: at most "
          f"{step.tokens_per_second:,.0f} tokens a second ({step.bound})")

# %% [markdown]
# <div class="alert alert-success">
#
# **Takeaway.** A layer remembers one latent and one rotary key of a token,
# whatever the number of heads. A matrix that stands between query and key
# may stand on either side: with the keys where there are many queries, with
# the query where there is one. Of the result no more than the rounding
# depends on it, and of the cost nearly everything.
#
# </div>
#
# ## Sources
#
# - The latent cache, absorption, and why the rotary part is decoupled:
#   DeepSeek-V2, arXiv 2405.04434, §2.1.2 and §2.1.3; the comparison with
#   MHA, GQA and MQA: Table 1 and its appendix.
# - The same block in DeepSeek-V3, which K2 takes over: arXiv 2412.19437,
#   §2.1.1, eq. 1 to 11.
# - Sharing keys and values: Shazeer, arXiv 1911.02150 (MQA); Ainslie et
#   al., arXiv 2305.13245 (GQA).
# - K2's 64 heads, and what 128 would cost at 128k: *Kimi K2*, arXiv
#   2507.20534, §2.3 and Table 2.
#
# **Next:** lesson 04 asks what happens at positions that a model has never
# seen in training, and how K2 gets from 4,096 tokens to 131,072.
