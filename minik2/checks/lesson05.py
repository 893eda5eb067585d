"""Lesson 05: the router.

Unusual here: gates are dense, (T, E) with zeros for the experts that a token does not go to. It
is slower than the engine's list of K choices and has no order in which the choices could come. What
a case draws is drawn again until no two experts are close to a tie, so that float32 chooses alike.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from minik2.checks.exercise import Case, Exercise, Invariant, wrong

TITLE = "The router"

Array = np.ndarray[Any, np.dtype[Any]]

# Far above float32's rounding, far below what tells experts apart.
CLOSE = 3e-3


def _sigmoid(logits: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-logits)))


def _softmax(logits: Array, axis: int = -1) -> Array:
    powers = np.exp(logits - logits.max(axis, keepdims=True))
    return np.asarray(powers / powers.sum(axis, keepdims=True))


def _same(logits: Array) -> Array:
    return logits


def _biased(scores: Array, bias: Array) -> Array:
    return scores + bias


def _unbiased(scores: Array, bias: Array) -> Array:
    return scores


def _largest(choice: Array, k: int, axis: int = -1) -> Array:
    """True for the k largest along an axis."""
    order = np.argsort(-choice, axis=axis, kind="stable")
    chosen = np.zeros(choice.shape, bool)
    np.put_along_axis(chosen, np.take(order, range(k), axis), True, axis)
    return chosen


def _renormalised(kept: Array, scores: Array) -> Array:
    return kept / kept.sum(-1, keepdims=True)


def _choose_and_weigh(
    x: Array, weight: Array, bias: Array, k: int, scale: float, *, score: Any = _sigmoid,
    choose: Any = _biased, weigh: Any = _unbiased, normalise: Any = _renormalised,
    axis: int = -1, order: int = 1, factor: float | None = None,
) -> Array:
    """Right as it stands: each keyword is one thing to get wrong."""
    scores = score(x @ weight.T)
    chosen = _largest(order * choose(scores, bias), k, axis)
    kept = np.where(chosen, weigh(scores, bias), 0)
    return np.asarray(normalise(kept, scores) * (scale if factor is None else factor))


def _bias_on_logits(
    x: Array, weight: Array, bias: Array, k: int, scale: float, leak: bool
) -> Array:
    logits = x @ weight.T
    scores = _sigmoid(logits + bias * leak)
    return _renormalised(np.where(_largest(logits + bias, k), scores, 0), scores) * scale


def _softmax_of_chosen(
    x: Array, weight: Array, bias: Array, k: int, scale: float, choose: Any, weigh: Any
) -> Array:
    logits = x @ weight.T
    chosen = _largest(choose(logits) + bias, k)
    return _softmax(np.where(chosen, weigh(logits), -np.inf)) * scale


def _weights_of_the_best(x: Array, weight: Array, bias: Array, k: int, scale: float) -> Array:
    scores = _sigmoid(x @ weight.T)
    chosen = np.argsort(-(scores + bias), -1)[:, :k]
    gates = np.zeros_like(scores)
    np.put_along_axis(gates, chosen, -np.sort(-scores, -1)[:, :k], -1)
    return _renormalised(gates, scores) * scale


def _nobody_left_out(x: Array, weight: Array, bias: Array, k: int, scale: float) -> Array:
    scores = _sigmoid(x @ weight.T)
    kept = np.where(_largest(scores + bias, k), scores, 0)
    return np.asarray(scores / kept.sum(-1, keepdims=True) * scale)


def _clear(choice: Array, k: int) -> bool:
    """No token's k-th and next expert are close to a tie."""
    ordered = -np.sort(-choice, -1)
    return k == choice.shape[-1] or bool((ordered[:, k - 1] - ordered[:, k]).min() > CLOSE)


def _router_cases(rng: np.random.Generator) -> list[Case]:
    """T, E, D and K differ; then T, E and D are equal; then one expert a token."""
    cases: list[Case] = []
    for tokens, experts, size, k in ((8, 12, 5, 3), (6, 9, 7, 4), (7, 7, 7, 3), (9, 10, 6, 1)):
        while True:
            x, weight = rng.normal(size=(tokens, size)), rng.normal(size=(experts, size))
            weight *= 1.5 / np.sqrt(size)
            bias = rng.uniform(-0.6, 0.6, experts)
            scores = _sigmoid(x @ weight.T)
            better = _largest(scores + bias, k) != _largest(scores, k)
            if _clear(scores + bias, k) and better.any(axis=1).sum() > 2:
                break
        cases.append((x, weight, bias, k, float(rng.uniform(1.5, 3.5))))
    return cases


def _k_experts_each(call: Any, args: Case, out: Array) -> str | None:
    counts = (np.abs(out) > 1e-6).sum(-1)
    if (counts == args[3]).all():
        return None
    token = int((counts != args[3]).argmax())
    return f"Token {token} has {counts[token]} experts with a weight; k is {args[3]}."


def _sum_is_scale(call: Any, args: Case, out: Array) -> str | None:
    scale, sums = args[4], out.sum(-1)
    bad = np.abs(sums - scale) > 1e-3 * scale
    if not bad.any():
        return None
    token = int(bad.argmax())
    return f"The weights of token {token} sum to {sums[token]:.4g}; scale is {scale:.4g}."


def _only_differences_of_biases(call: Any, args: Case, out: Array) -> str | None:
    x, weight, bias, k, scale = args
    change = np.abs(call(x, weight, bias + 0.5, k, scale) - out).max()
    if change < 1e-3 * scale:
        return None
    return f"With every bias 0.5 larger, a weight changed by {change:.4g}."


CHOOSE_AND_WEIGH = Exercise(
    id="router.choose_and_weigh",
    lesson="05",
    title="Choose with the bias, weigh without it",
    difficulty=3,
    minutes=15,
    why="Two widely used engines had the bias in the weights for a while, and ran.",
    signature="choose_and_weigh(x, weight, bias, k, scale) -> (T, E)",
    axes="T E",
    cases=_router_cases,
    reference=_choose_and_weigh,
    invariants=(
        Invariant("every token goes to k experts, and all others have the weight 0.",
                  _k_experts_each),
        Invariant("the weights of a token sum to the scaling factor.", _sum_is_scale),
        Invariant("the bias only ranks experts, so adding the same number to all changes nothing.",
                  _only_differences_of_biases),
    ),
    wrong=(
        wrong("bias_in_weights", partial(_choose_and_weigh, weigh=_biased),
              """These are the weights you get when the bias leaks into them: the same biased
              scores choose the experts and weigh them.""",
              "The bias is there to even out the load. Should a token listen more to an expert "
              "because that expert is idle?"),
        wrong("bias_ignored", partial(_choose_and_weigh, choose=_unbiased),
              """The experts are the k with the largest scores; the bias, which should correct
              this choice, is not used.""",
              "Which line of yours would notice if one expert's bias were 10?"),
        wrong("bias_subtracted", partial(_choose_and_weigh, choose=lambda s, b: s - b),
              """The bias is subtracted from the scores, so what should help an expert keeps
              tokens away from it.""",
              "Should an expert with a large bias be chosen more often, or less?"),
        wrong("bias_on_logits", (partial(_bias_on_logits, leak=False),
                                 partial(_bias_on_logits, leak=True)),
              """The bias is added to the logits, before the sigmoid. There it moves a score near
              one half far, and a score near 0 or 1 hardly at all.""",
              "Is b added to a number between 0 and 1, or to one that may be anything?"),
        wrong("softmax_scores", partial(_choose_and_weigh, score=_softmax),
              """The scores are a softmax over all experts, as in DeepSeek-V2. There the scores of a
              token share one unit, so they are small, and the same bias moves far more
              choices.""",
              "Does the score of one expert depend on the other experts' scores in a sigmoid?"),
        wrong("softmax_of_chosen",
              tuple(partial(_softmax_of_chosen, choose=choose, weigh=weigh)
                    for choose in (_sigmoid, _same) for weigh in (_same, _sigmoid)),
              """The chosen experts are weighed by a softmax over the chosen, as in Mixtral. Here
              the scores themselves are divided by their sum.""",
              "How do you turn four positive scores into shares of 1, without an exponential?"),
        wrong("logits_as_scores", partial(_choose_and_weigh, score=_same),
              """There is no sigmoid: the logits themselves choose, and weigh. Some are negative,
              and so are weights made from them.""",
              "Which function makes a logit a number between 0 and 1?"),
        wrong("not_renormalised", partial(_choose_and_weigh, normalise=lambda kept, s: kept),
              """The chosen scores are used as they are, without division by their sum. A token
              whose scores are all small then gets little from its experts.""",
              "What do the k weights of a token sum to in your answer?"),
        wrong("normalised_over_all",
              partial(_choose_and_weigh, normalise=lambda kept, s: kept / s.sum(-1, keepdims=True)),
              """The weights are divided by the sum of all E scores, not by that of the k chosen
              ones.""",
              "What do the k weights of a token sum to, and what should they?"),
        wrong("normalised_over_tokens",
              (partial(_choose_and_weigh,
                       normalise=lambda kept, s: kept / np.maximum(kept.sum(0), 1e-20)),
               partial(_choose_and_weigh, normalise=lambda kept, s: kept / kept.sum())),
              """The sum that divides the weights runs over tokens. A token's weights would then
              depend on which other tokens happen to be in the batch.""",
              "Along which axis of (T, E) are the weights of one token?"),
        wrong("scale_forgotten", partial(_choose_and_weigh, factor=1.0),
              """The weights of a token sum to 1: the scaling factor is missing, or it was applied
              before the division, where it cancels.""",
              "What should the weights of a token sum to, and which step comes last?"),
        wrong("weights_of_the_best", _weights_of_the_best,
              """The k largest scores are written to the k chosen places. The bias chose other
              experts than those that have the largest scores: each must get its own score.""",
              "Whose score is the largest, and did that expert get chosen?"),
        wrong("nobody_left_out", _nobody_left_out,
              """All experts keep a weight, also those that were not chosen. Then all E of them
              would have to run, and nothing is saved.""",
              "What is the weight of an expert that a token does not go to?"),
        wrong("experts_choose_tokens", partial(_choose_and_weigh, axis=0),
              """The k largest are taken down the columns: each expert picks k tokens. That is a
              router too ("expert choice"), but some tokens get more than k experts and others
              none.""",
              "Is it a row or a column of (T, E) in which k experts are to be found?"),
        wrong("smallest_chosen", partial(_choose_and_weigh, order=-1),
              """The k experts with the smallest biased scores are chosen: argsort puts the smallest
              first.""",
              "At which end of what argsort returns are the largest?"),
    ),
)


def _worth(grouped: Array, best: int = 2) -> Array:
    """Of each group (T, G, E/G): the sum of its best scores."""
    return np.asarray(np.sort(grouped, -1)[..., -best:].sum(-1))


def _group_limited(
    choice: Array, groups: int, kept: int, k: int, *, worth: Any = _worth, order: int = 1,
    hidden: float = -np.inf, late: bool = False,
) -> Array:
    """Right as it stands; `late`: of equal ones the later win."""
    grouped = choice.reshape(len(choice), groups, -1)
    stay = _largest(order * worth(grouped), kept)
    masked = np.where(stay[..., None], grouped, hidden).reshape(choice.shape)
    # A copy: torch takes no array that runs backwards.
    return _largest(masked[:, ::-1], k)[:, ::-1].copy() if late else _largest(masked, k)


def _groups_ignored(choice: Array, groups: int, kept: int, k: int) -> Array:
    return _largest(choice, k)


def _paper_worth(choice: Array, groups: int, kept: int, k: int) -> Array:
    return _group_limited(choice, groups, kept, k, worth=partial(_worth, best=max(1, k // kept)))


def _interleaved(choice: Array, groups: int, kept: int, k: int) -> Array:
    turn = np.arange(choice.shape[1]).reshape(-1, groups).T.flatten()
    chosen = np.zeros(choice.shape, bool)
    chosen[:, turn] = _group_limited(choice[:, turn], groups, kept, k)
    return chosen


def _groups_of_the_batch(choice: Array, groups: int, kept: int, k: int) -> Array:
    def worth(grouped: Array) -> Array:
        own = _worth(grouped)
        return np.broadcast_to(own.sum(0), own.shape)

    return _group_limited(choice, groups, kept, k, worth=worth)


def _compact_numbers(choice: Array, groups: int, kept: int, k: int, ranked: bool) -> Array:
    grouped = choice.reshape(len(choice), groups, -1)
    best = np.argsort(-_worth(grouped), -1)[:, :kept]
    best = best if ranked else np.sort(best, -1)
    short = np.take_along_axis(grouped, best[..., None], 1).reshape(len(choice), -1)
    chosen = np.zeros(choice.shape, bool)
    chosen[:, :short.shape[1]] = _largest(short, k)
    return chosen


def _group_cases(rng: np.random.Generator) -> list[Case]:
    """Biased scores, in some cases most of them negative; K / kept is 1, 2 and 3."""
    cases: list[Case] = []
    for tokens, groups, size, kept, k, low in (
            (7, 4, 5, 2, 3, 0.9), (9, 6, 4, 3, 6, 0.0), (8, 3, 7, 1, 3, 0.7), (5, 5, 5, 2, 6, 1.2)):
        while True:
            choice = rng.uniform(0, 1, (tokens, groups * size))
            choice += rng.normal(0, 0.3, groups * size) - low
            grouped = choice.reshape(tokens, groups, size)
            stay = _largest(_worth(grouped), kept)[..., None]
            masked = np.where(stay, grouped, -9.0).reshape(choice.shape)
            # However many of a group's best count, if not two, some token must go elsewhere.
            apart = [(_group_limited(choice, groups, kept, k, worth=partial(_worth, best=best))
                      != _largest(masked, k)).any() for best in {1, k // kept, size} - {2}]
            if _clear(_worth(grouped), kept) and _clear(masked, k) and all(apart):
                break
        cases.append((choice, groups, kept, k))
    return cases


def _k_chosen(call: Any, args: Case, out: Array) -> str | None:
    counts, k = out.sum(-1), args[3]
    if (counts == k).all():
        return None
    token = int((counts != k).argmax())
    return f"Token {token} goes to {counts[token]} experts; k is {k}."


def _few_groups(call: Any, args: Case, out: Array) -> str | None:
    choice, groups, kept, _ = args
    touched = out.reshape(len(choice), groups, -1).any(-1).sum(-1)
    if (touched <= kept).all():
        return None
    token = int(touched.argmax())
    return f"The experts of token {token} lie in {touched[token]} groups; {kept} may be kept."


def _shift_is_harmless(call: Any, args: Case, out: Array) -> str | None:
    choice, groups, kept, k = args
    moved = (call(choice - 3, groups, kept, k) != out).any(-1)
    if not moved.any():
        return None
    return f"With every score 3 smaller, token {int(moved.argmax())} goes to other experts."


GROUP_LIMITED = Exercise(
    id="router.group_limited",
    lesson="05",
    title="V3's choice: groups first, then experts",
    difficulty=3,
    minutes=15,
    why="It is the one step of V3's router that K2 leaves out.",
    signature="group_limited(choice, groups, kept, k) -> (T, E)",
    axes="T E",
    cases=_group_cases,
    reference=_group_limited,
    invariants=(
        Invariant("every token goes to k experts.", _k_chosen),
        Invariant("the experts of a token lie in no more than `kept` groups.", _few_groups),
        Invariant("only the order of the scores counts, so subtracting the same from all changes "
                  "nothing.", _shift_is_harmless),
    ),
    wrong=(
        wrong("groups_ignored", _groups_ignored,
              """These are the k best of all experts, as in K2: the groups play no part.""",
              "In how many groups may the experts of a token lie?"),
        wrong("best_expert_only", partial(_group_limited, worth=partial(_worth, best=1)),
              """A group is worth its single best expert here. That is DeepSeek-V2's rule; V3 adds
              up the two best.""",
              "Would a group with scores 0.9 and 0.1 win against one with 0.8 and 0.8?"),
        wrong("whole_group", partial(_group_limited, worth=lambda grouped: grouped.sum(-1)),
              """A group is worth the sum, or mean, of all its experts. Then many middling ones beat
              the two that the token needs.""",
              "How many of a group's experts count for its worth?"),
        wrong("k_over_kept", _paper_worth,
              """A group is worth its k/kept best experts. So says the formula in V3's paper, and
              with 8 and 4 that is 2; the released code takes the best 2 always, and so does this
              exercise.""",
              "How many scores do you add up when k is 6 and two groups are kept?"),
        wrong("worst_groups_kept", partial(_group_limited, order=-1),
              """The groups that are worth least are kept: argsort puts the smallest first.""",
              "At which end of what argsort returns are the largest?"),
        wrong("masked_with_zero", (partial(_group_limited, hidden=0.0),
                                   partial(_group_limited, hidden=0.0, late=True)),
              """Experts outside the kept groups get the score 0, or are multiplied by 0. Biased
              scores can be negative, and then a masked 0 is larger and wins.""",
              "Which number is smaller than every score that a bias can produce?"),
        wrong("neighbours_in_different_groups", _interleaved,
              """Expert e is put into group e modulo the number of groups. Groups are neighbours: of
              12 experts in 3 groups the first holds 0 to 3, as the machines do.""",
              "Does reshape(T, groups, -1) or reshape(T, -1, groups) keep neighbours together?"),
        wrong("groups_of_the_batch", _groups_of_the_batch,
              """The groups are chosen once, from the sum over all tokens. Each token chooses its
              own.""",
              "What is the shape of the groups' worth: (groups,) or (T, groups)?"),
        wrong("compact_numbers", (partial(_compact_numbers, ranked=True),
                                  partial(_compact_numbers, ranked=False)),
              """The kept groups were put side by side, and the places in that shorter list are
              taken for experts' numbers.""",
              "If groups 1 and 3 are kept, which expert stands first in your shorter list?"),
    ),
)


def _counts(gates: Array) -> Array:
    return np.asarray((gates != 0).sum(0))


def _sign(loads: Array, speed: float) -> Array:
    return np.asarray(speed * np.sign(loads.mean() - loads))


def _bias_update(
    bias: Array, gates: Array, speed: float, *, count: Any = _counts, step: Any = _sign
) -> Array:
    """Right as it stands: each keyword is one thing to get wrong."""
    return np.asarray(bias + step(count(gates), speed))


def _step_against(even: Callable[[Array], float]) -> Any:
    def step(loads: Array, speed: float) -> Array:
        return np.asarray(speed * np.sign(even(loads) - loads))

    return step


def _one_choice_a_token(bias: Array, gates: Array, speed: float) -> Array:
    return np.asarray(bias + speed * np.sign(len(gates) / len(bias) - _counts(gates)))


def _mean_free(loads: Array, speed: float) -> Array:
    sign = np.sign(loads.mean() - loads)
    return np.asarray(speed * (sign - sign.mean()))


def _by_violation(divide: Callable[[Array], float]) -> Any:
    return lambda loads, speed: speed * (loads.mean() - loads) / divide(loads)


def _idle_stay(even: Callable[[Array], float]) -> Any:
    return lambda loads, speed: speed * np.sign(even(loads) - loads) * (loads > 0)


def _mean_of_busy(loads: Array) -> float:
    return float(loads[loads > 0].mean())


def _update_cases(rng: np.random.Generator) -> list[Case]:
    """One expert idle, one with exactly its share; weights and counts disagree on another.

    T and E are powers of two, so that shares and means have no rounding.
    """
    cases: list[Case] = []
    for tokens, experts, k in ((32, 8, 4), (16, 8, 3), (32, 16, 2), (16, 16, 4)):
        even = tokens * k // experts
        while True:
            taste = rng.normal(0, 0.5, experts)
            taste[int(rng.integers(experts))] = -9.0
            chosen = _largest(taste + rng.normal(size=(tokens, experts)), k)
            gates = np.where(chosen, rng.uniform(0.1, 1, chosen.shape), 0)
            gates *= 2.5 / gates.sum(-1, keepdims=True)
            loads, sums = chosen.sum(0), gates.sum(0)
            sign = np.sign(even - loads)
            busy = np.sign(_mean_of_busy(loads) - loads)
            otherwise = np.sign(sums.mean() - sums)
            # In the first case some load lies between the mean of all and that of the busy.
            between = (busy != sign) & (sign != 0) if not cases else busy != sign
            if (0 in sign and between.any() and sign.sum() != 0
                    and ((otherwise != sign) & (sign != 0)).any()):
                break
        cases.append((rng.normal(0, 0.3, experts), gates, float(rng.uniform(0.1, 0.2))))
    return cases


def _step_is_speed(call: Any, args: Case, out: Array) -> str | None:
    bias, _, speed = args
    moved = np.abs(out - bias)
    bad = (np.abs(moved - speed) > 1e-3 * speed) & (moved > 1e-3 * speed)
    if not bad.any():
        return None
    expert = int(bad.argmax())
    return f"The bias of expert {expert} moved by {moved[expert]:.4g}; the speed is {speed:.4g}."


def _idle_rises(call: Any, args: Case, out: Array) -> str | None:
    bias, gates, speed = args
    idle = (gates == 0).all(0)
    low = idle & (out - bias < 1e-3 * speed)
    if not low.any():
        return None
    expert = int(low.argmax())
    return (f"Nobody chose expert {expert}, and its bias changed by "
            f"{out[expert] - bias[expert]:.4g}.")


BIAS_UPDATE = Exercise(
    id="router.bias_update",
    lesson="05",
    title="The step of the bias",
    difficulty=2,
    minutes=10,
    why="It balances the experts' load without a loss term that pulls against the model's own.",
    signature="bias_update(bias, gates, speed) -> (E,)",
    axes="E",
    cases=_update_cases,
    reference=_bias_update,
    invariants=(
        Invariant("a step moves each bias by the speed or not at all.", _step_is_speed),
        Invariant("an expert that nobody chose becomes likelier to be chosen.", _idle_rises),
    ),
    wrong=(
        wrong("sign_flipped", partial(_bias_update, step=lambda n, speed: -_sign(n, speed)),
              """The sign is the other one: the busy experts are made likelier still, and the idle
              ones never come back.""",
              "An expert had more than its share. Should its bias rise or fall?"),
        wrong("in_proportion",
              tuple(partial(_bias_update, step=_by_violation(divide)) for divide in (
                  lambda n: 1.0, lambda n: n.mean(), lambda n: n.sum(), lambda n: n.max(),
                  lambda n: n.std())),
              """The step is in proportion to how far a load is from its share. V3's rule takes the
              sign alone: every expert that is off moves by the same small step.""",
              "How far does the bias of an expert move that is twice as far off?"),
        wrong("weights_for_counts", partial(_bias_update, count=lambda gates: gates.sum(0)),
              """Loads are sums of weights. What takes time in an expert is the number of its
              tokens, whatever weight they give it.""",
              "How much more work is a token of weight 0.9 than one of weight 0.1?"),
        wrong("one_choice_a_token", _one_choice_a_token,
              """An even share is taken as T / E. Each token makes K choices, so there are T K of
              them to share out, and nearly every expert looks overloaded here.""",
              "What do the loads sum to: T, or something else?"),
        wrong("nobody_rests",
              tuple(partial(_bias_update, step=step) for step in (
                  lambda n, speed: np.where(n > n.mean(), -speed, speed),
                  lambda n, speed: np.where(n < n.mean(), speed, -speed))),
              """An expert that has exactly its share is moved as well. The sign of 0 is 0: it
              rests.""",
              "What does np.sign(0) give, and what does your comparison make of equal loads?"),
        wrong("idle_left_out",
              (partial(_bias_update, step=_step_against(_mean_of_busy)),
               partial(_bias_update, step=_idle_stay(_mean_of_busy)),
               partial(_bias_update, step=_idle_stay(lambda n: float(n.mean())))),
              """Experts without a token are left out, of the mean, of the step, or of both. They
              are the ones for which the bias is there. (np.unique and Counter do not list
              them.)""",
              "How many experts does the mean run over: all E, or those that somebody chose?"),
        wrong("mean_free", partial(_bias_update, step=_mean_free),
              """The mean of the signs is taken off, so that the biases keep their sum. That is
              Moonlight's rule (arXiv 2502.16982, appendix C), and it leads to the same choices;
              here V3's plain one is asked for.""",
              "Can the bias of an expert that has exactly its share move under V3's rule?"),
        wrong("one_side_only",
              (partial(_bias_update, step=lambda n, speed: speed * (n < n.mean())),
               partial(_bias_update, step=lambda n, speed: -speed * (n > n.mean()))),
              """Only one side moves: either the idle rise and the busy stay, or the busy fall and
              the idle stay.""",
              "What happens to an expert above the mean, and what to one below it?"),
        wrong("bias_multiplied", lambda bias, gates, speed: (
            bias * (1 + _sign(_counts(gates), speed))),
              """The bias is multiplied by the step. Biases begin at 0, and would stay there; and a
              negative one would move the wrong way.""",
              "What becomes of a bias of 0?"),
        wrong("change_only", lambda bias, gates, speed: _sign(_counts(gates), speed),
              """This is the step alone. The new bias is the old one plus the step.""",
              "What is the bias after a step in which every load was even?"),
    ),
)


def _expert(x: Array, gate_up: Array, down: Array) -> Array:
    gate, up = np.split(x @ gate_up.T, 2, axis=-1)
    return np.asarray((gate * _sigmoid(gate) * up) @ down.T)


def _routed(x: Array, gates: Array, gate_up: Array, down: Array) -> Array:
    each = [w[:, None] * _expert(x, *e)
            for w, *e in zip(gates.T, gate_up, down, strict=True)]
    return np.asarray(np.sum(each, axis=0))


def _summed(routed: Array, shared: Array, gates: Array) -> Array:
    return routed + shared


def _with_shared_expert(
    x: Array, gates: Array, gate_up: Array, down: Array, shared_gate_up: Array, shared_down: Array,
    *, join: Any = _summed, route: Any = _routed,
) -> Array:
    """Right as it stands; join(routed, shared, gates) puts the two together."""
    shared = _expert(x, shared_gate_up, shared_down)
    return np.asarray(join(route(x, gates, gate_up, down), shared, gates))


def _weights_on_input(x: Array, gates: Array, gate_up: Array, down: Array) -> Array:
    return np.asarray(np.sum([_expert(x * w[:, None], *e) * (w[:, None] != 0)
                              for w, *e in zip(gates.T, gate_up, down, strict=True)], axis=0))


def _weights_ignored(x: Array, gates: Array, gate_up: Array, down: Array) -> Array:
    return _routed(x, (gates != 0).astype(float), gate_up, down)


def _in_a_row(
    x: Array, gates: Array, gate_up: Array, down: Array, shared_gate_up: Array, shared_down: Array,
    *, shared_first: bool, kept: float, skip: float,
) -> Array:
    """One block after the other; kept: of the first one's output; skip: of x, to the second."""
    if shared_first:
        first = _expert(x, shared_gate_up, shared_down)
        return kept * first + _routed(first + skip * x, gates, gate_up, down)
    first = _routed(x, gates, gate_up, down)
    return kept * first + _expert(first + skip * x, shared_gate_up, shared_down)


def _total(gates: Array) -> Array:
    return np.asarray(gates.sum(-1, keepdims=True))


def _how_many(gates: Array) -> Array:
    return np.asarray((gates != 0).sum(-1, keepdims=True))


def _shared_cases(rng: np.random.Generator) -> list[Case]:
    cases: list[Case] = []
    for tokens, experts, size, width, shared, k in (
            (7, 5, 4, 3, 6, 2), (4, 6, 5, 7, 3, 3), (5, 5, 5, 5, 5, 4)):
        chosen = _largest(rng.normal(size=(tokens, experts)), k)
        gates = np.where(chosen, rng.uniform(0.2, 1, chosen.shape), 0)
        gates *= rng.uniform(1.6, 3.2) / gates.sum(-1, keepdims=True)
        shapes = ((experts, 2 * width, size), (experts, size, width), (2 * shared, size),
                  (size, shared))
        weights = [rng.normal(size=shape) * 1.6 / np.sqrt(shape[-1]) for shape in shapes]
        cases.append((rng.normal(size=(tokens, size)), gates, *weights))
    return cases


def _shared_alone(call: Any, args: Case, out: Array) -> str | None:
    x, gates, gate_up, down, *shared = args
    alone = _expert(x, *shared)
    off = np.abs(call(x, np.zeros_like(gates), gate_up, down, *shared) - alone).max()
    if off < 1e-3 * max(1, np.abs(alone).max()):
        return None
    return f"With all gates 0 the output is off from the shared expert's by {off:.4g}."


WITH_SHARED_EXPERT = Exercise(
    id="router.with_shared_expert",
    lesson="05",
    title="Routed experts and the shared one",
    difficulty=2,
    minutes=10,
    why="It is the last step of a layer of K2: what comes out is added to the token's vector.",
    signature="with_shared_expert(x, gates, gate_up, down, shared_gate_up, shared_down) -> (T, D)",
    axes="T D",
    cases=_shared_cases,
    reference=_with_shared_expert,
    invariants=(
        Invariant("the shared expert works whatever the router says: with all gates 0 it is all "
                  "that is left.", _shared_alone),
    ),
    wrong=(
        wrong("shared_forgotten", partial(_with_shared_expert, join=lambda r, s, g: r),
              """The shared expert is not there: only the routed experts are summed.""",
              "Which of your arguments do you not use?"),
        wrong("shared_scaled", partial(_with_shared_expert, join=lambda r, s, g: r + _total(g) * s),
              """The shared expert is multiplied by the scaling factor, or by the sum of the gates,
              which is the same. The factor belongs to the routed experts' weights alone.""",
              "With what weight does the shared expert enter: 1, or something that the router "
              "says?"),
        wrong("shared_as_one_more",
              partial(_with_shared_expert, join=lambda r, s, g: r + s * _total(g) / _how_many(g)),
              """The shared expert gets the mean weight of the chosen ones, as if it were one of
              them. It is not routed, and has no weight.""",
              "With what weight does the shared expert enter?"),
        wrong("averaged",
              (partial(_with_shared_expert, join=lambda r, s, g: (r + s) / 2),
               partial(_with_shared_expert, join=lambda r, s, g: (r + s) / (_how_many(g) + 1))),
              """Routed and shared output are averaged. They are added: the sum is the layer's
              output.""",
              "What would be left of the shared expert's output if all gates were 0?"),
        wrong("renormalised_together",
              (partial(_with_shared_expert,
                       join=lambda r, s, g: (r + s) * _total(g) / (_total(g) + 1)),
               partial(_with_shared_expert, join=lambda r, s, g: (r + s) / (_total(g) + 1))),
              """The shared expert was given the weight 1 and then all weights were normalised
              together. The router has normalised its own already, and the shared one stays out of
              it.""",
              "Whose weights sum to the scaling factor: of the routed experts, or of all?"),
        wrong("weights_ignored", partial(_with_shared_expert, route=_weights_ignored),
              """The outputs of the chosen experts are added without their weights.""",
              "Do two chosen experts with gates 1.2 and 0.3 say as much?"),
        wrong("weights_on_the_input", partial(_with_shared_expert, route=_weights_on_input),
              """The weight multiplies the expert's input. An expert is not linear, so that is not
              the same as multiplying its output.""",
              "Is expert(2 x) twice expert(x)?"),
        wrong("one_after_the_other",
              tuple(partial(_in_a_row, shared_first=first, kept=kept, skip=skip)
                    for first in (True, False) for kept, skip in ((0, 0), (1, 0), (1, 1), (0, 1))),
              """One of the two works on what the other has made. Both read the same x, side by
              side.""",
              "What is the input of the shared expert: x, or the routed experts' output?"),
        wrong("input_added",
              lambda x, *rest: x + _with_shared_expert(x, *rest),
              """The input x is added as well. That happens outside, around the whole block, where x
              has not been through the norm.""",
              "With every expert's down matrix 0, what should come out?"),
    ),
)
