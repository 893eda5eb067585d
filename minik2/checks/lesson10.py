"""Lesson 10: training it.

Unusual here: the curves of two exercises are drawn until they tell the misconceptions apart. A last
loss that happens to be the lowest one, or noise that crosses nothing, would let a wrong answer
pass.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from minik2.checks.exercise import Case, Exercise, Invariant, wrong
from minik2.config import ModelConfig

TITLE = "Training it: Muon against AdamW, honestly"

Array = np.ndarray[Any, np.dtype[Any]]
Shapes = Mapping[str, tuple[int, ...]]


def _cosine(gone: Array, final: float) -> Array:
    return np.asarray(final + (1 - final) * (1 + np.cos(np.pi * gone)) / 2)


def _straight(gone: Array, final: float) -> Array:
    return np.asarray(1 - (1 - final) * gone)


def _quarter(gone: Array, final: float) -> Array:
    return np.asarray(final + (1 - final) * np.cos(np.pi / 2 * gone))


def _wave(gone: Array, final: float) -> Array:
    return np.asarray(final + (1 - final) * (1 + np.cos(2 * np.pi * gone)) / 2)


def _drop(gone: Array, final: float) -> Array:
    return np.where(gone > 0, final, 1.0)


def _rising(gone: Array, final: float) -> Array:
    return np.where(gone > 0, final + (1 - final) * (1 - np.cos(np.pi * gone)) / 2, 1.0)


def _to_zero(gone: Array, final: float) -> Array:
    return _cosine(gone, 0.0)


def _held_above(gone: Array, final: float) -> Array:
    return np.maximum(_cosine(gone, 0.0), final)


def _wsd(
    steps: int, warmup: int, falling: int, final: float, *, fall: Any = _cosine, rise_from: int = 1,
    fall_from: int = 1, stable: bool = True, rising: bool = True, at_once: bool = False,
) -> Array:
    """Right as it stands; rise_from, fall_from: what the first step counts as."""
    rise = np.minimum(1, (np.arange(steps) + rise_from) / warmup)
    step = np.arange(steps) + fall_from
    start = warmup if at_once or not stable else steps - falling
    length = falling if stable else steps - warmup
    gone = np.clip((step - start) / length, 0, 1)
    down = fall(gone, final)
    return np.asarray(np.minimum(rise, down) if rising else down)


def _schedule_cases(rng: np.random.Generator) -> list[Case]:
    """(steps, warmup, falling, final), with a stable part in each."""
    cases: list[Case] = []
    for steps in (40, 57, 90, 30):
        warmup = int(rng.integers(4, steps // 5))
        falling = int(rng.integers(steps // 4, steps // 2))
        cases.append((steps, warmup, falling, float(rng.uniform(0.05, 0.3))))
    return cases


def _ends_at_final(call: Any, args: Case, out: Array) -> str | None:
    final = args[3]
    if abs(out[-1] - final) < 1e-3:
        return None
    return f"The last step has {out[-1]:.4g}, and final is {final:.4g}."


def _stays(call: Any, args: Case, out: Array) -> str | None:
    steps, warmup, falling, _ = args
    kept = out[warmup - 1 : steps - falling]
    if (np.abs(kept - 1) < 1e-3).all():
        return None
    step = warmup + int(np.abs(kept - 1).argmax())
    return f"Step {step} has {out[step - 1]:.4g}."


WSD = Exercise(
    id="training.wsd",
    lesson="10",
    title="Warm-up, stable, decay",
    difficulty=2,
    minutes=10,
    why="Only the fall has to know where a run ends; in the wrong place it ends the learning too "
        "early.",
    signature="wsd(steps, warmup, falling, final) -> (steps,)",
    axes="step",
    cases=_schedule_cases,
    reference=_wsd,
    invariants=(
        Invariant("the last step is at the final share of the rate.", _ends_at_final),
        Invariant("from the last step of the warm-up to the one before the fall the share is 1.",
                  _stays),
    ),
    wrong=(
        wrong("counted_from_zero",
              (partial(_wsd, rise_from=0, fall_from=0), partial(_wsd, rise_from=0),
               partial(_wsd, fall_from=0)),
              """Steps are counted from 0. Then a first step has the rate 0 and learns nothing, or
              the last one has not come to the end of the fall.""",
              "Which share should step 1 of 20 warm-up steps have, and which one step 20?"),
        wrong("straight_fall", partial(_wsd, fall=_straight),
              """The rate falls along a straight line. K2's follows half a wave of a cosine, which
              is slow at both ends.""",
              "Where on its way down is a cosine flat?"),
        wrong("final_forgotten", partial(_wsd, fall=_to_zero),
              """The rate falls to zero. It is to end at `final` of its highest.""",
              "What is left of the highest rate in the very last step?"),
        wrong("cut_off_at_final", partial(_wsd, fall=_held_above),
              """The cosine goes to zero and is cut off at `final`, so the rate arrives too early
              and then stays. The whole wave is to fit between 1 and final.""",
              "By what must (1 + cos) / 2 be multiplied, and what added, to go from 1 to final?"),
        wrong("quarter_of_a_wave", partial(_wsd, fall=_quarter),
              """The cosine's angle goes to π/2, a quarter of a wave. It falls ever faster up to the
              last step.""",
              "At which angle is a cosine at its lowest?"),
        wrong("whole_wave", partial(_wsd, fall=_wave),
              """The cosine's angle goes to 2π, so the rate comes up again. Half a wave is
              enough.""",
              "Where does cos(2π x) end for x = 1?"),
        wrong("upside_down", partial(_wsd, fall=_rising),
              """The rate rises in its last part: (1 - cos) / 2 goes from 0 to 1.""",
              "What is cos(0), and what should the fall begin with?"),
        wrong("nothing_stable", partial(_wsd, stable=False),
              """The rate falls from the end of the warm-up on. That is an ordinary cosine schedule;
              here the last `falling` steps alone fall.""",
              "At which step does the fall begin if the last 40 of 100 steps fall?"),
        wrong("falls_after_the_warmup", partial(_wsd, at_once=True),
              """The fall follows the warm-up at once, and the stable part comes after it, at the
              final rate. The order is warm-up, stable, decay.""",
              "Which step is the last one that falls?"),
        wrong("drop", partial(_wsd, fall=_drop),
              """The rate drops to its final value in one step. It is to fall slowly.""",
              "What does the share look like halfway through the fall?"),
        wrong("no_warmup", partial(_wsd, rising=False),
              """The first steps are at the full rate. It rises over `warmup` steps.""",
              "What does an optimizer know of the gradients' sizes in its first step?"),
    ),
)


def _taken(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) >= 2 and "embed_tokens" not in name and "lm_head" not in name


def _frozen(name: str) -> bool:
    return name.endswith("e_score_correction_bias")


def _never(name: str) -> bool:
    return False


def _groups(
    shapes: Shapes, *, takes: Callable[[str, tuple[int, ...]], bool] = _taken,
    left_out: Callable[[str], bool] = _frozen, size: Callable[[Any], int] = math.prod,
) -> dict[str, int]:
    out = {"muon": 0, "adamw": 0}
    for name, shape in shapes.items():
        if not left_out(name):
            out["muon" if takes(name, shape) else "adamw"] += size(shape)
    return out


def _swapped(shapes: Shapes) -> dict[str, int]:
    right = _groups(shapes)
    return {"muon": right["adamw"], "adamw": right["muon"]}


def _model(rng: np.random.Generator, plain_query: bool) -> ModelConfig:
    """A small configuration with sizes that differ from each other."""
    hidden, wide, narrow, latent, query, words = (
        int(n) for n in rng.choice(range(9, 90), 6, replace=False))
    return ModelConfig.preset("tiny").replace(
        vocab_size=words, hidden_size=hidden, num_hidden_layers=3, first_k_dense_replace=1,
        q_lora_rank=None if plain_query else query, kv_lora_rank=latent, intermediate_size=wide,
        moe_intermediate_size=narrow, n_routed_experts=int(rng.integers(5, 9)), n_group=1,
        topk_group=1, num_experts_per_tok=2, scoring_func="sigmoid", topk_method="noaux_tc")


def _stacked(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The experts of each layer as two arrays, as transformers and both engines hold them."""
    out: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        head, found, tail = name.partition(".experts.")
        number, _, kind = tail.partition(".")
        if not found:
            out[name] = shape
        elif kind.startswith("up"):
            rows, columns = shape
            out[f"{head}.experts.gate_up_proj"] = (int(number) + 1, 2 * rows, columns)
        elif kind.startswith("down"):
            out[f"{head}.experts.down_proj"] = (int(number) + 1, *shape)
    return out


def _shape_cases(rng: np.random.Generator) -> list[Case]:
    """Experts one by one, then in stacks; queries with a latent and without."""
    return [(_model(rng, False).tensor_shapes(),), (_stacked(_model(rng, False).tensor_shapes()),),
            (_model(rng, True).tensor_shapes(),), (_stacked(_model(rng, True).tensor_shapes()),)]


def _all_there(call: Any, args: Case, out: Any) -> str | None:
    total = sum(math.prod(s) for n, s in args[0].items() if not _frozen(n))
    got = out["muon"] + out["adamw"]
    return None if got == total else f"Trained are {total:,} numbers, and yours add up to {got:,}."


def _one_norm_more(call: Any, args: Case, out: Any) -> str | None:
    more = call({**args[0], "model.layers.0.self_attn.new_layernorm.weight": (7,)})
    if (more["muon"], more["adamw"]) == (out["muon"], out["adamw"] + 7):
        return None
    return (f"With seven more of a norm Muon has {more['muon'] - out['muon']} more and AdamW "
            f"{more['adamw'] - out['adamw']}.")


GROUPS = Exercise(
    id="training.groups",
    lesson="10",
    title="Who updates what",
    difficulty=2,
    minutes=10,
    why="With a table on Muon, or a stack of experts off it, a run goes on without complaint; only "
        "a count shows it.",
    signature="groups(shapes) -> dict",
    keys=("model.embed_tokens.weight", "model.layers.1.mlp.gate.weight",
          "model.layers.1.mlp.experts.down_proj", "lm_head.weight"),
    cases=_shape_cases,
    reference=_groups,
    invariants=(
        Invariant("every number that is trained is in one group, and in one only.", _all_there),
        Invariant("a norm is AdamW's.", _one_norm_more),
    ),
    wrong=(
        wrong("every_matrix", partial(_groups, takes=lambda n, s: len(s) >= 2),
              """All matrices go to Muon, the embedding and the head too. By the rule that we follow
              these two stay out: they are tables with a row a token, and AdamW has them.""",
              "What is the input of the embedding, a vector or the number of a row?"),
        wrong("one_table_forgotten",
              (partial(_groups, takes=lambda n, s: len(s) >= 2 and "embed_tokens" not in n),
               partial(_groups, takes=lambda n, s: len(s) >= 2 and "lm_head" not in n)),
              """One of the two tables with a row a token is with Muon, the other is not. Both are
              AdamW's.""",
              "Which two tensors have as many rows as there are tokens?"),
        wrong("vectors_too",
              partial(_groups, takes=lambda n, s: "embed_tokens" not in n and "lm_head" not in n),
              """Muon gets the norms as well. They are vectors: there is nothing to make
              orthogonal.""",
              "What would the singular values of a vector be?"),
        wrong("two_axes_only", partial(_groups, takes=lambda n, s: len(s) == 2 and _taken(n, s)),
              """Arrays with three axes are left to AdamW. They are stacks of matrices, one an
              expert, and nearly all of the model is in them.""",
              "What does a tensor called experts.down_proj with three axes hold?"),
        wrong("bias_counted", partial(_groups, left_out=_never),
              """The router's correction bias is counted with AdamW. It has no gradient: training
              moves it by a rule of its own (lesson 06).""",
              "Which tensor of a layer with experts is not in loss_and_grads?"),
        wrong("router_to_adamw",
              partial(_groups, takes=lambda n, s: _taken(n, s) and not n.endswith("gate.weight")),
              """The router's matrix is left to AdamW. By the rule that we follow, every matrix but
              the two tables is Muon's, the router among them.""",
              "Is gate.weight a table of tokens?"),
        wrong("gate_by_its_letters",
              partial(_groups, takes=lambda n, s: _taken(n, s) and "gate" not in n),
              """Everything with "gate" in its name is left to AdamW. That is the router, and also
              the gate of every feed-forward block.""",
              "Which names hold the letters gate_proj?"),
        wrong("tensors_counted", partial(_groups, size=lambda shape: 1),
              """Tensors are counted, not the numbers in them.""",
              "How many numbers are in a matrix of 3 by 5?"),
        wrong("swapped", _swapped,
              """The two groups have each other's numbers.""",
              "Who has more of a model's numbers, its matrices or its norms and tables?"),
    ),
)


def _mean(x: Array, width: int) -> Array:
    return np.convolve(x, np.full(width, 1 / width), "valid")


def _share(
    tokens: Array, ours: Array, theirs: Array, width: int, *, mean: Any = _mean,
    goal: Any = lambda theirs, raw: theirs[-1], late: bool = True, between: bool = True,
    missing: Any = None,
) -> float:
    """Right as it stands; late: a mean belongs to its last point; missing: what is given where the
    goal is never reached."""
    raw = theirs
    ours, theirs = mean(ours, width), mean(theirs, width)
    cut = len(tokens) - len(ours)
    at = tokens[cut:] if late else tokens[: len(ours)]
    target = goal(theirs, raw)
    below = np.flatnonzero(ours <= target)
    if not len(below):
        return math.inf if missing is None else float(missing(at) / tokens[-1])
    n = int(below[0])
    if n == 0 or not between:
        return float(at[n] / tokens[-1])
    part = (ours[n - 1] - target) / (ours[n - 1] - ours[n])
    return float((at[n - 1] + part * (at[n] - at[n - 1])) / tokens[-1])


def _unsmoothed(x: Array, width: int) -> Array:
    return x


def _padded(x: Array, width: int) -> Array:
    return np.convolve(x, np.full(width, 1 / width), "same")


def _upside_down(tokens: Array, ours: Array, theirs: Array, width: int) -> float:
    share = _share(tokens, ours, theirs, width)
    return 1 / share if share < math.inf else 0.0


def _of_losses(tokens: Array, ours: Array, theirs: Array, width: int) -> float:
    return float(_mean(ours, width)[-1] / _mean(theirs, width)[-1])


def _rising_table(tokens: Array, ours: Array, theirs: Array, width: int) -> float:
    ours, theirs = _mean(ours, width), _mean(theirs, width)
    return float(np.interp(theirs[-1], ours, tokens[width - 1 :]) / tokens[-1])


def _pair(rng: np.random.Generator, faster: float, steps: int, width: int) -> Case:
    """Two noisy curves of which one falls `faster`; theirs ends a little above its lowest."""
    while True:
        at = np.arange(1, steps + 1)
        noise = rng.normal(scale=0.08, size=(2, steps))
        ours = 2 + 2 * np.exp(-faster * at / steps) + noise[0]
        theirs = 2 + 2 * np.exp(-2.2 * at / steps) + noise[1]
        theirs[-2:] += 0.15
        case = (1024.0 * at, ours, theirs, width)
        smooth = _mean(theirs, width)
        if smooth[-1] < smooth.min() + 0.01 or _mean(ours, width)[0] <= smooth[-1]:
            continue
        apart = {_share(*case), _share(*case, mean=_unsmoothed),
                 _share(*case, goal=lambda theirs, raw: raw[-1])}
        if faster < 2.2 or (max(apart) < 0.97 and len({round(x, 2) for x in apart}) == 3):
            return case


def _curve_cases(rng: np.random.Generator) -> list[Case]:
    """Three pairs in which ours is faster, and one in which it never comes so far."""
    return [_pair(rng, faster, int(rng.integers(50, 90)), width)
            for faster, width in ((3.3, 5), (3.8, 7), (1.0, 5), (3.0, 8))]


def _same_share(got: float, out: float) -> bool:
    return got == out or abs(got - out) < 1e-3


def _other_units(call: Any, args: Case, out: float) -> str | None:
    tokens, *rest = args
    got = call(tokens / 1000, *rest)
    return None if _same_share(got, out) else f"In thousands of tokens it is {got:.4g}."


def _both_higher(call: Any, args: Case, out: float) -> str | None:
    tokens, ours, theirs, width = args
    got = call(tokens, ours + 1, theirs + 1, width)
    return None if _same_share(got, out) else f"With 1 added to all losses it is {got:.4g}."


TOKEN_SHARE = Exercise(
    id="training.token_share",
    lesson="10",
    title="Tokens to the same loss",
    difficulty=3,
    minutes=15,
    why="It is the one number by which optimizers are compared, and each slip in it flatters "
        "somebody.",
    signature="token_share(tokens, ours, theirs, width) -> float",
    cases=_curve_cases,
    reference=_share,
    invariants=(
        Invariant("a share does not depend on what tokens are counted in.", _other_units),
        Invariant("a constant added to all losses changes nothing.", _both_higher),
    ),
    wrong=(
        wrong("not_smoothed", partial(_share, mean=_unsmoothed),
              """The curves were compared as they are. A single lucky batch then counts as having
              reached the goal.""",
              "What does one batch's loss say about the model?"),
        wrong("raw_goal", partial(_share, goal=lambda theirs, raw: raw[-1]),
              """The goal is the loss of the last batch alone, not the mean at the end. One easy or
              hard batch then decides the comparison.""",
              "Of how many batches should the goal be a mean?"),
        wrong("lowest_as_goal", partial(_share, goal=lambda theirs, raw: theirs.min()),
              """The goal is the lowest point of their curve. They end at its last one; the lowest
              of many noisy means is partly luck.""",
              "What did their run come to in the end?"),
        wrong("mean_at_its_start", partial(_share, late=False),
              """A mean of `width` losses is put where its first one is. It is only known when the
              last of them is; ours would be given some steps for nothing.""",
              "How many tokens have been seen when the first mean is complete?"),
        wrong("next_point", partial(_share, between=False),
              """The answer is the first point at or below the goal. The curve came down to it
              between that point and the one before.""",
              "Where does a straight line between the two points cross the goal?"),
        wrong("zeros_at_the_edges", partial(_share, mean=_padded),
              """The mean at the ends of a curve has zeros in it: mode "same" pads with them. Their
              last mean is far too low.""",
              "What do the last points of mode \"same\" average over?"),
        wrong("upside_down", _upside_down,
              """This is how many times ours is faster. Asked is the share of their tokens that ours
              needs, below 1 where ours is faster.""",
              "Is the share of a faster run above 1 or below it?"),
        wrong("losses_compared", _of_losses,
              """The two last losses are divided. How much lower a loss is says nothing of how many
              tokens it saves.""",
              "At how many tokens was ours where theirs ended?"),
        wrong("table_that_falls", _rising_table,
              """np.interp wants its second argument rising. Of losses, which fall and are noisy, it
              makes nonsense without a word.""",
              "In which order does np.interp expect the points that it looks among?"),
        wrong("never_is_at_once", partial(_share, missing=lambda at: at[0]),
              """Where ours never comes down to the goal, the first point is taken: argmax of an
              array in which nothing is true is 0.""",
              "What is np.argmax of [False, False], and what should your function say then?"),
        wrong("never_is_the_end", partial(_share, missing=lambda at: at[-1]),
              """Where ours never comes down to the goal, the answer says that it did so at the end.
              It did not.""",
              "Which number says: not within this run?"),
    ),
)


def _median(past: Array) -> tuple[float, float]:
    middle = float(np.median(past))
    return middle, float(np.median(np.abs(past - middle)))


def _mean_and_std(past: Array) -> tuple[float, float]:
    return float(past.mean()), float(past.std())


def _median_and_std(past: Array) -> tuple[float, float]:
    return float(np.median(past)), float(past.std())


def _sigma(past: Array) -> tuple[float, float]:
    middle, spread = _median(past)
    return middle, 1.4826 * spread


def _times_the_median(past: Array) -> tuple[float, float]:
    return 0.0, float(np.median(past))


def _one_nat(past: Array) -> tuple[float, float]:
    return float(np.median(past)), 1.0


def _spikes(
    losses: Array, before: int, times: float, *, of: Any = _median,
    window: Any = lambda t, before: (t - before, t), first: int | None = None, down: bool = False,
) -> Array:
    """Right as it stands; window: from where to where the step is compared with."""
    out = np.zeros(len(losses), bool)
    for t in range(before if first is None else first, len(losses)):
        low, high = window(t, before)
        middle, spread = of(losses[max(0, low) : high])
        off = losses[t] - middle
        out[t] = (abs(off) if down else off) > times * spread
    return out


def _whole_run(losses: Array, before: int, times: float) -> Array:
    middle, spread = _median(losses)
    out = losses > middle + times * spread
    out[:before] = False
    return out


def _jumps(losses: Array, before: int, times: float) -> Array:
    out = np.zeros(len(losses), bool)
    for t in range(before, len(losses)):
        _, spread = _median(losses[t - before : t])
        out[t] = losses[t] - losses[t - 1] > times * spread
    return out


def _noisy(rng: np.random.Generator, steps: int, before: int, times: float) -> Case:
    """A curve with a rise at once, a spike of some steps, a lucky batch, one that is just enough,
    and at last a new level."""
    losses = 2 + 0.5 * np.exp(-np.arange(steps) / 10) + rng.uniform(-0.1, 0.1, steps)
    losses[2] = losses[:2].max() + 0.8
    at = 2 * before + int(rng.integers(0, 4))
    losses[at : at + before // 2] += 1.5
    for place, size in ((at + 2 * before, -2.0), (at + 2 * before + 3, 1.2)):
        middle, spread = _median(losses[place - before : place])
        losses[place] = middle + size * times * spread
    losses[-before - 2 :] += 2.5
    return losses, before, times


def _loss_cases(rng: np.random.Generator) -> list[Case]:
    """Odd windows, so that a median is one of the numbers."""
    return [_noisy(rng, steps, before, times)
            for steps, before, times in ((90, 11, 6.0), (110, 13, 5.0), (80, 9, 7.0))]


def _first_steps(call: Any, args: Case, out: Array) -> str | None:
    before = args[1]
    if not out[:before].any():
        return None
    return f"Step {int(out[:before].argmax())} is marked, and {before} steps have to come before."


def _future(call: Any, args: Case, out: Array) -> str | None:
    losses, before, times = args
    cut = len(losses) - before
    got = call(losses[:cut], before, times)
    if (got == out[:cut]).all():
        return None
    return f"Without the last {before} losses step {int((got != out[:cut]).argmax())} is another."


SPIKES = Exercise(
    id="training.spikes",
    lesson="10",
    title="A spike, or only noise?",
    difficulty=3,
    minutes=15,
    why="“No spike” means something only if the rule was there before the curve was looked at.",
    signature="spikes(losses, before, times) -> (steps,)",
    axes="step",
    cases=_loss_cases,
    reference=_spikes,
    invariants=(
        Invariant("a step is judged by what came before it, so later losses change nothing.",
                  _future),
        Invariant("the first steps have too few before them, so none is marked.", _first_steps),
    ),
    wrong=(
        wrong("mean_and_deviation",
              (partial(_spikes, of=_mean_and_std), partial(_spikes, of=_median_and_std)),
              """The spread is the standard deviation. The first step of a spike makes it so large
              that the rest of the spike passes for noise.""",
              "What do one value of 100 and ten of 0 have for a standard deviation, and what for a "
              "median distance?"),
        wrong("own_loss_counts",
              partial(_spikes, window=lambda t, before: (t - before + 1, t + 1)),
              """The step that is judged is among the losses it is judged by.""",
              "Which slice of losses ends just before step t?"),
        wrong("looks_ahead",
              (partial(_spikes, window=lambda t, before: (t - before // 2, t + before // 2 + 1)),
               partial(_spikes, window=lambda t, before: (t - before, t + before + 1))),
              """Losses after the step are looked at too. While a run is going there are none, and a
              lasting rise then excuses itself.""",
              "What is known at step t?"),
        wrong("both_sides", partial(_spikes, down=True),
              """Steps far below the others are marked as well. A batch that is easy is no
              spike.""",
              "Is a loss that falls a reason to worry?"),
        wrong("too_few_before", partial(_spikes, first=1),
              """The first steps are judged by the few that there are. Of one or two losses there is
              no spread, and any rise is a spike.""",
              "What is the median distance of a single number from itself?"),
        wrong("whole_run", _whole_run,
              """Every step is compared with the whole run. Its losses fall all the time, so early
              ones are high and late spikes are not seen.""",
              "What was the loss just before?"),
        wrong("jumps_only", _jumps,
              """A step is compared with the one before it, so only the first step of a spike is
              marked.""",
              "What does the second step of a spike differ from?"),
        wrong("as_if_normal", partial(_spikes, of=_sigma),
              """The median distance is multiplied by 1.4826, which makes a standard deviation of it
              for normal noise. Here `times` counts median distances.""",
              "In which unit is `times`?"),
        wrong("spread_forgotten",
              (partial(_spikes, of=_one_nat), partial(_spikes, of=_times_the_median)),
              """The limit does not ask how noisy the losses are: it is `times` nats above their
              median, or `times` the median itself.""",
              "Would the same limit do for batches a thousand times as large?"),
    ),
)
