"""Lesson 06: pairs sorted by expert, the experts' products, sums put back, and the balance.

Unusual here: three exercises are one layer in three steps, joined by `order` and `offsets`, so
the cases of the second and third are made with the right answer of the first. The right answers
are plain NumPy; a learner may write the second for Numba, and the check waits for its compiling.
"""

from functools import partial
from typing import Any

import numpy as np

from minik2.checks.exercise import Case, Exercise, Invariant, wrong

TITLE = "Sparse dispatch and balance"

Array = np.ndarray[Any, np.dtype[Any]]


def _offsets(flat: Array, experts: int) -> Array:
    return np.concatenate([[0], np.bincount(flat, minlength=experts).cumsum()])


def _sort_by_expert(indices: Array, experts: int) -> tuple[Array, Array]:
    flat = indices.reshape(-1)
    return np.argsort(flat, kind="stable"), _offsets(flat, experts)


def _with_order(order: Any) -> Any:
    """The right offsets, and an order of its own."""
    return lambda indices, experts: (order(indices), _offsets(indices.reshape(-1), experts))


def _with_offsets(offsets: Any) -> Any:
    """The right order, and offsets of its own."""
    return lambda indices, experts: (
        _sort_by_expert(indices, experts)[0], offsets(indices.reshape(-1), experts))


def _counts(flat: Array, experts: int) -> Array:
    return np.bincount(flat, minlength=experts)


def _busy_only(flat: Array, experts: int) -> Array:
    return np.concatenate([[0], np.unique(flat, return_counts=True)[1].cumsum()])


def _no_minlength(flat: Array, experts: int) -> Array:
    return np.concatenate([[0], np.bincount(flat).cumsum()])


def _choices(rng: np.random.Generator, tokens: int, chosen: int, among: Array) -> Array:
    """(tokens, chosen) experts out of `among`, different ones for a token, in no order."""
    return np.stack([rng.permutation(among)[:chosen] for _ in range(tokens)]).astype(np.int64)


def _sort_cases(rng: np.random.Generator) -> list[Case]:
    """Experts in the middle and at the end get nobody; one case is long enough for an unstable
    sort to show, one has all sizes equal, one is a single token, one has a single choice."""
    cases: list[Case] = []
    for tokens, chosen, experts in ((6, 2, 5), (int(rng.integers(7, 12)), 3, 8)):
        middle = int(rng.integers(1, experts - 2))
        among = np.array([e for e in range(experts - 1) if e != middle])
        cases.append((_choices(rng, tokens, chosen, among), experts))
    cases.append((_choices(rng, int(rng.integers(90, 120)), 4, np.arange(6)), 6))
    cases.append((_choices(rng, 4, 4, np.arange(4)), 4))
    cases.append((_choices(rng, 1, 3, np.arange(7)), 7))
    return [*cases, (_choices(rng, 9, 1, np.arange(4)), 5)]


def _every_pair_once(call: Any, args: Case, out: Any) -> str | None:
    order, pairs = out[0], args[0].size
    seen = np.bincount(np.clip(order, -1, pairs) + 1, minlength=pairs + 2)[1:-1]
    if (seen == 1).all():
        return None
    pair = int((seen != 1).argmax())
    return f"Of {pairs} pairs, pair {pair} occurs {seen[pair]} times."


def _experts_in_a_row(call: Any, args: Case, out: Any) -> str | None:
    experts = args[0].reshape(-1)[out[0]]
    falls = np.flatnonzero(np.diff(experts) < 0)
    if not falls.size:
        return None
    place = int(falls[0])
    return f"Place {place} belongs to expert {experts[place]}, the next to {experts[place + 1]}."


def _pairs_stay_in_order(call: Any, args: Case, out: Any) -> str | None:
    order = out[0]
    experts = args[0].reshape(-1)[order]
    falls = np.flatnonzero((np.diff(experts) == 0) & (np.diff(order) < 0))
    if not falls.size:
        return None
    place = int(falls[0])
    return (f"For expert {experts[place]} pair {order[place]} comes before pair "
            f"{order[place + 1]}.")


def _offsets_cut_where_the_expert_changes(call: Any, args: Case, out: Any) -> str | None:
    experts = np.sort(args[0].reshape(-1))
    for e in range(args[1]):
        own = experts[max(0, int(out[1][e])) : max(0, int(out[1][e + 1]))]
        count = int((args[0] == e).sum())
        if len(own) != count or (own != e).any():
            return (f"Expert {e} has {count} pairs; its offsets are {out[1][e]} and "
                    f"{out[1][e + 1]}.")
    return None


SORT_BY_EXPERT = Exercise(
    id="moe.sort_by_expert",
    lesson="06",
    title="Sort the pairs by expert",
    difficulty=2,
    minutes=15,
    why="Sorted, an expert's rows are neighbours: one product instead of one for every token.",
    signature="sort_by_expert(indices, experts) -> order (TK,) and offsets (E + 1,), both of int",
    cases=_sort_cases,
    reference=_sort_by_expert,
    invariants=(
        Invariant("every pair has one place in the order.", _every_pair_once),
        Invariant("along the order, the expert's number never falls.", _experts_in_a_row),
        Invariant("pairs of one expert keep the order they had.", _pairs_stay_in_order),
        Invariant("offsets[e] to offsets[e + 1] are the places of expert e, and of no other.",
                  _offsets_cut_where_the_expert_changes),
    ),
    wrong=(
        wrong("inverse", _with_order(lambda indices: np.argsort(
            np.argsort(indices.reshape(-1), kind="stable"), kind="stable")),
              """The order is the inverse permutation: it holds the sorted place of every pair. What
              is asked for is the pair at every place.""",
              "Does order[0] name the first pair of the lowest expert, or the place of pair 0?"),
        wrong("not_stable",
              (_with_order(lambda indices: np.argsort(indices.reshape(-1))),
               _with_order(lambda indices: np.argsort(indices.reshape(-1), kind="heapsort")),
               _with_order(lambda indices: np.lexsort(
                   (-np.arange(indices.size), indices.reshape(-1))))),
              """Within an expert the pairs are shuffled, or run backwards. np.argsort is free to do
              that unless kind="stable" forbids it. The sums stay right, but their last bits
              depend on the order, and the rows are read from all over the memory.""",
              "What does np.argsort promise about equal numbers, and which `kind` promises more?"),
        wrong("tokens_not_pairs",
              _with_order(lambda indices: np.argsort(indices.reshape(-1), kind="stable")
                          // indices.shape[1]),
              """The order names tokens. A token has K pairs, and which of its K weights belongs to
              a row is lost that way.""",
              "From token 3 alone, can you say which of its choices this row is for?"),
        wrong("each_token_sorted",
              (_with_order(lambda indices: np.argsort(indices, axis=1, kind="stable")),
               _with_order(lambda indices: np.argsort(indices, kind="stable").reshape(-1))),
              """Every token's own choices are sorted: np.argsort works along the last axis. The
              sort must run over the pairs of all tokens at once.""",
              "What must the shape of `indices` be before the sort, so that there is one row?"),
        wrong("all_first_choices_first",
              _with_order(lambda indices: np.argsort(indices.T.reshape(-1), kind="stable")),
              """The pairs are counted down the columns: all first choices, then all second ones.
              Pair t K + k is choice k of token t, as the rows of `indices` lie in memory.""",
              "With K = 2, which token and which choice is pair 1?"),
        wrong("values_sorted",
              _with_order(lambda indices: np.sort(indices.reshape(-1), kind="stable")),
              """The first result holds the experts' numbers, sorted. What is asked for is the
              pairs' numbers, in the order that sorts them.""",
              "What is the difference of np.sort and np.argsort?"),
        wrong("counts",
              (_with_offsets(_counts),
               _with_offsets(lambda flat, experts: np.concatenate(
                   [[0], _counts(flat, experts)]))),
              """The second result says how many pairs each expert has, not where they begin.""",
              "If experts 0 and 1 have 3 pairs each, at which place does expert 2 begin?"),
        wrong("ends_without_a_start",
              (_with_offsets(lambda flat, experts: _counts(flat, experts).cumsum()),
               _with_offsets(lambda flat, experts: np.searchsorted(
                   np.sort(flat), np.arange(experts + 1), side="right"))),
              """The offsets hold where each expert's places end, and the 0 at the front is missing:
              expert e would get the rows of expert e + 1.""",
              "What is offsets[0], whatever the choices are?"),
        wrong("starts_without_an_end",
              _with_offsets(lambda flat, experts: _offsets(flat, experts)[:-1]),
              """The offsets hold where each expert's places begin, E numbers. The last expert has
              no end: with one more number every expert is offsets[e] to offsets[e + 1].""",
              "Which two offsets enclose the last expert's places?"),
        wrong("empty_experts_dropped",
              (_with_offsets(_busy_only), _with_offsets(_no_minlength)),
              """Experts that nobody chose are missing in the offsets, all of them or those at the
              end, so that later experts slip into their places. An idle expert has two equal
              offsets.""",
              "What should np.bincount answer for an expert whose number does not occur?"),
    ),
)


def _silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def _swiglu(gate: Array, up: Array) -> Array:
    return _silu(gate) * up


def _halves(gate_up: Array) -> tuple[Array, Array]:
    half = gate_up.shape[-1] // 2
    return gate_up[:, :half], gate_up[:, half:]


def _grouped_swiglu(
    rows: Array, offsets: Array, gate_up_proj: Array, down_proj: Array, *,
    split: Any = _halves, act: Any = _swiglu, carried: str = "",
) -> Array:
    """Right as it stands; `carried`: the sum that is not set to 0 again."""
    out = np.empty_like(rows)
    for e in range(len(gate_up_proj)):
        own = slice(offsets[e], offsets[e + 1])
        gate, up = split(rows[own] @ gate_up_proj[e].T)
        if carried == "inner":
            gate, up = gate.cumsum(1), up.cumsum(1)
        out[own] = act(gate, up) @ down_proj[e].T
        if carried == "outer":
            out[own] = out[own].cumsum(1)
    return out


def _one_expert(rows: Array, offsets: Array, gate_up_proj: Array, down_proj: Array) -> Array:
    everything = np.array([0, len(rows)])
    return _grouped_swiglu(rows, everything, gate_up_proj[:1], down_proj[:1])


def _last_row_missed(rows: Array, offsets: Array, gate_up_proj: Array, down_proj: Array) -> Array:
    out = _grouped_swiglu(rows, offsets, gate_up_proj, down_proj)
    out[offsets[1:][np.diff(offsets) > 0] - 1] = 0
    return out


def _row_by_row(
    rows: Array, offsets: Array, gate_up_proj: Array, down_proj: Array, shift: int
) -> Array:
    """Each row looks for its own expert; at a border it finds the one before."""
    found = np.searchsorted(offsets, np.arange(len(rows)), side="left") - shift
    return np.stack([_swiglu(*np.split(gate_up_proj[e] @ row, 2)) @ down_proj[e].T
                     for e, row in zip(found, rows, strict=True)])


def _as_stored(rows: Array, offsets: Array, gate_up_proj: Array, down_proj: Array) -> Array:
    return _grouped_swiglu(rows, offsets, gate_up_proj, down_proj.transpose(0, 2, 1))


def _swiglu_cases(rng: np.random.Generator) -> list[Case]:
    """Sizes differ, then D = I; some expert is always idle; the last case is one token."""
    cases: list[Case] = []
    for tokens, chosen, experts, hidden, width in (
        (7, 2, 6, 5, 4), (5, 3, 8, 6, 3), (int(rng.integers(8, 14)), 1, 4, 7, 9), (6, 2, 5, 4, 4),
        (1, 2, 4, 8, 5),
    ):
        among = np.delete(np.arange(experts), int(rng.integers(experts)))
        order, offsets = _sort_by_expert(_choices(rng, tokens, chosen, among), experts)
        rows = rng.normal(size=(tokens, hidden))[order // chosen]
        gate_up_proj = 1.5 * rng.normal(size=(experts, 2 * width, hidden)) / hidden**0.5
        down_proj = rng.normal(size=(experts, hidden, width)) / width**0.5
        cases.append((rows, offsets, gate_up_proj, down_proj))
    return cases


def _rows_do_not_meet(call: Any, args: Case, out: Array) -> str | None:
    rows, *rest = args
    row = len(rows) // 2
    changed = rows.copy()
    changed[row] += 1
    moved = np.abs(call(changed, *rest) - out).max(1) > 1e-3 * max(1, np.abs(out).max())
    moved[row] = False
    if not moved.any():
        return None
    return f"Row {row} was changed, and the output of row {int(moved.argmax())} with it."


GROUPED_SWIGLU = Exercise(
    id="moe.grouped_swiglu",
    lesson="06",
    title="The experts' products, in Numba",
    difficulty=3,
    minutes=20,
    why="Of every hundred parameters of K2, 99 stand in these matrices of its experts.",
    signature="grouped_swiglu(rows, offsets, gate_up_proj, down_proj) -> (P, D)",
    axes="P D",
    cases=_swiglu_cases,
    reference=_grouped_swiglu,
    invariants=(
        Invariant("an expert works on each row by itself.", _rows_do_not_meet),
    ),
    wrong=(
        wrong("gate_and_up_swapped", partial(_grouped_swiglu, act=lambda g, u: _swiglu(u, g)),
              """silu is applied to the second half of the product. The first I rows of
              gate_up_proj are the gate, and silu is the gate's.""",
              "Which half of gate_up_proj[e] makes the gate?"),
        wrong("interleaved",
              partial(_grouped_swiglu, split=lambda both: (both[:, 0::2], both[:, 1::2])),
              """Gate and up are taken as every second number. They are stored one after the other:
              numbers 0 to I - 1 are gates, I to 2I - 1 are ups.""",
              "At which row of gate_up_proj[e] does the up projection begin?"),
        wrong("no_silu", partial(_grouped_swiglu, act=lambda g, u: g * u),
              """The gate is multiplied as it is: without silu.""",
              "What should become of a gate of -10?"),
        wrong("sigmoid_only",
              partial(_grouped_swiglu, act=lambda g, u: u / (1 + np.exp(-g))),
              """The gate goes through the sigmoid, 1 / (1 + e^-g). silu is the gate times that.""",
              "What is silu(10), nearly: 1 or 10?"),
        wrong("relu", partial(_grouped_swiglu, act=lambda g, u: np.maximum(g, 0) * u),
              """Negative gates are cut to 0. That is relu; silu lets a little of them through.""",
              "What is g / (1 + e^-g) for g = -1?"),
        wrong("silu_on_product", partial(_grouped_swiglu, act=lambda g, u: _silu(g * u)),
              """silu is applied to gate times up. It is applied to the gate, and the result
              multiplied by up.""",
              "In silu(gate) · up, what does silu see?"),
        wrong("sum_not_reset",
              tuple(partial(_grouped_swiglu, carried=which) for which in ("inner", "outer")),
              """A sum goes on where the one before it ended: every number is added to all numbers
              before it in its row.""",
              "Inside which loop must the accumulator be set to 0?"),
        wrong("one_expert_for_all", _one_expert,
              """All rows go through expert 0: the offsets are not used.""",
              "Which rows are expert 1's?"),
        wrong("last_row_missed", _last_row_missed,
              """The last row of every expert stays empty: the loop over its rows ends one too
              early.""",
              "range(a, b) does not reach b: is row offsets[e + 1] expert e's?"),
        wrong("border_row_to_the_one_before", partial(_row_by_row, shift=1),
              """The first row of an expert goes to the expert before it, or to an idle one. Row
              offsets[e] is expert e's, and idle experts have two equal offsets.""",
              "What does np.searchsorted say for a number that is in the list, with side='left' "
              "and with side='right'?"),
        wrong("down_not_transposed", _as_stored,
              """down_proj[e] is (D, I): out = down_proj[e] · hidden, or hidden @ down_proj[e].T.
              Without the transpose only experts with D = I pass without an error.""",
              "Which axis of down_proj[e] must meet the I hidden numbers?"),
    ),
)


def _combine(out: Array, order: Array, weights: Array, *, unsort: bool = True) -> Array:
    """Right as it stands; without unsorting, rows are taken for pairs."""
    rows = out[np.argsort(order)] if unsort else out
    return (weights[:, :, None] * rows.reshape(*weights.shape, -1)).sum(1)


def _no_weights(out: Array, order: Array, weights: Array) -> Array:
    return _combine(out, order, np.ones_like(weights))


def _weights_not_sorted(out: Array, order: Array, weights: Array) -> Array:
    return _combine(out * weights.reshape(-1, 1), order, np.ones_like(weights))


def _last_one_wins(out: Array, order: Array, weights: Array) -> Array:
    y = np.zeros((len(weights), out.shape[1]))
    y[order // weights.shape[1]] += weights.reshape(-1)[order][:, None] * out
    return y


def _added_at(token: Any) -> Any:
    def function(out: Array, order: Array, weights: Array) -> Array:
        y = np.zeros((len(weights), out.shape[1]))
        np.add.at(y, token(order, weights), weights.reshape(-1)[order][:, None] * out)
        return y

    return function


def _combine_cases(rng: np.random.Generator) -> list[Case]:
    cases: list[Case] = []
    for tokens, chosen, experts, hidden in (
        (6, 2, 5, 3), (int(rng.integers(8, 12)), 4, 9, 5), (3, 3, 4, 3), (7, 1, 4, 2), (5, 3, 8, 6),
    ):
        order, _ = _sort_by_expert(_choices(rng, tokens, chosen, np.arange(experts)), experts)
        weights = rng.uniform(0.2, 2.0, size=(tokens, chosen))
        cases.append((rng.normal(size=(tokens * chosen, hidden)), order, weights))
    return cases


def _weights_add_up(call: Any, args: Case, out: Array) -> str | None:
    rows, order, weights = args
    sums = call(np.ones_like(rows), order, weights)
    error = np.abs(sums - weights.sum(1)[:, None])
    if error.max() < 1e-3:
        return None
    token = int(error.max(1).argmax())
    return (f"With every row 1, token {token} gets {sums[token, 0]:.4g}, and its weights add up "
            f"to {weights[token].sum():.4g}.")


COMBINE = Exercise(
    id="moe.combine",
    lesson="06",
    title="Put the sums back",
    difficulty=2,
    minutes=10,
    why="A row that comes back to the wrong token raises no error; the model only learns badly.",
    signature="combine(out, order, weights) -> (T, D)",
    axes="T D",
    cases=_combine_cases,
    reference=_combine,
    invariants=(
        Invariant("if every expert answers 1, a token gets the sum of its weights.",
                  _weights_add_up),
    ),
    wrong=(
        wrong("order_not_inverted", lambda out, order, weights: _combine(
            out[order], order, weights, unsort=False),
              """The rows are sorted a second time instead of being put back. order[p] is the pair
              at place p; what is needed is the place of each pair, the inverse permutation.""",
              "If order[5] is 0, in which row of `out` is the answer for pair 0?"),
        wrong("never_put_back", partial(_combine, unsort=False),
              """The rows of `out` are taken as token after token. They are sorted by expert.""",
              "Whose row is out[1], token 0's?"),
        wrong("last_one_wins", _last_one_wins,
              """A token gets one expert's row only. In y[token] += rows, NumPy adds once for each
              different token, and the last of its rows wins.""",
              "What is y after y = np.zeros(1); y[[0, 0]] += 1, and what does np.add.at do?"),
        wrong("no_weights", _no_weights,
              """The experts' rows are added up without their weights.""",
              "Where does weights[t, k] enter?"),
        wrong("weights_not_sorted", _weights_not_sorted,
              """The weights are in the order of the pairs and the rows in the order of the experts,
              and they are multiplied as they come.""",
              "Row p is the answer for pair order[p]: which weight is that pair's?"),
        wrong("mean_of_the_choices", lambda out, order, weights: _combine(
            out, order, weights) / weights.shape[1],
              """The sum is divided by K. The weights are shares already, times the router's
              constant.""",
              "If all K experts answer the same and the weights sum to 1, what should come out?"),
        wrong("token_of_a_pair",
              (_added_at(lambda order, weights: order % len(weights)),
               _added_at(lambda order, weights: order // len(weights))),
              """Rows go to the wrong tokens: the pair's number is divided by the number of tokens.
              Every token has K pairs in a row, so pair p is of token p // K.""",
              "With K = 2, whose are the pairs 0 and 1?"),
    ),
)


def _maximum_violation(loads: Array) -> float:
    return float(loads.max() / loads.mean() - 1)


def _against_the_least(loads: Array) -> float:
    with np.errstate(divide="ignore"):
        return float(loads.max() / np.float64(loads.min()) - 1)


def _loads(rng: np.random.Generator, experts: int, mean: int) -> Array:
    """(E,) counts of this mean, none of them exactly the mean; no two halves alike."""
    while True:
        loads = rng.multinomial(mean * experts, rng.dirichlet(np.full(experts, 1.5)))
        if (loads != mean).all() and np.ptp(loads) > mean // 3:
            return loads.astype(np.int64)


def _violation_cases(rng: np.random.Generator) -> list[Case]:
    """One case where the idlest is further from the mean than the busiest, one collapsed."""
    few = np.full(8, 40, np.int64)
    few[rng.integers(8)] = int(rng.integers(3, 9))
    collapsed = np.zeros(6, np.int64)
    collapsed[rng.choice(6, 2, replace=False)] = int(rng.integers(20, 60))
    return [(_loads(rng, 5, 60),), (_loads(rng, 16, 100),), (few,), (collapsed,),
            (np.full(4, 7, np.int64),)]


MAXIMUM_VIOLATION = Exercise(
    id="moe.maximum_violation",
    lesson="06",
    title="How far from balance?",
    difficulty=1,
    minutes=5,
    why="All machines wait for the one with the busiest expert: this is the time they lose.",
    signature="maximum_violation(loads) -> float",
    cases=_violation_cases,
    reference=_maximum_violation,
    formula=True,
    wrong=(
        wrong("without_minus_one", lambda loads: float(loads.max() / loads.mean()),
              """This is the busiest expert's load in shares of an even one. Balance would be 1; the
              violation is what is beyond it, 0 in balance.""",
              "What should come out where all loads are equal?"),
        wrong("not_divided", lambda loads: float(loads.max() - loads.mean()),
              """This is a number of tokens. Divided by the mean load it becomes a share, which does
              not depend on how long the batch is.""",
              "What happens to your number if the batch is twice as long?"),
        wrong("share_of_all", lambda loads: float(loads.max() / loads.sum()),
              """This is the busiest expert's share of all pairs. Whether a share of 0.1 is much
              depends on the number of experts.""",
              "With 10 experts in balance, what would this give, and what should it give?"),
        wrong("either_side", lambda loads: float(np.abs(loads / loads.mean() - 1).max()),
              """The furthest from the mean counts, idle experts too. Nobody waits for an idle
              expert: only the busiest one counts.""",
              "Which expert do the others wait for?"),
        wrong("against_the_least", _against_the_least,
              """The busiest is compared with the idlest expert. One idle expert makes that
              infinite; the comparison is with the mean.""",
              "What comes out if one expert gets nothing?"),
        wrong("busy_experts_only", lambda loads: float(loads.max() / loads[loads > 0].mean() - 1),
              """The mean runs over the experts that got something. Two experts that share all the
              work would then count as balanced; the mean is over all experts.""",
              "Of 6 experts 2 do everything, half each: is that balance?"),
        wrong("spread", lambda loads: float(loads.std() / loads.mean()),
              """This is the standard deviation over the mean: how uneven the loads are altogether,
              not how far the busiest is above the mean.""",
              "Which single number says how long the slowest one takes?"),
    ),
)
