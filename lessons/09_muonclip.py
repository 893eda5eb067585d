# %% [markdown]
# # 09 · MuonClip
#
# *About 60 minutes, one of them for the computer.*
#
# **After this lesson you can**
#
# - make a model's attention logits explode with plain Muon, and say in
#   which heads and layers;
# - measure each head's largest logit;
# - write QK-Clip: how much a head is scaled, which rows of which matrices
#   take the factor, and which must not;
# - run the same seed again and see the logits held and the loss unharmed;
# - say why K2 did not use QK-norm or soft-capping instead.

# %% role="setup"
import numpy as np

from minik2.checks import check

np.set_printoptions(precision=3, suppress=True)

# %%
import os
import sys

import torch
from tqdm import tqdm

import minik2
from minik2 import pytorch, reference
from minik2.plots import lesson09 as plots
from minik2.plots.model_map import model_map
from minik2.training import lesson_model
from minik2.training.corpus import Corpus

rng = np.random.default_rng(9)
short = bool(os.environ.get("MINIK2_SHORT"))


def error(a, b):
    """Largest difference, as a share of the largest number of b."""
    return float(np.abs(np.asarray(a) - b).max() / np.abs(b).max())

# %% [markdown]
# ## What you have, and what you will add
#
# Muon gives every direction of a matrix a step of the same size. It
# learns from fewer tokens than AdamW, and it has a weakness: the numbers
# that go into attention's softmax, the *logits*, can grow without end.
# Today you watch it, and add the part that K2's authors added: *QK-Clip*.
# Muon with QK-Clip is *MuonClip*.
#
# In answers you may use NumPy and your other answers. `minik2 check` runs
# these, the cell with the import of NumPy, and none of the lesson's other
# cells.

# %%
model_map(["attention", "muon", "qk_clip"],
          "Today: logits that explode, and what holds them")

# %% [markdown]
# ## 1. Blow it up
#
# The logit of a query at token $t$ and a key at token $s \le t$ is
#
# $$S_{ts} = \alpha\; q_t \cdot k_s, \qquad \alpha = \frac{1}{\sqrt{N+R}},$$
#
# with $N$ the numbers of a head that know no position, $R$ the rotary
# ones, and $\alpha$ the softmax scale (YaRN makes it larger, lesson 04).
# The number to watch is each head's largest logit over a whole batch,
# $S_{\max}$.
#
# We hurry it: the preset `small` from its random start, plain Muon, and a
# learning rate of 0.08, eight times the course's usual one. Embedding, head
# and norms go to AdamW at the usual rate. A `Watch` keeps every head's
# largest logit of a step.

# %%
corpus = Corpus.standard_library()
small = minik2.ModelConfig.preset("small")
steps, tau = 50 if short else 150, 30.0
torch.set_num_threads(1)  # products this small gain little from a second


def train(tau):
    """Largest logits (steps, layers, H) and losses (steps,) of a run."""
    model = pytorch.Model.init(small, seed=0)
    optimizer = pytorch.MuonClip(model, lr=0.08, tau=tau, adamw_lr=0.01)
    text, watch = np.random.default_rng(0), pytorch.Watch(small)
    maxima, losses = [], []
    for _ in tqdm(range(steps), file=sys.stdout, ncols=76, unit="step"):
        tokens, targets = corpus.sample("train", 4, 64, text)
        watch.reset()
        loss = model.loss(tokens, torch.from_numpy(targets), watch=watch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(watch.max_logits)  # with tau None: plain Muon
        maxima.append(watch.max_logits.tolist())
        losses.append(loss.item())
    return np.array(maxima), np.array(losses)


maxima, losses = {}, {}
maxima["plain"], losses["plain"] = train(tau=None)

# %%
assert maxima["plain"].max() > 2 * tau
plots.explosion(maxima["plain"], tau)

# %% [markdown]
# The line at 30 is the limit that we shall set later. In K2's report a
# mixture with 9 billion active parameters passed 1,000 under plain Muon.
#
# What is wrong with a large logit? Let three keys have logits in the ratio
# 1 : 2 : 3, and let them grow. The weights go from a choice among three to
# all on one; then next to no gradient comes back through the softmax. And
# in bfloat16, with its 8 significant bits, neighbouring numbers lie further
# and further apart: a logit is only known to half that distance.

# %%
print("largest logit   weights of the three      bfloat16's spacing")
for top in (3.0, 30.0, maxima["plain"].max(), 1000.0):
    three = torch.tensor([1 / 3, 2 / 3, 1.0]).double() * top
    weights = three.softmax(0).numpy()
    spacing = 2.0 ** (np.floor(np.log2(top)) - 7)
    print(f"{top:13.0f}   {weights[0]:8.1e} {weights[1]:8.1e} "
          f"{weights[2]:.3f}   {spacing:18.3f}")

# %% [markdown]
# A spacing of 1 between logits is a factor of $e = 2.7$ between weights.
#
# Why Muon? The authors' hypothesis: its updates have full rank, so they
# meet the directions in which the weights are already large more often
# than AdamW's do. And a logit is a *product* of two trained matrices, so
# growth in both is squared. It is a hypothesis; the explosion is a fact.

# %% [markdown]
# ## 2. Each head's largest logit
#
# The smallest case: three tokens, two heads, two numbers a head.

# %%
q, k = rng.normal(size=(2, 3, 2, 2))  # (T, H, N + R)
for head in range(2):
    print(f"head {head}\n", q[:, head] @ k[:, head].T / np.sqrt(2))

# %% [markdown]
# What counts is what the softmax sees: pairs in which the key is not later
# than the query, after the scale. The sign stays. A logit of -500 is a
# weight of 0 and harms nobody.

# %% [markdown] exercise="muonclip.max_logits"
# Write the function that finds each head's largest logit.

# %% exercise="muonclip.max_logits"
def max_logits(q: np.ndarray, k: np.ndarray, scale: float) -> np.ndarray:
    """The largest logit that each head's causal softmax sees.

    q, k: (T, H, d) queries and keys of one sequence; scale > 0.
    Returns (H,): the signed maximum of scale * q_t . k_s over s <= t.
    """
    logits = scale * np.einsum("thd,shd->hts", q, k)
    seen = np.tri(len(q), dtype=bool)
    return np.where(seen, logits, -np.inf).max(axis=(1, 2))

# %% [markdown] hints="muonclip.max_logits"
# Make all logits of all heads first. Which shape do they have, and over
# which two axes does the maximum run?
#
# ---
#
# `np.einsum("thd,shd->hts", q, k)` is (H, T, T), the query before the key.
#
# ---
#
# `np.tri(T, dtype=bool)` says what is seen. Fill the rest with `-np.inf`;
# a 0 would win in a head whose logits are all negative.
#
# ---
#
# All logits, the mask, the maximum over the last two axes.

# %% [markdown]
# A real case: layer 1 of the small model that was trained once on this
# machine, on text that it has not seen. The forward pass has saved queries
# and keys. Both engines have the function. (The first time, Numba compiles
# the engine's loops, which takes a while.)

# %%
model = lesson_model()
cfg, H = model.cfg, model.cfg.num_attention_heads
N, R, V = cfg.qk_nope_head_dim, cfg.qk_rope_head_dim, cfg.v_head_dim
text, _ = corpus.spread("validation", 1, 128)
_, kept = model.forward(text)
block = kept[1]["self_attn"]
q, k, scale = (block["attention"][name] for name in ("q", "k", "scale"))
logits = scale * np.einsum("thd,shd->hts", q[0], k[0])
seen = np.tri(128, dtype=bool)
tops = np.array([head[seen].max() for head in logits])
ours = reference.qk_clip.max_logits(q, k, scale)
twin = pytorch.qk_clip.max_logits(torch.tensor(q), torch.tensor(k), scale)
print("largest logits:", tops)
print("definition - NumPy engine:", error(ours, tops))
print("definition - torch engine:", error(twin, tops))
assert max(error(ours, tops), error(twin, tops)) < 1e-12

# %% [markdown]
# In training this costs next to nothing where the softmax looks for its
# largest score anyway, as our NumPy engine does. Fused GPU kernels hand
# out the log of the *sum* of exponentials. That is another number, so the
# torch engine looks a second time. A batch in several parts, or on several
# machines, takes the maximum of all.

# %% [markdown]
# ## 3. By how much
#
# Let $\tau$ be the largest logit that we allow: K2's is 100, ours today
# is 30. A head above $\tau$ shall have its logits multiplied by
#
# $$\gamma = \min\!\left(1, \frac{\tau}{S_{\max}}\right),$$
#
# each head by its own. Read as it stands, the formula has a trap: a head's
# largest logit may be negative.

# %% [markdown] exercise="muonclip.gamma"
# Write the factor of every head. A head at or below $\tau$ gets exactly 1,
# whatever its sign.

# %% exercise="muonclip.gamma"
def gamma(max_logits: np.ndarray, tau: float) -> np.ndarray:
    """What each head's logits are multiplied with.

    max_logits: (H,) largest logits, of either sign; tau > 0.
    Returns (H,), each above 0 and at most 1.
    """
    return tau / np.maximum(max_logits, tau)

# %% [markdown] hints="muonclip.gamma"
# What should the factor be for a largest logit of 2 tau, of tau / 2, of
# -tau / 2?
#
# ---
#
# `np.minimum(1, tau / max_logits)` is negative where the maximum is.
# Bring the maximum up to tau first.
#
# ---
#
# `np.maximum(max_logits, tau)` is the maximum where the head is too large
# and tau where it is not.
#
# ---
#
# tau, divided by that.

# %% [markdown]
# ## 4. Which rows
#
# The factor goes into the weights, *after* the optimizer's step. The
# forward pass is left as it is, and so are its gradients. But which
# weights? A head's logit has two parts,
#
# $$S_{ts} = \alpha\,\big(q^{C}_t \cdot k^{C}_s
#   + q^{R}_t \cdot k^{R}_s\big),$$
#
# with the paper's letters: superscript $C$ for the part without position
# (N numbers; it has nothing to do with the axis C of the latent), $R$ for
# the rotary part. Both must shrink by $\gamma$.
#
# | What | Made by | Whose | Factor |
# |---|---|---|---|
# | $q^C$, N rows a head | `q_b_proj` | the head's | $\sqrt\gamma$ |
# | $q^R$, R rows a head | `q_b_proj` | the head's | $\gamma$ |
# | $k^C$, N rows a head | `kv_b_proj` | the head's | $\sqrt\gamma$ |
# | values, V rows a head | `kv_b_proj` | the head's | 1 |
# | $k^R$, R rows in all | `kv_a_proj_with_mqa` | all heads' | 1 |
#
# The first part is a product of two things that belong to the head: each
# takes the root. In the second the key is shared by all heads, so the
# query takes all of $\gamma$.

# %% [markdown] exercise="muonclip.row_factors"
# Write the factors of all rows of `q_b_proj` and of `kv_b_proj`. The rows
# go head by head: first a head's N rows without position, then its R
# rotary rows, or its V value rows.

# %% exercise="muonclip.row_factors"
def row_factors(
    gamma: np.ndarray, nope: int, rope: int, value: int
) -> tuple[np.ndarray, np.ndarray]:
    """What QK-Clip multiplies each row of the two up-projections with.

    gamma: (H,) factors of the heads' logits; nope, rope, value: N, R, V.
    Returns (H (N + R),) for q_b_proj and (H (N + V),) for kv_b_proj.
    """
    query = [np.repeat([np.sqrt(g), g], [nope, rope]) for g in gamma]
    key = [np.repeat([np.sqrt(g), 1], [nope, value]) for g in gamma]
    return np.concatenate(query), np.concatenate(key)

# %% [markdown] hints="muonclip.row_factors"
# Take one head. Which of its N + R query rows take which factor? And of
# its N + V rows of the other matrix?
#
# ---
#
# `np.repeat([a, b], [2, 3])` is a a b b b: one head's rows.
#
# ---
#
# A loop over heads will do: `np.repeat([root, gamma], [nope, rope])` for
# the query, `np.repeat([root, 1.0], [nope, value])` for the other.
#
# ---
#
# One head after the other, then `np.concatenate`.

# %% [markdown]
# ## 5. Clip a block

# %% [markdown] exercise="muonclip.clip_block"
# Put it together: from the two matrices and the heads' largest logits to
# the clipped matrices. Return new arrays. V is not given; it follows from
# the shapes.

# %% exercise="muonclip.clip_block"
def clip_block(
    q_b_proj: np.ndarray, kv_b_proj: np.ndarray, max_logits: np.ndarray,
    tau: float, nope: int, rope: int,
) -> tuple[np.ndarray, np.ndarray]:
    """QK-Clip of one layer; the matrices given stay as they are.

    q_b_proj: (H (N + R), Q) with Q the query latent's rank;
    kv_b_proj: (H (N + V), C); max_logits: (H,); nope, rope: N, R.
    Returns both matrices with their rows scaled, in the same shapes.
    """
    value = len(kv_b_proj) // len(max_logits) - nope
    factors = row_factors(gamma(max_logits, tau), nope, rope, value)
    query, key = factors
    return q_b_proj * query[:, None], kv_b_proj * key[:, None]

# %% [markdown] hints="muonclip.clip_block"
# You have written both steps: gamma from the maxima, rows from gamma.
#
# ---
#
# `len(kv_b_proj)` is H (N + V), and `len(max_logits)` is H.
#
# ---
#
# A vector of one factor a row must stand as a column beside the matrix:
# `factors[:, None] * matrix`.
#
# ---
#
# V, gamma, the factors, two products.

# %% [markdown]
# Now on the trained block. Its logits are calm, so we make two heads loud
# by hand: the query rows of head 1 times 3, those of head 3 times 8. A
# tau a fifth above the quiet heads then catches these two alone.

# %%
weights = {name: array.copy() for name, array in block["weights"].items()}
for head, times in ((1, 3), (3, 8)):
    own = slice(head * (N + R), (head + 1) * (N + R))
    weights["q_b_proj.weight"][own] *= times


def measure(weights):
    """All logits of the block with these weights (H, T, T), and maxima."""
    _, saved = reference.mla.forward(
        block["x"], weights, cfg, block["cos"], block["sin"])
    q, k = (saved["attention"][name][0] for name in ("q", "k"))
    logits = scale * np.einsum("thd,shd->hts", q, k)
    return logits, np.array([head[seen].max() for head in logits])


logits, tops = measure(weights)
limit = 1.2 * max(tops[0], tops[2])
clipped = {name: array.copy() for name, array in weights.items()}
g = reference.qk_clip.clip(clipped, tops, cfg, limit)
print("largest logits", tops, f"\ntau {limit:.2f}, gamma", g)
assert list(g < 1) == [False, True, False, True]
before, after = ({n: w[f"{n}.weight"] for n in ("q_b_proj", "kv_b_proj")}
                 for w in (weights, clipped))
plots.changed_rows(before, after, g, N)

# %% [markdown]
# What should have happened: for the same inputs every logit of a head is
# its old one times gamma. The torch engine has its own `clip`.

# %%
new_logits, new_tops = measure(clipped)
twins = {name: torch.tensor(array) for name, array in weights.items()}
pytorch.qk_clip.clip(twins, torch.tensor(tops), cfg, limit)
differ = max(error(twins[n], clipped[n]) for n in clipped)
print("logits - gamma times the old:  ",
      error(new_logits, g[:, None, None] * logits))
print("weights, torch - NumPy engine: ", differ)
print("largest logits now:", new_tops)
assert error(new_logits, g[:, None, None] * logits) < 1e-12
assert differ < 1e-12

# %% [markdown]
# transformers has no optimizer of this kind, but its attention can say
# whether the clipped block is what we claim. We ask it for the attention
# weights of its block with the clipped matrices, and compare with the
# softmax of gamma times the *old* logits. Its norms and its softmax are in
# float32, so that is how far the two can agree.

# %%
try:
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as v3
except ImportError:
    print("transformers is not installed here, so this comparison is left "
          'out;\n.venv/bin/python -m pip install -e ".[test]" gets it.')
else:
    config = v3.DeepseekV3Config(**cfg.to_json())
    config._attn_implementation = "eager"
    theirs = v3.DeepseekV3Attention(config, 0).double()
    theirs.load_state_dict(
        {name: torch.tensor(array) for name, array in clipped.items()})
    angles = tuple(torch.tensor(np.tile(block[a], 2))[None]
                   for a in ("cos", "sin"))
    mask = torch.full((1, 1, 128, 128), -torch.inf).triu(1).double()
    with torch.inference_mode():
        _, shares = theirs(torch.tensor(block["x"]), angles, mask)
    want = np.where(seen, g[:, None, None] * logits, -np.inf)
    want = np.exp(want - want.max(-1, keepdims=True))
    want /= want.sum(-1, keepdims=True)
    print("transformers' weights - softmax of gamma times the old logits: "
          f"{error(shares[0], want):.0e}")
    assert error(shares[0], want) < 1e-4

# %% [markdown]
# ### What must not be scaled
#
# Suppose that you clip the loudest head to half of its logits, and take
# the rotary factor from the shared key in `kv_a_proj_with_mqa` in place
# of the head's own query. The head's logits come out just as well.

# %%
loud = int(tops.argmax())
alone = np.where(np.arange(H) == loud, tops, 0.0)
right = {name: array.copy() for name, array in weights.items()}
reference.qk_clip.clip(right, alone, cfg, tops[loud] / 2)
shared = {name: array.copy() for name, array in right.items()}
start = loud * (N + R) + N
shared["q_b_proj.weight"][start : start + R] *= 2  # as before the clip
shared["kv_a_proj_with_mqa.weight"][-R:] /= 2  # the shared key instead


def moved(changed):
    """The largest change of each head's logits, of its largest size."""
    change = np.abs(measure(changed)[0] - logits)[:, seen].max(1)
    return change / np.abs(logits)[:, seen].max(1)


ways = {"QK-Clip": moved(right),
        "scaling the shared rotary key": moved(shared)}
others = np.arange(H) != loud
assert ways["QK-Clip"][others].max() < 1e-12
assert ways["scaling the shared rotary key"][others].max() > 1e-3
plots.others_disturbed(tops, ways, loud)

# %% [markdown]
# The other heads had done nothing. And the down-projections, `q_a_proj`
# and the latent's rows of `kv_a_proj_with_mqa`? Behind each stands a norm,
# which divides by the length of what it gets. It undoes the edit. (Up to
# the small constant that keeps a norm from dividing by zero.)

# %%
halved = weights | {"q_a_proj.weight": weights["q_a_proj.weight"] / 2}
print("q_a_proj halved, largest change of a logit:", moved(halved).max())
assert moved(halved).max() < 1e-2

# %% [markdown]
# ## 6. The same seed again
#
# Same start, same text, same rates. The one difference is tau. Until a
# head passes it nothing is clipped, so the runs begin alike.

# %%
maxima["clipped"], losses["clipped"] = train(tau=tau)

# %%
first = int((maxima["plain"].max((1, 2)) > tau).argmax())
last = steps // 5
ends = {name: loss[-last:].mean() for name, loss in losses.items()}
print(f"alike up to step {first + 1}, where the first head passes tau:",
      error(maxima["clipped"][: first + 1], maxima["plain"][: first + 1]))
for name in maxima:
    print(f"{name:8} largest logit {maxima[name].max():4.0f}, loss of the "
          f"last {last} steps {ends[name]:.3f}")
assert maxima["clipped"].max() < 2 * tau < maxima["plain"].max()
assert ends["clipped"] < ends["plain"] + 0.2
plots.held(maxima, losses, tau)

# %% [markdown]
# Logits still pass tau. A clip is made from the step's own maxima, and
# the *next* step starts from there: how far beyond tau it gets is how far
# one step can go. At this rate that is a lot.
#
# Read the loss with care. Both runs are far too hot to be good, and one
# seed for so few steps proves little. The course's own experiment
# (`python -m minik2.experiments logit_explosion`, three seeds, 250 steps)
# found the clipped hot run better. At a sane rate, with a tau low enough to
# act on nearly all heads, clipping changed the loss by 0.004: nothing.
# That agrees with K2's report, which saw no harm at a tau of 30 in a model
# with half a billion active parameters.
#
# If your answer has passed, it is what `MuonClip` does here after every
# step, in every layer.

# %% [markdown]
# ## 7. Why not something simpler?
#
# **Soft-capping** puts $\tau \tanh(S/\tau)$ in the place of $S$. Then no
# logit passes tau, but the products beneath may grow as before, and the
# further they have grown the smaller is the slope by which a gradient could
# bring them back:

# %%
for logit in (10.0, 30.0, 100.0, maxima["plain"].max()):
    slope = 1 / np.cosh(logit / tau) ** 2
    print(f"logit {logit:5.0f}: capped {tau * np.tanh(logit / tau):5.2f}, "
          f"slope {slope:.1e}")

# %% [markdown]
# **QK-norm** divides every query and every key by its length. Plain
# attention can do that. In MLA the cache holds latents, and the
# absorbed form (lesson 03) never makes a head's key: the key's matrix has
# moved to the query's side. But the length of a key differs from head to
# head and from token to token, and to know it the key must be made. For
# one new token of K2 after a full context:

# %%
k2 = minik2.ModelConfig.preset("kimi-k2")
heads, context = k2.num_attention_heads, k2.max_position_embeddings
keys = 2 * context * heads * k2.qk_nope_head_dim * k2.kv_lora_rank
keys *= k2.num_hidden_layers
token = 2 * minik2.sizing.parameters(k2).active
row = k2.kv_lora_rank + k2.qk_rope_head_dim
print(f"all keys formed anew: {keys:.1e} operations, {keys / token:.0f} "
      "times\nthe token's products with its active weights")
print(f"or every head's length kept: {heads} more numbers beside {row}, "
      f"a cache {heads / row:.0%} larger")

# %% [markdown]
# QK-Clip costs the running model nothing at all: it is gone when training
# ends, and what is left are ordinary weights.

# %% [markdown]
# ## In K2
#
# From its configuration. The share of heads, the steps and the tokens of
# a step are those of K2's report.

# %%
every = k2.num_hidden_layers * heads
N2, R2, V2 = k2.qk_nope_head_dim, k2.qk_rope_head_dim, k2.v_head_dim
per_head = (N2 + R2) * k2.q_lora_rank + N2 * k2.kv_lora_rank
total = minik2.sizing.parameters(k2).total
print(f"heads: {every:,}; 12.7% of them: {0.127 * every:.0f}")
print(f"rows of a head that a clip scales: {N2 + R2} of q_b_proj, {N2} of "
      f"kv_b_proj;\nleft alone: {V2} value rows")
print(f"all heads clipped: {every * per_head / total:.2%} of the weights")
print(f"70,000 of {15.5e12 / 2**26:,.0f} steps: "
      f"{70_000 * 2**26 / 15.5e12:.0%}")

# %% [markdown]
# <div class="alert alert-info">
#
# **In K2** tau was 100. 12.7% of the heads passed it at least once, all of
# them in the first 70,000 steps; after that none ever did, and the largest
# logits fell by themselves. 15.5 trillion tokens went by without a spike
# of the loss, says the report. We have not seen that silence: in the
# course's experiments heads are clipped to the end, though ever more
# rarely as the rate falls. What the report leaves open: which scale the
# logits had when they were measured (YaRN came later), and whether Muon
# took a projection whole or head by head.
#
# </div>

# %% [markdown]
# ## On the back of an envelope
#
# K2's heads have 192 numbers in query and key. Leave YaRN aside, so that
# the scale is $1/\sqrt{192}$. How large, in the root mean square,
# must the numbers of a query and a key be for a logit of 100, if the two
# point the same way? And for 1,000?
#
# <details><summary>Answer</summary>
#
# With both of root mean square $r$ and in one direction,
# $q \cdot k = 192\, r^2$, and the logit is $\sqrt{192}\, r^2
# \approx 13.9\, r^2$. So $r = \sqrt{100/13.9} \approx$ **2.7** for 100, and
# $\sqrt{10}$ times as much, **8.5**, for 1,000. Neither is a large
# number. What is rare is a query and a key that agree in all 192: the last
# line below holds the largest logits of a trained block against what its
# longest queries and keys would give if they did.
#
# </details>

# %%
for logit in (100, 1000):
    print(f"logit {logit}: {np.sqrt(logit / np.sqrt(N2 + R2)):.1f}")
longest = [np.linalg.norm(a[0], axis=-1).max(0) for a in (q, k)]
print("our trained block, head by head:\nlongest query and key aligned",
      scale * longest[0] * longest[1],
      "\nlargest logit there is       ", ours)

# %% [markdown]
# <div class="alert alert-success">
#
# **Takeaway.** Under Muon a head's logits can grow without end. QK-Clip
# watches each head's largest logit and, after the step, scales the rows
# that make it: a root of gamma on both parts without position, all of gamma
# on the rotary query, nothing on what is shared and nothing on values.
# Quiet heads stay exactly as they are, and the model that is served has no
# new part.
#
# </div>
#
# ## Sources
#
# - QK-Clip, algorithm 1, the explosion, and why not QK-norm or
#   soft-capping: *Kimi K2*, arXiv 2507.20534, §2.1; the run without
#   spikes §2.1 and §2.5; tau 30, the share of heads, the silence
#   after 70,000 steps: appendix D; the hypothesis: appendix E.
# - The factors row by row in the checkpoint's layout: NVIDIA's
#   Megatron-LM, `multi_latent_attention.py`, `clip_qk`. Its comment on the
#   rotary part says something else than its code and the paper.
# - Muon's recipe: *Muon is Scalable for LLM Training*, arXiv 2502.16982.
# - Shared rotary key and absorbed form: *DeepSeek-V2*, arXiv 2405.04434,
#   §2.1.
#
# **Next:** lesson 10 puts it all to work: a real run with a schedule.
