# %% [markdown]
# # 00 · K2 in one hour
#
# *About 60 minutes. One of them your computer spends training a model.*
#
# Kimi K2 has a trillion parameters. The model that you train in the
# next ten minutes has 1.7 million, and the same architecture: the same
# parts, under the same names, in the same order. What you see in it, you
# can find in the big one.
#
# **After this lesson you can**
#
# - train a small K2, and say what its loss means;
# - name every part of the model and point at it on one drawing;
# - find any tensor of K2's checkpoint from the symbol in the paper;
# - read a released `config.json`, and count experts, parameters and cache
#   from it, as three short exercises.
#
# Nothing here needs theory. Each part gets its lesson later; today you
# see it work.

# %% role="setup"
import numpy as np

from minik2.checks import check

np.set_printoptions(precision=3, suppress=True)

# %%
import copy
import inspect
import os
import platform
import sys
import tempfile
import time

import numba
import torch
import torch.nn.functional as F
from tqdm import tqdm

import minik2
from minik2 import pytorch, reference
from minik2.plots import lesson00 as plots
from minik2.plots.model_map import model_map
from minik2.training.corpus import END_OF_FILE, Corpus, decode, encode

rng = np.random.default_rng(0)

# %% [markdown]
# ## Is everything there?

# %%
try:
    from numba.np.ufunc import omppool
    threads = "OpenMP"
except ImportError:
    threads = "slow to start here; OpenMP (libgomp1) would be faster"
gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
print(f"Python {platform.python_version()}, NumPy {np.__version__}, "
      f"Numba {numba.__version__}, PyTorch {torch.__version__}")
print(f"{os.cpu_count()} cores; PyTorch may use {torch.get_num_threads()} "
      f"of them, Numba {numba.get_num_threads()}")
print(f"Numba's threads: {threads}")
print(f"GPU: {gpu}")
device = "cpu" if gpu == "none" else "cuda"

# %% [markdown]
# ## What you have, and what you will add
#
# This is K2 on one page. You will meet this drawing in every lesson, with
# the part of the day in colour. Today it is all of it.

# %%
model_map(["all"], "Kimi K2: everything in this drawing is in this course")

# %% [markdown]
# From left to right: a token becomes a vector; 61 times, attention lets
# it look at earlier tokens and a few experts work on it; the head says
# which token may come next. Below, from right to left, is how it is
# trained. Blue is the *latent*, the small vector from which K2 makes its
# keys and values, and orange is what carries *positions*. These two
# colours mean the same in every figure of the course. Not drawn: the
# norms, and that each half of a layer adds its result to its input.

# %% [markdown]
# ## 1. Something to read
#
# A model learns from text. Yours reads the source of Python's standard
# library, which is on your disk already. Its tokens are bytes: 256 of
# them, no tokenizer to explain. The smallest text of all:

# %%
print(encode("def"), "->", repr(decode([100, 101, 102])))

# %%
corpus = Corpus.standard_library()
for split in ("train", "validation"):
    print(f"{split:>10}: {corpus.size(split):>9,} bytes "
          f"in {len(corpus.files[split])} files")
print("held out:", ", ".join(corpus.files["validation"][:4]), "…")

# %% [markdown]
# The split is by whole files. What the model has to predict later comes
# from files of which it has not read a line. This is a piece of one, and
# we will come back to it:

# %%
assert "copy.py" in corpus.files["validation"]
lines = inspect.getsource(copy._deepcopy_list).splitlines(keepends=True)
text = "".join(lines[:5])
print(text)

# %% [markdown]
# ## 2. A model that knows nothing
#
# The configuration `small` is K2's with smaller numbers. The same seed
# gives the same random weights on every machine.

# %%
cfg = minik2.ModelConfig.preset("small")
model = pytorch.Model.init(cfg, seed=0, device=device)
print(f"{sum(p.numel() for p in model.parameters()):,} numbers to train")
model_map(["all"], "Yours: the same drawing, smaller numbers", cfg)

# %%
def write(prompt, length=160, temperature=0.8, seed=0):
    """Let the model continue a text by so many bytes."""
    tokens = encode(prompt)[None]
    out = decode(model.generate(tokens, length, temperature, seed)[0].cpu())
    return "".join(c if c.isprintable() or c == "\n" else "·" for c in out)


print(write("def "))

# %% [markdown]
# That is what random weights have to say. How bad is it, in a number?
# The model gives every possible next byte a probability. Its **loss** is
# $-\ln p$ of the byte that did come, averaged over many bytes: the mean
# surprise, in *nats*. Whoever gives all 256 bytes the same chance has a
# loss of $\ln 256$.

# %%
held_out_text, held_out_next = corpus.spread("validation", 64, 128)


def held_out_loss():
    """Mean loss on 64 pieces of held-out files, always the same ones."""
    with torch.inference_mode():
        targets = torch.from_numpy(held_out_next)
        return model.loss(held_out_text, targets).item()


def surprise(text):
    """The loss of each byte of a text, which follows a file's end."""
    tokens = np.append(END_OF_FILE, encode(text))
    with torch.inference_mode():
        logits = model(tokens[None, :-1])[0].float().cpu()
    targets = torch.from_numpy(tokens[1:])
    return F.cross_entropy(logits, targets, reduction="none").numpy()


before = surprise(text)
print(f"untrained: {held_out_loss():.2f} nats a byte")
print(f"ln 256:    {np.log(256):.2f}")

# %% [markdown]
# Worse than guessing blindly: random weights have opinions, and wrong
# ones.
#
# Two yardsticks that need no neural network. The first table holds how
# often each byte occurs. The second holds how often each byte follows
# each other one: 65,536 numbers that know that `q` wants a `u`.

# %%
seen, unseen = corpus.bytes["train"], corpus.bytes["validation"]
pairs = np.full((256, 256), 0.1)  # so that nothing is impossible
np.add.at(pairs, (seen[:-1], seen[1:]), 1)
singles = pairs.sum(axis=0)

following = np.log(pairs / pairs.sum(axis=1, keepdims=True))
yardsticks = {
    "a blind guess": float(np.log(256)),
    "a table of bytes": -np.log(singles / singles.sum())[unseen].mean(),
    "a table of byte pairs": -following[unseen[:-1], unseen[1:]].mean(),
}
for name, nats in yardsticks.items():
    print(f"{name:<22} {nats:.2f} nats a byte")

# %% [markdown]
# ## 3. One minute of training
#
# The loop is all there is: take a batch of text, compute the loss, let
# PyTorch find the gradient, make a step. The optimizer is AdamW, since
# everybody knows it. K2 used Muon with QK-Clip; you will write both in
# lessons 08 and 09. The learning rate rises, stays, and falls, as in K2.

# %%
steps = 120 if os.environ.get("MINIK2_SHORT") else 600
batch, window = 8, 128
# Products this small gain little from a second core, and would wait for
# it whenever another program, your browser say, is using it.
torch.set_num_threads(1)

optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3,
                              betas=(0.9, 0.95), weight_decay=0.1)
rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(
    (step + 1) / 20, 1, (steps - step) / (0.4 * steps)))

train, held_out = [], {0: held_out_loss()}
start = time.perf_counter()
bar = tqdm(range(1, steps + 1), file=sys.stdout, ncols=76, unit="step")
for step in bar:
    tokens, targets = corpus.sample("train", batch, window, rng)
    loss = model.loss(tokens, torch.from_numpy(targets))
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    rate.step()

    train.append(loss.item())
    bar.set_postfix(loss=f"{train[-1]:.2f}")
    if step % (steps // 20) == 0:
        held_out[step] = held_out_loss()
seconds = time.perf_counter() - start

print(f"held out: {held_out[0]:.2f} -> {held_out[steps]:.2f} nats a byte, "
      f"{steps * batch * window / seconds:,.0f} bytes a second")
assert held_out[steps] < yardsticks["a table of byte pairs"]

# %%
plots.loss_curve(train, held_out, yardsticks)

# %% [markdown]
# ## 4. What it has learned
#
# The same question as before.

# %%
print(write("def "))

# %% [markdown]
# It makes no sense, and yet nobody would take it for anything but Python.
# After one minute, from nothing, from bytes.
#
# Now try prompts of your own. A lower temperature makes it more careful
# and duller, another seed draws anew. (It has read windows of 128 bytes
# only; do not expect it to remember more.)

# %%
for seed in range(1, 4):
    print(write("class Error(", length=100, seed=seed))
    print("-" * 40)

# %% [markdown]
# And the piece of the held-out file, byte by byte: the darker, the more
# surprised the model was by it.

# %%
after = surprise(text)
plots.surprise(text, before, after)

# %% [markdown]
# Look where the dark ones are.

# %%
letter = np.array([c.isalpha() for c in text])
first = letter & ~np.append(False, letter[:-1])
print(f"first letters of words: {after[first].mean():.1f} nats")
print(f"letters inside words:   {after[letter & ~first].mean():.1f} nats")
print(f"the rest:               {after[~letter].mean():.1f} nats")

# %% [markdown]
# How a word goes on is easier to say than which word comes. Predicting
# that well takes knowledge of what the code does, and that is what more
# parameters are for.

# %% [markdown]
# ## 5. Open it
#
# To look inside, we save the model as a checkpoint, in the format and
# under the names of K2's release, and load it into the other engine of
# this course: NumPy by hand, which returns all intermediate results on
# request. That is also a check: two implementations, one file, the same
# logits.

# %%
with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    print(*sorted(os.listdir(folder)))
    by_hand = reference.Model.from_pretrained(folder, dtype="float64")
    exact = pytorch.Model.from_pretrained(folder, dtype=torch.float64)

tokens = encode(text)
print("Numba compiles its loops; the first time that takes a while.")
logits, saved = by_hand.forward(tokens[None])
with torch.inference_mode():
    theirs = exact(tokens[None]).numpy()
apart = np.abs(logits - theirs).max() / np.abs(theirs).max()
print(f"NumPy and torch differ by {apart:.0e} of the largest logit")
assert apart < 1e-9

# %% [markdown]
# ### Every tensor has a name
#
# These are the tensors of one layer of your model, as they are in the
# file. K2's layer 1 has the same list, only that its experts go up to
# 383, and that the released FP8 files also have a `…weight_scale_inv`
# beside most matrices (lesson 11).

# %%
weights = by_hand.weights
for name, array in weights.items():
    more = ".experts." in name and ".experts.0." not in name
    if name.startswith("model.layers.1.") and not more:
        print(f"{name:<50} {array.shape}")

# %% [markdown]
# The papers write symbols, files have names. Code, errors and figures of
# this course use the names of the file; these tables translate. A matrix
# is stored as (out, in), and the letters of its shape are below.
# [GLOSSARY.md](../GLOSSARY.md) has the symbols of all lessons.
#
# Attention, after `model.layers.l.self_attn.` with `l` the layer:
#
# | Paper | What it does | In the file | Shape |
# |---|---|---|---|
# | $W^{DQ}$ | makes the query latent | `q_a_proj` | q rank, D |
# | $W^{UQ}, W^{QR}$ | makes queries of it | `q_b_proj` | H(N+R), q rank |
# | $W^{DKV}, W^{KR}$ | makes latent, rotary key | `kv_a_proj_with_mqa` | C+R, D |
# | $W^{UK}, W^{UV}$ | makes keys, values | `kv_b_proj` | H(N+V), C |
# | $W^O$ | joins the heads | `o_proj` | D, HV |
# | (no symbol) | norm of the query latent | `q_a_layernorm` | q rank |
# | (no symbol) | norm of the latent | `kv_a_layernorm` | C |
#
# Experts, after `model.layers.l.mlp.` with `e` the expert; `*` is `gate`,
# `up` or `down`:
#
# | Paper | What it does | In the file | Shape |
# |---|---|---|---|
# | $\mathbf e_i$ | scores the experts | `gate` | E, D |
# | $b_i$ | corrects the choice | `gate.e_score_correction_bias` | E |
# | $\mathrm{FFN}^{(r)}_i$ | a routed expert | `experts.e.*_proj` | I, D (down: D, I) |
# | $\mathrm{FFN}^{(s)}_i$ | the shared expert | `shared_experts.*_proj` | the same |
#
# And what flows through and is stored in no file: the token's vector
# $\mathbf h_t$ (D), the query latent $\mathbf c^Q_t$, the latent
# $\mathbf c^{KV}_t$ (C), the rotary key $\mathbf k^R_t$ (R).
#
# Outside the layers: `model.embed_tokens`, `model.norm`, `lm_head`.
#
# Every norm is an *RMSNorm*: it divides a vector by the root of its mean
# square, and multiplies each number by a weight of its own.
#
# **The alphabet of axes**, in every shape of the course: B batch,
# T tokens, S cached tokens, D hidden, H heads, E experts, K chosen
# experts, C latent, R rotary, N nope (the part of a head without
# position), V value, I expert width.

# %% [markdown]
# ### Embedding: a byte becomes a vector
#
# The embedding is a table with one row a token. Three bytes are three
# rows:

# %%
table = weights["model.embed_tokens.weight"]
print("table", table.shape, " three tokens", table[encode("def")].shape)
print(table[encode("def"), :8], "…")

# %% [markdown]
# The rows began as noise. Nobody told the model which bytes are letters.

# %%
signs = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
signs += " \n.,:;()[]{}=+-*/<>'\"#_@"
plots.embedding(signs, table[encode(signs)])

# %% [markdown]
# Which row is nearest is measured in all 128 dimensions. The drawing has
# room for two of them: what stands side by side in it may be far apart.

# %% [markdown]
# ### Attention: a small note on every token
#
# Attention lets a token look at earlier ones, through *keys* and
# *values*. Plain attention keeps keys and values for every head; some
# models share them among a few. K2 squeezes them through a **latent**,
# and keeps that, with one small key that carries the position. This is
# all that a layer of yours remembers of the first 24 bytes:

# %%
kept = saved[1]["self_attn"]
latent, rotary = kept["latent"][0, :24], kept["k_rope"][0, :24]
per_head = cfg.qk_nope_head_dim + cfg.qk_rope_head_dim + cfg.v_head_dim
plots.latents(text[:24], latent, rotary,
              cfg.num_attention_heads * per_head, layer=1)

# %% [markdown]
# Where do heads look? Four layers of four heads each; the one below is
# the one that looks hardest at some fixed distance. (The formula is the
# subject of lesson 01. Here it only fills the figure.)

# %%
def look(layer):
    """Attention weights (H, T, T) of a layer, from what it saved."""
    kept = saved[layer]["self_attn"]["attention"]
    q, k = kept["q"][0], kept["k"][0]
    scores = kept["scale"] * np.einsum("thd,shd->hts", q, k)
    scores = np.where(np.tri(len(tokens), dtype=bool), scores, -np.inf)
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


heads = np.stack([look(n) for n in range(cfg.num_hidden_layers)])
back = np.stack([heads.diagonal(-d, 2, 3).mean(-1) for d in (1, 2, 3)])
place = np.unravel_index(back.max(axis=0).argmax(), heads.shape[:2])
plots.attention(text[:40], heads[place][:40, :40], *place)

# %% [markdown]
# ### Experts: a few of many
#
# After attention comes a layer's second half. In layer 0 it is one wide
# block, the same for all tokens. In the others it is 16 narrow ones, the
# *experts*, of which a **router** picks 4 for every token; one more, the
# shared expert, works on every token. Here it is by hand, for one token,
# in full:

# %%
prefix = "model.layers.1.mlp."
spot = text.index("=")
x = saved[1]["mlp"]["router"]["x"][spot]

scores = 1 / (1 + np.exp(-weights[prefix + "gate.weight"] @ x))
chosen = np.argsort(-scores)[: cfg.num_experts_per_tok]
shares = scores[chosen] / scores[chosen].sum() * cfg.routed_scaling_factor
print(f"{text[spot]!r} goes to experts {chosen} with weights {shares}")


def expert(name):
    """down(silu(gate x) * up x): three matrices, one expert."""
    gate, up, down = (weights[f"{prefix}{name}.{part}_proj.weight"]
                      for part in ("gate", "up", "down"))
    opened = gate @ x
    return down @ (opened / (1 + np.exp(-opened)) * (up @ x))


y = expert("shared_experts")
for e, share in zip(chosen, shares, strict=True):
    y = y + share * expert(f"experts.{e}")

with torch.inference_mode():
    theirs = exact.model.layers[1].mlp(torch.from_numpy(x)[None])[0].numpy()
print("by hand - torch:", np.abs(y - theirs).max())
assert np.abs(y - theirs).max() < 1e-9 * np.abs(theirs).max()

# %% [markdown]
# (The correction bias is left out: nobody has moved it from 0 yet.)
#
# Which experts does each byte of the text go to? And is it the byte that
# decides? For the second question we compare the tokens of 2,048 bytes of
# held-out files, two by two: how many of their experts do they share?
# Every byte value counts once, however often it occurs; otherwise this
# would be about the blank alone, which makes up most pairs of equal bytes.

# %%
experts = np.eye(cfg.n_routed_experts)
_, others = by_hand.forward(held_out_text[::4])
choice = experts[others[1]["mlp"]["router"]["indices"]].sum(axis=1)
kinds, kind = np.unique(held_out_text[::4], return_inverse=True)
copies = np.eye(len(kinds))[kind.ravel()]  # (tokens, byte values)
count = copies.sum(axis=0)
total = copies.T @ choice  # how often each byte value chose each expert
common = total @ total.T / cfg.num_experts_per_tok
again = count > 1  # a token is no pair with itself
same_share = ((common.diagonal() - count)[again]
              / (count * (count - 1))[again]).mean()
other_share = (common / np.outer(count, count))[
    ~np.eye(len(kinds), dtype=bool)].mean()

routed = saved[1]["mlp"]["router"]
grid = np.einsum("tk,tke->te", routed["weights"],
                 experts[routed["indices"]])
plots.router(text[:48], grid[:48], 1, same_share, other_share)

# %%
load = choice.mean(axis=0)
even = cfg.num_experts_per_tok / cfg.n_routed_experts
print(f"an even load: {even:.0%} of the tokens to each expert")
print(f"the busiest:  {load.max():.0%}")
print(f"the idlest:   {load.min():.0%}")

# %% [markdown]
# That was layer 1. It is not fair to the idle experts, which do not learn,
# and in a big model not to the machines that hold the busy ones.
# DeepSeek-V3, whose router K2 takes over, moves a correction bias after
# every step; K2's checkpoint has such a bias. (How K2 moved it is not
# published.) Lesson 06 does that, and shows the collapse without it.

# %% [markdown]
# ## 6. From yours to K2
#
# A model of this family is described by one file, `config.json`. This is
# what K2's says about its shape. (In answers you may use NumPy, this
# `config` to try them on, and your other answers: `minik2 check` runs
# this cell and the first, and none of the lesson's others.)

# %% role="setup"
import importlib.resources
import json

presets = importlib.resources.files("minik2") / "presets"
config = json.loads((presets / "kimi-k2.json").read_text())
for key in list(config)[1:]:
    print(f"{key:>28} {config[key]}")

# %% [markdown] exercise="config.read"
# Read a config such as K2's, which is printed above. Return a dict with
# these seven: `layers`; `moe_layers`, the number of layers that have
# experts; `heads`; `experts`, the number of routed experts in a layer;
# `experts_per_token`, how many of them a token goes to; `sparsity`, the
# ratio that K2's report calls so, experts over chosen experts; and
# `rope_theta`.
#
# The first `first_k_dense_replace` layers have no experts. Files that are
# written by transformers 5 keep `rope_theta` inside a dict called
# `rope_parameters`; older ones, such as K2's, at the top level. Your
# function meets both.

# %% exercise="config.read"
def read(config: dict) -> dict:
    """What a config.json says about a model's shape.

    config: the file as a dict. Returns layers, moe_layers, heads,
    experts, experts_per_token (whole numbers), sparsity, rope_theta.
    """
    layers = config["num_hidden_layers"]
    experts = config["n_routed_experts"]
    chosen = config["num_experts_per_tok"]
    rope = config.get("rope_parameters", config)
    return {
        "layers": layers,
        "moe_layers": layers - config["first_k_dense_replace"],
        "heads": config["num_attention_heads"],
        "experts": experts,
        "experts_per_token": chosen,
        "sparsity": experts / chosen,
        "rope_theta": rope["rope_theta"],
    }

# %% [markdown] hints="config.read"
# Four of the seven stand in the file under keys of their own. Two more
# are a subtraction and a division away. Start with those, run the check,
# and see what it says.
#
# ---
#
# Dense layers come first: with `first_k_dense_replace` = 1 only layer 0
# is dense. The ratio is a number with a fraction in general.
#
# ---
#
# `config.get("rope_parameters", config)` is the dict in which to look for
# `rope_theta`: the inner one where there is one, otherwise the config
# itself.
#
# ---
#
# A subtraction, a division, and one look in two places.

# %% [markdown] exercise="config.count_expert"
# And an expert? It is three matrices: `gate_proj` and `up_proj` lead from
# the model's width to the expert's, `down_proj` leads back. How many
# parameters has one routed expert?

# %% exercise="config.count_expert"
def count_expert(config: dict) -> int:
    """Parameters of one routed expert: gate, up and down projection.

    config: a config.json as a dict. Returns a whole number.
    """
    matrix = config["hidden_size"] * config["moe_intermediate_size"]
    return 3 * matrix

# %% [markdown] hints="config.count_expert"
# A matrix of `a` rows and `b` columns has `a * b` parameters. The lesson
# lists the tensors of its model's layer 1: what are the shapes of the
# three there?
#
# ---
#
# There are two widths of a feed-forward block in a config: that of the
# dense layers, and that of an expert. Which key is which?
#
# ---
#
# All three matrices join `hidden_size` and `moe_intermediate_size`; one
# of them in the other direction, which changes nothing in the count.
#
# ---
#
# Three matrices of the same size.

# %% [markdown]
# That was the unit of which K2 is made. Everything else is small beside
# it:

# %%
k2 = minik2.ModelConfig.preset("kimi-k2")
counts = {"small": minik2.sizing.parameters(cfg),
          "Kimi K2": minik2.sizing.parameters(k2)}
plots.where_parameters(counts)

# %%
print(counts["Kimi K2"])
assert counts["Kimi K2"].total == sum(
    np.prod(shape, dtype=np.int64) for _, shape in k2.tensors())

# %% [markdown]
# The assert adds up the shapes of all tensors, one by one, and agrees to
# the last digit. (K2's report says 1.04 trillion. The released file holds
# 1.026; what makes the difference is not stated.) `active` is what one
# token meets, 32.86 billion with the whole embedding and the head counted
# in. The report says 32.6; its way of counting is not published.
#
# Yours has 1,689,200 in all, 48 more than the numbers to train: 3 layers
# of 16 correction biases, which no gradient trains.

# %% [markdown] exercise="config.cache_numbers"
# One more number is worth knowing by heart. While K2 writes, it keeps
# something of every token of the conversation, in every layer: the latent
# (`kv_lora_rank` numbers) and the one rotary key (`qk_rope_head_dim`).
# How many numbers does one token leave in this cache, over all layers?

# %% exercise="config.cache_numbers"
def cache_numbers(config: dict) -> int:
    """Numbers that one token leaves in the cache, over all layers.

    config: a config.json as a dict. Returns a whole number.
    """
    kept = config["kv_lora_rank"] + config["qk_rope_head_dim"]
    return config["num_hidden_layers"] * kept

# %% [markdown] hints="config.cache_numbers"
# The lesson has a figure of what a layer keeps. What are its two parts,
# and how wide are they in K2?
#
# ---
#
# All heads make their keys and values from the same latent. So does the
# number of heads matter?
#
# ---
#
# One layer keeps `kv_lora_rank + qk_rope_head_dim` numbers. Every layer
# has its own, the dense one too.
#
# ---
#
# What one layer keeps, times the layers.

# %% [markdown]
# ## In K2
#
# Computed from its published configuration, beside yours:

# %%
def row(name, number):
    print(f"{name:<40} {number(cfg):>14,.0f} {number(k2):>22,.0f}")


parameters = minik2.sizing.parameters
row("parameters", lambda c: parameters(c).total)
row("of them at work on one token", lambda c: parameters(c).active)
row("one expert", lambda c: 3 * c.hidden_size * c.moe_intermediate_size)
row("experts in the whole model", lambda c: c.n_routed_experts * (
    c.num_hidden_layers - c.first_k_dense_replace))
row("bytes of the weights, 1 byte each", lambda c: parameters(c).total)
row("bytes of cache a token, 2 bytes a number", lambda c: 2 * (
    c.num_hidden_layers * (c.kv_lora_rank + c.qk_rope_head_dim)))
row("the same for the longest context", lambda c: 2 * (
    c.max_position_embeddings * c.num_hidden_layers
    * (c.kv_lora_rank + c.qk_rope_head_dim)))

# %% [markdown]
# <div class="alert alert-info">
#
# **In K2** the weights, at one byte each as nearly all were released, fill
# a terabyte; a conversation of 131,072 tokens adds 9 GB. A token passes
# 8 + 1 experts in each of 60 layers, and never meets the other 376. So K2
# costs a thirtieth of its size to run, and all of its size to hold.
#
# </div>

# %% [markdown]
# ## On the back of an envelope
#
# Training costs about six operations for each parameter at work and each
# token: two to go forward, four to come back. K2 read 15.5 trillion
# tokens with some 32 billion parameters at work. Your computer trained
# for a minute; say it did 60 billion operations a second. How long would
# it need for K2? Answer to a power of ten before you look.
#
# <details><summary>Answer</summary>
#
# $6 \cdot 3.2 \cdot 10^{10} \cdot 1.55 \cdot 10^{13} \approx
# 3 \cdot 10^{24}$ operations. At $6 \cdot 10^{10}$ a second that is
# $5 \cdot 10^{13}$ seconds, and a year has $3 \cdot 10^7$ of them:
# **more than a million years**. (The number of GPUs that K2 was trained
# on is not published.) The cell below puts in what your computer really
# did.
#
# </details>

# %%
# A token reads one row of the embedding and multiplies with none of it.
yours = counts["small"].active_without_embedding
theirs = counts["Kimi K2"].active_without_embedding
a_second = 6 * yours * steps * batch * window / seconds
years = 6 * theirs * 15.5e12 / a_second / (365.25 * 24 * 3600)
print(f"yours: {a_second / 1e9:.0f} billion operations a second")
print(f"K2 on it: {years:,.0f} years")

# %% [markdown]
# <div class="alert alert-success">
#
# **Takeaway.** K2 is a small number of simple parts, repeated. A latent
# makes its memory small, and a router makes most of its parameters rest.
# Both are in the model that you just trained, under the same names.
#
# </div>
#
# ## Sources
#
# - Architecture and numbers: *Kimi K2: Open Agentic Intelligence*, arXiv
#   2507.20534, §2.3 and Table 2; training and data: §2.5.
# - Symbols of attention and experts: DeepSeek-V3, arXiv 2412.19437, §2.1,
#   eq. 1 to 16.
# - `config.json`: `minik2/presets/kimi-k2.json` says where its values
#   were read.
#
# **Next:** lesson 01 opens the first box, attention, and finds out how it
# knows where a token stands.
