"""Lesson 07: gradients by hand, and the check that finds the wrong ones.

Unusual here: answers return gradients by name, as the engine's backward functions do. The check of
gradients is checked on a family of functions, `wave`, which the lesson defines for the learner and
this file once more: arrays can be sent to another process, functions cannot.
"""

from functools import partial
from typing import Any

import numpy as np

from minik2.checks.exercise import Case, Exercise, Invariant, wrong

TITLE = "Backward by hand"

Array = np.ndarray[Any, np.dtype[Any]]
Grads = dict[str, Array]


def _wave(x: Array, a: Array, b: Array) -> float:
    return float((b * np.sin(a * x)).sum())


def _each(x: Array) -> list[Any]:
    """The moves of a checker: one number of x at a time."""
    return list(np.ndindex(x.shape))


def _slopes(x: Array, a: Array, b: Array, step: float, ahead: float, behind: float,
            moves: list[Any], apart: float) -> Array:
    slopes = np.zeros_like(x)
    for i in moves:
        up, down = x.copy(), x.copy()
        up[i] += ahead * step
        down[i] -= behind * step
        slopes[i] = (_wave(up, a, b) - _wave(down, a, b)) / (apart * step)
    return slopes


def _largest_over_largest(claimed: Array, slopes: Array) -> float:
    return np.abs(claimed - slopes).max() / np.abs(slopes).max()


def _check_gradient(
    x: Array, a: Array, b: Array, claimed: Array, *, step: float = 1e-5, ahead: float = 1,
    behind: float = 1, moves: Any = _each, apart: float = 2, judge: Any = _largest_over_largest,
) -> float:
    """Right as it stands; moves(x): the indices that are moved, each by itself."""
    slopes = _slopes(x, a, b, step, ahead, behind, moves(x), apart)
    with np.errstate(all="ignore"):
        # What is left of a right claim is rounding, which is nobody's answer: it becomes 0.
        return round(float(judge(claimed, slopes)), 7)


def _slope_a_row(x: Array, a: Array, b: Array, claimed: Array) -> float:
    slopes = np.zeros(len(x))
    for i in range(len(x)):
        up, down = x.copy(), x.copy()
        up[i] += 1e-5
        down[i] -= 1e-5
        slopes[i] = (_wave(up, a, b) - _wave(down, a, b)) / 2e-5
    return _largest_over_largest(claimed, slopes)


_one_sided = [
    partial(_check_gradient, step=step, ahead=ahead, behind=1 - ahead, apart=1)
    for step in (1e-2, 1e-3, 1e-4) for ahead in (1, 0)
]


def _waves(rng: np.random.Generator, shape: tuple[int, ...], size: float) -> list[Array]:
    """x, a, b and the right gradient. Every wave is met on its way down from the steepest place, so
    that it is bent; x is 2 or more, beside which a step of 1e-16 is lost."""
    a = rng.uniform(6, 12, shape)
    phase = rng.uniform(0.5, 1, shape)
    x = (phase + 2 * np.pi * rng.integers(4, 10, shape)) / a
    b = size * rng.uniform(0.5, 2, shape) * rng.choice([-1, 1], shape)
    return [x, a, b, a * b * np.cos(a * x)]


def _planted(rng: np.random.Generator, case: list[Array], *errors: float) -> Case:
    """The case with so many of its claims off, by these shares of the largest slope."""
    x, a, b, claimed = case
    flat = claimed.ravel()
    places = rng.choice(flat.size, len(errors), replace=False)
    flat[places] += np.abs(flat).max() * np.array(errors)
    return x, a, b, claimed


def _gradient_cases(rng: np.random.Generator) -> list[Case]:
    """A right claim, and wrong ones: too low, too high, much too high, nothing at all; functions of
    a thousandth and of thousands; one and two axes; a number that the function does not feel."""
    sizes = [int(n) for n in rng.choice(range(3, 8), 3, replace=False)]
    unfelt = _waves(rng, (sizes[2],), 1e-3)
    unfelt[1][0] = unfelt[3][0] = 0
    x, a, b, right = _waves(rng, (2,), 1)
    return [
        tuple(_waves(rng, (sizes[0],), 1)),
        _planted(rng, _waves(rng, (sizes[1], sizes[2]), 1), -rng.uniform(0.05, 0.3)),
        _planted(rng, unfelt, rng.uniform(0.05, 0.3)),
        _planted(rng, _waves(rng, (2, 3), 1e3), rng.uniform(0.1, 0.2), -rng.uniform(0.25, 0.4)),
        _planted(rng, _waves(rng, (sizes[1],), 1), rng.uniform(3, 5)),
        (x, a, b, np.zeros_like(right)),
    ]


def _right_claims_pass(call: Any, args: Case, out: Any) -> str | None:
    x, a, b, _ = args
    error = call(x, a, b, a * b * np.cos(a * x))
    return None if abs(error) < 1e-4 else f"For a right gradient it gave {error:.4g}."


def _units_do_not_count(call: Any, args: Case, out: Any) -> str | None:
    x, a, b, claimed = args
    error = call(x, a, 8 * b, 8 * claimed)
    if abs(error - out) < 1e-3 * max(abs(out), 1e-3):
        return None
    return f"For the function it gave {float(out):.4g}, for eight times it {error:.4g}."


CHECK_GRADIENT = Exercise(
    id="backward.check_gradient",
    lesson="07",
    title="A check that finds wrong gradients",
    difficulty=2,
    minutes=10,
    why="Every gradient of this engine was held against its function's slope before it was used.",
    signature="check_gradient(x, a, b, claimed) -> float",
    cases=_gradient_cases,
    approximate=True,
    reference=_check_gradient,
    invariants=(
        Invariant("a right gradient has no error but rounding.", _right_claims_pass),
        Invariant("eight times the function has eight times the gradient, so an error that is "
                  "relative stays what it was.", _units_do_not_count),
    ),
    wrong=(
        wrong("one_sided", _one_sided,
              """The slope is taken from x to one side, (f(x + h) - f(x)) / h. That is the slope
              half a step away from x, and the function is bent. Its error falls as h, that of
              (f(x + h) - f(x - h)) / 2h as h².""",
              "Around which point does your pair of values lie evenly?"),
        wrong("step_too_large",
              tuple(partial(_check_gradient, step=step) for step in (1.0, 0.1, 0.01)),
              """The step is so large that the function bends within it, and the difference says
              little of its slope at x.""",
              "In the lesson's figure, on which side of the lowest point is your h?"),
        wrong("not_halved", partial(_check_gradient, apart=1),
              """f(x + h) - f(x - h) is divided by h. The two points are 2h apart, so all slopes
              come out twice as large.""",
              "How far apart are the two points at which you evaluate f?"),
        wrong("same_point",
              tuple(partial(_check_gradient, step=step) for step in (1e-16, 1e-17, 1e-20)),
              """Both values of f come from the same x: every slope is 0, and the error infinite.
              Either the step is so small that x + h is x again in float64, or two names hold one
              array, and what is added under one is taken away under the other.""",
              "Print up - down: is it 2h where it should be?"),
        wrong("all_together", partial(_check_gradient, moves=lambda x: [...]),
              """All numbers of x are moved at once. The difference is then the sum of all the
              slopes.""",
              "Which numbers of x may differ between the two points for the slope of one of them?"),
        wrong("rows_together",
              (partial(_check_gradient, moves=lambda x: list(range(len(x)))), _slope_a_row),
              """The loop runs over the first axis only. For a matrix x[i] is a whole row, and all
              of it is moved together.""",
              "How many slopes has an x of shape (3, 4), and how often does your loop run?"),
        wrong("not_relative", partial(_check_gradient, judge=lambda c, s: np.abs(c - s).max()),
              """The error is not set in proportion to the gradient. A gradient of a thousandth
              that is all wrong then looks better than a right one of thousands.""",
              "If the loss were counted in thousandths of a nat, should your answer change?"),
        wrong("sign_kept",
              (partial(_check_gradient, judge=lambda c, s: (c - s).max() / np.abs(s).max()),
               partial(_check_gradient, judge=lambda c, s: (s - c).max() / np.abs(s).max()),
               partial(_check_gradient, judge=lambda c, s: abs((c - s).max()) / np.abs(s).max()),
               partial(_check_gradient, judge=lambda c, s: (c - s).max() / s.max())),
              """The largest difference is taken with its sign, so a claim that is too low counts
              for less than nothing.""",
              "What does your check say of a claim that is far below the slope?"),
        wrong("each_by_itself",
              (partial(_check_gradient, judge=lambda c, s: (np.abs(c - s) / np.abs(s)).max()),
               partial(_check_gradient, judge=lambda c, s: np.abs((c - s) / s).max()),
               partial(_check_gradient, judge=lambda c, s: (
                   np.abs(c - s) / np.maximum(np.abs(c), np.abs(s))).max()),
               partial(_check_gradient, judge=lambda c, s: (
                   np.abs(c - s) / (np.abs(c) + np.abs(s))).max())),
              """Every difference is divided by its own slope. Where the slope is 0 that is 0 / 0,
              and where it is small it blows up what large slopes left there as rounding.""",
              "What does your check make of a number that the function does not depend on?"),
        wrong("one_among_many",
              (partial(_check_gradient, judge=lambda c, s: np.abs(c - s).mean() / np.abs(s).max()),
               partial(_check_gradient, judge=lambda c, s: np.abs(c - s).sum() / np.abs(s).sum()),
               partial(_check_gradient,
                       judge=lambda c, s: np.sqrt(((c - s) ** 2).sum() / (s**2).sum()))),
              """The error is averaged over all numbers, as a mean or as a norm. One wrong number
              drowns among the right ones, the more the larger the array is.""",
              "A million slopes, one of them wrong: what does your check say?"),
        wrong("measured_by_the_claim",
              (partial(_check_gradient, judge=lambda c, s: np.abs(c - s).max() / np.abs(c).max()),
               partial(_check_gradient, judge=lambda c, s: (
                   np.abs(c - s).max() / max(np.abs(c).max(), np.abs(s).max())))),
              """The error is set in proportion to the claim. A claim that is far too large then
              makes its own error look small, and can never be off by more than 1.""",
              "Which of the two is the measure here: the claim, or what you found yourself?"),
    ),
)


def _normal(x: Array, eps: float) -> tuple[Array, Array]:
    """1 / rms of each row, (T, 1), and the rows divided by their rms."""
    scale = 1 / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
    return scale, x * scale


def _mean(rows: Array) -> Array:
    return rows.mean(-1, keepdims=True)


def _rms_norm(
    dy: Array, x: Array, weight: Array, eps: float, *, normal: Any = _normal, g: Any = None,
    second: Any = None, dweight: Any = None,
) -> Grads:
    """Right as it stands; second(g, n, x, dy): what is taken from g; dweight(dy, n, x)."""
    scale, n = normal(x, eps)
    g = dy * weight if g is None else g(dy, weight)
    taken = n * _mean(g * n) if second is None else second(g, n, x, dy)
    own = (dy * n).sum(0) if dweight is None else dweight(dy, n, x)
    return {"x": scale * (g - taken), "weight": own}


def _weight_last(dy: Array, x: Array, weight: Array, eps: float) -> Grads:
    scale, n = _normal(x, eps)
    return {"x": scale * weight * (dy - n * _mean(dy * n)), "weight": (dy * n).sum(0)}


def _norm_cases(rng: np.random.Generator) -> list[Case]:
    """Tokens and width differ, then they are equal; eps is large enough to be felt but once."""
    width, few, many = (int(n) for n in rng.choice(range(3, 9), 3, replace=False))
    cases: list[Case] = []
    for tokens, wide, eps in ((few, width, 0.3), (many, width, 0.5), (few, few, 0.2),
                              (1, many, 1e-6)):
        dy, x = rng.normal(size=(2, tokens, wide))
        x *= rng.uniform(0.5, 1.5, size=(tokens, 1))
        cases.append((dy, x, 1 + 0.5 * rng.normal(size=wide), float(eps * rng.uniform(1, 2))))
    return cases


def _nothing_along_x(call: Any, args: Case, out: Any) -> str | None:
    dy, x, weight, _ = args
    dx = call(dy, x, weight, 0.0)["x"]
    along, size = np.abs((dx * x).sum(-1)), np.abs(dx * x).sum(-1)
    bad = along > 1e-3 * np.maximum(size, 1e-3)
    if not bad.any():
        return None
    token = int(bad.argmax())
    return f"With eps 0, the row of token {token} and its gradient have the product " \
           f"{(dx * x).sum(-1)[token]:.4g}."


def _linear_in_the_weight(call: Any, args: Case, out: Any) -> str | None:
    dy, x, weight, eps = args
    whole = (dy * weight * _normal(x, eps)[1]).sum()
    found = (out["weight"] * weight).sum()
    if abs(found - whole) < 1e-3 * max(1, np.abs(out["weight"] * weight).sum()):
        return None
    return f"Σ weight · dweight is {found:.4g}, and Σ dy · y is {whole:.4g}."


RMS_NORM = Exercise(
    id="backward.rms_norm",
    lesson="07",
    title="Backward of RMSNorm",
    difficulty=3,
    minutes=15,
    why="Four of them stand in each of K2's 61 layers, and every gradient passes through.",
    function="rms_norm_backward",
    signature="rms_norm_backward(dy, x, weight, eps) -> {'x': (T, D), 'weight': (D,)}",
    cases=_norm_cases,
    reference=_rms_norm,
    invariants=(
        Invariant("without eps a longer row gives the same y, so dx has nothing along x.",
                  _nothing_along_x),
        Invariant("y is proportional to the weight, so the sum of weight times dweight is that of "
                  "dy times y.", _linear_in_the_weight),
    ),
    wrong=(
        wrong("second_term_forgotten", partial(_rms_norm, second=lambda g, n, x, dy: 0),
              """rms(x) is treated as a constant, as if x were divided by a given number. But every
              number of a row moves the rms of its row, and with it all of the row's outputs.""",
              "If all of a row grows by 1%, by how much does y change, and what does your dx say?"),
        wrong("sum_for_mean",
              partial(_rms_norm, second=lambda g, n, x, dy: n * (g * n).sum(-1, keepdims=True)),
              """The second term has the sum of g n where the mean belongs. The 1/D comes from the
              derivative of the mean of squares.""",
              "What is the derivative of mean(x²) by one x?"),
        wrong("second_term_added",
              partial(_rms_norm, second=lambda g, n, x, dy: -n * _mean(g * n)),
              """The second term is added. A larger rms makes y smaller, so it is taken away.""",
              "What sign has the derivative of 1/rms by rms?"),
        wrong("second_term_not_normalised",
              (partial(_rms_norm, second=lambda g, n, x, dy: x * _mean(g * x)),
               partial(_rms_norm, second=lambda g, n, x, dy: x * _mean(g * n)),
               partial(_rms_norm, second=lambda g, n, x, dy: n * _mean(g * x))),
              """The second term holds x where it should hold x / rms(x).""",
              "How many times does rms(x) stand below the line in the second term?"),
        wrong("weight_forgotten", partial(_rms_norm, g=lambda dy, weight: dy),
              """dx does not know the weight: dy was passed on as if y were x / rms(x).""",
              "What is the first thing that dy meets on its way back from y?"),
        wrong("weight_misplaced",
              (_weight_last, partial(_rms_norm, second=lambda g, n, x, dy: n * _mean(dy * n))),
              """The mean is taken of dy n, without the weight. Forward, the weight comes last;
              backward it comes first, and everything else sees dy times weight.""",
              "Which gradient reaches x / rms(x), before the division is undone?"),
        wrong("weight_gets_x", partial(_rms_norm, dweight=lambda dy, n, x: (dy * x).sum(0)),
              """The weight's gradient is the sum of dy x. The weight multiplies x / rms(x).""",
              "y = weight times what?"),
        wrong("rows_averaged", partial(_rms_norm, dweight=lambda dy, n, x: (dy * n).mean(0)),
              """The weight's gradient is averaged over the tokens. Each token adds its own; where a
              loss is a mean, its division is in dy already.""",
              "One weight serves T tokens: how do T changes of the loss combine?"),
        wrong("rows_not_summed", partial(_rms_norm, dweight=lambda dy, n, x: dy * n),
              """There is a gradient of the weight for every token. The weight is one vector, and
              what its T uses say is added up.""",
              "What shape has the weight, and what shape has your gradient of it?"),
        wrong("eps_forgotten",
              (partial(_rms_norm, normal=lambda x, eps: _normal(x, 0)),
               lambda dy, x, weight, eps: {
                   "x": _rms_norm(dy, x, weight, 0)["x"],
                   "weight": _rms_norm(dy, x, weight, eps)["weight"]}),
              """eps is left out. With K2's 1e-6 nobody sees it, until a row is very small.""",
              "What did the forward pass divide by?"),
        wrong("eps_outside_the_root",
              partial(_rms_norm, normal=lambda x, eps: (
                  (scale := 1 / (np.sqrt(_mean(x**2)) + eps)), x * scale)),
              """eps is added to the root. It belongs under it: sqrt(mean(x²) + eps).""",
              "Was it the root or the mean that eps was added to?"),
        wrong("length_for_rms",
              partial(_rms_norm, normal=lambda x, eps: (
                  (scale := 1 / np.sqrt((x**2).sum(-1, keepdims=True) + eps)), x * scale)),
              """Rows are divided by their length, the root of the sum of squares. It is the root of
              the mean, which is sqrt(D) times smaller.""",
              "What does the M of RMS stand for?"),
        wrong("layer_norm",
              partial(_rms_norm, second=lambda g, n, x, dy: _mean(g) + n * _mean(g * n)),
              """The mean of g is taken away as well. That is LayerNorm's gradient, whose forward
              pass takes away the mean of x; RMSNorm does not.""",
              "Does y stay the same when a constant is added to all of x?"),
        wrong("mean_over_tokens",
              partial(_rms_norm, second=lambda g, n, x, dy: n * (g * n).mean(0)),
              """The mean in the second term runs over the tokens. Each token is normalised by
              itself, so one token's gradient cannot hang on another's.""",
              "Which axis did the mean of squares run over?"),
        wrong("no_keepdims",
              partial(_rms_norm, second=lambda g, n, x, dy: n * (g * n).mean(-1)),
              """The mean has shape (T,), and NumPy lays it along the rows: where T and D are equal,
              number i of every token gets what belongs to token i. keepdims=True makes it
              (T, 1).""",
              "What is the shape of (g * n).mean(-1), and where does NumPy put it?"),
    ),
)


def _softmax(scores: Array) -> Array:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _chances(q: Array, k: Array, scale: float) -> Array:
    scores = scale * (q @ k.T)
    return _softmax(np.where(np.tri(len(q), dtype=bool), scores, -np.inf))


def _row_sum(p: Array, d: Array) -> Array:
    return (p * d).sum(-1, keepdims=True)


def _attention(
    dy: Array, q: Array, k: Array, v: Array, *, chances: Any = _chances, slope: Any = None,
    scale: float | None = None, back: float = 1.0, forward: Any = None,
) -> Grads:
    """Right as it stands; slope(p, dp): the gradient of the scaled scores; back: a factor more on
    the way back; forward: the scale used to form the chances."""
    own = q.shape[-1] ** -0.5 if scale is None else scale
    p = chances(q, k, own if forward is None else forward)
    dp = dy @ v.T
    ds = p * (dp - _row_sum(p, dp)) if slope is None else slope(p, dp)
    return {"q": own * back * ds @ k, "k": own * back * ds.T @ q, "v": p.T @ dy}


def _replaced(name: str, value: Any) -> Any:
    """The right answer with one gradient made from (p, ds, dy, q, k), ds with its scale."""
    def answer(dy: Array, q: Array, k: Array, v: Array) -> Grads:
        p = _chances(q, k, q.shape[-1] ** -0.5)
        dp = dy @ v.T
        ds = p * (dp - _row_sum(p, dp)) * q.shape[-1] ** -0.5
        return _attention(dy, q, k, v) | {name: value(p, ds, dy, q, k)}

    return answer


def _crossed(dy: Array, q: Array, k: Array, v: Array) -> Grads:
    right = _attention(dy, q, k, v)
    return right | {"q": right["k"], "k": right["q"]}


def _outputs_for_values(dy: Array, q: Array, k: Array, v: Array) -> Grads:
    p = _chances(q, k, q.shape[-1] ** -0.5)
    return _attention(dy, q, k, p @ v) | {"v": p.T @ dy}


def _unmasked(q: Array, k: Array, scale: float) -> Array:
    return _softmax(scale * (q @ k.T))


def _masked_late(q: Array, k: Array, scale: float) -> Array:
    return np.tril(_unmasked(q, k, scale))


def _attention_cases(rng: np.random.Generator) -> list[Case]:
    """T, d and V differ, so that mixing two up shows; then they are equal; then one token."""
    cases: list[Case] = []
    for tokens in (int(rng.integers(4, 7)), int(rng.integers(7, 10))):
        size, width = (int(n) for n in rng.choice(
            [n for n in range(3, 9) if n != tokens], 2, replace=False))
        shapes = ((tokens, width), (tokens, size), (tokens, size), (tokens, width))
        cases.append(tuple(1.2 * rng.normal(size=shape) for shape in shapes))
    tokens = int(rng.integers(4, 7))
    cases.append(tuple(1.2 * rng.normal(size=(tokens, tokens)) for _ in range(4)))
    return [*cases, tuple(rng.normal(size=(1, n)) for n in (3, 5, 5, 3))]


def _keys_balance(call: Any, args: Case, out: Any) -> str | None:
    total = np.abs(out["k"].sum(0))
    if total.max() < 1e-3 * max(1, np.abs(out["k"]).max()):
        return None
    column = int(total.argmax())
    return f"Column {column} of the keys' gradient sums to {out['k'].sum(0)[column]:.4g}."


def _nothing_from_the_past(call: Any, args: Case, out: Any) -> str | None:
    dy, *rest = args
    middle = len(dy) // 2
    if middle < 1:
        return None
    dy = dy.copy()
    dy[middle:] = 0
    found = call(dy, *rest)
    for name, what in (("k", "key"), ("v", "value")):
        late = np.abs(found[name][middle:]).max(-1) > 1e-3
        if late.any():
            token = middle + int(late.argmax())
            return (f"Only outputs before token {middle} were given a gradient, and the {what} of "
                    f"token {token} got one too.")
    return None


ATTENTION = Exercise(
    id="backward.attention",
    lesson="07",
    title="Backward of causal attention",
    difficulty=4,
    minutes=15,
    why="The one place where tokens talk to each other is the one where gradients cross over.",
    function="attention_backward",
    signature="attention_backward(dy, q, k, v) -> {'q': (T, d), 'k': (T, d), 'v': (T, V)}",
    cases=_attention_cases,
    reference=_attention,
    invariants=(
        Invariant("the same vector added to every key changes no weight, so the keys' gradients "
                  "sum to zero.", _keys_balance),
        Invariant("a token's output does not see later keys and values, so it gives them no "
                  "gradient.", _nothing_from_the_past),
    ),
    wrong=(
        wrong("no_row_sum", partial(_attention, slope=lambda p, dp: p * dp),
              """The softmax is treated as if each weight hung on its own score only: dS = P dP. A
              row's weights sum to 1, so what one gains the others lose; that is the row's sum of
              P dP, taken away from every dP.""",
              "If all dP of a row are equal, how large is dS?"),
        wrong("slope_of_a_sigmoid", partial(_attention, slope=lambda p, dp: p * (1 - p) * dp),
              """dS is P (1 - P) dP: a sigmoid's slope. That is the softmax's slope of a weight by
              its own score; it also hangs on all the others of its row, by -P P'.""",
              "How does raising one score change the weights beside it?"),
        wrong("plain_mean_of_the_row",
              (partial(_attention, slope=lambda p, dp: p * (dp - dp.sum(-1, keepdims=True))),
               partial(_attention, slope=lambda p, dp: p * (dp - dp.mean(-1, keepdims=True)))),
              """The sum or the plain mean of dP is taken away from each dP. It is the mean under
              the weights, the sum of P dP.""",
              "What must be taken away so that the row of dS sums to 0?"),
        wrong("weights_missing_in_front",
              partial(_attention, slope=lambda p, dp: dp - _row_sum(p, dp)),
              """The factor P in front is missing: dS = P (dP - Σ P dP). Without it tokens that
              nobody looks at, later ones included, get a gradient.""",
              "How large is the gradient of a score whose weight is 0?"),
        wrong("sum_over_queries",
              partial(_attention, slope=lambda p, dp: p * (dp - (p * dp).sum(0))),
              """The sum of P dP runs down the columns, over the queries. The softmax ran along the
              rows, over the keys, and so does the sum.""",
              "Which numbers of P sum to 1?"),
        wrong("no_keepdims",
              partial(_attention, slope=lambda p, dp: p * (dp - (p * dp).sum(-1))),
              """The sums of the rows have shape (T,), and NumPy lays them along a row: key n gets
              what belongs to query n. The matrix is square, so nothing fails. keepdims=True makes
              the shape (T, 1).""",
              "What is the shape of (P * dP).sum(-1), and what does NumPy do with it?"),
        wrong("scale_forgotten", lambda dy, q, k, v: _attention(dy, q, k, v, back=len(q[0]) ** 0.5),
              """dq and dk lack the scale. Scores were q k / sqrt(d), so whatever comes back through
              them is divided by sqrt(d) as well.""",
              "What is the derivative of c q k by q?"),
        wrong("scale_nowhere", partial(_attention, scale=1.0),
              """The scale is left out of the weights, too: the backward pass belongs to another
              forward pass, one without 1/sqrt(d).""",
              "Which P did the forward pass use?"),
        wrong("scale_twice", lambda dy, q, k, v: _attention(dy, q, k, v, back=len(q[0]) ** -0.5),
              """The scale is in dq and dk twice. The derivative of scale q k has it once.""",
              "Where did you put the scale on the way back, and how often?"),
        wrong("dk_not_transposed", _replaced("k", lambda p, ds, dy, q, k: ds @ q),
              """dk is dS q, which sums over the keys. Key n was used by all queries, which stand
              in column n of dS: dk = dSᵀ q. Both are (T, T) times (T, d), so nothing fails.""",
              "Which row or column of dS tells what happened with key n?"),
        wrong("dv_not_transposed", _replaced("v", lambda p, ds, dy, q, k: p @ dy),
              """dv is P dy. Value n went to every query that looked at it, which are in column n of
              P: dv = Pᵀ dy.""",
              "Forward, y = P v: what multiplies v, and what is the rule for W in x Wᵀ?"),
        wrong("queries_and_keys_swapped",
              (_crossed,
               lambda dy, q, k, v: (
                   _replaced("q", lambda p, ds, dy, q, k: ds @ q)(dy, q, k, v)
                   | {"k": _replaced("k", lambda p, ds, dy, q, k: ds.T @ k)(dy, q, k, v)["k"]})),
              """Queries and keys have changed places. The gradient of q is made of keys, and that
              of k of queries, as the derivative of a product is the other factor.""",
              "What is the derivative of q · k by q?"),
        wrong("no_mask", partial(_attention, chances=_unmasked),
              """The weights were formed again without the causal mask: gradients flow into keys and
              values that the forward pass never looked at.""",
              "Are the weights in your backward pass those of the forward pass?"),
        wrong("mask_after_softmax", partial(_attention, chances=_masked_late),
              """The weights were formed again with the mask after the softmax, so the rows sum to
              less than 1. They are not those of the forward pass.""",
              "When, in the forward pass, were later tokens taken out?"),
        wrong("outputs_for_values", _outputs_for_values,
              """dP is made with the outputs, as dy yᵀ. The weights multiply the values, so it is
              dy vᵀ.""",
              "In y = P v, what stands beside P?"),
    ),
)


def _sigmoid(logits: Array) -> Array:
    return 1 / (1 + np.exp(-logits))


def _router(
    dweights: Array, x: Array, weight: Array, bias: Array, indices: Array, scale: float, *,
    scores: Any = None, norm: Any = None, slope: Any = None, order: Any = None, back: float = 1.0,
) -> Grads:
    """Right as it stands.

    scores(logits, bias); norm(dw, chosen, scores, scale): the gradient of the chosen scores;
    slope(d, scores): from scores to logits; order: another order of the experts.
    """
    logits = x @ weight.T
    s = _sigmoid(logits) if scores is None else scores(logits, bias)
    rows = np.arange(len(x))[:, None]
    chosen = s[rows, indices]
    dchosen = (norm or _renormalised)(dweights, chosen, s, scale) * back
    d = np.zeros_like(s)
    d[rows, indices if order is None else order(indices)] = dchosen
    dlogits = d * s * (1 - s) if slope is None else slope(d, s)
    return {"x": dlogits @ weight, "weight": dlogits.T @ x}


def _renormalised(dw: Array, chosen: Array, s: Array, scale: float) -> Array:
    total = chosen.sum(-1, keepdims=True)
    return scale * (dw - (dw * chosen).sum(-1, keepdims=True) / total) / total


def _over_all(dw: Array, chosen: Array, s: Array, scale: float) -> Array:
    total = s.sum(-1, keepdims=True)
    return scale * (dw - (dw * chosen).sum(-1, keepdims=True) / total) / total


def _scale_in_the_mean(dw: Array, chosen: Array, s: Array, scale: float) -> Array:
    total = chosen.sum(-1, keepdims=True)
    return scale * (dw - scale * (dw * chosen).sum(-1, keepdims=True) / total) / total


def _spread(all_of_them: bool) -> Any:
    """The renormalisation written over all experts, its mean handed to those not chosen as well."""
    def answer(dweights: Array, x: Array, weight: Array, bias: Array, indices: Array,
               scale: float) -> Grads:
        s = _sigmoid(x @ weight.T)
        rows = np.arange(len(x))[:, None]
        chosen, dense = s[rows, indices], np.zeros_like(s)
        dense[rows, indices] = dweights
        total = (s if all_of_them else chosen).sum(-1, keepdims=True)
        d = scale * (dense - (dweights * chosen).sum(-1, keepdims=True) / total) / total
        dlogits = d * s * (1 - s)
        return {"x": dlogits @ weight, "weight": dlogits.T @ x}

    return answer


def _slope_of_weights(dweights: Array, x: Array, weight: Array, bias: Array, indices: Array,
                      scale: float) -> Grads:
    rows = np.arange(len(x))[:, None]
    chosen = _sigmoid(x @ weight.T)[rows, indices]
    shares = chosen / chosen.sum(-1, keepdims=True)
    dlogits = np.zeros((len(x), len(weight)))
    dlogits[rows, indices] = _renormalised(dweights, chosen, chosen, scale) * shares * (1 - shares)
    return {"x": dlogits @ weight, "weight": dlogits.T @ x}


def _slope_of_softmax(d: Array, s: Array) -> Array:
    return s * (d - (d * s).sum(-1, keepdims=True))


def _turned(name: str) -> Any:
    def answer(*args: Any) -> Grads:
        right = _router(*args)
        return right | {name: right[name].T}

    return answer


def _router_cases(rng: np.random.Generator) -> list[Case]:
    """T, D, E and K differ and some expert is left out; then D = E; then all but one are chosen.
    The experts of a token come in no order of their numbers."""
    cases: list[Case] = []
    width = int(rng.integers(4, 6))
    for tokens, wide, experts, k in ((3, width, 11, 2), (2, width, int(rng.integers(8, 10)), 3),
                                     (3, 7, 7, 2), (2, 3, 5, 4)):
        x, weight = rng.normal(size=(tokens, wide)), rng.normal(size=(experts, wide)) / 1.5
        bias = rng.uniform(-0.5, 0.5, experts)
        choice = _sigmoid(x @ weight.T) + bias
        indices = np.sort(np.argsort(-choice, axis=1)[:, :k], axis=1)[:, ::-1].copy()
        indices = np.concatenate([indices[:1], rng.permuted(indices[1:], axis=1)])
        cases.append((rng.normal(size=(tokens, k)), x, weight, bias, indices,
                      float(rng.uniform(1.5, 3))))
    return cases


def _the_idle_get_nothing(call: Any, args: Case, out: Any) -> str | None:
    weight, indices = args[2], args[4]
    got = np.abs(out["weight"]).max(-1) > 1e-4
    got[np.unique(indices)] = False
    if out["weight"].shape != weight.shape or not got.any():
        return None
    return f"No token chose expert {int(got.argmax())}, and its row of the gradient is not zero."


def _weights_are_shares(call: Any, args: Case, out: Any) -> str | None:
    dweights, *rest = args
    found = np.abs(call(np.ones_like(dweights), *rest)["x"]).max()
    return None if found < 1e-3 else f"With all of dweights 1, dx reaches {found:.4g}."


ROUTER = Exercise(
    id="backward.router",
    lesson="07",
    title="Backward of the router",
    difficulty=4,
    minutes=15,
    why="All that a router ever learns comes through these few lines: how much, and never whom.",
    function="router_backward",
    signature="router_backward(dweights, x, weight, bias, indices, scale) -> "
              "{'x': (T, D), 'weight': (E, D)}",
    cases=_router_cases,
    reference=_router,
    invariants=(
        Invariant("an expert that no token chose gets no gradient.", _the_idle_get_nothing),
        Invariant("a token's weights always sum to the scale, so a loss that wants more of all of "
                  "them alike moves nothing.", _weights_are_shares),
    ),
    wrong=(
        wrong("bias_leaks",
              (partial(_router, scores=lambda logits, bias: _sigmoid(logits) + bias),
               partial(_router, scores=lambda logits, bias: _sigmoid(logits + bias)),
               lambda dweights, x, weight, bias, indices, scale: _router(
                   dweights, x, weight, bias, indices, scale, norm=lambda dw, chosen, s, scale: (
                       _renormalised(dw, chosen + bias[indices], s, scale)))),
              """The correction bias is in the scores here. It had its say when the experts were
              chosen; the weights, and their gradient, are made of the scores alone.""",
              "Which numbers did the forward pass divide by their sum?"),
        wrong("renormalising_ignored",
              (partial(_router, norm=lambda dw, chosen, s, scale: scale * dw),
               partial(_router, norm=lambda dw, chosen, s, scale: (
                   scale * dw / chosen.sum(-1, keepdims=True)))),
              """The sum of the chosen scores is left out, or treated as a constant. It holds every
              chosen score: raising one lowers the weights of the others.""",
              "With one expert a token, how does its weight hang on its score?"),
        wrong("renormalised_over_all", partial(_router, norm=_over_all),
              """The scores of all experts are summed below the line. Weights are shares among the
              K chosen experts.""",
              "What do the weights of one token sum to, before the scale?"),
        wrong("not_chosen_get_some", (_spread(False), _spread(True)),
              """The term that comes from the sum was given to all experts. Only the chosen scores
              are in the sum; nothing of the result hangs on the others.""",
              "If the score of an expert that was not chosen moves a little, what changes?"),
        wrong("scale_forgotten",
              lambda dweights, x, weight, bias, indices, scale: _router(
                  dweights, x, weight, bias, indices, 1.0),
              """routed_scaling_factor is missing. It multiplies the weights on the way forward, so
              it multiplies what comes back.""",
              "The weights are scale times what?"),
        wrong("scale_twice",
              (partial(_router, norm=_scale_in_the_mean),
               lambda dweights, x, weight, bias, indices, scale: _router(
                   dweights, x, weight, bias, indices, scale, back=scale)),
              """The scale is in it twice, in all of it or in the second term: there the weights
              without the scale belong, shares that sum to 1.""",
              "What do the weights sum to that you used in the second term?"),
        wrong("softmax_slope",
              (partial(_router, slope=_slope_of_softmax),
               partial(_router, slope=_slope_of_softmax, scores=lambda logits, bias: (
                   _softmax(logits)))),
              """From scores to logits you took the softmax's slope, s (d - Σ s d), or simply s d,
              which here is the same: shares do not change when all scores grow alike, so Σ s d is
              0. K2's scores are sigmoids, each of its own logit only, with the slope
              s (1 - s). (DeepSeek-V2 had a softmax here.)""",
              "Does an expert's score change when the logit of another one does?"),
        wrong("slope_incomplete",
              (partial(_router, slope=lambda d, s: d),
               partial(_router, slope=lambda d, s: d * (1 - s))),
              """The slope of the sigmoid, s (1 - s), is missing or only half there. Between scores
              and logits stands that one function.""",
              "What is the derivative of 1 / (1 + exp(-l)) in terms of its value?"),
        wrong("slope_of_the_weights", _slope_of_weights,
              """The slope w (1 - w) is taken of the renormalised weights. The sigmoid's slope is
              made of what the sigmoid gave, the scores.""",
              "Which number came out of the sigmoid?"),
        wrong("order_of_experts", partial(_router, order=lambda indices: np.sort(indices, axis=1)),
              """The gradients were laid to the experts in the order of their numbers, as a boolean
              mask does. Column k of dweights belongs to indices[:, k], in whatever order.""",
              "For a token with the experts 7 and 2, whose is the first column?"),
        wrong("matrix_transposed", _turned("weight"),
              """The gradient of the matrix is transposed. It has the shape of the matrix, (E, D), a
              row an expert: dlogitsᵀ x.""",
              "What shape has `weight`, and what shape has your gradient of it?"),
    ),
)
