# %% [markdown]
# # 06 · Sparse dispatch and balance
#
# *About 60 minutes, half of one for the computer.*
#
# **After this lesson you can**
#
# - run a layer of experts without a loop over tokens: sort, multiply,
#   put back;
# - write the experts' products for Numba, and say when a library's
#   products are faster;
# - show seven ways to compute one layer that agree to rounding;
# - measure how far a router is from balance;
# - cause a collapse of the experts, and cure it with a bias that no
#   gradient trains.

# %% role="setup"
import numpy as np
from numba import njit

from minik2.checks import check

np.set_printoptions(precision=3, suppress=True)

# %%
import copy
import os
import sys
import time

import numba
import torch
from threadpoolctl import threadpool_limits
from tqdm import tqdm

import minik2
from minik2 import pytorch, reference
from minik2.plots import lesson06 as plots
from minik2.plots.model_map import model_map
from minik2.training import lesson_model
from minik2.training.corpus import Corpus
from minik2.training.observe import violation

rng = np.random.default_rng(6)
short = bool(os.environ.get("MINIK2_SHORT"))


def error(a, b):
    """Largest difference, as a share of the largest number of b."""
    return float(np.abs(np.asarray(a) - b).max() / np.abs(b).max())

# %% [markdown]
# ## What you have, and what you will add
#
# From lesson 05 you have the router: for each of $T$ tokens it gives the
# numbers of $K$ out of $E$ experts, `indices` (T, K), and how much each
# of them counts, `weights` (T, K). Today the experts do their work, and
# you see to it that all of them get some.
#
# In answers you may use NumPy, `njit` from Numba, and your other answers.
# `minik2 check` runs the cell with these imports and none of the
# lesson's other cells.

# %%
model_map(["router", "experts"],
          "Today: the chosen experts work, and all get chosen")

# %% [markdown]
# ## 1. The definition
#
# An expert is a small feed-forward block. Its three matrices make, from
# the vector $x$ of a token, a *gate* and an *up* of $I$ numbers each
# (the expert's width), and bring their product back to the model's
# width $D$:
#
# $$\mathrm{expert}_e(x) = W^{\mathrm{down}}_e \big(
#   \mathrm{silu}(W^{\mathrm{gate}}_e x) \odot W^{\mathrm{up}}_e x\big),
#   \qquad \mathrm{silu}(g) = \frac{g}{1 + e^{-g}}$$
#
# with $\odot$ for number by number. This is called *SwiGLU*. A token
# gets the weighted sum of its experts' answers,
#
# $$y_t = \sum_{k=1}^{K} \mathrm{weights}_{tk} \;
#   \mathrm{expert}_{\mathrm{indices}_{tk}}(x_t),$$
#
# and that of the shared expert, which works on every token and which we
# leave aside today: it is one ordinary block.
#
# Engines keep all experts of a layer in two stacks: `gate_up_proj`
# (E, 2I, D), in which the $I$ rows of the gate stand above those of up,
# and `down_proj` (E, D, I).

# %%
def swiglu(rows, gate_up, down):
    """One expert. rows (n, D), gate_up (2I, D), down (D, I) -> (n, D)."""
    gate, up = np.split(rows @ gate_up.T, 2, axis=-1)
    return gate / (1 + np.exp(-gate)) * up @ down.T


def by_tokens(x, indices, weights, gate_up_proj, down_proj):
    """The definition. x (T, D) -> (T, D)."""
    y = np.zeros_like(x)
    for (t, k), e in np.ndenumerate(indices):
        out = swiglu(x[t], gate_up_proj[e], down_proj[e])
        y[t] += weights[t, k] * out
    return y

# %% [markdown]
# The smallest case: four tokens of two numbers, four experts of width
# 1, two experts a token. Nobody has chosen expert 1.

# %%
indices = np.array([[2, 0], [0, 3], [2, 3], [0, 2]])
weights = np.array([[0.7, 0.3], [0.5, 0.5], [0.6, 0.4], [0.9, 0.1]])
x, gate_up_proj, down_proj = (
    rng.normal(size=shape) for shape in ((4, 2), (4, 2, 2), (4, 2, 1)))
print(by_tokens(x, indices, weights, gate_up_proj, down_proj))

# %% [markdown]
# For a real layer we open the small model that was trained once on this
# machine, and let it read text that it has never seen. What goes into
# the experts of its layer 1, and the layer's weights, are in what the
# forward pass saves. (The first time, Numba compiles the engine's loops,
# which takes a while.)

# %%
model = lesson_model()
cfg, corpus = model.cfg, Corpus.standard_library()
text, _ = corpus.spread("validation", 8, 128)
_, saved = model.forward(text)
routed, stacks = saved[1]["mlp"]["router"], saved[1]["mlp"]["experts"]
real = (routed["x"], routed["indices"], routed["weights"],
        stacks["gate_up_proj"], stacks["down_proj"])
print("x, indices, weights:", *(array.shape for array in real[:3]))
print("gate_up_proj, down_proj:", *(array.shape for array in real[3:]))
slow = by_tokens(*real)

# %% [markdown]
# The definition calls two tiny products for every pair of a token and one
# of its experts: here for 4,096 pairs. Each reads an expert's matrices anew
# for a single vector. A product of a matrix with *many* vectors reads it
# once. So we want all tokens of an expert together.
#
# ## 2. A loop over experts
#
# The obvious way: for each expert, look up which tokens chose it.

# %%
def by_experts(x, indices, weights, gate_up_proj, down_proj):
    """The same, an expert at a time."""
    y = np.zeros_like(x)
    for e in range(len(gate_up_proj)):
        t, k = np.nonzero(indices == e)
        out = swiglu(x[t], gate_up_proj[e], down_proj[e])
        y[t] += weights[t, k, None] * out
    return y


# %% [markdown]
# (`y[t] += ...` may be written like that only because an expert has each
# token at most once. If an index comes twice, NumPy adds once.)
#
# It looks through all pairs once for every expert. With 16 experts
# that costs little; K2 has 384. Sorting looks once.
#
# ## 3. Sort once
#
# Number the pairs as they lie in memory: pair $tK + k$ is choice $k$ of
# token $t$. Sorted by expert, the pairs of one expert are neighbours. All
# we need is the `order` in which the pairs then stand, and the `offsets`
# at which experts begin. This is the drawing for the four tokens above:

# %%
flat = indices.reshape(-1)
order, offsets = np.argsort(flat, kind="stable"), np.array([0, 3, 3, 6, 8])
print("experts", flat, "-> sorted", flat[order])
print("order  ", order, "   offsets", offsets)
plots.sorting(indices, order, offsets)

# %% [markdown]
# Expert $e$ owns the places `offsets[e]` to `offsets[e + 1]`, the end
# not included. For expert 1 the two are equal: it has nothing to do, and
# needs no special case.
#
# The sort is *stable*: pairs of one expert keep their order. No formula
# asks for it. But rounding depends on the order in which numbers are
# added (in a gradient, over all rows of an expert), and the stable order
# is the same in every library, so that runs repeat to the last bit.

# %% [markdown] exercise="moe.sort_by_expert"
# Find the order and the offsets for any choices. (Above, the offsets
# were typed in.)

# %% exercise="moe.sort_by_expert"
def sort_by_expert(indices: np.ndarray, experts: int) -> tuple:
    """Sort the pairs of a token and a choice by expert, stably.

    indices: (T, K) of int, the experts of each token; experts: E.
    Returns order (T K,): which pair t K + k stands at each place; and
    offsets (E + 1,): expert e owns places offsets[e] to offsets[e + 1].
    """
    flat = indices.reshape(-1)
    order = np.argsort(flat, kind="stable")
    counts = np.bincount(flat, minlength=experts)
    return order, np.concatenate([[0], counts.cumsum()])

# %% [markdown] hints="moe.sort_by_expert"
# Which one row of numbers has to be sorted? The order is not the sorted
# numbers: it says where they came from.
#
# ---
#
# `np.argsort(flat, kind="stable")` gives the order. For the offsets,
# count first: how many pairs has each expert?
#
# ---
#
# `np.bincount(flat, minlength=experts)` counts, idle experts at the end
# included. The offsets are the sums of all counts before: E + 1 numbers,
# of which the first is 0 and the last is T K.
#
# ---
#
# One argsort, one bincount, one cumulative sum with a 0 in front.

# %% [markdown]
# The engine calls it `dispatch`. It returns the token of each place
# instead of the pair, and beside that the place of each pair, which is
# the inverse of the order: `position[order] = 0, 1, 2, …`. Here it sorts
# the trained model's tokens; the picture shows the first 64 of them.

# %%
E, K = cfg.n_routed_experts, cfg.num_experts_per_tok
*_, offsets = reference.moe.dispatch(real[1], E)
print("rows of each expert:", np.diff(offsets))

first = real[1][:64]
plots.staircase(first, np.argsort(first.reshape(-1), kind="stable"), E)

# %% [markdown]
# ## 4. One product for each expert
#
# `x[order // K]` lays the rows of all tokens in that order, each as many
# times as it has experts: $P = TK$ rows. Now an expert's work is a slice.

# %%
def grouped_slow(rows, offsets, gate_up_proj, down_proj):
    """Each row through its own expert. rows (P, D), sorted -> (P, D)."""
    out = np.empty_like(rows)
    for e in range(len(gate_up_proj)):
        own = slice(offsets[e], offsets[e + 1])
        out[own] = swiglu(rows[own], gate_up_proj[e], down_proj[e])
    return out

# %% [markdown]
# NumPy hands the two products in `swiglu` to a library that is very good
# at large matrices. A call costs some microseconds, whatever the size;
# for an expert with a handful of rows that is more than the arithmetic.
# Numba compiles plain Python loops to machine code, in which a loop turn
# costs a nanosecond and there are no calls.

# %% [markdown] exercise="moe.grouped_swiglu"
# Write `grouped_slow` for Numba: loops over experts, their rows, and
# numbers. Inside `@njit` there are indices, `np.empty`, `np.zeros` and
# `np.exp` of one number. There is no `np.split`, and products of matrices
# would need SciPy. Get it right as plain Python first, with the `@njit`
# taken away: then errors have line numbers. (The check does not look for
# Numba. Its first run with Numba compiles, for some seconds.)

# %% exercise="moe.grouped_swiglu"
@njit
def grouped_swiglu(
    rows: np.ndarray, offsets: np.ndarray,
    gate_up_proj: np.ndarray, down_proj: np.ndarray) -> np.ndarray:
    """Each row through its own expert: down(silu(gate row) * up row).

    rows: (P, D), sorted by expert; offsets: (E + 1,) of int;
    gate_up_proj: (E, 2I, D), the gate's I rows first; down_proj:
    (E, D, I). Returns (P, D) in the order of the rows.
    """
    experts, size, width = down_proj.shape
    out = np.empty_like(rows)
    hidden = np.empty(width, rows.dtype)
    for e in range(experts):
        for p in range(offsets[e], offsets[e + 1]):
            for i in range(width):
                gate = up = 0.0
                for d in range(size):
                    gate += gate_up_proj[e, i, d] * rows[p, d]
                    up += gate_up_proj[e, width + i, d] * rows[p, d]
                hidden[i] = gate / (1 + np.exp(-gate)) * up
            for d in range(size):
                total = 0.0
                for i in range(width):
                    total += down_proj[e, d, i] * hidden[i]
                out[p, d] = total
    return out

# %% [markdown] hints="moe.grouped_swiglu"
# Two loops choose the row: experts, and the places from `offsets[e]` up
# to `offsets[e + 1]`. What remains is one expert on one row: two dot
# products for each of the I inner numbers, then one for each of the D
# outer ones.
#
# ---
#
# The sizes are all in one place: `experts, size, width =
# down_proj.shape`. Row `i` of `gate_up_proj[e]` makes gate `i`, row
# `width + i` makes up `i`.
#
# ---
#
# Keep the I inner numbers in an array `hidden`, made once. Each dot
# product begins with its sum at 0. Inside of Numba, `gate / (1 +
# np.exp(-gate)) * up` is fine for single numbers.
#
# ---
#
# Two loops to find the row, two loops for each of the two products.

# %% [markdown]
# The last step brings the answers back. Row $p$ of `out` is the answer
# for pair `order[p]`, which is of token `order[p] // K`, and counts as
# much as that pair's weight.

# %% [markdown] exercise="moe.combine"
# Put the answers of the experts back: for each token the weighted sum of
# its K rows.

# %% exercise="moe.combine"
def combine(out: np.ndarray, order: np.ndarray,
            weights: np.ndarray) -> np.ndarray:
    """y[t] = sum over k of weights[t, k] times the answer for that pair.

    out: (T K, D), row p the answer for pair order[p]; order: (T K,) of
    int, pair t K + k being choice k of token t; weights: (T, K).
    Returns (T, D).
    """
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    rows = out[position.reshape(weights.shape)]
    return np.einsum("tk,tkd->td", weights, rows)

# %% [markdown] hints="moe.combine"
# You may go along the rows and add each to its token, or go along the
# tokens and fetch each one's K rows. For the second, you need the place
# of each pair, and `order` has the pair of each place.
#
# ---
#
# Adding: `np.add.at(y, order // K, ...)`, since `y[...] += ...` adds only
# once where a token comes twice. Fetching: `position[order] =
# np.arange(len(order))` turns the order around.
#
# ---
#
# `out[position.reshape(T, K)]` is (T, K, D): every token's K answers.
# Multiply by `weights[:, :, None]` and sum over k.
#
# ---
#
# The inverse permutation in two lines, a fetch, and a weighted sum.

# %% [markdown]
# ## 5. The same numbers
#
# Here is the layer of the trained model, seven times: the definition;
# the loop over experts; sorted; sorted and in Numba; the reference
# engine; the PyTorch engine; and transformers, which was written by other
# people. The Numba loops are those of the exercise, with one more word
# for speed: `fastmath` lets the compiler add in another order, four or
# eight numbers at a time.

# %%
@njit(fastmath=True)
def grouped_numba(rows, offsets, gate_up_proj, down_proj):
    """`grouped_slow`, compiled; sums have the dtype of the rows."""
    experts, size, width = down_proj.shape
    out, hidden = np.empty_like(rows), np.empty(width, rows.dtype)
    zero = rows.dtype.type(0)
    for e in range(experts):
        for p in range(offsets[e], offsets[e + 1]):
            for i in range(width):
                gate = up = zero
                for d in range(size):
                    gate += gate_up_proj[e, i, d] * rows[p, d]
                    up += gate_up_proj[e, width + i, d] * rows[p, d]
                hidden[i] = gate / (1 + np.exp(-gate)) * up
            for d in range(size):
                total = zero
                for i in range(width):
                    total += down_proj[e, d, i] * hidden[i]
                out[p, d] = total
    return out


def sorted_by(grouped):
    """The layer in three steps, with this function as the second."""
    def layer(x, indices, weights, *stacks):
        token, position, offsets = reference.moe.dispatch(
            indices, len(stacks[0]))
        out = grouped(x[token], offsets, *stacks)
        return np.einsum("tk,tkd->td", weights, out[position])
    return layer


def engine(x, *rest):
    y = np.zeros_like(x)
    reference.moe.add_experts(y, x, *rest)
    return y


ways = {"loop over tokens": by_tokens, "loop over experts": by_experts,
        "sorted, NumPy": sorted_by(grouped_slow),
        "sorted, Numba": sorted_by(grouped_numba), "engine": engine}
results = {name: way(*real) for name, way in ways.items()}
tensors = [torch.from_numpy(array) for array in real]
results["PyTorch engine"] = pytorch.grouped.experts(*tensors).numpy()

# %%
try:
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as v3
except ImportError:
    print("transformers is not installed here; make test installs it")
else:
    theirs = v3.DeepseekV3Experts(v3.DeepseekV3Config(
        hidden_size=cfg.hidden_size, n_routed_experts=E,
        moe_intermediate_size=cfg.moe_intermediate_size,
        experts_implementation="eager"))
    theirs.gate_up_proj.data, theirs.down_proj.data = tensors[3:]
    results["transformers"] = theirs(*tensors[:3]).detach().numpy()

for name, y in results.items():
    print(f"{name:<18} {error(y, slow):.1e}")
    assert error(y, slow) < 1e-12

# %% [markdown]
# These are float64 and differ in nothing but the order of their sums.
#
# ## 6. How fast?
#
# Two layers, in float32. The first is the trained one: few experts, each
# with hundreds of rows. The second has K2's numbers of experts, 8 of 384,
# narrow ones, each with about ten rows. Every way runs several times, in
# turn, and the median counts. All have one thread, so that only the way
# differs.

# %%
k2 = minik2.ModelConfig.preset("kimi-k2")
E2, K2 = k2.n_routed_experts, k2.num_experts_per_tok
many = (real[0][:512, :64], rng.random((512, E2)).argsort(1)[:, :K2],
        rng.uniform(size=(512, K2)), rng.normal(size=(E2, 32, 64)) / 8,
        rng.normal(size=(E2, 64, 16)) / 4)
layers = {f"{E} experts of width {cfg.moe_intermediate_size}": real,
          f"{E2} experts of width 16": many}
layers = {name: [a if a.dtype.kind == "i" else a.astype(np.float32)
                 for a in arrays] for name, arrays in layers.items()}
taken = {layer: {name: [] for name in ways} for layer in layers}
for way in ways.values():
    way(*layers[f"{E2} experts of width 16"])  # compiles
turns = (2 if short else 11) * [(a, b) for a in layers for b in ways]
numba.set_num_threads(1)
with threadpool_limits(1):
    for layer, name in tqdm(turns, file=sys.stdout, ncols=76, unit="run"):
        start = time.perf_counter()
        ways[name](*layers[layer])
        taken[layer][name].append(1e3 * (time.perf_counter() - start))
plots.timings(taken, against="loop over experts")

# %% [markdown]
# Two things pull here. Searching the pairs once for each expert, and
# calling a library for each, costs by the number of experts: that is
# what sorting and compiling save, and it is most of the time where
# experts are many and narrow. Multiplying costs by the numbers in the
# matrices, and there the library's loops, tuned by hand for this
# processor, are ahead of ours.
#
# So the engine takes from both: one compiled call for the whole layer, and
# in it a product that is tuned as a library's is, for the case at hand
# (`experts` in `reference.kernels_experts`, `reference.gemm`). A library
# copies the large matrix into an order that it likes. Ours copies an
# expert's few rows, and reads each of its large matrices once, where it
# lies. Where the engine has several threads, each takes whole experts, the
# busiest first. On a GPU the same idea is one kernel
# (`torch.nn.functional.grouped_mm`) that gets the sorted rows and the
# offsets.

# %% [markdown]
# ## 7. The busiest expert sets the pace
#
# The *load* of an expert is how many pairs it gets. On many machines each
# holds some of the experts, and a layer is done when the last of them is.
# So what counts is how far the largest load is above the mean one. This
# is called the *maximum violation* of balance:
#
# $$\mathrm{violation} = \frac{\max_e \mathrm{load}_e}
#   {\mathrm{mean}_e \, \mathrm{load}_e} - 1$$
#
# It is 0 in balance. If all tokens choose the same $K$ experts, each of
# these has $E/K$ times its share.

# %% [markdown] exercise="moe.maximum_violation"
# Write the formula.

# %% exercise="moe.maximum_violation"
def maximum_violation(loads: np.ndarray) -> float:
    """How far the busiest expert is above the mean, as a share of it.

    loads: (E,) of int, not all 0. Returns a number, 0 in balance.
    """
    return float(loads.max() / loads.mean() - 1)

# %% [markdown] hints="moe.maximum_violation"
# What must come out for loads of 5, 5, 5, 5? And for 10, 10, 0, 0?
#
# ---
#
# 0 and 1. The mean runs over all experts, idle ones too.
#
# ---
#
# Divide the largest load by the mean one, and subtract what balance would
# give.
#
# ---
#
# The formula as it stands.

# %% [markdown]
# The model of this lesson was trained with the cure that comes below.

# %%
for layer in range(cfg.first_k_dense_replace, cfg.num_hidden_layers):
    chosen = saved[layer]["mlp"]["router"]["indices"]
    loads = np.bincount(chosen.reshape(-1), minlength=E)
    print(f"layer {layer}: loads {loads.min():>4} to {loads.max():>4}, "
          f"violation {violation(loads):.2f} of at most {E / K - 1:.0f}")

# %% [markdown]
# ## 8. Collapse, and the cure
#
# What happens if nobody sees to balance? An expert that a token did not
# choose has no part in that token's output, so it gets no gradient from
# it, and neither does its score. Chosen experts improve, and with them the
# reasons to choose them. The others stay as they are.
#
# The cure is the bias of lesson 05: DeepSeek-V3's, whose router K2 takes
# over. It is not a loss. It is added to the scores for the choice alone,
# and after each step it moves against the load by a fixed `speed`:
#
# $$b_e \leftarrow b_e + \mathrm{speed} \cdot \mathrm{sign}\big(
#   \mathrm{mean}(\mathrm{load}) - \mathrm{load}_e\big)$$
#
# Lesson 05 wrote it, and ran it on scores that stood still. Now the
# scores learn while it works.

# %% [markdown]
# The experiment: the model is `small` with two layers, one of them
# with experts, fresh from its random start. It is trained three times on
# the same text: without the bias; without it to half of the way, and with
# it from there; and with it always. V3's speed is 0.001, for a training
# of months. Ours takes seconds, so it is 0.02. (One thread: products this
# small gain little from a second core.)

# %%
steps, batch, speed = (100, 4, 0.02) if short else (200, 8, 0.02)
two = minik2.ModelConfig.preset("small").replace(num_hidden_layers=2)
torch.set_num_threads(1)


def go_on(run, steps, speed, seen=()):
    """Train on, and add each step's loads, loss, biases to those seen."""
    model, optimizer, rng = run
    bias = model.model.layers[1].mlp.gate.e_score_correction_bias
    watch, seen = pytorch.Watch(two), list(seen)
    for _ in range(steps):
        tokens, targets = corpus.sample("train", batch, 64, rng)
        watch.reset()  # it counts who is chosen in the forward pass
        loss = model.loss(tokens, torch.from_numpy(targets), watch=watch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        pytorch.router.update_bias(bias, watch.loads[1], speed)
        seen.append((watch.loads[1].tolist(), loss.item(), bias.tolist()))
        bar.update()
    return seen


model = pytorch.Model.init(two, seed=0)
first = (model, torch.optim.AdamW(model.parameters(), lr=3e-3,
         betas=(0.9, 0.95)), np.random.default_rng(0))
third, half = copy.deepcopy(first), steps // 2
bar = tqdm(total=2 * steps + half, ncols=76, file=sys.stdout, unit="step")
begin = go_on(first, half, 0.0)
second = copy.deepcopy(first)  # the same model, to go another way
runs = {"without": go_on(first, half, 0.0, begin),
        "switched on": go_on(second, half, speed, begin),
        "always": go_on(third, steps, speed)}
bar.close()

# %%
loads, losses, biases = ({name: np.array([step[n] for step in seen])
                          for name, seen in runs.items()} for n in range(3))
end = {name: round(violation(load[-steps // 8:].sum(0)), 2)
       for name, load in loads.items()}
print("violation at the end:", end)
assert end["without"] > 2 * max(end["switched on"], end["always"])
plots.loads_over_steps(loads, half, K)

# %% [markdown]
# Nothing had to be done to cause the collapse but to leave out the cure.
# In a few steps a few experts have nearly everything. Are the others
# really cut off? One more batch, and a look at the gradients of the
# collapsed model:

# %%
tokens, targets = corpus.sample("train", 8, 64, rng)
watch = pytorch.Watch(two)
model.zero_grad()
model.loss(tokens, torch.from_numpy(targets), watch=watch).backward()
mlp, idle = model.model.layers[1].mlp, watch.loads[1] == 0
still = ((mlp.gate.weight.grad == 0).all(1)
         & (mlp.experts.gate_up_proj.grad == 0).all(-1).all(-1))
print(f"no token of {targets.size}: experts {np.flatnonzero(idle)}")
print(f"gradients all 0: experts {np.flatnonzero(still)}")
assert (still >= idle).all()

# %% [markdown]
# An expert without a token gets no gradient at all, in its matrices and
# in its row of the router. By itself it does not come back soon.
#
# What the bias does after the switch can be read off its course. Scores
# lie between 0 and 1, so a bias of some tenths can move an expert past
# many of its rivals. Nearly balanced, the biases go on trembling by the
# speed: the sign is never satisfied.

# %%
plots.cure(biases["switched on"][half:], loads["switched on"], half)

# %% [markdown]
# And the loss?

# %%
plots.cost(loads, losses, half)

# %% [markdown]
# (The violations here are those of single batches, which are less even
# than the sum of many that was counted above.)
#
# Look at the right panel before you believe that balance makes a better
# model. At this size it hardly matters. In the course's own experiment
# (`python -m minik2.experiments balance`, three seeds) the collapsed runs
# were even a little better: after so few bytes, 16 experts know no more
# than 4. What the bias buys here is an even load. In a model of K2's size
# it buys both that and the parameters: an expert that is never chosen is
# memory and nothing else.

# %% [markdown]
# ## In K2
#
# From its published configuration; the 16 GPUs that share a layer's
# experts are those of K2's report.

# %%
moe_layers = k2.num_hidden_layers - k2.first_k_dense_replace
layout = minik2.sizing.Layout(pp=16, ep=16)
sent = float(minik2.sizing.communication(k2, layout).all_to_all)
window = k2.rope_scaling.original_max_position_embeddings
print(f"{K2} of {E2} experts in {moe_layers} layers, {E2 // layout.ep} of "
      f"each layer's on one of {layout.ep} GPUs")
print(f"a window of {window:,} tokens: {window * K2 / E2:.0f} rows for "
      "an expert in balance")
print(f"sent between them, forward and back: {sent / 1e6:.1f} MB a token")

# %% [markdown]
# <div class="alert alert-info">
#
# **In K2** the sort decides what is sent where: a token's row goes to the
# GPUs that hold its experts, and the answers come back. All wait for the
# fullest one; in a collapse that put the eight on one GPU, 15 of 16 would
# idle. K2's checkpoint holds the biases, one for each expert and layer.
# How fast they were moved is not published. V3 used 0.001 for all but the
# last 500 billion of its 14.8 trillion tokens, and 0 for these.
# Moonlight, Moonshot's model before K2, subtracts the mean of the signs,
# so that the biases do not drift together; the choices stay the same.
#
# </div>

# %% [markdown]
# ## On the back of an envelope
#
# K2 serves 256 conversations at once, and each writes one token. Suppose
# that the choices are even and independent. How many of the 384 experts
# of a layer does *none* of the 256 need? And how many does a conversation
# not need that K2 serves alone? Answer to one digit before you look.
#
# <details><summary>Answer</summary>
#
# A token passes a given expert by with the probability $1 - 8/384 =
# 1 - 1/48$. All 256 do so with $(1 - 1/48)^{256} \approx e^{-256/48}
# = e^{-5.3} \approx 0.005$, and $384 \cdot 0.005 \approx$ **2**. So
# practically the whole layer is read from memory, while one conversation
# alone leaves **376** experts in peace. Sparsity saves arithmetic
# for everyone, and memory traffic only for those who are alone.
# The cell below computes it, and throws dice to be sure.
#
# </details>

# %%
idle = E2 * (1 - K2 / E2) ** 256
thrown = [E2 - len(np.unique(rng.random((256, E2)).argsort(1)[:, :K2]))
          for _ in range(20)]
print(f"computed {idle:.2f}, thrown {np.mean(thrown):.2f} in the mean")

# %% [markdown]
# <div class="alert alert-success">
#
# **Takeaway.** Sort the pairs of token and expert once, and a sparse layer
# is a few dense products: same numbers, no search, each matrix read once.
# Who is chosen is trained, so a router left alone collapses; a bias that
# moves by the sign of the load, and that only the choice sees, holds it
# in balance.
#
# </div>
#
# ## Sources
#
# - Experts, shared expert, and the bias that balances without a loss:
#   DeepSeek-V3, arXiv 2412.19437, §2.1.2, eq. 12 to 16; speeds in §4.2.
# - The same idea by itself, and the maximum violation: Wang et al.,
#   *Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts*,
#   arXiv 2408.15664.
# - The rule that subtracts the mean of the signs: *Muon is Scalable for
#   LLM Training* (Moonlight), arXiv 2502.16982, appendix C.
# - SwiGLU: Shazeer, *GLU Variants Improve Transformer*, arXiv 2002.05202.
# - K2's numbers of experts and its layout on GPUs: *Kimi K2*, arXiv
#   2507.20534, §2.3 and §2.4.
#
# **Next:** lesson 07 goes back through all of this by hand: gradients of
# the norm, of attention, of the router and of the sorted experts.
