# %% [markdown]
# # 12 · Many machines
#
# *About 60 minutes, one of them for the computer.*
#
# **After this lesson you can**
#
# - share a layer's experts among machines, and say what each machine must
#   know before the first row can travel;
# - see who waits for whom when the experts' loads are uneven;
# - predict the bytes that a training step sends, and count them;
# - run Muon and QK-Clip on matrices that lie in pieces;
# - show that four processes have the loss of one, to rounding.

# %% role="setup"
import numpy as np

from minik2.checks import check
from minik2.reference.muon import newton_schulz

np.set_printoptions(precision=3, suppress=True)

# %%
import torch
import torch.distributed as dist

import minik2
from minik2 import reference, sizing
from minik2.plots import lesson12 as plots
from minik2.plots.model_map import model_map
from minik2.pytorch import grouped
from minik2.training import lesson_model, processes
from minik2.training.corpus import Corpus
from minik2.training.engine_pytorch import PyTorchEngine
from minik2.training.settings import Settings

torch.set_num_threads(1)


def error(a, b):
    return float(np.abs(np.asarray(a) - b).max() / np.abs(b).max())

# %% [markdown]
# ## What you have, and what you will add
#
# You have a model, its gradients and its optimizer, in one process on one
# machine. K2's weights alone take 2 terabytes in 16 bits, and a GPU of
# the kind that it was trained on has 80 gigabytes. So the model must be
# cut, and what was a line of code becomes a message.
#
# Four cuts are common. **Expert parallelism** gives each machine some of
# a layer's experts. **ZeRO** leaves each a piece of all other weights and
# of the optimizer's buffers. **Pipelines** give each some of the layers.
# And each has its own part of the batch. Today you build the first two,
# for real, on processes of this machine. Pipelines are only counted.
#
# In answers you may use NumPy, `newton_schulz`, and your other answers.
# `minik2 check` runs these and none of the lesson's other cells.

# %%
model_map(["experts", "muon", "qk_clip"],
          "Today: what changes when the model is cut in pieces")

# %% [markdown]
# ## 1. Processes that talk
#
# A **rank** is one of $R$ processes that run the same program, and also
# its number, 0 to $R - 1$. (In this lesson $R$ is always the number of
# ranks.) Ranks have no memory in common. They talk by **collectives**,
# operations in which all ranks take part:
#
# | Operation | What a rank has after it | What it sends |
# |---|---|---|
# | all-to-all | every rank's rows for it | its rows for other ranks |
# | all-gather | the pieces of all, $n$ bytes | $n\,(R-1)/R$ |
# | reduce-scatter | its piece of the sum of all | $n\,(R-1)/R$ |
# | all-reduce | the whole sum, or maximum | $2n\,(R-1)/R$ |
#
# The right column is what a rank sends if all stand in a ring and every
# piece is handed on until everybody has seen it.
#
# `processes.run` starts a function on several processes and returns what
# each of them returned. In the function `torch` and `dist`, PyTorch's
# `torch.distributed`, are known; the rest it imports. The smallest
# all-to-all: two ranks, and a table that says how many rows go from whom
# (row) to whom (column). Rank 0 has the rows 0, 1, …, rank 1 has 100,
# 101, …

# %%
def swap(group, table):
    send, receive = table[group.rank], table[:, group.rank]
    rows = 100 * group.rank + torch.arange(send.sum())
    came = torch.empty(receive.sum(), dtype=torch.int64)
    dist.all_to_all_single(came, rows, receive.tolist(), send.tolist())
    return {"had": rows, "got": came}


table = np.array([[1, 2], [3, 1]])
for rank, found in enumerate(processes.run(swap, 2, table=table)):
    print(f"rank {rank} had {found['had']}, got {found['got']}")

# %% [markdown]
# Each rank's rows lie in the order of where they go, and what arrives
# lies in the order of where it came from. That is all an all-to-all does.
# It brings no labels.
#
# Whoever calls a collective waits until all others call it too. So a rank
# that fails, or takes another branch of an `if`, leaves the others waiting.
# `processes.run` looks after them, ends all, and says who it was. (For
# long runs `torchrun` does that, and starts all again if asked to, so that
# they go on from the last checkpoint.)

# %%
def careless(group):
    if group.rank == 2:
        raise MemoryError("no room for my experts")
    dist.barrier()  # wait until all are here


try:
    processes.run(careless, 4)
except processes.ProcessError as told:
    print(str(told).replace(" with ", "\nwith "))

# %% [markdown]
# ## 2. Experts on four ranks
#
# Our example is layer 1 of the lessons' small model, on text that it has
# not seen: 8 sequences of 64 tokens, $K = 4$ choices a token among
# $E = 16$ experts. Each of four ranks has two of the sequences and four
# experts, neighbours: rank 0 has experts 0 to 3. The router stands on
# every rank, so each knows where its own tokens want to go.

# %%
model, corpus, R = lesson_model(), Corpus.standard_library(), 4
text, targets = corpus.spread("validation", 8, 64)
_, kept = model.forward(text)
mlp = kept[1]["mlp"]
x, weights, gate_up, down = (
    mlp["experts"][name]
    for name in ("x", "weights", "gate_up_proj", "down_proj"))
indices, E = mlp["router"]["indices"], len(down)
K, D = indices.shape[1], x.shape[1]
for chosen in indices[:3]:
    print("a token wants experts", chosen, "on ranks", chosen // (E // R))

# %% [markdown]
# A (token, choice) pair makes one row. Lesson 06 sorted the rows by
# expert. Since a rank's experts are neighbours, rows sorted by expert
# are sorted by rank as well, and each rank's rows are one piece of the
# buffer.

# %% [markdown] exercise="ranks.send_counts"
# How many rows go to each rank, and where does each rank's piece begin?

# %% exercise="ranks.send_counts"
def send_counts(
    indices: np.ndarray, experts: int, ranks: int
) -> tuple[np.ndarray, np.ndarray]:
    """How many rows each rank gets, and the bounds of its piece.

    indices: (tokens, K) of int, chosen experts; rank r has the experts
    r * experts / ranks up to those of rank r + 1.
    Returns counts (R,) and offsets (R + 1,), which begins with 0.
    """
    owner = indices.reshape(-1) // (experts // ranks)
    counts = np.bincount(owner, minlength=ranks)
    return counts, np.concatenate([[0], np.cumsum(counts)])

# %% [markdown] hints="ranks.send_counts"
# Which rank has expert e? Say it for 12 experts on 3 ranks, e = 0, 3, 4
# and 11.
#
# ---
#
# Expert e is on rank `e // (experts // ranks)`. Every entry of `indices`
# is a row.
#
# ---
#
# `np.bincount(..., minlength=ranks)` counts, and gives a 0 to ranks that
# nobody asks for. The bounds are sums of what came before.
#
# ---
#
# The owners, their counts, and a 0 in front of the running sum.

# %% [markdown]
# The same for all four ranks, and what an all-to-all makes of it:

# %%
owner = (indices // (E // R)).reshape(R, -1)  # of each rank's own rows
sent = np.array([np.bincount(own, minlength=R) for own in owner])
plots.buffers(sent)

# %% [markdown]
# A rank knows what it sends, but not what will come. So first another,
# small all-to-all goes round: how many rows for each of your experts you
# will get from me. Then the receiver can make room, and the rows follow.
#
# What has arrived lies rank by rank, and within what one rank sent,
# expert by expert. To multiply, the receiver must know each row's expert.

# %% [markdown] exercise="ranks.arriving_experts"
# From the numbers that were announced, name the expert of every row that
# has arrived. The receiver counts its own experts from 0.

# %% exercise="ranks.arriving_experts"
def arriving_experts(arriving: np.ndarray) -> np.ndarray:
    """The expert of each row that arrived, by this rank's own count.

    arriving: (R, E / R) of int: rows from each rank for each expert.
    Returns (rows,) of int: first those from rank 0, by expert, and so on.
    """
    ranks, own = arriving.shape
    experts = np.tile(np.arange(own), ranks)
    return np.repeat(experts, arriving.reshape(-1))

# %% [markdown] hints="ranks.arriving_experts"
# Two ranks each send one row for expert 0 and two for expert 1. Write
# down the six numbers.
#
# ---
#
# They are 0 1 1 0 1 1. Every number of `arriving`, read row by row, is
# how often one expert's number stands there.
#
# ---
#
# `np.repeat(numbers, counts)` repeats each number as often as its count
# says. Which number belongs to which count?
#
# ---
#
# The experts' numbers once for every rank, each repeated.

# %% [markdown]
# Now the layer, on four processes. Weights of the sum stay at home: a
# result comes back bare, and the token's own rank weighs it. `Wire`
# counts the bytes that leave a rank.

# %%
def layer(group, x, indices, weights, gate_up, down):
    """The routed experts of one layer; every rank has its own tokens."""
    from minik2.pytorch import grouped
    from minik2.pytorch.wire import Wire
    tokens, experts = (np.array_split(np.arange(len(a)), group.count)
                       [group.rank] for a in (x, down))
    x, indices, weights = (
        torch.tensor(a[tokens]) for a in (x, indices, weights))
    gate_up, down = (torch.tensor(a[experts]) for a in (gate_up, down))
    # 1. Sort by expert, and announce what will come.
    order, own = indices.flatten().argsort(stable=True), len(experts)
    counts = indices.flatten().bincount(minlength=own * group.count)
    arriving = torch.empty_like(counts)
    dist.all_to_all_single(arriving, counts)
    send = counts.view(group.count, own).sum(1).tolist()
    receive = arriving.view(group.count, own).sum(1).tolist()
    # 2. The rows travel.
    rows = x[order // indices.shape[1]]
    came = rows.new_empty(sum(receive), x.shape[1])
    with Wire() as wire:
        dist.all_to_all_single(came, rows, receive, send)
    # 3. Experts work on what is there.
    expert = torch.arange(own).repeat(group.count)
    expert = expert.repeat_interleave(arriving)[:, None]
    out = grouped.experts(came, expert, torch.ones(expert.shape).double(),
                          gate_up, down)
    # 4. Results travel back, and into the order of the pairs.
    back, pairs = torch.empty_like(rows), torch.empty_like(rows)
    dist.all_to_all_single(back, out, send, receive)
    pairs[order] = back
    y = (weights[..., None] * pairs.view(*weights.shape, -1)).sum(1)
    return {"y": y, "send": send, "bytes": wire.sent["exchange"]}


ranks = processes.run(layer, R, x=x, indices=indices, weights=weights,
                      gate_up=gate_up, down=down)
y = np.concatenate([found["y"] for found in ranks])
assert (np.array([found["send"] for found in ranks]) == sent).all()

# %% [markdown]
# The same layer in one process: our two engines, and transformers'. All
# of it is in float64. `error` is the largest difference, as a share of the
# largest number.

# %%
alone = np.zeros_like(x)
reference.moe.add_experts(alone, x, indices, weights, gate_up, down)
tensors = [torch.tensor(a) for a in (x, indices, weights, gate_up, down)]
others = {"engine, NumPy": alone,
          "engine, PyTorch": grouped.experts(*tensors).numpy()}
try:
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as v3
except ImportError:
    print('not installed: transformers; pip install -e ".[test]" gets it')
else:
    config = v3.DeepseekV3Config(**model.cfg.to_json())
    config._experts_implementation = "eager"
    theirs = v3.DeepseekV3Experts(config).double()
    theirs.load_state_dict(
        {"gate_up_proj": tensors[3], "down_proj": tensors[4]})
    with torch.inference_mode():
        others["transformers"] = theirs(*tensors[:3]).numpy()
for name, one in others.items():
    print(f"four processes - {name:<16} {error(y, one):.1e}")
    assert error(y, one) < 1e-12

# %% [markdown]
# ## 3. Who waits for whom
#
# No row was dropped and no buffer filled up with zeros: every rank
# computed on as many rows as came. But they were not equally many.

# %%
plots.traffic(sent)

# %% [markdown]
# The results go back by an all-to-all again, and for that all have to be
# done. So a layer takes as long as its fullest rank needs. Five percent is
# little. Does it stay so? All layers with experts, and other numbers of
# ranks:

# %%
chosen = [part["mlp"]["router"]["indices"].ravel() for part in kept
          if "router" in part.get("mlp", {})]
loads = np.array([np.bincount(own, minlength=E) for own in chosen])
plots.imbalance(loads)

# %% [markdown]
# A rank's load is a sum over its experts, and a sum is more even than its
# parts: a busy expert has quiet neighbours. With one expert a rank nothing
# evens out. This is one reason to share the experts among few ranks. And
# it is what the correction bias of lesson 06 is for. It moves by the load
# of the whole batch, so on many machines the loads of all ranks are added
# up first.
#
# ## 4. What a token sends
#
# If the experts are chosen evenly, a share of $(R-1)/R$ of the rows goes
# to another rank. The row has $D$ numbers. It travels to the expert, the
# result travels back, and on the backward pass a gradient takes each of
# the two ways, in the other direction.

# %% [markdown] exercise="ranks.all_to_all_bytes"
# How many bytes does expert parallelism send for one token, over all
# layers, forward and backward?

# %% exercise="ranks.all_to_all_bytes"
def all_to_all_bytes(
    moe_layers: int, chosen: int, hidden: int, number_bytes: int,
    ranks: int,
) -> float:
    """Bytes sent for a token in training, if experts are chosen evenly.

    chosen: K; hidden: D; number_bytes: of one number of a row.
    """
    row = hidden * number_bytes
    return 4 * moe_layers * chosen * row * (ranks - 1) / ranks

# %% [markdown] hints="ranks.all_to_all_bytes"
# How many times does a row of D numbers travel for one (token, choice)
# pair, if its expert is elsewhere?
#
# ---
#
# Twice on the forward pass, twice on the backward pass.
#
# ---
#
# K pairs in every layer with experts; of R ranks, R - 1 are elsewhere.
#
# ---
#
# Four trips, times layers, times K, times the bytes of a row, times the
# share that leaves.

# %% [markdown]
# One trip of the layer above, counted:

# %%
away = (sent.sum() - np.trace(sent)) * D * 8
counted = sum(found["bytes"] for found in ranks)
even = indices.size * D * 8 * (R - 1) / R
print(f"bytes counted: {counted:,}; rows that left, times {D} × 8: "
      f"{away:,};\nof an even choice: {even:,.0f}")
assert counted == away

# %% [markdown]
# A token that has chosen two experts of one rank is sent to it twice. Some
# systems send it once and copy it there. We do not, and neither does the
# count of `minik2.sizing`.

# %% [markdown]
# ## 5. Muon on a matrix in pieces
#
# All weights that are not experts lie on all ranks in pieces: a rank keeps
# some rows of each matrix, and of its momentum. That is **ZeRO**. Before
# the forward pass the pieces are gathered; after the backward pass the
# ranks' gradients are added up, and each keeps its own rows of the sum.
# AdamW works number by number, so each rank updates its rows and is done.
#
# Muon cannot. A row is orthogonal to *others*, and these are elsewhere.
# A real gradient of the small model, 64 rows on four ranks:

# %%
_, grads = model.loss_and_grads(text, targets)
G = grads["model.layers.1.self_attn.q_a_proj.weight"]
whole = newton_schulz(G)
parts = np.concatenate([newton_schulz(p) for p in np.split(G, R)])
plots.pieces(whole, parts, R)

# %% [markdown]
# Made orthogonal rank by rank, the rows of one rank are nearly orthogonal
# to each other (the blocks on the diagonal) and not to those of other
# ranks. Where several ranks push in one direction, it adds up; other
# directions get nearly nothing. It is another optimizer, and a different
# one for every number of ranks.
#
# So **distributed Muon** gathers once more: each rank updates its rows of
# the momentum, all ranks gather the whole, each makes it orthogonal, and
# keeps its own rows of the result. All of them do the same work, which is
# small beside the forward and backward pass (lesson 08).

# %% [markdown] exercise="ranks.sharded_update"
# Write a rank's part of it. You get the pieces of all ranks, as the gather
# brings them; some of the last ranks may have fewer rows than the others,
# or none. Five steps of `newton_schulz(matrix, 5)`, and lesson 08's scale
# $0.2 \sqrt{\max(r, c)}$.

# %% exercise="ranks.sharded_update"
def sharded_update(pieces: list[np.ndarray], rank: int) -> np.ndarray:
    """This rank's rows of the scaled update of the whole matrix.

    pieces: R arrays (rows of that rank, c), the matrix's rows in order.
    Returns (rows of this rank, c), new.
    """
    whole = np.concatenate(pieces)
    update = 0.2 * max(whole.shape) ** 0.5 * newton_schulz(whole, 5)
    start = sum(len(piece) for piece in pieces[:rank])
    return update[start : start + len(pieces[rank])]

# %% [markdown] hints="ranks.sharded_update"
# What is the matrix that is to be made orthogonal? How do the pieces lie
# in it?
#
# ---
#
# `np.concatenate(pieces)` puts them below each other. The scale takes the
# sides of the whole.
#
# ---
#
# A rank's first row is the sum of the rows of all ranks before it.
#
# ---
#
# Join, orthogonal, scale, and cut the rank's own rows out.

# %% [markdown]
# On four processes, which hold 16 rows each, against the whole matrix in
# one process. The third way forms no iteration of matrices: a singular
# value decomposition, with the polynomial applied to numbers.

# %%
def gathered(group, G):
    from minik2.pytorch.newton_schulz import newton_schulz
    own = torch.tensor(np.split(G, group.count)[group.rank])
    whole = torch.empty(G.shape, dtype=own.dtype)
    dist.all_gather_into_tensor(whole, own)
    return {"rows": newton_schulz(whole).chunk(group.count)[group.rank]}


found = processes.run(gathered, R, G=G)
rows = np.concatenate([one["rows"] for one in found])
u, sigma, vt = np.linalg.svd(G / np.linalg.norm(G), full_matrices=False)
for _ in range(5):
    sigma = 3.4445 * sigma - 4.7750 * sigma**3 + 2.0315 * sigma**5
off = {"one process": error(rows, whole),
       "a decomposition": error(rows, u * sigma @ vt)}
for name, worst in off.items():
    print(f"four processes - {name:<15} {worst:.0e}")
    assert worst < 1e-10

# %% [markdown]
# A stack of experts needs none of this where it is cut *between* experts:
# each of its matrices lies whole on one rank.
#
# ## 6. One clip for all ranks
#
# QK-Clip looks at each head's largest logit over the batch (lesson 09),
# and every rank has seen another part of the batch.

# %% [markdown] exercise="ranks.joint_gamma"
# From all ranks' largest logits, make the one factor that every head gets.

# %% exercise="ranks.joint_gamma"
def joint_gamma(maxima: np.ndarray, tau: float) -> np.ndarray:
    """What each head's logits are multiplied with, on every rank.

    maxima: (R, H) each rank's largest logits, of either sign; tau > 0.
    Returns (H,), each above 0 and at most 1.
    """
    return tau / np.maximum(maxima.max(axis=0), tau)

# %% [markdown] hints="ranks.joint_gamma"
# What would one process have seen that had all of the batch?
#
# ---
#
# The largest of the ranks' largest logits, head by head.
#
# ---
#
# `maxima.max(axis=0)` runs over ranks. Then it is lesson 09's factor,
# which is 1 for a head that stays below tau.
#
# ---
#
# The maximum over ranks, brought up to tau, in the denominator.

# %% [markdown]
# On processes this is `dist.all_reduce(maxima, dist.ReduceOp.MAX)`. Leave
# the second argument out and it is a sum: no error, and heads are
# clipped that did nothing.
#
# ## 7. The same run
#
# Now all of it together: the preset `tiny` (50 thousand weights) trains a
# few steps on four processes, in float64, with MuonClip and a $\tau$ so
# low that heads are clipped. In one layout two ranks share a layer's
# experts and the others hold copies; in the other all four share them.
# The engine for several ranks has the same verbs as the one for a single
# process, so the steps are one function.

# %%
def steps(engine, batches):
    """Losses, and the factors of each step's clip."""
    losses, factors = [], []
    for tokens, targets in batches:
        losses.append(engine.gradients([(tokens, targets)]))
        factors.append(engine.update(1.0))
        engine.balance()
    return {"losses": np.array(losses), "factors": np.array(factors)}


def train(group, batches, layouts, **recipe):
    """A run for every layout: so many ranks share a layer's experts."""
    import minik2
    from minik2.pytorch.wire import Wire
    from minik2.training.engine_distributed import DistributedEngine
    from minik2.training.settings import Settings
    cfg, found = minik2.ModelConfig.preset("tiny"), {}
    for expert in layouts.tolist():
        engine = DistributedEngine(cfg, Settings(**recipe), "cpu", None,
                                   group, expert, torch.float64)
        with Wire() as wire:
            seen = steps(engine, batches)
        found |= {f"{what} {expert}": a
                  for what, a in (seen | wire.sent).items()}
    return found


recipe = {"batch": 8, "window": 32, "rate": 0.02, "tau": 0.03}
rng = np.random.default_rng(12)
batches = np.array([corpus.sample("train", 8, 32, rng) for _ in range(8)])
names = {2: "2 × 2: pairs share experts", 4: "1 × 4: all share experts"}
run = processes.run(train, R, uses=[steps], batches=batches,
                    layouts=list(names), **recipe)
tiny = minik2.ModelConfig.preset("tiny")
one = steps(PyTorchEngine(tiny, Settings(**recipe), "cpu", None,
                          torch.float64), batches)

# %%
for what in one:
    worst = max(error(found[f"{what} {expert}"], one[what])
                for found in run for expert in names)
    print(f"{what:<7} four processes - one process {worst:.0e}")
    assert worst < 1e-10
assert (one["factors"] < 1).any(), "some head is to be clipped"
plots.same_run({name: run[0][f"losses {expert}"]
                for expert, name in names.items()}, one["losses"])

# %% [markdown]
# What is left is rounding: sums over ranks are taken in another order.
# And every rank clips every head by the factor that the one process has.
# In float32 the rounding is larger. Sooner or later it decides a near-tie
# of the router's, one token goes to another expert, and from there on two
# runs drift apart.
#
# ### The bytes
#
# The prediction, for a rank and a step, all numbers of 8 bytes: gradients
# scattered and weights gathered once (`sizing.communication`), Muon's
# gather of every matrix that is not an expert's, and your formula. What
# announces the rows is counted too: 8 bytes for each expert elsewhere.

# %%
matrices = sum(
    np.prod(shape) for name, shape in tiny.tensor_shapes().items()
    if reference.muon.takes(name, shape) and ".experts." not in name)
predicted, counted = {}, {}
for expert, name in names.items():
    layout = sizing.Layout(ep=expert, dp=R // expert)
    sent = sizing.communication(tiny, layout, "float64")
    rows = 8 * 32 / R * float(sent.all_to_all)
    announced = 2 * 8 * tiny.n_routed_experts * (expert - 1) / expert
    predicted[name] = {
        "gather": sent.adamw + 8 * matrices * (R - 1) / R,
        "scatter": sent.adamw, "exchange": rows + announced}
    counted[name] = {
        kind: np.mean([found[f"{kind} {expert}"] for found in run])
        / len(batches) for kind in predicted[name]}
    for kind in ("gather", "scatter"):
        assert counted[name][kind] == predicted[name][kind]
plots.wire(predicted, counted)

# %% [markdown]
# Weights, gradients and momentum are predicted to the byte. The exchange
# is predicted for an even choice, and is off by as much as the router's
# choice was uneven. Where we knew the choice, in section 4, every byte was
# accounted for.
#
# ## In K2
#
# From its configuration, and from its report the layout: 16 pipeline
# stages, 16 ranks that share a layer's experts, 8 GPUs a node. How many
# copies of the whole it had is not published; four are our example.

# %%
k2 = minik2.ModelConfig.preset("kimi-k2")
layout = sizing.Layout(pp=16, ep=16, dp=4)
sent, total = sizing.communication(k2, layout), sizing.parameters(k2).total
layers, row = k2.num_hidden_layers - 1, 2 * k2.hidden_size
trip = k2.num_experts_per_tok * row * 15 / 16
print(f"weights: {2 * total / 1e12:.2f} TB; {layout.group} GPUs a copy, "
      f"{k2.n_routed_experts // 16} experts of its layers on each")
print(f"a row: {row:,} bytes; a token and a layer send {trip:,.0f} a trip, "
      f"{4 * trip:,.0f} in all")
print(f"all {layers} layers: {float(sent.all_to_all) / 1e6:.1f} MB a "
      f"token; between stages: {sent.pipeline / 1e6:.2f} MB")
print(f"ZeRO-1 with Muon sends {sent.ratio:.2f} times what it does with "
      "AdamW,\nif momentum of experts is gathered, too")
assert 4 * trip * layers == float(sent.all_to_all)

# %% [markdown]
# <div class="alert alert-info">
#
# **In K2** 16 ranks shared a layer's experts, the smallest number that was
# feasible, says the report: K2 has half of DeepSeek-V3's heads, so its
# attention takes less time, and the exchange has less time to hide in.
# Weights were kept in 16 bits and gradients added up in 32. The ratio in
# the last line follows Moonlight's count, momentum gathered in 16 bits;
# stacks that are cut between experts, as ours are, need less. How K2's
# Muon gathered, how many GPUs there were and for how long they ran is not
# published.
#
# </div>

# %% [markdown]
# ## On the back of an envelope
#
# Two nodes of 8 GPUs share the experts of one layer of K2. A GPU sends to
# the other node at 50 GB/s. For one token in this layer, forward and
# backward: how long does it send to the other node, and how long does it
# compute, at 6 operations for each of 0.5 billion active weights and 40%
# of 989 TFLOP/s? What follows?
#
# <details><summary>Answer</summary>
#
# Half of the 16 GPUs are in the other node: four trips of 8 rows of
# 14,336 bytes, half of them: 229 kB, at 50 GB/s **4.6 µs**. Computing takes
# $6 \cdot 0.5 \cdot 10^9 / (0.4 \cdot 989 \cdot 10^{12}) =$ **7.6 µs**.
# One after the other, a layer would take more than half again as long. So
# the two must happen at once, one part of the batch computing while another
# travels. With 32 ranks three quarters of the rows would leave the node in
# place of half, 6.9 µs. (50 GB/s and 989 TFLOP/s are data-sheet figures,
# 40% is assumed, and scores of attention are left out.)
#
# </details>

# %%
h800 = sizing.machine("8xh800")
parts, experts = sizing.parameters(k2).by_part, k2.num_experts_per_tok
active = parts["attention"] / k2.num_hidden_layers
active += (experts + 1) * 3 * k2.hidden_size * k2.moe_intermediate_size
compute = 6 * active / (0.4 * h800.peak("bfloat16"))
for ranks_here in (16, 32):
    away = 4 * experts * row * (ranks_here - 8) / ranks_here
    print(f"{ranks_here} ranks: {away / h800.network * 1e6:.1f} µs to "
          f"other nodes, {compute * 1e6:.1f} µs of computing")

# %% [markdown]
# <div class="alert alert-success">
#
# **Takeaway.** What was an index becomes a message: announce how many rows
# come, send them, and know from the numbers alone whose they are. Each
# layer waits for its fullest rank. What works number by number minds no
# cut; Muon needs the whole matrix first, and QK-Clip the maximum over all
# ranks. Then four processes have the loss of one, to rounding, and what
# they send is known before they send it.
#
# </div>
#
# ## Sources
#
# - Layout, EP 16 and its reason, pipeline, formats: *Kimi K2*,
#   arXiv 2507.20534, §2.4.
# - Distributed Muon, its gather and its count of bytes: *Muon is Scalable
#   for LLM Training*, arXiv 2502.16982, §2.3.
# - Expert parallelism without dropped tokens, a token once a node, and
#   exchange behind computation: *DeepSeek-V3*, arXiv 2412.19437, §2.1.2
#   and §3.2.
# - ZeRO: Rajbhandari et al., arXiv 1910.02054.
#
# **Next:** the [capstone](../capstone/README.md): the best small K2 that you
# can train in five minutes.
