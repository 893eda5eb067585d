# %% [markdown]
# # 10 · Training it: Muon against AdamW, honestly
#
# *About 60 minutes. A minute and a half of them is the computer's.*
#
# **After this lesson you can**
#
# - write the schedule of K2's learning rate, and say what each part of it
#   is for;
# - split a model's tensors among two optimizers, and count both shares;
# - compare two optimizers without flattering either: equal tuning, the
#   same text, several seeds, and tokens as well as seconds;
# - say how many tokens one of them saves, from two noisy curves;
# - tell a spike of the loss from noise by a rule made beforehand.

# %% role="setup"
import math

import numpy as np

from minik2.checks import check

np.set_printoptions(precision=3, suppress=True)

# %%
import os
import sys
import time
from collections import Counter
from dataclasses import replace

import torch
from tqdm import tqdm

import minik2
from minik2.checks import find
from minik2.experiments import results, statistics
from minik2.plots import lesson10 as plots
from minik2.plots.model_map import model_map
from minik2.reference import muon
from minik2.reference.newton_schulz import flops
from minik2.training import Settings, schedule
from minik2.training.corpus import Corpus, decode, encode
from minik2.training.engine_pytorch import PyTorchEngine
from minik2.training.observe import kind_of

short = bool(os.environ.get("MINIK2_SHORT"))
rng = np.random.default_rng(10)


def off(a, b):
    """Largest difference, as a share of the largest number of b."""
    return float(np.abs(np.asarray(a) - b).max() / np.abs(b).max())

# %% [markdown]
# ## What you have, and what you will add
#
# The model, its gradients, Muon and QK-Clip are there. What is left is
# the run: how large the steps are and when, which tensor gets which
# optimizer, and what all of it is worth. The last question is the hard
# one. It is easy to make any optimizer win, and you will see how.
#
# In answers you may use NumPy, `math`, and your other answers.

# %%
model_map(["loss", "backward", "muon", "qk_clip"],
          "Today: the run that all of it serves")

# %% [markdown]
# ## 1. The rate over a run
#
# K2's learning rate has three parts. It rises in a straight line, while
# the optimizer's averages are still filling. Then it stays. At the end it
# falls along half a wave of a cosine. This is called **WSD**: warm-up,
# stable, decay. In shares of the highest rate, with $s$ the step counted
# from 1, $w$ the steps of warm-up, $n$ all steps, $d$ those that fall and
# $f$ the share at the end:
#
# $$\text{rise} = \min\Big(1, \frac sw\Big), \qquad
#   g = \max\Big(0, \frac{s - (n - d)}{d}\Big), \qquad
#   \text{fall} = f + (1 - f)\, \frac{1 + \cos \pi g}{2},$$
#
# and the share is the smaller of rise and fall. $g$ is how much of the
# fall is over. Only $d$ knows where the end is. Up to there, a short run
# and a long one are the same, so a run may be made longer after it has
# begun. The smallest example:

# %%
ten = [schedule.wsd(s, 10, warmup=2, decay=0.4, final=0.1)
       for s in range(1, 11)]
print("step 1 to 10:", np.array(ten))

# %% [markdown] exercise="training.wsd"
# Write the whole schedule as an array, one share for each step.

# %% exercise="training.wsd"
def wsd(steps: int, warmup: int, falling: int, final: float) -> np.ndarray:
    """Shares of the highest rate at steps 1 to `steps`, (steps,).

    Step `warmup` is the first at 1; the last `falling` steps fall along
    half a cosine, the very last one to `final`. warmup and falling are 1
    or more, and together less than `steps`.
    """
    step = np.arange(1, steps + 1)
    rise = np.minimum(1, step / warmup)
    gone = np.maximum(0, (step - (steps - falling)) / falling)
    fall = final + (1 - final) * (1 + np.cos(np.pi * gone)) / 2
    return np.minimum(rise, fall)

# %% [markdown] hints="training.wsd"
# Make an array of the steps first. With which number does it begin?
#
# ---
#
# The formulas above are for one step; with an array in the place of `s`
# they are for all of them. `np.maximum` and `np.minimum` go number by
# number.
#
# ---
#
# `np.arange(1, steps + 1)` is s. In the last step s is n, so that g is 1
# and the cosine -1.
#
# ---
#
# Four lines: s, rise, g, fall. The smaller one is returned.

# %% [markdown]
# PyTorch has these parts as schedulers that count from 0. Put one after
# the other, they must give what the engine's function gives.

# %%
def in_torch(n, w, d, f):
    weight = torch.nn.Parameter(torch.zeros(1))
    own = torch.optim.SGD([weight], lr=1.0)
    parts = torch.optim.lr_scheduler
    rise = parts.LinearLR(own, 1 / w, total_iters=w - 1)
    stay = parts.ConstantLR(own, 1.0)
    fall = parts.CosineAnnealingLR(own, T_max=d, eta_min=f)
    joined = parts.SequentialLR(own, [rise, stay, fall], [w, n - d - 1])
    shares = []
    for _ in range(n):
        shares.append(own.param_groups[0]["lr"])
        own.step()
        joined.step()
    return shares


ours = np.array([schedule.wsd(s, 250, 20, 0.4, 0.1)
                 for s in range(1, 251)])
apart = off(ours, in_torch(250, 20, 100, 0.1))
print(f"engine - PyTorch's schedulers: {apart:.0e}")
assert apart < 1e-12

# %% [markdown]
# K2's, step for step: 500 steps of warm-up, $2 \cdot 10^{-4}$ for 10
# trillion tokens, and down to a tenth over 5.5 trillion. A step takes 67
# million tokens. (The few steps of warm-up are counted among the 10
# trillion here; the report does not say.)

# %%
batch, all_tokens = 2**26, 15.5e12
n = round(all_tokens / batch)
rate = 2e-4 * np.array([schedule.wsd(s, n, 500, 5.5 / 15.5, 0.1)
                        for s in range(1, n + 1)])
print(f"{n:,} steps; warm-up {500 * batch / 1e9:.1f} billion tokens")
plots.schedule(rate, batch, ours)

# %% [markdown]
# After these, K2 went down further, from $2 \cdot 10^{-5}$ to
# $7 \cdot 10^{-6}$, over 460 billion tokens, the last 60 of them in
# windows of 32 thousand tokens. (Whether these 460 are among the 15.5
# trillion, the report does not say.)

# %% [markdown]
# ## 2. Who updates what
#
# Muon is for matrices that turn a vector into another one. The embedding
# and the head are tables with a row for each token, and norms are
# vectors: those are AdamW's. The router's correction bias has no
# gradient, so no optimizer has it. K2's report does not say where it
# drew the line. This is the rule of Moonlight's code, and ours.

# %% [markdown] exercise="training.groups"
# Given every tensor's name and shape, count the numbers that Muon
# updates and those that AdamW does. An array with three axes is a stack
# of matrices.

# %% exercise="training.groups"
def groups(shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
    """How many numbers each optimizer updates.

    shapes: {checkpoint name: shape}; experts one by one, or in stacks.
    Returns {"muon": count, "adamw": count}.
    """
    out = {"muon": 0, "adamw": 0}
    for name, shape in shapes.items():
        if name.endswith("e_score_correction_bias"):
            continue
        table = "embed_tokens" in name or "lm_head" in name
        owner = "adamw" if table or len(shape) < 2 else "muon"
        out[owner] += math.prod(shape)
    return out

# %% [markdown] hints="training.groups"
# Three questions to a tensor: is it trained at all, is it a matrix (or a
# stack), is it a table of tokens?
#
# ---
#
# The two tables are `model.embed_tokens.weight` and `lm_head.weight`.
# The bias ends in `e_score_correction_bias`.
#
# ---
#
# `math.prod((3, 5))` is 15. A shape with one number is a vector.
#
# ---
#
# A dict with two zeros, a loop over `shapes.items()`, and one `+=`.

# %% [markdown]
# All of K2's tensors, from their names and shapes:

# %%
k2 = minik2.ModelConfig.preset("kimi-k2")
kinds, tensors = {}, Counter()
for name, shape in k2.tensors():
    owner = ("neither" if name.endswith("correction_bias") else
             "Muon" if muon.takes(name, shape) else "AdamW")
    kind = kind_of(name)
    tensors[kind] += 1
    kinds[kind] = (kinds.get(kind, (0,))[0] + math.prod(shape), owner)
print(f"{'kind':<36} {'tensors':>8} {'numbers':>19}  who")
for kind, (count, owner) in kinds.items():
    print(f"{kind:<36} {tensors[kind]:8,} {count:19,}  {owner}")

# %%
plots.owners(kinds)

# %% [markdown]
# Three other opinions on this count. `minik2.sizing` multiplies the
# configuration out and knows no names. The torch engine has its groups on
# a model that exists. And `torch.optim.Muon` refuses what is no matrix;
# it takes stacks for no matrix too, so there the experts have to be
# handed over one by one.

# %%
total = Counter()
for count, owner in kinds.values():
    total[owner] += count
parts = minik2.sizing.parameters(k2).by_part
tables = parts["embedding"] + parts["head"] + parts["norms"]
assert (total["AdamW"], sum(total.values())) == (
    tables, sum(parts.values()))

small = minik2.ModelConfig.preset("small")
live = minik2.pytorch.MuonClip(minik2.pytorch.Model.init(small), lr=0.01)
own = sum(p.numel() for g in live.muon.param_groups for p in g["params"])
assert own == sum(math.prod(s) for t, s in small.tensors()
                  if muon.takes(t, s))
refused = Counter()
for shape in ((64, 32), (64,), (16, 64, 32)):
    try:
        torch.optim.Muon([torch.nn.Parameter(torch.zeros(shape))])
    except ValueError:
        refused[len(shape)] += 1
assert set(refused) == {1, 3}
print(f"differences: 0 and 0; torch.optim.Muon refuses {sorted(refused)} "
      "axes")

# %% [markdown]
# ## 3. Fair before fast
#
# Moonlight's paper says that Muon needs 52% of AdamW's training
# operations for the same loss. That is for dense models of 0.4 to 1.5
# billion parameters, each trained to a length that fits its size. The
# course repeated the comparison with the 1.7 million parameters of
# `small`, 250 steps of 1,024 bytes, three seeds. You read the results
# from their file; `make experiments` makes them again, in half an hour.
#
# Both optimizers tried the same rates, and the list was made longer
# until neither had its best at an end of it. What if only one of them
# had been tuned?

# %%
record = results.read(results.path_of("muon_vs_adamw", "cpu"))
found = record["found"]
print("best rates:", found["best_rate"])
plots.tuning(found["rates"], found["grid"])

# %% [markdown]
# One picture, three claims, and two of them are worthless. Muon's best
# rate is eight times AdamW's here (half of that is as good). Whoever takes
# over a rate from the other side can prove what they like, and no number
# in the result shows it. So ask of every comparison: **who tuned what,
# how often, and was the best at the edge?** Here the rate was tuned and
# nothing else, for neither: not the decay, not the averages' lengths. Both
# have gradients clipped to a length of 1, which K2's report does not
# name. In Muon's runs, what is left to AdamW has Muon's rate.

# %% [markdown]
# ## 4. One minute, live
#
# Now a seed that is in none of the results, number 3. The three stored
# seeds say what to expect of it: their differences between AdamW's last
# loss and MuonClip's. If yours falls far outside, doubt the band. (Your
# Python's library is your text, so your losses need not be ours.)
#
# Both models start from the same weights and read the same batches, step
# by step beside each other. So a hard batch is hard for both, and a busy
# machine slows both. This loop is what `minik2 train` does, but for what
# it writes down, and for the last 3% of the steps, in which it leaves the
# routers' biases alone.

# %%
settings = Settings.from_json(record["settings"])
steps, seed = 60 if short else settings.steps, 3
corpus, text = Corpus.standard_library(), np.random.default_rng(seed)
torch.set_num_threads(1)  # products this small gain little from a second
recipes = {name: replace(settings, optimizer=name, rate=best, seed=seed)
           for name, best in found["best_rate"].items()}
runs = {name: PyTorchEngine(small, recipe, "cpu", None)
        for name, recipe in recipes.items()}
tokens, targets = corpus.spread("validation", 64, settings.window)


def held_out(run):
    """Mean loss on the same 64 pieces of files that no run reads."""
    return np.mean([run.loss(tokens[a : a + 8], targets[a : a + 8])
                    for a in range(0, 64, 8)])


def say(run):
    """How the model goes on with `def `, on one line."""
    made = decode(run.continued(encode("def "), 70, 0.8, seed))
    return "".join(c if c.isprintable() else "·" for c in made)


print("Untrained, both write\n   ", say(runs["muonclip"]))

# %%
losses, seconds = ({name: [] for name in runs} for _ in range(2))
looks = {name: [held_out(run)] for name, run in runs.items()}
for step in tqdm(range(1, steps + 1), file=sys.stdout, ncols=76):
    share = schedule.wsd(step, steps, settings.warmup, settings.decay,
                         settings.final)
    pieces = corpus.sample("train", settings.batch, settings.window, text)
    for name, run in runs.items():
        start = time.perf_counter()
        losses[name].append(run.gradients([pieces]))
        run.shorten(min(1, settings.clip_norm / run.norm()))
        run.update(share)  # the optimizer's step and, for one, QK-Clip
        run.balance()  # the routers' biases, lesson 06
        # AdamW has no use for the pass that finds the largest logits.
        spent = time.perf_counter() - start
        seconds[name].append(
            spent - (run.seen()[2] if name == "adamw" else 0))
        if step % (steps // 10) == 0:
            looks[name].append(held_out(run))

# %%
losses = {name: np.array(own) for name, own in losses.items()}
for name, run in runs.items():
    print(f"{name}: held out {looks[name][-1]:.3f} nats a byte; it writes\n"
          f"    {say(run)}")
    assert looks[name][-1] < 2.9 < looks[name][0]
ratio = {name: np.median(own) / np.median(seconds["adamw"])
         for name, own in seconds.items()}
seen = np.arange(11) * (steps // 10) * settings.tokens_a_step
plots.compared(record, {"tokens": seen, "held_out": looks,
                        "ratio": ratio})

# %% [markdown]
# The bands reach from the least to the most of three seeds. There are too
# few for anything finer, and a fourth may well lie outside a band of
# three. A seed can move both curves off their bands, and their difference
# stay what it was. That is why differences are taken seed by seed.
#
# The samples are no evidence. Both write what looks like Python from
# afar, and a difference of a tenth of a nat cannot be read off a line.

# %% [markdown]
# ## 5. Tokens to the same loss
#
# A loss that is lower by a tenth means little by itself. What does it
# save? The question is at which share of AdamW's tokens Muon's curve
# comes down to the loss where AdamW ended.
#
# The losses of single batches are noisy. How noisy, and is the noise the
# same on both sides?

# %%
def mean(x, width):
    return np.convolve(x, np.full(width, 1 / width), "valid")


rest = {name: own[10:-10] - mean(own, 21) for name, own in losses.items()}
noise = {name: own[len(own) // 4 :].std() for name, own in rest.items()}
both = np.corrcoef(*rest.values())[0, 1]
apart = (rest["muonclip"] - rest["adamw"])[steps // 4 :].std()
print(f"spread of a batch's loss: {noise['muonclip']:.2f} and "
      f"{noise['adamw']:.2f} nats; their correlation {both:.2f}")
print(f"spread of the difference on the same batch: {apart:.3f}")
assert apart < noise["muonclip"] / 2

# %% [markdown]
# Nearly all of it is the text: some batches are hard, for both. The same
# text on both sides makes the difference several times sharper than
# either curve, and it costs nothing. What differs from seed to seed it
# does not take away; for that there are the seeds.

# %% [markdown] exercise="training.token_share"
# Smooth both curves: each point becomes the mean of the `width` losses
# up to it, and the first `width - 1` points, which have no such mean,
# are dropped. The goal is the last mean of theirs. Find the first place
# where ours is at or below it, on the straight line between two means,
# as a share of all tokens. Where ours never comes so far, return
# `np.inf`. (Ours starts above the goal.)

# %% exercise="training.token_share"
def token_share(
    tokens: np.ndarray, ours: np.ndarray, theirs: np.ndarray, width: int,
) -> float:
    """The share of their tokens after which ours is where theirs ended.

    tokens: (n,) seen up to each loss, rising; ours, theirs: (n,) losses.
    Returns one number, np.inf where ours never comes down to the goal.
    """
    weights = np.full(width, 1 / width)
    ours = np.convolve(ours, weights, "valid")
    goal = np.mean(theirs[-width:])
    below = np.flatnonzero(ours <= goal)
    if len(below) == 0:
        return np.inf
    n, at = below[0], tokens[width - 1 :]
    part = (ours[n - 1] - goal) / (ours[n - 1] - ours[n])
    return (at[n - 1] + part * (at[n] - at[n - 1])) / tokens[-1]

# %% [markdown] hints="training.token_share"
# In which order: the means, the goal, the first mean that is low enough,
# the place between it and the one before?
#
# ---
#
# `np.convolve(x, np.full(width, 1 / width), "valid")` makes the means.
# The first of them belongs to `tokens[width - 1]`.
#
# ---
#
# `np.flatnonzero(ours <= goal)` lists all points that are low enough;
# it may be empty. From mean n - 1 to mean n the curve falls by
# `ours[n - 1] - ours[n]`, of which `ours[n - 1] - goal` is needed.
#
# ---
#
# Means, goal, the list, the case of an empty list, and one line that
# goes `part` of the way from one point to the next.

# %% [markdown]
# The course's own answer goes on from here, so that the lesson runs
# without yours. It is held against the code of the experiments and
# against PyTorch, on the live curves.

# %%
right = find("training.token_share").reference
at = settings.tokens_a_step * np.arange(1.0, steps + 1)
pair, worst = np.stack([losses["muonclip"], losses["adamw"]]), 0.0
for width in (1, 5, 10, 20):
    share = right(at, *pair, width)
    pooled = torch.nn.functional.avg_pool1d(torch.tensor(pair), width, 1)
    late, (a, b) = at[width - 1 :], pooled.numpy()
    curve = list(zip(late, a, strict=True))
    place = statistics.reached(curve, b[-1]) or np.inf
    for other in (place / at[-1], right(late, a, b, 1)):
        worst = max(worst, 0 if other == share else abs(other - share))
    print(f"means of {width:2}: {share:.1%} of the tokens")
print(f"largest difference: {worst:.0e}")
assert worst < 1e-9

# %% [markdown]
# With one batch as a goal the answer depends on whether the last batch
# was easy. Wider means agree better. But a training loss at a rate that
# is still high is not what a run would have come to if it had *ended*
# there. So the experiment also trained shorter Muon runs, whose rate
# falls to the end. Both ways, and the clock:

# %%
def band(values):
    return f"{np.mean(values):.0%} ({min(values):.0%} to {max(values):.0%})"


curves = (np.array(found["curves"][name]) for name in runs)
on_the_way = [right(a[:, 0], a[:, 1], b[:, 1], 1)
              for a, b in zip(*curves, strict=True)]
assert off(on_the_way, found["share_on_the_way"]) < 1e-4  # 5 digits there
own, step_time = found["share_of_own_length"], found["step_seconds_alone"]
slower = step_time["muonclip"] / step_time["adamw"]
print("tokens, on the way through one run:", band(on_the_way))
print("tokens, by runs of that length:    ", band(own))
print(f"seconds, a step {slower:.2f} times as long:  "
      f"{band(slower * np.array(own))}")

# %% [markdown]
# Fewer tokens, and no less time, for all that three seeds can say. Muon
# wins by token and not by the clock, at this size. (The times are of
# 2026-11-24; the engine has changed since.) Why is its step so
# much longer? Newton–Schulz costs the same however many tokens a step
# has. (And the largest logits are looked for in a pass of their own.)

# %%
def muon_adds(cfg, window, tokens):
    """Operations of Newton–Schulz over those of forward and backward."""
    matrices = Counter(s for t, s in cfg.tensors() if muon.takes(t, s))
    own = sum(n * flops(*s, [1] * 5) for s, n in matrices.items())
    training = minik2.sizing.flops(cfg, window).training.total
    return own / (training / window * tokens)


per_step = settings.tokens_a_step
print(f"small, {per_step:,} tokens a step: "
      f"{muon_adds(small, settings.window, per_step):.0%} more operations; "
      f"measured {slower - 1:.0%} more time")
print(f"K2, {batch:,} tokens a step: {muon_adds(k2, 4096, batch):.1%}")
print(f"with {np.mean(own):.0%} of the tokens, even at "
      f"{1 / np.mean(own) - 1:.0%} more time a step")

# %% [markdown]
# The two percentages of `small` need not agree. Operations are not
# seconds, and the measured one has the logits' own pass in it. What they
# say together is that Muon's part of a step shrinks as its tokens grow. In
# K2 hardly anything is left of it.
#
# ## 6. A spike, or only noise?
#
# K2's report says that 15.5 trillion tokens went by without a spike of
# the loss. What counts as one, we did not find in it. A claim like that
# needs a rule that was there *before* the curve was looked at. Ours: a
# step is marked if its loss is above the median of the 31 losses before it
# by more than 6 times their **median distance** from that median.
#
# Why medians? The smallest example: ten calm losses, then a spike of
# three steps. Once its first step is in the window, the mean and the
# standard deviation have taken it in, and the second passes for normal.

# %%
calm = 2 + 0.1 * rng.normal(size=10)
for seen_ in ([], [4.0], [4.0, 4.0]):
    past = np.append(calm, seen_)[-10:]
    middle = np.median(past)
    far = np.median(np.abs(past - middle))
    print(f"{len(seen_)} spike steps seen: limit by medians "
          f"{middle + 6 * far:.2f}, by the mean and 4 standard deviations "
          f"{past.mean() + 4 * past.std():.2f}")

# %% [markdown] exercise="training.spikes"
# Mark every step whose loss is above the median of the `before` losses
# just before it by more than `times` their median distance from it. The
# first `before` steps are never marked.

# %% exercise="training.spikes"
def spikes(losses: np.ndarray, before: int, times: float) -> np.ndarray:
    """Which steps of a curve stand out upwards, as booleans (steps,).

    losses: (steps,); before: how many losses a step is judged by, odd;
    times: how many median distances above their median is too much.
    """
    out = np.zeros(len(losses), bool)
    for t in range(before, len(losses)):
        past = losses[t - before : t]
        middle = np.median(past)
        distance = np.median(np.abs(past - middle))
        out[t] = losses[t] > middle + times * distance
    return out

# %% [markdown] hints="training.spikes"
# Which losses may a step be judged by, and is its own among them?
#
# ---
#
# A loop over the steps from `before` on is quite all right.
#
# ---
#
# `losses[t - before : t]` ends just before t. The distances are
# `np.abs(past - np.median(past))`, and their median is the spread.
#
# ---
#
# An array of False, a loop, two medians, one comparison.

# %% [markdown]
# Before a rule is used, it has to be tried on what is known: on noise
# alone, how often does it cry out, and on a spike that we made ourselves,
# does it?

# %%
mark = find("training.spikes").reference
alarms = mark(rng.normal(size=20_000), 31, 6.0).mean()
print(f"on noise alone: {1000 * alarms:.1f} of 1,000 steps; in {steps} "
      f"steps {alarms * (steps - 31):.1f}, in K2's {n:,} steps "
      f"{alarms * n:,.0f}")
bump, where = np.zeros(steps), steps * 3 // 4
bump[where : where + 8] = np.linspace(1, 0.3, 8)
curves = {"MuonClip, live": losses["muonclip"],
          "AdamW, live": losses["adamw"],
          "with 2 nats added": losses["muonclip"] + 2 * bump,
          "with 0.4 nats": losses["muonclip"] + 0.4 * bump}
curves = {name: (own, mark(own, 31, 6.0)) for name, own in curves.items()}
made = curves["with 2 nats added"][1]
assert made[where] and made[where : where + 8].sum() >= 3
assert alarms < 0.005
plots.spikes(curves)

# %% [markdown]
# A spike of 2 nats is found. One of 0.4 nats drowns in the noise, so of a
# run without marks one can say: no spike *of a nat or so*. That is a weak
# claim, and it is all that batches of 1,024 bytes can bear. And a rule
# that is right for 250 steps is too nervous for K2's 231 thousand: noise
# alone would have set it off hundreds of times. K2's batches are 65,536
# times as large. If their noise shrinks with the root of that, by 256,
# much smaller spikes would show in its curve.

# %% [markdown]
# ## 7. More experts, more heads
#
# Two choices of K2's, tried at our size. K2's report: at equal loss, 48
# times as many experts as are active need 1.69 times less compute than 8
# times; and twice the heads lower the loss by 0.5% to 1.2%, which was not
# worth 83% more operations at long context. Below are runs of one length
# with 4 active experts of 4 to 64, and with 8 heads in the place of 4.

# %%
wide = results.read(results.path_of("sparsity", "cpu"))
plots.sparsity(wide, claimed=(-0.012, -0.005))

# %% [markdown]
# More experts help in every seed only with 64 of them. In between, the
# seeds contradict each other. Twice the heads: undecided, though the mean
# lies just beside K2's band. An effect of one percent cannot be seen by
# three seeds that differ by three. "We saw no effect" would be as wrong
# as "we confirm it".

# %%
final = wide["found"]["final"]
heads = np.array(final["heads"]) / final["4"] - 1  # sparsity 4: 4 of 16
print(f"twice the heads: {heads.mean():.1%}, spread of a seed "
      f"{heads.std(ddof=1):.1%}")

# %% [markdown]
# ## 8. What did not work
#
# The course keeps what failed, in LAB_NOTES.md. From the same days:
#
# - Moonlight's 52% of the operations became 81% of the tokens and 105% of
#   the time: small steps, short runs, and a model far smaller than those of
#   the claim.
# - At a rate of 0.01 the largest logits reach 23 to 27, so QK-Clip with
#   K2's $\tau = 100$ never acted; with $\tau = 10$ it moved the loss by
#   0.004, which is nothing. The silence of K2's heads after a third of the
#   run was not seen: where tau acts at all, it acts to the end.
# - Without any balancing nearly all tokens of a layer end on the same four
#   experts, and the loss is *lower*, by 0.02 to 0.03 in each seed. So the
#   bias was worth nothing to the loss here. What it buys is even load.
# - V3's speed of the bias, 0.001, is made for trillions of tokens. In 400
#   steps it leaves the collapse as it is; ours is ten times that.
# - The rates were tuned for one size, and not again for 64 experts or for
#   twice the heads. Those runs may be better than they look.
# - A seventh of a byte for each parameter was read. K2 read 15 tokens for
#   each. What helps only late in a run cannot show here.

# %% [markdown]
# ## In K2

# %%
stored = sum(count for count, _ in kinds.values())
experts = sum(c for kind, (c, _) in kinds.items() if ".experts." in kind)
matrices = sum(tensors[k] for k, (_, who) in kinds.items() if who == "Muon")
print(f"Muon: {total['Muon'] / stored:.2%} of {stored:,} numbers, in "
      f"{matrices:,} matrices; routed experts {experts / stored:.1%}")
print(f"AdamW: {total['AdamW']:,}; no optimizer: {total['neither']:,}")
ours = minik2.sizing.parameters(small).total
print(f"tokens read for each number: {all_tokens / stored:.1f}; here "
      f"{settings.steps * per_step / ours:.2f}")

# %% [markdown]
# <div class="alert alert-info">
#
# **In K2** the optimizer is MuonClip from the first step to the last,
# decay 0.1, batches of 67 million tokens. Its report gives the schedule,
# and neither the split of the tensors nor Muon's momentum: these are
# Moonlight's here. The 52% are Moonlight's too, measured on dense models
# of up to 1.5 billion parameters. Nothing in this lesson says what they
# are at a trillion.
#
# </div>

# %% [markdown]
# ## On the back of an envelope
#
# Twice the heads changed the loss by -0.8%, -1.9% and +1.3% in the three
# seeds. How many seeds would it take to see an effect of 0.8%, near the
# middle of K2's band, at twice the standard error?
#
# <details><summary>Answer</summary>
#
# The three numbers have a mean of about -0.4% and a standard deviation of
# about 1.6%. The mean of $n$ seeds has a standard error of
# $1.6\% / \sqrt n$. Twice that is to be 0.8% at most:
# $\sqrt n \geq 2 \cdot 1.6 / 0.8 = 4$, so $n =$ **16** seeds of both
# models. At three times the standard error it is 36. And the 1.6% itself
# is known from three numbers only.
#
# </details>

# %%
print(f"seeds: {(2 * heads.std(ddof=1) / 0.008) ** 2:.0f}")

# %% [markdown]
# <div class="alert alert-success">
#
# **Takeaway.** A comparison is as good as its weaker side was tuned. Give
# both the same list of rates, the same text and the same seeds, show all of
# them, and count tokens and seconds. Say what your noise would have hidden
# from you, and keep what did not work.
#
# </div>
#
# ## Sources
#
# - The schedule, batch, decay, the annealing, and the run without spikes:
#   *Kimi K2*, arXiv 2507.20534, §2.1, §2.5; sparsity and heads §2.3.
# - 52%, the split of the tensors, the scale: *Muon is Scalable for LLM
#   Training*, arXiv 2502.16982, §2.2, §3.2, and the example code of the
#   repository MoonshotAI/Moonlight.
# - V3's speed of the bias: *DeepSeek-V3*, arXiv 2412.19437, §4.2.
# - AdamW: *Decoupled Weight Decay Regularization*, arXiv 1711.05101.
# - Everything else was measured here: LAB_NOTES.md, and the results of
#   `make experiments`.
#
# **Next:** lesson 11 leaves the small model and takes the full-scale
# configuration apart, memory, cluster and clock.
