# %% [markdown]
# # 05 · The router
#
# *About 50 minutes, all of it yours: the cells run in seconds.*
#
# **After this lesson you can**
#
# - write K2's router: who is chosen, and with what weight, are two
#   questions with two answers;
# - say which wrong router shows in the loss, and which one has run in
#   well-known engines without being noticed;
# - write V3's choice by groups, which K2 leaves out, and count the sets
#   of experts that it forbids;
# - write the rule that moves the bias, which no gradient reaches;
# - add the shared expert, and measure what it carries.

# %% role="setup"
import numpy as np

from minik2.checks import check

np.set_printoptions(precision=3, suppress=True)

# %%
import copy
import inspect
import types
from unittest.mock import patch

import torch

import minik2
from minik2 import pytorch, reference
from minik2.plots import lesson05 as plots
from minik2.plots.model_map import model_map
from minik2.training import lesson_model
from minik2.training.corpus import Corpus, encode

rng = np.random.default_rng(5)


def error(a, b):
    """Largest difference of two arrays or tensors."""
    return float(np.abs(np.asarray(a) - np.asarray(b)).max())

# %% [markdown]
# ## What you have, and what you will add
#
# Attention is done: lessons 01 to 04 took it apart. What comes after it
# in a layer are the experts, many feed-forward blocks of which a token
# passes only a few. Today is about who passes where. (How to run them
# fast is lesson 06.)
#
# In answers you may use NumPy, your other answers, and three functions
# that the sections define for it: `sigmoid`, `route_slow` and `expert`.
# `minik2 check` runs these and none of the lesson's other cells.

# %%
model_map(["router", "experts", "shared"], "Today: who goes where")

# %% [markdown]
# ## 1. One token, six experts
#
# The router holds one vector for each expert, $\mathbf e_i$, the rows of
# `gate.weight`. The token's vector $\mathbf x$ is compared with all of
# them. What comes out, a *logit*, may be any number; the sigmoid makes it
# a **score** between 0 and 1:
#
# $$s_i = \sigma(\mathbf x \cdot \mathbf e_i), \qquad
#   \sigma(z) = \frac{1}{1 + e^{-z}}$$
#
# A softmax would make scores that compete: one can only rise if others
# fall. Sigmoid scores know nothing of each other. A token may like all
# experts, or none.
#
# Each expert has one number more, its **bias** $b_i$
# (`e_score_correction_bias`). Section 5 is about where it comes from: it
# grows for experts that have had too little to do. Then
#
# 1. the $K$ experts with the largest $s_i + b_i$ are *chosen*;
# 2. each chosen one is *weighed* by its score $s_i$ alone, divided by the
#    sum of the chosen scores, times a constant of the model
#    (`routed_scaling_factor`):
#
# $$g_i = \mathrm{scale} \cdot \frac{s_i}{\sum_{j\ \mathrm{chosen}} s_j}
#   \quad \text{if } i \text{ is chosen, else } 0$$
#
# We call $g_i$ the expert's *gate*. The smallest case: six experts, two
# of them for the token, and a scale of 2.

# %% role="setup"
def sigmoid(z):
    """A number between 0 and 1 for any number."""
    return 1 / (1 + np.exp(-z))

# %%
logits = np.array([1.2, -0.4, 0.9, 0.1, 0.7, -1.5])
bias = np.array([-0.15, 0.05, -0.1, 0.3, 0.0, 0.1])
scores = sigmoid(logits)
chosen = np.argsort(-(scores + bias))[:2]
gates = np.zeros(6)
gates[chosen] = 2 * scores[chosen] / scores[chosen].sum()
print("score + bias", scores + bias, "\ngates       ", gates)
plots.two_questions(scores, bias, gates)

# %% [markdown]
# Experts 0 and 2 have the best scores, and the bias takes both out of the
# choice: they were busy. Expert 3 comes in *first*, and yet its gate is
# the smaller one of the two, because its score is. The bias was no
# opinion about this token, so it has no say in what the token hears.
#
# This is the definition with loops. The exercise asks for the same
# numbers without a loop over tokens.

# %% role="setup"
def route_slow(x, weight, bias, k, scale):
    """The router, spelled out: gates (T, E) of tokens x (T, D)."""
    gates = np.zeros((len(x), len(weight)))
    for t, token in enumerate(x):
        score = [sigmoid(token @ row) for row in weight]
        order = sorted(range(len(bias)), key=lambda i: -score[i] - bias[i])
        total = sum(score[i] for i in order[:k])
        for i in order[:k]:
            gates[t, i] = scale * score[i] / total
    return gates

# %% [markdown] exercise="router.choose_and_weigh"
# Write `route_slow` without a Python loop. (The check does not look for
# loops.)

# %% exercise="router.choose_and_weigh"
def choose_and_weigh(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, k: int,
    scale: float,
) -> np.ndarray:
    """Which experts each token goes to, and with what weight.

    x: (T, D); weight: (E, D), a row an expert; bias: (E,) counts in the
    choice only; k: experts a token. Returns gates (T, E): k numbers in
    each row that sum to scale, and zeros.
    """
    scores = 1 / (1 + np.exp(-(x @ weight.T)))
    chosen = np.argsort(-(scores + bias), axis=1)[:, :k]
    kept = np.take_along_axis(scores, chosen, axis=1)
    kept = scale * kept / kept.sum(axis=1, keepdims=True)
    gates = np.zeros_like(scores)
    np.put_along_axis(gates, chosen, kept, axis=1)
    return gates

# %% [markdown] hints="router.choose_and_weigh"
# Keep the two answers in two variables: one array that ranks the experts,
# one that weighs them. In which of the two is the bias?
#
# ---
#
# `np.argsort(-choice, axis=1)[:, :k]` is (T, k): each token's experts,
# the best first. `np.take_along_axis(scores, chosen, axis=1)` takes
# their scores, also (T, k).
#
# ---
#
# Divide by `kept.sum(axis=1, keepdims=True)`, then multiply by the scale.
# `np.put_along_axis(gates, chosen, kept, axis=1)` writes them into a
# (T, E) array of zeros.
#
# ---
#
# Scores, choice, scores of the chosen, their shares, and back to their
# places: a line each.

# %% [markdown]
# ## 2. The same in a trained model
#
# This is a small K2 that has read Python source, the one that all lessons
# share: 16 experts, 4 for each token, and layer 0 without any. It trains
# the first time and is read from the disk from then on. The sentence is
# two lines of a file that it has never seen.

# %%
model = lesson_model()
cfg = model.cfg
k, scale = cfg.num_experts_per_tok, cfg.routed_scaling_factor
text = inspect.getsource(copy._deepcopy_list)[:59]
_, saved = model.forward(encode(text)[None])

routers = {}  # by layer: scores (T, E), bias (E,), gates (T, E)
for layer in range(cfg.first_k_dense_replace, cfg.num_hidden_layers):
    kept = saved[layer]["mlp"]["router"]
    gates = np.zeros_like(kept["scores"])
    np.put_along_axis(gates, kept["indices"], kept["weights"], axis=1)
    bias = model.layers[layer]["mlp"]["gate.e_score_correction_bias"]
    routers[layer] = kept["scores"], bias, gates
print(f"biases of layer {layer}: {bias.min():+.2f} to {bias.max():+.2f}")

# %% [markdown]
# Four implementations of one router, on the weights of layer 2: ours with
# loops, both engines of this course, and the one in Hugging Face's
# `transformers`. That one computes in float32 whatever it
# is given; to compare to the last digits, we let its file see a torch in
# which `float32` is `float64`.

# %%
layer = 2
mlp = model.layers[layer]["mlp"]
x = saved[layer]["mlp"]["router"]["x"]
weight, bias = mlp["gate.weight"], mlp["gate.e_score_correction_bias"]
slow = route_slow(x, weight, bias, k, scale)

state = {f"shared_experts.{name}": torch.tensor(array)
         for name, array in mlp["shared_experts"].items()}
state |= {name: torch.tensor(array) for name, array in mlp.items()
          if name != "shared_experts"}
twin = pytorch.moe.MoE(cfg).double()
twin.load_state_dict(state)
try:
    import transformers
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as v3
except ImportError:
    theirs = None  # transformers comes with `make test`
else:
    config = transformers.AutoConfig.for_model(**cfg.to_json())
    config._experts_implementation = "eager"
    theirs = v3.DeepseekV3MoE(config).double()
    theirs.load_state_dict(state)
    double = types.SimpleNamespace(**vars(torch) | {
        "float32": torch.float64})

# %%
def dense(indices, weights):
    """Gates (T, E) from K choices a token and their weights (T, K)."""
    gates = torch.zeros(len(x), cfg.n_routed_experts, dtype=torch.float64)
    return gates.scatter(1, torch.as_tensor(indices),
                         torch.as_tensor(weights))


xt = torch.tensor(x)
with torch.inference_mode():
    others = {"reference engine": routers[layer][2],
              "pytorch engine": dense(*twin.gate(xt))}
    if theirs:
        with patch.object(v3, "torch", double):
            _, weights, indices = theirs.gate(xt)
        others["transformers"] = dense(indices, weights)
for name, gates in others.items():
    print(f"loops - {name:<20} {error(slow, gates):.0e}")
assert max(error(slow, gates) for gates in others.values()) < 1e-12

# %% [markdown]
# Here is the whole sentence in that layer, and below it one byte: the
# one at which the bias changes most.

# %%
scores, bias, gates = routers[layer]
plain = np.argsort(-scores, axis=1)[:, :k]
moved = (np.take_along_axis(gates, plain, axis=1) == 0).sum(axis=1)
spot = int(moved.argmax())
plots.route(text, layer, spot, *routers[layer])

# %% [markdown]
# Now look around yourself: another layer, another byte. (The sliders are
# alive only while the notebook runs. Look for a byte that the bias leaves
# alone, and for one where it moves two experts or more.)

# %%
plots.explore(text, routers, spot)

# %% [markdown]
# ## 3. Wrong routers
#
# A wrong router does not fail. Every shape is right, tokens go to
# experts, text comes out. So let us put some into the trained model and
# see what would give them away. `routing` is the right one, and each
# keyword is one thing to get wrong.

# %%
def routing(x, weight, bias, score=sigmoid, in_choice=1, in_weights=0,
            renormalise=True, factor=scale):
    """K experts a token and their weights, (T, K) each."""
    scores = score(x @ weight.T)
    chosen = np.argsort(-(scores + in_choice * bias), axis=1)[:, :k]
    weights = np.take_along_axis(scores + in_weights * bias, chosen, axis=1)
    if renormalise:
        weights = weights / weights.sum(axis=1, keepdims=True)
    return chosen, weights * factor


engine = reference.router.forward
four_groups = cfg.replace(n_group=4, topk_group=2)
wrong = {
    "bias in the weights": lambda *a: routing(*a, in_weights=1),
    "bias left out": lambda *a: routing(*a, in_choice=0),
    "softmax scores": lambda *a: routing(
        *a, score=lambda z: torch.tensor(z).softmax(1).numpy()),
    "not renormalised": lambda *a: routing(*a, renormalise=False),
    "scale forgotten": lambda *a: routing(*a, factor=1.0),
    "4 groups, 2 kept": lambda *a: engine(*a, four_groups)[0],
}

# %% [markdown]
# Three measurements, on 4,096 bytes of files that the model has not read:
# the loss; the share of layer 2's choices that move, given the same inputs;
# and the share of bytes for which the best guess at the next one changes.

# %%
held, following = Corpus.standard_library().spread("validation", 32, 128)


def held_out(route):
    """Loss and best guesses of the model with another router in it."""
    def forward(x, weight, bias, cfg):
        return route(x, weight, bias), {}

    with patch.object(reference.router, "forward", forward):
        logits = model(held)
    loss, _ = reference.loss.forward(logits, following, cfg)
    return loss, logits.argmax(-1)


def share_moved(route):
    """Of layer 2's choices, those that another router makes otherwise."""
    kept = seen[2]["mlp"]["router"]
    chosen, _ = route(kept["x"], weight, bias)
    same = kept["indices"][:, :, None] == chosen[:, None, :]
    return 1 - same.any(axis=2).mean()


_, seen = model.forward(held)
right, guesses = held_out(routing)
assert abs(right - model.loss(held, following)) < 1e-9
found = {}
for name, route in wrong.items():
    loss, best = held_out(route)
    found[name] = loss - right, share_moved(route), (best != guesses).mean()
assert min(changed for _, _, changed in found.values()) > 0
plots.variants(found)

# %% [markdown]
# None of them is the model that was trained. Three never move a choice,
# so whoever compares only *where* tokens go sees nothing. And the loss
# is a poor witness: the bias in the weights changes guesses, and moves
# the loss so little that nobody would look for a bug. That one is no
# invention. vLLM had it (mended in its pull request 12002), and
# transformers, from pull request 40132 until 41647. Comparing numbers with
# another implementation finds it at once; reading samples does not.
#
# Softmax scores move the most choices. Sixteen of them share one unit,
# so they are small beside biases that were made for scores around one
# half, and the bias decides nearly alone.

# %% [markdown]
# ## 4. Groups: V3 has them, K2 has not
#
# DeepSeek-V3 chooses in two steps. Its 256 experts lie in 8 groups of 32
# neighbours. A group is worth the sum of its *two best* biased scores;
# the 4 groups that are worth most are kept; the 8 experts are chosen
# from these. The smallest case: 12 experts, 3 groups, 2 kept, 3 chosen.

# %%
choice = np.array([0.9, -0.3, 0.1, -0.2,  0.6, 0.5, 0.4, -0.1,
                   0.7, 0.6, -0.4, -0.5])
grouped = choice.reshape(3, 4)
print(grouped, "\ntheir two best:", np.sort(grouped)[:, -2:].sum(axis=1))

# %% [markdown]
# Groups 1 and 2 stay, and group 0 goes, with the best expert of all in
# it. Chosen are 8 (0.7), and then 4 and 9 (0.6 each): without groups it
# would have been 0, 8, and one of those two.
#
# Mind how a dropped group is hidden. Biased scores can be negative. If
# the kept groups have fewer than $K$ positive ones, an expert that was
# hidden as 0 comes back and wins; it takes $-\infty$.
#
# The same at V3's size, for one token with random scores:

# %%
v3_cfg = minik2.ModelConfig.preset("deepseek-v3").replace(hidden_size=64)
free_cfg = v3_cfg.replace(n_group=1, topk_group=1)
experts, groups = v3_cfg.n_routed_experts, v3_cfg.n_group
many = rng.normal(size=(4096, 64))
rows = rng.normal(size=(experts, 64)) / 8
push = 0.1 * rng.normal(size=experts)
(limited, _), kept = reference.router.forward(many, rows, push, v3_cfg)
(free, _), _ = reference.router.forward(many, rows, push, free_cfg)
picked = [np.eye(experts, dtype=bool)[i[0]].any(axis=0).reshape(groups, -1)
          for i in (free, limited)]
plots.groups((kept["scores"][0] + push).reshape(groups, -1), *picked,
             v3_cfg.topk_group)

# %%
common = (free[:, :, None] == limited[:, None, :]).any(axis=2)
print(f"4,096 tokens: groups move {1 - common.mean():.0%} of the choices")

# %% [markdown] exercise="router.group_limited"
# Write V3's choice for any number of groups: which experts does each
# token go to, given its biased scores?

# %% exercise="router.group_limited"
def group_limited(
    choice: np.ndarray, groups: int, kept: int, k: int
) -> np.ndarray:
    """Choose k experts a token from the best groups only.

    choice: (T, E) biased scores, of any sign; groups: how many of equal
    size, each of neighbours; kept: how many of them stay, by the sum of
    their two best scores. Returns (T, E) of bool: True where chosen.
    """
    grouped = choice.reshape(len(choice), groups, -1)
    worth = np.sort(grouped, axis=2)[:, :, -2:].sum(axis=2)
    stay = np.argsort(-worth, axis=1)[:, :kept]
    masked = np.full_like(grouped, -np.inf)
    rows = np.arange(len(choice))[:, None]
    masked[rows, stay] = grouped[rows, stay]
    best = np.argsort(-masked.reshape(choice.shape), axis=1)[:, :k]
    chosen = np.zeros(choice.shape, dtype=bool)
    np.put_along_axis(chosen, best, True, axis=1)
    return chosen

# %% [markdown] hints="router.group_limited"
# Three steps: what each group is worth, which groups stay, which experts
# are the best of what is left. What are the shapes of the three?
#
# ---
#
# `choice.reshape(T, groups, -1)` puts neighbours together. `np.sort(...,
# axis=2)[:, :, -2:]` are the two best of each group.
#
# ---
#
# Hide the dropped groups in a copy, with `-np.inf`, and reshape it back
# to (T, E): then experts keep their numbers. `np.put_along_axis(chosen,
# best, True, axis=1)` marks the k best.
#
# ---
#
# Worth, groups, mask, choice. The choice at the end is the same one as
# before; only some experts are out of the running.

# %% [markdown]
# Why would anyone hide good experts? In training and in serving, experts
# lie on different machines. V3 puts a group's experts together, so that a
# token's vector travels to at most 4 machines (V3's report, §2.1.2). K2 has
# one group, that is to say none: every token may choose freely. Its
# report states that (Table 2) and does not say why.

# %% [markdown]
# ## 5. What moves the bias
#
# Nothing in the loss asks for an even load. An expert that is chosen
# learns, one that has learned is chosen: without a counterweight a few
# experts get everything. A loss term against it works, and pulls at
# what the model wants to say. V3's way pulls at nothing. After every
# step of training count the *load* $n_i$, the number of tokens that went
# to expert $i$, and nudge the bias by a fixed small *speed* $\gamma$:
#
# $$b_i \leftarrow b_i + \gamma\, \mathrm{sign}(\bar n - n_i)$$
#
# with $\bar n$ the mean load. Busy experts become a little less likely to
# be chosen, idle ones a little more. It is a thermostat, and no gradient:
# which experts are chosen is a jump, and a jump has no slope.

#
# Four tokens choose two of four experts each, and the loads are 3, 0, 2
# and 3: the even share is 2, and the signs are $-1$, $+1$, $0$ and $-1$.
#
# To watch the rule by itself, nothing may learn. We take the scores of
# layer 1 on the held-out bytes, forget the biases, and let the rule begin
# again from 0.

# %%
scores = seen[1]["mlp"]["router"]["scores"]
bias, history = np.zeros(len(scores[0])), []
for _ in range(100):
    chosen = np.argsort(-(scores + bias), axis=1)[:, :k]
    loads = np.bincount(chosen.ravel(), minlength=len(bias))
    history.append((loads / loads.mean(), bias.copy()))
    reference.router.update_bias(bias, loads, speed=0.01)
plots.rule_at_work(*map(np.array, zip(*history, strict=True)))

# %% [markdown]
# At the end they do not settle: a fixed step always overshoots a little.
# V3 used a speed of 0.001, and 0 for the last 500 billion of its tokens
# (§4.2). K2's checkpoint holds such biases; its speed is not published.
# Lesson 06 runs the rule in training, with and without.

# %% [markdown] exercise="router.bias_update"
# Write one step of the rule. The loads are not given: count them from the
# gates that your router returns.
# Return a new array, and leave the old bias as it is.

# %% exercise="router.bias_update"
def bias_update(
    bias: np.ndarray, gates: np.ndarray, speed: float
) -> np.ndarray:
    """One step of the correction bias.

    bias: (E,); gates: (T, E), 0 where a token does not go; speed: how
    far a bias moves. Returns the new (E,): up by speed for an expert
    with less than the mean load, down for one with more. An expert with
    exactly the mean load stays.
    """
    loads = (gates != 0).sum(axis=0)
    return bias + speed * np.sign(loads.mean() - loads)

# %% [markdown] hints="router.bias_update"
# A load is a number of tokens. Which part of a gate says that a token
# came, and which part says how much it listened? And must the bias of an
# expert with too little to do rise or fall?
#
# ---
#
# `gates != 0` is true where a token goes. Sum it along the axis of the
# tokens, and every expert has a count, also one that nobody chose.
#
# ---
#
# The size of the error does not matter, its sign does.
# `np.sign(mean - loads)` is 1 for idle experts, -1 for busy ones and 0
# for an even load. Add it to the bias, times the speed, in a new array.
#
# ---
#
# Count, compare with the mean, step by the sign.

# %% [markdown]
# ## 6. The experts, and the one that is always there
#
# An expert is a small feed-forward block: two matrices up, of which one
# is passed through $\mathrm{silu}(z) = z\, \sigma(z)$ and opens or closes
# the other, and one down. The engine keeps the two upper ones in one
# array, the gate's rows first.

# %% role="setup"
def expert(x, gate_up, down):
    """down(silu(gate x) * up x). x: (T, D), gate_up: (2I, D), down: (D, I).

    I is the expert's width; gate and up are the halves of gate_up.
    """
    gate, up = np.split(x @ gate_up.T, 2, axis=1)
    return (gate * sigmoid(gate) * up) @ down.T

# %% [markdown]
# Beside the routed experts stands one **shared expert**, which every token
# passes. It is not routed, so it has no score, no bias, no gate and no
# scaling: what it says is added as it is.
#
# $$\mathbf y = \sum_{i\ \mathrm{chosen}} g_i\, \mathrm{FFN}_i(\mathbf x)
#   + \mathrm{FFN}^{(s)}(\mathbf x)$$

# %% [markdown] exercise="router.with_shared_expert"
# Write the sum. You may run every expert on every token, and let the zeros
# in the gates sort it out; lesson 06 does better.

# %% exercise="router.with_shared_expert"
def with_shared_expert(
    x: np.ndarray, gates: np.ndarray, gate_up: np.ndarray,
    down: np.ndarray, shared_gate_up: np.ndarray, shared_down: np.ndarray,
) -> np.ndarray:
    """What a layer's experts say together.

    x: (T, D); gates: (T, E), scaled already; gate_up: (E, 2I, D) and
    down: (E, D, I), the routed experts; shared_gate_up: (2J, D) and
    shared_down: (D, J), the shared one of width J. Returns (T, D).
    """
    def one(gate_up, down):
        gate, up = np.split(x @ gate_up.T, 2, axis=1)
        return (gate / (1 + np.exp(-gate)) * up) @ down.T

    y = one(shared_gate_up, shared_down)
    for e in range(len(gate_up)):
        y = y + gates[:, e, None] * one(gate_up[e], down[e])
    return y

# %% [markdown] hints="router.with_shared_expert"
# What does one routed expert add to the outputs of all tokens? Begin with
# that, for expert `e`.
#
# ---
#
# `expert(x, gate_up[e], down[e])` is (T, D), and its gates are the column
# `gates[:, e]`, (T,). What shape must the column have for the product?
#
# ---
#
# `gates[:, e, None]` is (T, 1). Begin with the shared expert's output,
# and add one expert after the other.
#
# ---
#
# The shared expert, then a loop over the experts with one line in it.

# %% [markdown]
# Now the whole block on the trained weights, with both engines and
# transformers.

# %%
(engine_y,), _ = reference.moe.forward(x[None], mlp, cfg)
with torch.inference_mode():
    blocks = {"pytorch engine": twin(xt[None])[0]}
    if theirs:
        with patch.object(v3, "torch", double):
            blocks["transformers"] = theirs(xt[None])[0]
for name, other in blocks.items():
    print(f"reference - {name:<14} {error(engine_y, other):.0e} "
          f"of {np.abs(engine_y).max():.1f}")
    assert error(engine_y, other) < 1e-12 * np.abs(engine_y).max()

# %% [markdown]
# And what does the shared one carry? Two measurements: how long its output
# is beside that of the four routed experts together, and what the loss
# becomes if one of the two is left out.

# %%
engine_moe = reference.moe.forward


def loss_without(part):
    """Held-out loss where one of the two says nothing, in every layer."""
    def forward(x, weights, cfg):
        both, saved = engine_moe(x, weights, cfg)
        shared, _ = reference.ffn.forward(x, weights["shared_experts"])
        return (shared if part == "routed" else both - shared), saved

    with patch.object(reference.moe, "forward", forward):
        return model.loss(held, following)


lengths = []
for layer in routers:
    x, own = seen[layer]["mlp"]["router"]["x"], model.layers[layer]["mlp"]
    both, _ = reference.moe.forward(x[None], own, cfg)
    shared, _ = reference.ffn.forward(x, own["shared_experts"])
    lengths.append([np.linalg.norm(y, axis=1).mean()
                    for y in (both[0] - shared, shared)])
losses = {"all experts": right} | {
    f"without the {part}": loss_without(part)
    for part in ("shared", "routed")}
plots.shared_part(*np.transpose(lengths), losses, list(routers))

# %% [markdown]
# The model was trained with both, so this says what each carries here,
# and not what a model trained without it would lose. What all tokens need
# can be learned once, in the shared expert, and leave the routed ones free
# for what differs: so says the paper that introduced it (DeepSeekMoE,
# arXiv 2401.06066).

# %% [markdown]
# ## In K2
#
# Computed from the published configurations.

# %%
k2 = minik2.ModelConfig.preset("kimi-k2")
for name, c in (("DeepSeek-V3", minik2.ModelConfig.preset("deepseek-v3")),
                ("Kimi K2", k2)):
    parts = minik2.sizing.parameters(c)
    print(f"{name}: {c.num_experts_per_tok} of {c.n_routed_experts} "
          f"experts, {c.topk_group} of {c.n_group} groups kept")
    print(f"  routers: {parts.by_part['router']:,} parameters, "
          f"{parts.by_part['router'] / parts.total:.3%} of all; "
          f"shared experts: {parts.by_part['shared_experts']:,}")

# %% [markdown]
# <div class="alert alert-info">
#
# **In K2** a thing as small as the router decides which eight of 384
# experts see a token, in each of 60 layers: a sixtieth of a percent of the
# parameters steers nearly all of the others. Compared with V3, K2 has half
# as many experts again, chooses the same number, and drops the groups.
#
# </div>

# %% [markdown]
# ## On the back of an envelope
#
# K2 multiplies its gates by 2.827. Where might that come from? Suppose
# eight experts have the same gate, 1/8, and their outputs are equally
# long and have nothing to do with each other. How long is the weighted
# sum, beside one output? And what factor makes it as long as one? Think
# of it before you look.
#
# <details><summary>Answer</summary>
#
# Squares of lengths add up for things that have nothing to do with each
# other: $8 \cdot (1/8)^2 = 1/8$, so the sum is $1/\sqrt 8$ as long, 0.35.
# The factor that makes up for it is $\sqrt 8 = \mathbf{2.83}$. Gates that
# are not quite equal make it a hair less. Moonlight's report derives its
# own 2.446 for six experts of 64 like this, from random logits (arXiv
# 2502.16982, appendix C); K2's report does not say, but the cell below
# comes close. V3 has 2.5, also with eight.
#
# </details>

# %%
top = np.sort(sigmoid(rng.normal(size=(10_000, k2.n_routed_experts))))
top = top[:, -k2.num_experts_per_tok:]
lengths = np.linalg.norm(top / top.sum(axis=1, keepdims=True), axis=1)
print(f"{(1 / lengths).mean():.3f}; K2 has {k2.routed_scaling_factor}")

# %% [markdown]
# <div class="alert alert-success">
#
# **Takeaway.** The bias answers *who*, the scores answer *how much*, and
# the shared expert is asked neither. Let the bias into the weights, and
# everything runs, the loss hardly moves, and it is another model.
#
# </div>
#
# ## Sources
#
# - Scores, choice, weights, shared expert: DeepSeek-V3, arXiv 2412.19437,
#   §2.1.2, eq. 12 to 16; the bias: the same section, and Wang et al.,
#   arXiv 2408.15664; groups: the released `inference/model.py`.
# - Shared and routed experts: DeepSeekMoE, arXiv 2401.06066, §3.
# - K2's experts, and no groups: *Kimi K2*, arXiv 2507.20534, §2.3, Table 2.
# - The other implementation: transformers, `DeepseekV3TopkRouter` and
#   `DeepseekV3MoE` in `modeling_deepseek_v3.py`.
#
# **Next:** lesson 06 runs the experts fast, sorting tokens instead of
# multiplying by zeros, and lets the load collapse on purpose.
