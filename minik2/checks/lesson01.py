"""Lesson 01: attention and rotary positions.

Unusual here: the right answers are written plainly, one head and no batch, as a learner would
write them; the tests hold them against minik2.reference. Most wrong answers are the right one with
one step changed, so a function takes the step as an argument.
"""

import math
from functools import partial
from typing import Any

import numpy as np

from minik2.checks.exercise import Case, Exercise, Invariant, wrong

TITLE = "Attention and rotary positions"

Array = np.ndarray[Any, np.dtype[Any]]


def _softmax(
    scores: Array, axis: int = -1, *, largest: bool = True, max_kept: bool = True,
    sum_kept: bool = True,
) -> Array:
    """Right as it stands; `largest`: subtract it first; `…_kept`: with keepdims."""
    if largest:
        scores = scores - scores.max(axis, keepdims=max_kept)
    powers = np.exp(scores)
    return powers / powers.sum(axis, keepdims=sum_kept)


def _causal(
    q: Array, k: Array, v: Array, *, scale: float | None = None, last: int = 0,
    hidden: float = -np.inf, axis: int = -1, softmax: Any = _softmax,
) -> Array:
    """Right as it stands; `last`: how many tokens beyond itself a query sees."""
    scores = q @ k.T * (q.shape[-1] ** -0.5 if scale is None else scale)
    seen = np.tril(np.ones(scores.shape, bool), last)
    return softmax(np.where(seen, scores, hidden), axis) @ v


def _mask_added_before(q: Array, k: Array, v: Array) -> Array:
    scores = q @ k.T * q.shape[-1] ** -0.5
    return _softmax(scores - 1e9 * np.triu(np.ones(scores.shape))) @ v


def _mask_times_infinity(q: Array, k: Array, v: Array) -> Array:
    scores = q @ k.T * q.shape[-1] ** -0.5
    return _softmax(scores + (1 - np.tri(len(q))) * -np.inf) @ v


def _exp_of_python(q: Array, k: Array, v: Array) -> Array:
    powers = np.array([[math.exp(score) for score in row] for row in q @ k.T / len(k[0]) ** 0.5])
    powers *= np.tri(len(q))
    return powers @ v / powers.sum(-1, keepdims=True)


def _mask_of_the_past(q: Array, k: Array, v: Array, itself: int) -> Array:
    scores = q @ k.T * q.shape[-1] ** -0.5
    return _softmax(np.where(np.triu(np.ones(scores.shape, bool), itself), scores, -1e30)) @ v


def _masked_late(q: Array, k: Array, v: Array) -> Array:
    return np.tril(_softmax(q @ k.T * q.shape[-1] ** -0.5)) @ v


def _attention_cases(rng: np.random.Generator) -> list[Case]:
    """T, d and V differ, so that mixing two up shows; then they are equal, and do not.

    The last case has scores near 720, and exp(720) is no float64. They are whole and half numbers
    that float32 holds exactly, so that only what is done with them can be wrong.
    """
    cases: list[Case] = []
    for tokens in (int(rng.integers(4, 8)), int(rng.integers(8, 12)), 1):
        others = [n for n in range(3, 9) if n != tokens]
        size, width = (int(n) for n in rng.choice(others, 2, replace=False))
        cases.append(tuple(1.5 * rng.normal(size=(tokens, n)) for n in (size, size, width)))
    tokens = int(rng.integers(4, 8))
    cases.append(tuple(1.5 * rng.normal(size=(tokens, tokens)) for _ in range(3)))
    q, k = (rng.integers(-1, 2, size=(3, 4)).astype(float) for _ in range(2))
    q[:, 0] = k[:, 0] = 38
    return [*cases, (q, k, rng.normal(size=(3, int(rng.integers(5, 9)))))]


def _rows_sum_to_one(call: Any, args: Case, out: Array) -> str | None:
    q, k, v = args
    ones = call(q, k, np.ones_like(v))
    error = np.abs(ones - 1)
    if error.max() < 1e-3:
        return None
    row, column = np.unravel_index(int(error.argmax()), error.shape)
    return f"With every value 1 the output of token {row} is {ones[row, column]:.4g}."


def _no_look_ahead(call: Any, args: Case, out: Array) -> str | None:
    q, k, v = args
    tokens = len(q)
    if tokens < 2:
        return None
    middle = tokens // 2
    k, v = k.copy(), v.copy()
    k[middle:] += 1
    v[middle:] -= 2
    moved = np.abs(call(q, k, v)[:middle] - out[:middle]).max(-1) > 1e-3
    if not moved.any():
        return None
    return (f"Keys and values from token {middle} on were changed, and the output of token "
            f"{int(moved.argmax())} changed with them.")


# Whatever else is wrong, the overflow is told first: it is all that such an answer shows.
_OTHER_SLIPS: tuple[dict[str, Any], ...] = (
    {}, {"last": 10**6}, {"last": -1}, {"last": 1}, {"scale": 1.0}, {"axis": 0}, {"hidden": 0.0},
)

CAUSAL = Exercise(
    id="attention.causal",
    lesson="01",
    title="Causal softmax attention",
    difficulty=2,
    minutes=15,
    why="Every block of K2 ends in this sum; all the rest of MLA is about feeding it cheaply.",
    signature="causal(q, k, v) -> (T, V)",
    axes="T V",
    cases=_attention_cases,
    reference=_causal,
    invariants=(
        Invariant("the weights of a row sum to one, so values that are all 1 give 1.",
                  _rows_sum_to_one),
        Invariant("a token sees itself and earlier tokens, so what comes later changes nothing.",
                  _no_look_ahead),
    ),
    wrong=(
        wrong("no_mask", partial(_causal, last=10**6),
              """Every token attends to all tokens, later ones included. In training it would read
              the very token it is to predict.""",
              "Which scores may the row of token 0 use, and what must happen to the others?"),
        wrong("mask_hides_itself",
              (partial(_causal, last=-1), partial(_causal, last=-1, hidden=-1e9),
               partial(_causal, last=-1, hidden=-1e30), _mask_added_before),
              """The mask hides the token itself as well as the later ones. Token 0 is left with
              nothing: a row of -inf gives nan, a row of -1e9 gives a mean of everything.""",
              "On which side of the mask does the diagonal belong?"),
        wrong("mask_upside_down",
              (partial(_mask_of_the_past, itself=0), partial(_mask_of_the_past, itself=1)),
              """The mask hides the past and shows the future: the wrong triangle is kept.""",
              "Rows are queries and columns keys: where in the matrix is a key of the past?"),
        wrong("one_token_ahead", partial(_causal, last=1),
              """Each token also sees the one after it: the mask starts one diagonal too late.""",
              "What is the row and column of the first score that token 0 must not use?"),
        wrong("no_scale", partial(_causal, scale=1.0),
              """The scores are not divided by sqrt(d). Dot products of d numbers have a spread of
              sqrt(d), so the softmax comes out too sharp.""",
              "If q and k hold independent numbers of variance 1, what is the variance of q·k?"),
        wrong("scale_by_d", lambda q, k, v: _causal(q, k, v, scale=1 / q.shape[-1]),
              """The scores are divided by d and not by its square root, so the softmax comes out
              too flat.""",
              "Is it the variance or the spread of q·k that grows like d?"),
        wrong("scale_by_tokens", lambda q, k, v: _causal(q, k, v, scale=len(q) ** -0.5),
              """The scores are divided by sqrt(T), the number of tokens. Then adding a token would
              change what all the earlier ones do.""",
              "Which axis does the dot product q·k sum over?"),
        wrong("softmax_over_queries", partial(_causal, axis=0),
              """The softmax runs down the columns: for each key, the weights of all queries sum to
              one. What must sum to one is what a query gives to its keys.""",
              "Each output is a weighted mean of values: over which index does the mean run?"),
        wrong("mask_after_softmax", _masked_late,
              """The weights of later tokens are set to zero after the softmax. They were part of
              its sum, so what remains in a row sums to less than one.""",
              "How could the hidden scores be kept out of the softmax's sum from the start?"),
        wrong("zero_for_hidden_scores", partial(_causal, hidden=0.0),
              """Hidden scores are set to 0, or multiplied by 0, and exp(0) is 1: later tokens keep
              a good part of the weight.""",
              "Which number has an exponential of 0?"),
        wrong("zero_times_infinity", _mask_times_infinity,
              """The mask is multiplied by infinity. 0 · -inf is nan, not 0, so the scores that
              should stay are spoiled too, and every number is nan. np.where(seen, scores, -np.inf)
              never multiplies.""",
              "Which scores does your mask multiply by 0, and what does that make of them?"),
        wrong("scores_transposed", lambda q, k, v: _causal(k, q, v),
              """The scores are k @ q.T: keys along the rows. Row m then holds what all queries
              think of key m, and the mask and the softmax need what query m thinks of all
              keys.""",
              "In your matrix of scores, is it the row or the column that belongs to one query?"),
        wrong("no_keepdims",
              tuple(partial(_causal, softmax=partial(_softmax, max_kept=a, sum_kept=b))
                    for a, b in ((False, True), (True, False), (False, False))),
              """A maximum or a sum of the rows has shape (T,), and NumPy lays it along a row: key
              n gets what belongs to query n. The matrix is square, so nothing fails.
              keepdims=True makes the shape (T, 1).""",
              "What is the shape of scores.max(axis=-1), and what does NumPy do with it in a "
              "subtraction from (T, T)?"),
        wrong("no_maximum",
              (*(partial(_causal, softmax=partial(_softmax, largest=False), **more)
                 for more in _OTHER_SLIPS),
               partial(_causal, softmax=partial(_softmax, largest=False, sum_kept=False)),
               _exp_of_python),
              """The row's maximum is not subtracted before exp. With scores of some hundreds exp
              overflows, and inf / inf is nan. K2's training lets scores grow to 100, and exp(89) is
              too much for float32 already.""",
              "What does softmax(scores - c) give for a number c, and which c keeps exp small?"),
    ),
)


def _angles(positions: Array, theta: float, size: int, exponent: float = -2.0) -> Array:
    return np.outer(positions, theta ** (exponent * np.arange(size // 2) / size))


def _rotate(
    x: Array, positions: Array, theta: float, *, exponent: float = -2.0, sign: int = 1,
    turn: float = 1.0, halves_in: bool = False, halves_out: bool = False,
) -> Array:
    """Right as it stands: each keyword is one thing to get wrong."""
    half = x.shape[-1] // 2
    angles = _angles(positions, theta, x.shape[-1], exponent) * turn
    cos, sin = np.cos(angles), sign * np.sin(angles)
    a, b = (x[:, :half], x[:, half:]) if halves_in else (x[:, 0::2], x[:, 1::2])
    first, second = a * cos - b * sin, a * sin + b * cos
    if halves_out:
        return np.concatenate([first, second], -1)
    return np.stack([first, second], -1).reshape(x.shape)


def _rows_counted(x: Array, positions: Array, theta: float) -> Array:
    return _rotate(x, np.arange(len(x)), theta)


def _rows_counted_from_the_first(x: Array, positions: Array, theta: float) -> Array:
    return _rotate(x, positions[0] + np.arange(len(x)), theta)


def _rotate_cases(rng: np.random.Generator) -> list[Case]:
    cases: list[Case] = []
    for size in (4, 6, int(rng.choice([8, 10, 12])), 2):
        tokens = int(rng.integers(3, 8))
        positions = np.sort(rng.choice(range(1, 30), tokens, replace=False))
        cases.append((rng.normal(size=(tokens, size)), positions, float(rng.integers(50, 20000))))
    x, positions, theta = cases[0]
    return [*cases, (x[:1], np.zeros(1, int), theta)]


def _pairs_keep_their_length(call: Any, args: Case, out: Array) -> str | None:
    x = args[0]
    before = np.hypot(x[:, 0::2], x[:, 1::2])
    after = np.hypot(out[:, 0::2], out[:, 1::2])
    bad = np.abs(after - before) > 1e-3
    if not bad.any():
        return None
    token, pair = (int(i) for i in np.unravel_index(int(bad.argmax()), bad.shape))
    return (f"Numbers {2 * pair} and {2 * pair + 1} of token {token} had length "
            f"{before[token, pair]:.4g} and now have {after[token, pair]:.4g}.")


def _position_zero_is_left_alone(call: Any, args: Case, out: Array) -> str | None:
    x, positions, theta = args
    change = np.abs(call(x, np.zeros_like(positions), theta) - x).max()
    return None if change < 1e-3 else f"With all positions 0, a number changed by {change:.4g}."


def _only_differences_count(call: Any, args: Case, out: Array) -> str | None:
    x, positions, theta = args
    later = call(x, positions + 3, theta)
    change = np.abs(later @ later.T - out @ out.T).max()
    if change < 1e-3 * max(1, np.abs(out @ out.T).max()):
        return None
    return f"With all positions 3 later, a dot product changed by {change:.4g}."


ROTATE = Exercise(
    id="rope.rotate",
    lesson="01",
    title="Rotary positions, interleaved",
    difficulty=3,
    minutes=15,
    why="Apart from the little that the mask leaks, this is all that tells K2 its tokens' order.",
    signature="rotate(x, positions, theta) -> (T, R)",
    axes="T R",
    cases=_rotate_cases,
    reference=_rotate,
    invariants=(
        Invariant("a rotation keeps the length of every pair (2i, 2i + 1).",
                  _pairs_keep_their_length),
        Invariant("position 0 is an angle of 0, so nothing turns there.",
                  _position_zero_is_left_alone),
        Invariant("dot products depend on the difference of two positions only.",
                  _only_differences_count),
    ),
    wrong=(
        wrong("half_split", partial(_rotate, halves_in=True, halves_out=True),
              """Number i is paired with number i + R/2. That is the other layout of RoPE, the one
              inside transformers; K2's checkpoint pairs neighbours.""",
              "Which two numbers of x does the first angle turn together?"),
        wrong("halves_in_pairs_out", partial(_rotate, halves_in=True),
              """The input is split into halves, but the output is woven into neighbours: reading
              and writing use different layouts.""",
              "Where did the two numbers you turned come from, and where must they go back to?"),
        wrong("pairs_in_halves_out", partial(_rotate, halves_out=True),
              """The right pairs are turned by the right angles, but the output holds all first
              members and then all second members.""",
              "Number 1 of the input belongs to pair 0: at which index must it come out?"),
        wrong("turns_backwards", partial(_rotate, sign=-1),
              """The sine has the other sign, so every pair turns clockwise. Lengths stay, and
              scores still depend on the difference of positions only, but with its sign reversed:
              two back looks like two ahead. That is why it is easily missed.""",
              "Turn (1, 0) by a quarter: is it (0, 1) or (0, -1) that should come out?"),
        wrong("exponent_without_2", partial(_rotate, exponent=-1.0),
              """The frequencies are theta^(-i/R) for pair i. They must be theta^(-2i/R): the
              exponent runs over the even indices and nearly reaches -1.""",
              "What is the exponent of the last pair, i = R/2 - 1, and what should it be near?"),
        wrong("frequencies_grow", partial(_rotate, exponent=2.0),
              """The exponent has lost its minus sign, so later pairs turn faster and faster.""",
              "Pair 0 turns one radian a position: should the last pair turn faster or slower?"),
        wrong("all_pairs_alike", partial(_rotate, exponent=0.0),
              """Every pair turns by the same angle: the frequency does not depend on the pair.""",
              "With a single frequency, which two positions could not be told apart?"),
        wrong("positions_ignored", (_rows_counted, _rows_counted_from_the_first),
              """The rows are numbered one after the other, and `positions` is not used, or only its
              first entry. With a cache, the one new token has row 0 and a position far from
              0.""",
              "What would your function do to two tokens at the positions 100 and 200?"),
        wrong("positions_from_one",
              lambda x, positions, theta: _rotate(x, np.asarray(positions) + 1, theta),
              """Every position is one too large. Dot products do not notice; a cache that was
              written by other code does.""",
              "By which angle should a token at position 0 turn?"),
        wrong("degrees", partial(_rotate, turn=np.pi / 180),
              """The angles are taken for degrees and converted. They are radians already: pair 0
              turns by one radian a position.""",
              "In which unit does np.cos expect its argument, and in which unit is your angle?"),
    ),
)


def _to_halves(size: int) -> Array:
    return np.concatenate([np.arange(0, size, 2), np.arange(1, size, 2)])


def _halves_cases(rng: np.random.Generator) -> list[Case]:
    return [(int(size),) for size in (6, 64, *(2 * rng.choice(range(4, 32), 3, False)), 4, 2)]


def _is_a_permutation(call: Any, args: Case, out: Array) -> str | None:
    seen = np.bincount(np.clip(out, -1, args[0]) + 1, minlength=args[0] + 2)[1:-1]
    if (seen == 1).all():
        return None
    number = int((seen != 1).argmax())
    return f"With size {args[0]}, index {number} occurs {seen[number]} times."


TO_HALVES = Exercise(
    id="rope.to_halves",
    lesson="01",
    title="From one RoPE layout to the other",
    difficulty=2,
    minutes=10,
    why="Loading weights in the wrong layout raises no error. The model only talks nonsense.",
    signature="to_halves(size) -> (R,) of int",
    axes="R",
    cases=_halves_cases,
    reference=_to_halves,
    invariants=(
        Invariant("a permutation names every index from 0 to size - 1 once.", _is_a_permutation),
    ),
    wrong=(
        wrong("inverse", lambda size: np.argsort(_to_halves(size)),
              """This is the way back: it turns the halves layout into neighbours. For sizes 2 and 4
              the two are the same, from 6 on they are not.""",
              "In x[..., p], does p[i] say where number i goes, or where number i comes from?"),
        wrong("odd_first",
              lambda size: np.concatenate([np.arange(1, size, 2), np.arange(0, size, 2)]),
              """The second members of the pairs come first. The first half must hold the first
              members, which have the even indices.""",
              "Which number of the pair (0, 1) should stand at index 0 of the result?"),
        wrong("moves_nothing", np.arange,
              """The result is 0, 1, 2, …: nothing moves. A reshape to (size/2, 2) and back needs a
              transpose in between.""",
              "Which index should stand right after 0 in the halves layout?"),
        wrong("halves_swapped", lambda size: np.roll(np.arange(size), size // 2),
              """The two halves of the vector change places, but neighbours stay neighbours.""",
              "In the halves layout, how far apart are the two members of a pair?"),
        wrong("counts_from_one", lambda size: _to_halves(size) + 1,
              """Every index is one too large: the last one is outside the vector.""",
              "What is the index of the first number of a vector in Python?"),
        wrong("two_rows",
              (lambda size: _to_halves(size).reshape(2, -1),
               lambda size: _to_halves(size).reshape(2, -1).T,
               lambda size: tuple(_to_halves(size).reshape(2, -1))),
              """The indices are right, but they come as two halves, not as one list: x[..., p]
              would give an extra axis.""",
              "What shape must p have for x[..., p] to have the shape of x?"),
    ),
)


def _one_head(
    x: Array, q_proj: Array, k_proj: Array, v_proj: Array, o_proj: Array, positions: Array,
    theta: float, *, turn_q: Any = _rotate, turn_k: Any = _rotate, attend: Any = _causal,
) -> Array:
    q, k, v = x @ q_proj.T, x @ k_proj.T, x @ v_proj.T
    return attend(turn_q(q, positions, theta), turn_k(k, positions, theta), v) @ o_proj.T


def _weights_as_they_are(x: Array, q_proj: Array, k_proj: Array, v_proj: Array, o_proj: Array,
                         positions: Array, theta: float) -> Array:
    return _one_head(x, q_proj.T, k_proj.T, v_proj.T, o_proj.T, positions, theta)


def _values_rotated(x: Array, q_proj: Array, k_proj: Array, v_proj: Array, o_proj: Array,
                    positions: Array, theta: float) -> Array:
    def attend(q: Array, k: Array, v: Array) -> Array:
        return _causal(q, k, _rotate(v, positions, theta))

    return _one_head(x, q_proj, k_proj, v_proj, o_proj, positions, theta, attend=attend)


def _input_rotated(x: Array, q_proj: Array, k_proj: Array, v_proj: Array, o_proj: Array,
                   positions: Array, theta: float) -> Array:
    x = _rotate(x, positions, theta)
    return _one_head(x, q_proj, k_proj, v_proj, o_proj, positions, theta,
                     turn_q=_not_turned, turn_k=_not_turned)


def _not_turned(x: Array, positions: Array, theta: float) -> Array:
    return x


_turned_back = partial(_rotate, sign=-1)
_turned_fast = partial(_rotate, exponent=-1.0)


def _no_output(x: Array, q_proj: Array, k_proj: Array, v_proj: Array, o_proj: Array,
               positions: Array, theta: float) -> Array:
    return _one_head(x, q_proj, k_proj, v_proj, np.eye(len(v_proj)), positions, theta)


def _head_cases(rng: np.random.Generator) -> list[Case]:
    """Hidden and value sizes are even, so that rotating the wrong thing gives a result."""
    cases: list[Case] = []
    for hidden, size, width in ((8, 6, 4), (12, 4, 10), (6, 6, 6), (10, 8, 2)):
        tokens = int(rng.integers(4, 8))
        shapes = ((size, hidden), (size, hidden), (width, hidden), (hidden, width))
        weights = [rng.normal(size=shape) / 1.5 for shape in shapes]
        positions = np.sort(rng.choice(range(2, 30), tokens, replace=False))
        theta = float(rng.integers(50, 20000))
        cases.append((rng.normal(size=(tokens, hidden)), *weights, positions, theta))
    return cases


def _first_token_alone(call: Any, args: Case, out: Array) -> str | None:
    x, _, _, v_proj, o_proj, *_ = args
    change = np.abs(out[0] - o_proj @ (v_proj @ x[0])).max()
    if change < 1e-3 * max(1, np.abs(out).max()):
        return None
    return f"Its output is off by {change:.4g}."


def _shift_changes_nothing(call: Any, args: Case, out: Array) -> str | None:
    *rest, positions, theta = args
    change = np.abs(call(*rest, positions + 5, theta) - out).max()
    if change < 1e-3 * max(1, np.abs(out).max()):
        return None
    return f"With all positions 5 later, an output changed by {change:.4g}."


ONE_HEAD = Exercise(
    id="attention.one_head",
    lesson="01",
    title="One attention head, end to end",
    difficulty=3,
    minutes=20,
    why="K2 has 64 of these side by side in each of 61 layers.",
    signature="one_head(x, q_proj, k_proj, v_proj, o_proj, positions, theta) -> (T, D)",
    axes="T D",
    cases=_head_cases,
    reference=_one_head,
    invariants=(
        Invariant("the first token sees only itself, so its output is o_proj v_proj x.",
                  _first_token_alone),
        Invariant("only differences of positions count, so moving all of them changes nothing.",
                  _shift_changes_nothing),
    ),
    wrong=(
        wrong("positions_ignored",
              tuple(partial(_one_head, turn_q=turn, turn_k=turn)
                    for turn in (_rows_counted, _rows_counted_from_the_first)),
              """The rows are numbered one after the other, and `positions` is not used, or only its
              first entry. Whoever calls says where each token stands, and may leave gaps.""",
              "With positions 3, 4 and 9, how many steps apart are the last two tokens?"),
        wrong("queries_and_keys_swapped",
              lambda x, q_proj, k_proj, *rest: _one_head(x, k_proj, q_proj, *rest),
              """Queries and keys have changed places, in the projections or in the product: the
              scores are transposed, so a row belongs to a key.""",
              "For the output of token m, whose query and whose keys are multiplied?"),
        wrong("turns_backwards", partial(_one_head, turn_q=_turned_back, turn_k=_turned_back),
              """The sine has the other sign. Scores still depend on the difference of positions
              only, but with its sign reversed: two back looks like two ahead.""",
              "Turn (1, 0) by a quarter: is it (0, 1) or (0, -1) that should come out?"),
        wrong("exponent_without_2", partial(_one_head, turn_q=_turned_fast, turn_k=_turned_fast),
              """The frequencies are theta^(-i/R) for pair i. They must be theta^(-2i/R): the
              exponent runs over the even indices and nearly reaches -1.""",
              "What is the exponent of the last pair, i = R/2 - 1, and what should it be near?"),
        wrong("weights_not_transposed", _weights_as_they_are,
              """The product is x @ weight. A checkpoint stores weights as (out, in), so it must be
              x @ weight.T; only square weights let the slip pass without an error.""",
              "q_proj has shape (d, D) and x (T, D): which axes must meet in the product?"),
        wrong("no_rotation", partial(_one_head, turn_q=_not_turned, turn_k=_not_turned),
              """Nothing is rotated, so the head cannot tell in which order the earlier tokens
              came.""",
              "Where do `positions` enter your function?"),
        wrong("keys_not_rotated", partial(_one_head, turn_k=_not_turned),
              """Only the query is rotated. Then scores depend on the query's position alone, and
              not on how far away the key is.""",
              "For the score to depend on a difference of positions, what must both sides do?"),
        wrong("queries_not_rotated", partial(_one_head, turn_q=_not_turned),
              """Only the key is rotated. Then scores depend on the key's position alone, and not on
              how far away the query is.""",
              "For the score to depend on a difference of positions, what must both sides do?"),
        wrong("input_rotated", _input_rotated,
              """x is rotated before the projections. A projection mixes the pairs, and the values
              turn as well.""",
              "Which two vectors meet in the dot product that should feel the positions?"),
        wrong("values_rotated", _values_rotated,
              """The values are rotated too. Positions belong into the scores; what a token passes
              on must not depend on where it stands.""",
              "Would the output change if all positions grew by 5? Should it?"),
        wrong("half_split", tuple(
            partial(_one_head, turn_q=turn, turn_k=turn)
            for turn in (partial(_rotate, halves_in=True, halves_out=True),
                         partial(_rotate, halves_in=True))),
              """Number i is paired with number i + R/2. These weights expect neighbours as
              pairs.""",
              "Which rows of q_proj make up the first pair?"),
        wrong("no_mask", partial(_one_head, attend=partial(_causal, last=10**6)),
              """Every token attends to later ones too: the causal mask is missing.""",
              "What may the first token of the sequence look at?"),
        wrong("no_scale", partial(_one_head, attend=partial(_causal, scale=1.0)),
              """The scores are not divided by the square root of the head's size.""",
              "What is the spread of a dot product of d independent numbers?"),
        wrong("scale_by_hidden_size",
              lambda x, *rest: _one_head(
                  x, *rest, attend=partial(_causal, scale=x.shape[-1] ** -0.5)),
              """The scores are divided by sqrt(D), the hidden size. The dot product runs over the
              head's d numbers.""",
              "How many products are summed in one score?"),
        wrong("no_output_projection", _no_output,
              """The weighted values are returned as they are, V numbers a token. o_proj must bring
              them back to the hidden size D.""",
              "What is the shape of what you return, and what could it be added to?"),
    ),
)
