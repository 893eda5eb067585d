# %% [markdown]
# # 11 · The full-scale configuration
#
# *About 60 minutes, one or two of them for the computer.*
#
# **After this lesson you can**
#
# - count K2 to the last of its 1,026,408,232,448 weights, and say which
#   of them a token meets, in which of three ways of counting;
# - bound the tokens a second of any machine from five numbers;
# - say what each of 256 GPUs holds in training, line by line, and which
#   of these lines K2's makers have published;
# - read weights out of FP8 blocks, at ragged edges too, and say what
#   eight bits cost;
# - send a token through layers of K2's true size on your own machine,
#   after predicting what that takes.

# %% role="setup"
import numpy as np

from minik2.checks import check

np.set_printoptions(precision=3, suppress=True)

# %%
import os
import sys
import textwrap

import ml_dtypes
import torch
from tqdm import tqdm

import minik2
from minik2 import fullsize, pytorch, sizing
from minik2.checkpoint import float8
from minik2.plots import fullsize as plots_fullsize
from minik2.plots import lesson11 as plots
from minik2.plots import sizing as plots_sizing
from minik2.plots.model_map import model_map
from minik2.sizing.cluster import stage_weights
from minik2.sizing.formats import bits_by_part
from minik2.training import lesson_model
from minik2.training.corpus import Corpus

rng = np.random.default_rng(11)
short = bool(os.environ.get("MINIK2_SHORT"))

# %% [markdown]
# ## What you have, and what you will add
#
# You have every part of K2, forwards, backwards and in training. They
# were small, and that was their merit. Today nothing new is built. The
# same parts get their real sizes, and you do what engineers do before a
# machine of that size is switched on: arithmetic.
#
# In answers you may use NumPy, your other answers, and what is defined
# for it in sections 1 (`config`, `attention`) and 4 (`E4M3`).
# `minik2 check` runs these and none of the lesson's other cells.

# %%
model_map(["all"], "Today: all of it, at its real size")

# %% [markdown]
# ## 1. To the last weight
#
# This is what `config.json` says, and what lesson 02 made of a part of
# it: the five matrices of attention.

# %% role="setup"
import importlib.resources
import json

presets = importlib.resources.files("minik2") / "presets"
config = json.loads((presets / "kimi-k2.json").read_text())


def attention(c):
    """Weights of a layer's five attention matrices; c: a config."""
    heads, rank = c["num_attention_heads"], c["q_lora_rank"]
    nope, rope = c["qk_nope_head_dim"], c["qk_rope_head_dim"]
    latent, value = c["kv_lora_rank"], c["v_head_dim"]
    down = c["hidden_size"] * (rank + latent + rope)
    per_head = (nope + rope) * rank + (nope + value) * latent
    return down + heads * (per_head + value * c["hidden_size"])

# %% [markdown]
# And these are the tensors of one layer with experts, at their real
# shapes. (Of 384 experts the first; the others are like it.)

# %%
k2 = minik2.ModelConfig.preset("kimi-k2")
shapes = dict(k2.tensors())
for name, shape in shapes.items():
    short_name = name.removeprefix("model.layers.1.")
    other = ".experts." in name and ".experts.0." not in name
    if short_name != name and not other:
        print(f"{short_name:<42} {' × '.join(map(str, shape)):>12}")

# %% [markdown] exercise="fullscale.count_layer"
# Count one layer, tensor by tensor, norms and correction biases too. The
# first `first_k_dense_replace` layers have one dense block in place of
# router and experts, `intermediate_size` wide. Some models have more than
# one shared expert.

# %% exercise="fullscale.count_layer"
def count_layer(config: dict, layer: int) -> int:
    """All weights that layer number `layer` stores.

    config: a config.json as a dict, of a model with a query latent and
    correction biases, as K2 and V3 have; layer: 0 is the first.
    """
    hidden = config["hidden_size"]
    norms = 2 * hidden + config["q_lora_rank"] + config["kv_lora_rank"]
    count = attention(config) + norms
    if layer < config["first_k_dense_replace"]:
        return count + 3 * hidden * config["intermediate_size"]
    expert = 3 * hidden * config["moe_intermediate_size"]
    routed, shared = config["n_routed_experts"], config["n_shared_experts"]
    return count + (routed + shared) * expert + routed * (hidden + 1)

# %% [markdown] hints="fullscale.count_layer"
# Go down the list of tensors above. `attention(config)` is five of its
# lines. Which are left?
#
# ---
#
# Four norms: two of hidden_size, and one on each latent. Then the router,
# a row for each expert, and as many biases; then the experts.
#
# ---
#
# A feed-forward block of width w has 3 · hidden · w weights. There are
# n_routed_experts + n_shared_experts of them, or one that is wider.
#
# ---
#
# Attention, norms, and then either the dense block or experts and router.

# %% [markdown]
# Sixty such layers, a dense one, two tables and a norm: that is the
# model. Each part on top of those before it:

# %%
counted = sizing.parameters(k2)
plots_sizing.waterfall(k2, "Kimi K2")

# %% [markdown]
# What is *active*, the weights at work on one token, is a matter of
# convention: a token multiplies with the head, but of the embedding it
# looks up one row.

# %% [markdown] exercise="fullscale.count_model"
# Count the whole model: what is stored, and what one token is at work
# with: everything but the experts that it did not choose and the
# embedding. (The last norm, `model.norm`, has hidden_size weights.)

# %% exercise="fullscale.count_model"
def count_model(config: dict) -> dict:
    """Weights stored ("total") and at work on one token ("active").

    config: as for count_layer, with an embedding and a head that are
    two tables of vocab_size rows. "active" leaves out the experts that
    are not chosen, and the embedding.
    """
    layers, hidden = config["num_hidden_layers"], config["hidden_size"]
    table = config["vocab_size"] * hidden
    total = 2 * table + hidden
    total += sum(count_layer(config, layer) for layer in range(layers))
    resting = config["n_routed_experts"] - config["num_experts_per_tok"]
    resting *= layers - config["first_k_dense_replace"]
    resting *= 3 * hidden * config["moe_intermediate_size"]
    return {"total": total, "active": total - resting - table}

# %% [markdown] hints="fullscale.count_model"
# The total is a sum over layers, and three more tensors. What does one
# token not touch of it?
#
# ---
#
# `count_layer` is there. In each layer that has experts,
# n_routed_experts - num_experts_per_tok of them rest. The router itself
# never rests.
#
# ---
#
# total = 2 tables + last norm + all layers. active = total - embedding -
# (layers with experts) · (experts that rest) · 3 · hidden · width.
#
# ---
#
# One sum and one subtraction.

# %% [markdown]
# Three others count too: the shapes of all tensors that the checkpoint
# has, the engine in PyTorch, and `transformers`, which nobody here wrote.
# The last two build all of K2 on torch's `meta` device, where a tensor
# has a shape and no numbers. If your answer has passed, it is the fourth.

# %%
with torch.device("meta"):
    models = {"engine, PyTorch": pytorch.Model(k2)}
    try:
        from transformers.models.deepseek_v3 import modeling_deepseek_v3
        theirs = modeling_deepseek_v3.DeepseekV3Config(**k2.to_json())
        models["transformers"] = modeling_deepseek_v3.DeepseekV3ForCausalLM(
            theirs)
    except ImportError:
        print("transformers is not installed here; make test installs it")
counts = {"sizing": counted.total, "shapes": sum(
    np.prod(shape, dtype=np.int64) for shape in shapes.values())}
for name, built in models.items():
    trained = sum(p.numel() for p in built.parameters())
    biases = sum(b.numel() for key, b in built.named_buffers()
                 if key.endswith("e_score_correction_bias"))
    counts[name] = trained + biases
if check("fullscale.count_model", count_model).passed:
    counts["yours"] = count_model(config)["total"]
for name, count in counts.items():
    print(f"{name:<16} {count:>21,}")
    assert count == counted.total

# %% [markdown]
# What the makers say, beside it:

# %%
def say(*names):
    """The published figures of these names, beside ours."""
    for claim in sizing.claims("kimi-k2"):
        if claim.what in names:
            print(textwrap.fill(str(claim), 76, subsequent_indent="    "))


say("weights", "active", "FP8 files")

# %% [markdown]
# The report's Table 2 rounds to 1.04 trillion, and Table 4 says 1,043
# billion. With one more layer for predicting a second token, as
# DeepSeek-V3 has, our count would be 1,043.57; but no such layer is in
# the files, and that the report counts one is our guess. Nor does any of
# three ways to count active weights give 32.6. Where a line says
# *unverified*, the makers have not said what they counted.
#
# ## 2. What would it take to serve it?
#
# Weights must lie in some memory, and so must every conversation's cache.
# K2 as it was released, in FP8, and conversations of 32,768 tokens:

# %%
context = 32768
files, row = sizing.stored(k2, "float8").bytes, sizing.kv_cache_bytes(k2, 1)
for name in ("8xh200", "16xh800", "16xh200"):
    machine = sizing.machine(name)
    memory = machine.devices * machine.memory
    room = max(0, memory - files) // (context * row)
    print(f"{name:>8}: {memory / 1e12:.2f} TB for {files / 1e12:.2f} TB of "
          f"weights and {room:,} caches of {context * row / 1e9:.1f} GB")

# %% [markdown]
# (K2's own guide names 16 H200 as the smallest unit for FP8 at a context
# of 128k. A real server needs room for more than weights and cache.)
#
# Real conversations have all lengths, so servers hand memory out in
# **pages**, a fixed number of tokens each. The last page of a
# conversation is seldom full. Conversations of 5 and 8 tokens in pages of
# 4 have 2 + 2 pages, room for 16.
#
# Then there are the GPUs. In **tensor parallelism** (TP) they share out
# the heads of attention. Keys and values of a head could move with it.
# But a latent has no heads: each of them reads all of it.

# %% [markdown] exercise="fullscale.cache_bytes"
# What do the caches of a whole server occupy, on all its GPUs together?

# %% exercise="fullscale.cache_bytes"
def cache_bytes(
    config: dict, lengths: np.ndarray, page: int, tp: int
) -> int:
    """Bytes of the pages of all these conversations, on all tp GPUs.

    lengths: (conversations,) tokens of each; page: tokens in a page;
    tp: GPUs that share out the heads of attention. Latents and rotary
    keys are bfloat16.
    """
    row = config["kv_lora_rank"] + config["qk_rope_head_dim"]
    token = 2 * config["num_hidden_layers"] * row
    pages = (-(-lengths // page)).sum()  # each rounded up
    return int(tp * pages * page * token)

# %% [markdown] hints="fullscale.cache_bytes"
# What does one token leave in the cache? Lesson 03 counted it. For how
# many tokens is there room, and on how many GPUs?
#
# ---
#
# A token leaves num_hidden_layers rows of kv_lora_rank + qk_rope_head_dim
# numbers, with two bytes each. Round each length up to whole pages before
# you add.
#
# ---
#
# In whole numbers `-(-5 // 4)` is 5 / 4 rounded up. All heads need all of
# a latent, so each of the tp GPUs has every page.
#
# ---
#
# A token's bytes, times tokens in pages, times tp.

# %% [markdown]
# A thousand conversations, most of them short, in pages of 64 tokens:

# %%
lengths = np.minimum(rng.lognormal(7, 1.5, 1000).astype(int) + 1, 131072)
exact = sizing.kv_cache_bytes(k2, int(lengths.sum()))
paged = sizing.kv_cache_bytes(k2, int((-(-lengths // 64) * 64).sum()))
fullest = sizing.kv_cache_bytes(k2, int(lengths.max()), len(lengths))
if check("fullscale.cache_bytes", cache_bytes).passed:
    assert cache_bytes(config, lengths, 1, 1) == exact
    assert cache_bytes(config, lengths, 64, 8) == 8 * paged
print(f"{exact / 1e9:8,.0f} GB of latents\n{paged / 1e9:8,.0f} GB in pages"
      f"\n{fullest / 1e9:8,.0f} GB if each had the room of the longest\n"
      f"{8 * paged / 1e9:8,.0f} GB in pages on 8 GPUs that share out heads")

# %% [markdown]
# Pages cost next to nothing. Sharing out heads costs a copy for each GPU,
# so the memory that was bought with more GPUs is filled with the same
# latents again. The other way is to divide attention by conversations:
# each GPU has all heads, for conversations of its own.
#
# How fast? A step of decoding makes one token for each of $b$ sequences.
# What it must read sets a limit that no engine can beat:
#
# $$\text{tokens a second} \le \frac{b \cdot \text{bandwidth}}
#   {\text{always} + \text{share}(b) \cdot \text{experts} + b \cdot
#    \text{cache}}$$
#
# *Always* are the weights that every token meets, read once for all of
# them. The *cache* of a sequence is read for that sequence alone. And of
# the *experts* a share: a token leaves out one expert of its layer with
# probability $1 - K/E$, so if tokens choose evenly and independently of
# each other, $b$ tokens leave it out with $(1 - K/E)^b$, and
#
# $$\text{share}(b) = 1 - (1 - K/E)^b.$$
#
# With one of two experts that is a half for one token, three quarters for
# two, seven eighths for three.

# %% [markdown] exercise="fullscale.decode_rate"
# Write this limit. The cache is the latent one of lesson 03, in bfloat16,
# and all of a sequence's `context` tokens are read.

# %% exercise="fullscale.decode_rate"
def decode_rate(
    config: dict, always: float, experts: float, context: int,
    batch: int, bandwidth: float,
) -> float:
    """The most tokens a second, of all sequences together.

    always, experts: bytes of the weights that every token meets, and of
    all routed experts; context: tokens in the cache of each sequence;
    batch: sequences at a time; bandwidth: bytes a second.
    """
    row = config["kv_lora_rank"] + config["qk_rope_head_dim"]
    cache = 2 * context * config["num_hidden_layers"] * row
    chosen = config["num_experts_per_tok"] / config["n_routed_experts"]
    share = 1 - (1 - chosen) ** batch
    read = always + share * experts + batch * cache
    return batch * bandwidth / read

# %% [markdown] hints="fullscale.decode_rate"
# Three terms are read in a step. Which of them grow with the batch, and
# how?
#
# ---
#
# A cached row has kv_lora_rank + qk_rope_head_dim numbers of two bytes,
# in every layer. K / E is num_experts_per_tok / n_routed_experts.
#
# ---
#
# `read = always + experts * (1 - (1 - K / E) ** batch) + batch * cache`.
# A step takes read / bandwidth seconds and makes `batch` tokens.
#
# ---
#
# A cache, a share, a sum and a division.

# %% [markdown]
# K2's three terms. Embedding rows are left out; `sizing.decode` counts
# them too, and is our cross-check. The formula assumes that tokens choose
# evenly, and tokens do not: for the lessons' small trained model (4 of 16
# experts) we draw real batches, each token from another place of a text.

# %%
batches = [2**n for n in range(11)]
bits = bits_by_part("float8")
size = {p: float(n * bits[p]) / 8 for p, n in counted.by_part.items()}
always = sum(size.values()) - size["routed_experts"] - size["embedding"]
chosen = k2.num_experts_per_tok / k2.n_routed_experts
read = {"always": np.full(len(batches), always),
        "experts": np.array([size["routed_experts"] * (1 - (1 - chosen)**b)
                             for b in batches]),
        "cache": np.array([float(b * context * row) for b in batches])}
machine = sizing.machine("16xh200")
for place, b in enumerate(batches):
    step = sizing.decode(k2, machine, context, b, "float8")
    ours = sum(part[place] for part in read.values())
    ours += b * 2 * k2.hidden_size  # the rows of the embedding
    both = step.weight_bytes + step.cache_bytes
    assert abs(ours - both) < 1e-12 * both

model = lesson_model()
E, K = model.cfg.n_routed_experts, model.cfg.num_experts_per_tok
text, _ = Corpus.standard_library().spread("validation", 1, 1024)
_, saved = model.forward(text)
choices = [kept["mlp"]["router"]["indices"] for kept in saved[1:4]]


def share(choose):
    """Experts met by a batch, of all: the mean of many batches."""
    return np.array([np.mean([len(np.unique(choose(b))) / E
                              for _ in range(300)]) for b in batches[:6]])


shares = {
    "formula": 1 - (1 - K / E) ** np.array(batches[:6]),
    "drawn": share(lambda b: [rng.permutation(E)[:K] for _ in range(b)]),
    "real": share(lambda b: rng.permutation(choices[b % 3])[:b])}
room = (machine.devices * machine.memory - files) // (context * row)
assert np.abs(shares["drawn"] - shares["formula"]).max() < 0.02
plots.what_is_read(batches, read, shares, room)

# %% [markdown]
# One token alone reads 33 GB of weights. In company it gets cheaper until
# all experts are read anyway; what remains then is its own cache, which
# no company makes smaller. In our small model tokens agree on experts a
# little more often than chance would have it, so there the formula counts
# a little too much. And a limit is no forecast: GPUs must also multiply,
# and talk to each other.
#
# Now turn it: context, batch, machine, number format. Below the sliders
# is the same figure as it stands at the start, for those who read this
# without a kernel.

# %%
plots_sizing.explore("kimi-k2")

# %%
plots_sizing.serving(k2, "kimi-k2")

# %% [markdown]
# ## 3. What would it take to train it?
#
# On one device, if there were one that large:

# %%
for optimizer in ("muonclip", "adamw"):
    print(f"{optimizer}\n{sizing.memory(k2, optimizer=optimizer)}\n")

# %% [markdown]
# There is none, so the model is cut in three ways. **Pipeline**: 61
# layers over 16 stages. **Experts** (EP): the 16 GPUs of a stage share
# its experts out, 24 of 384 each; of everything else each has a copy.
# That makes 256 GPUs with one model. **Copies** (DP): the same again,
# with other data. Under **ZeRO-1** weights and gradients stay whole on
# every GPU that holds them, and what the optimizer keeps is divided among
# all GPUs with the same weights.
#
# The smallest case: one stage, 4 experts of 100 weights and an attention
# of 50, with EP 2 and DP 3, which makes six GPUs. Each holds 2 experts
# and the attention, 250 weights. An expert is on 3 of the GPUs, so each
# of them keeps the optimizer's numbers for a third of its 200, 67 of
# them. Attention is on all 6: that is 8 more.
#
# The numbers are those of K2's report where it gives them (§2.4): 16
# stages, EP 16, weights in bfloat16, gradients added up in float32. For
# the optimizer we take what lesson 08 came to: a master copy in float32
# and, in float32 too, one buffer for Muon's matrices and two for the
# tables and norms that AdamW takes.

# %% [markdown] exercise="fullscale.states"
# What does one GPU hold, in bytes? Given are the weights of its stage:
# `experts` (all of the stage's), `matrices` (all others that Muon takes)
# and `rest` (tables and norms).

# %% exercise="fullscale.states"
def states(
    experts: int, matrices: int, rest: int, ep: int, dp: int
) -> dict:
    """Bytes of "weights", "gradients" and "optimizer" on one GPU.

    experts, matrices, rest: weights of the whole stage; ep: its GPUs,
    which share the experts alone; dp: copies of the model. Optimizer:
    4 bytes of master copy and 4 of each buffer, under ZeRO-1.
    """
    held = experts / ep + matrices + rest
    optimizer = 8 * experts / ep / dp
    optimizer += (8 * matrices + 12 * rest) / (ep * dp)
    return {"weights": 2 * held, "gradients": 4 * held,
            "optimizer": optimizer}

# %% [markdown] hints="fullscale.states"
# First: how many of the stage's weights lie on this GPU? Then: for each
# kind of weight, how many GPUs hold the very same ones?
#
# ---
#
# experts / ep + matrices + rest lie here, with two bytes a weight and
# four a gradient. The same experts are on dp GPUs, everything else on
# ep · dp.
#
# ---
#
# Master copy and buffers are 8 bytes for a matrix and 12 for a table or
# norm. Divide each by the number of GPUs that share it.
#
# ---
#
# held, then three lines, of which only the optimizer's knows dp.

# %% [markdown]
# All sixteen stages of K2, eight copies, micro-batches of one sequence of
# 4,096 tokens. What waits for the backward pass (activations) is counted
# as the report describes it: some of it computed again, some kept in 8
# bits. It also moves activations to the hosts' memory, which is not
# counted here.

# %%
layout = sizing.Layout(pp=16, ep=16, dp=8)
laid = sizing.cluster(k2, layout, recompute="selective")
mine, matrices, rest = stage_weights(k2, layout, 1)  # mine: experts / EP
held = mine + matrices + rest
kept = 8 * mine / layout.dp
kept += (8 * matrices + 12 * rest) / (layout.ep * layout.dp)
by_hand = {"parameters": 2 * held, "gradients": 4 * held, "optimizer": kept}
for name, found in by_hand.items():
    print(f"stage 1, {name:<10} {found / 1e9:5.2f} GB a GPU")
    assert 0 <= getattr(laid.stages[1], name) - found < 1  # whole bytes
plots_sizing.training(k2, "Kimi K2", layout, published=30e9)

# %%
say("weights + gradients", "all states a GPU")

# %% [markdown]
# 61 layers over 16 stages do not come out even: most have four, some
# three, and the ends carry a table each. Early stages hold more
# activations, because they must begin many micro-batches before the first
# comes back. The dashed line is the report's "about 30 GB" for all
# states, which is everything below the activations. How many copies that
# was for is not said: the mean of our bars is 36 GB with four copies and
# 29 with 64. Published are these two sums, and of the single lines only
# their formats. With one copy, 256 H800 would not do:

# %%
plots_sizing.explore_training("kimi-k2")

# %%
plots_sizing.training(k2, "kimi-k2", sizing.Layout(pp=16, ep=16),
                      published=30e9)

# %% [markdown]
# ## 4. Eight bits a weight
#
# K2 was released in **FP8**. A number has a sign, four bits of exponent
# and three of fraction (*e4m3*), so between 1 and 2 there are eight:

# %% role="setup"
codes = np.arange(256)
exponent, fraction = codes >> 3 & 15, codes & 7
E4M3 = np.where(exponent > 0, (8 + fraction) * 2.0 ** (exponent - 10),
                fraction * 2.0**-9)  # the value of each byte
E4M3 = np.where(codes < 128, E4M3, -E4M3)
E4M3[[127, 255]] = np.nan

# %%
print("from 1 to 2:", E4M3[56:65])
print("largest:", np.nanmax(E4M3), " least above 0:", E4M3[1])
eight = np.arange(256, dtype=np.uint8)
by_torch = torch.tensor(eight).view(torch.float8_e4m3fn).double().numpy()
by_ml_dtypes = eight.view(ml_dtypes.float8_e4m3fn).astype(float)
for table in (by_torch, by_ml_dtypes):
    np.testing.assert_array_equal(E4M3, table)

# %% [markdown]
# The largest is 448, and weights are nowhere near it. So each block of
# 128 × 128 weights has a **scale**, its largest number divided by 448,
# and is stored divided by it. In the files the scales of a matrix have
# its name with `_scale_inv` at the end. Whatever that once stood for, it
# is multiplied with.
#
# Blocks start at the left upper corner. `kv_a_proj_with_mqa` of K2 is
# 576 × 7168; 576 is four and a half blocks, so its scales are 5 × 56 and
# the last row of blocks is 64 rows high: a **ragged edge**. The smallest
# tensor that has one, 3 × 3 in blocks of 2:

# %%
small = np.array([[0.1, 0.2, 30], [0.3, 0.4, 50], [6, 7, 800]])
eight, scales = float8.quantize(small, (2, 2))
print("as stored\n", eight.astype(float), "\nscales\n", scales)
print("multiplied\n", float8.dequantize(eight, scales, (2, 2)))

# %% [markdown]
# Four scales for nine numbers; the last block holds one of them. And 30
# came back as 28.6: divided by its scale it is 268.8, and between 256 and
# 288 there is no number in e4m3.

# %% [markdown] exercise="fullscale.dequantize"
# Read a matrix back from its bytes. `E4M3[codes]` has their values.

# %% exercise="fullscale.dequantize"
def dequantize(
    codes: np.ndarray, scales: np.ndarray, block: int
) -> np.ndarray:
    """The weights that FP8 bytes and their scales stand for.

    codes: (rows, columns) of uint8; scales: one for each block of
    block × block, (ceil(rows / block), ceil(columns / block)).
    Returns (rows, columns).
    """
    rows, columns = codes.shape
    wide = scales.repeat(block, axis=0).repeat(block, axis=1)
    return E4M3[codes] * wide[:rows, :columns]

# %% [markdown] hints="fullscale.dequantize"
# Which scale belongs to row r and column c? Write it for a matrix of 5 by
# 5 in blocks of 2.
#
# ---
#
# It is scales[r // block, c // block]. Make an array of the matrix's
# shape that holds each number's scale.
#
# ---
#
# `scales.repeat(block, axis=0)` repeats each row; then the same along
# axis 1. What comes out is as large as whole blocks, so cut it.
#
# ---
#
# Look up, spread, cut, multiply.

# %% [markdown]
# A trained matrix, that of the small model's latents, in blocks of 24 to
# fit its size. It is 64 × 128, so both edges are ragged. The engine's own
# FP8 is held against torch's numbers, spread by hand:

# %%
name = "model.layers.1.self_attn.kv_a_proj_with_mqa.weight"
W, block = model.weights[name], 24
eight, scales = float8.quantize(W, (block, block))
back = float8.dequantize(eight, scales, (block, block))
values = torch.tensor(eight.view(np.uint8)).view(torch.float8_e4m3fn)
wide = np.kron(scales, np.ones((block, block), np.float32))[:64, :128]
assert (back == values.float().numpy() * wide).all()
plots.fp8_blocks(W, back, scales, block)

# %% [markdown]
# On the right, a dot is a weight. Rounding moves it by a sixteenth of
# itself at the most, whatever its size: that is what a format *with an
# exponent* does. Left of the dashed line exponents have come to their
# end, and small weights lose their last bits.
#
# So what are the blocks for? Make one weight larger and larger, and look
# at what becomes of all others, with a scale for each block and with one
# for the whole matrix:

# %%
print("one weight times   all others off by: blocks   one scale")
for times in (1, 1e2, 1e4, 1e6):
    loud = W.copy()
    loud[30, 60] *= times
    others = loud != loud[30, 60]
    off = []
    for shape in ((block, block), W.shape):
        read_back = float8.dequantize(*float8.quantize(loud, shape), shape)
        off.append(np.linalg.norm((read_back - loud)[others])
                   / np.linalg.norm(loud[others]))
    print(f"{times:16,.0f}   {off[0]:24.1%} {off[1]:11.1%}")
assert off[0] < off[1] / 2

# %% [markdown]
# An outlier of a hundred or of ten thousand times harms next to nothing
# even with one scale, for the exponents take it in. Beyond that small
# weights fall off the lower end, and the blocks keep the damage to a
# neighbourhood. (Formats without an exponent, such as the INT4 of
# K2-Thinking, are not so lenient: they have a scale for each 32 weights.)
#
# ## 5. The real thing
#
# A trillion weights will hardly fit into your machine. But a weight need
# not be kept anywhere; it must be there when it is multiplied with.
# `fullsize` makes each one from its place, within the product that needs
# it, and keeps none. Their values are noise. Their sizes are K2's, and so
# are the routing, the latent cache and the absorbed attention. So what we
# say about them beforehand can be checked.
#
# One token through a few layers of K2 and the head. `layers = None` takes
# all 61: some 5 seconds on two quiet cores, more than a minute on busy
# ones. (`minik2 fullsize` is the same as a command.)

# %%
layers = 3 if short else 8
print("Numba compiles its loops; the first time that takes a while.")
with tqdm(total=layers, file=sys.stdout, ncols=76, unit="layer") as bar:
    made = fullsize.run(k2, tokens=1, layers=layers,
                        tell=lambda step, done: bar.update(done - bar.n))
print(made)
said, found = made.predicted, made.measured
for exact in ("parameters", "experts", "cache", "flops"):
    assert getattr(said, exact) == getattr(found, exact)
assert abs(found.arrays / said.arrays - 1) < 0.1

# %%
plots_fullsize.route(made, k2)

# %% [markdown]
# Weights touched, experts, cache and operations come out to the last one.
# Arrays do within a few percent: Python has small things of its own
# beside them. Seconds are predicted from a trial of the same loops a
# moment before, and miss by as much as your machine is busy with other
# things in between.
#
# Each dot is an expert, 44 million weights. The white between them is
# what a token leaves alone, and the reason why K2 can be run at all.

# %% [markdown]
# ## In K2
#
# From its configuration; the 15.5 trillion tokens are the report's.

# %%
fp8, plain = (sizing.stored(k2, f) for f in ("float8", "bfloat16"))
print(f"weights {counted.total:,}, read for a token {counted.read:,}")
print(f"bfloat16 {plain.bytes / 1e12:.2f} TB; FP8 {fp8.bytes / 1e12:.3f} "
      f"TB, of which scales {fp8.scales / 1e6:.0f} MB")
print(f"cache at 131,072 tokens: {sizing.kv_cache_bytes(k2, 131072):,} B")
work = sizing.flops(k2, 4096).training.total / 4096
print(f"training, a token: {work:.3g} operations; "
      f"15.5 trillion: {15.5e12 * work:.3g}")
say("GPU-hours for 15.5 T tokens")

# %% [markdown]
# <div class="alert alert-info">
#
# **In K2** sizes, bytes and operations follow from one small file. The
# rest its makers would have to tell: how many GPUs trained it and for how
# long, how many copies there were, how active weights were counted. The
# report leaves these open. Our hours are an estimate, for they assume
# that K2's GPUs were used as well as DeepSeek-V3's.
#
# </div>

# %% [markdown]
# ## On the back of an envelope
#
# How long would 2,048 H800 need for K2's training? Take 6 operations for
# each active weight (31.7 billion without the embedding) and each of 15.5
# trillion tokens, GPUs of $989 \cdot 10^{12}$ operations a second, and
# that they reach 39% of it, as DeepSeek-V3's did by its published hours.
#
# <details><summary>Answer</summary>
#
# $6 \cdot 3.17 \cdot 10^{10} \cdot 1.55 \cdot 10^{13} = 2.9 \cdot
# 10^{24}$ operations. A GPU does $0.39 \cdot 989 \cdot 10^{12} = 3.9
# \cdot 10^{14}$ a second: $7.6 \cdot 10^9$ GPU-seconds, or 2.1 million
# GPU-hours. On 2,048 of them $3.7 \cdot 10^6$ seconds, **six weeks**.
# (Attention over 4,096 tokens, which 6 N D leaves out, makes it a little
# more: the line above has 2.29 million hours. V3's share is that of FP8
# products held against the peak of bfloat16, so it may flatter K2.)
#
# </details>

# %%
used = sizing.calibration().utilisation
rule = 6 * counted.active_without_embedding * 15.5e12
days = rule / (989e12 * used) / 2048 / 86400
print(f"{rule:.2g} operations, {used:.1%} of the peak: {days:.0f} days")

# %% [markdown]
# <div class="alert alert-success">
#
# **Takeaway.** What a model weighs, reads, computes and sends is
# arithmetic on a few numbers of its config, exact to the last weight. How
# long it takes is a bound or an estimate, and says on whose word. Count
# first, then measure, then print the ratio.
#
# </div>
#
# ## Sources
#
# - Sizes, layout, precision and what was computed again: *Kimi K2*, arXiv
#   2507.20534, Table 2, Table 4, §2.4 and §2.5; the smallest unit that
#   serves it: the deployment guide in MoonshotAI/Kimi-K2.
# - ZeRO and its stages: Rajbhandari et al., arXiv 1910.02054.
# - Distributed Muon with one buffer: *Muon is Scalable for LLM Training*,
#   arXiv 2502.16982, §2.3.
# - FP8 blocks: DeepSeek-V3, arXiv 2412.19437, §3.3, and its
#   README_WEIGHTS; e4m3: Micikevicius et al., arXiv 2209.05433. V3's
#   hours: its README.
# - Memory, bandwidth and operations of H800 and H200: their data sheets,
#   as third-party pages repeat them.
# - Micro-batches under way in an interleaved pipeline: arXiv 2205.05198.
#
# **Next:** lesson 12 lets several processes share one model, and counts
# the bytes that they send.
