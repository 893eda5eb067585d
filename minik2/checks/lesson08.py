"""Lesson 08: Muon.

Unusual here: gradients are drawn with a norm below 1, so that the answer that forgets to divide by
it stays finite and can be told from others; learning rates and decay are far larger than in
training, so that where the decay stands is felt in one step.
"""

import math
from functools import partial
from typing import Any

import numpy as np

from minik2.checks.exercise import Case, Exercise, Invariant, wrong

TITLE = "Muon"

Array = np.ndarray[Any, np.dtype[Any]]

MUON = (3.4445, -4.7750, 2.0315)


def _frobenius(G: Array) -> Any:
    return np.linalg.norm(G)


def _polynomial(X: Array, R: Array, a: float, b: float, c: float) -> Array:
    return np.asarray(a * X + (b * R + c * R @ R) @ X)


def _newton_schulz(
    G: Array, steps: int = 5, *, norm: Any = _frobenius, coefficients: Any = MUON,
    step: Any = _polynomial, more: int = 0, again: str = "", once: bool = False,
) -> Array:
    """Right as it stands; again: divided by the norm "before" or "after" every step; once: one Gram
    matrix for all steps."""
    X = G / norm(G)
    first = X @ X.T
    for _ in range(steps + more):
        X = X / np.linalg.norm(X) if again == "before" else X
        X = step(X, first if once else X @ X.T, *coefficients)
        X = X / np.linalg.norm(X) if again == "after" else X
    return X


def _by_numbers(X: Array, R: Array, a: float, b: float, c: float) -> Array:
    return np.asarray(a * X + b * X**3 + c * X**5)


def _gram_by_numbers(X: Array, R: Array, a: float, b: float, c: float) -> Array:
    return np.asarray(a * X + (b * R + c * R**2) @ X)


def _exact(G: Array, steps: int) -> Array:
    left, _, right = np.linalg.svd(G, full_matrices=False)
    return np.asarray(left @ right)


def _gradient(rng: np.random.Generator, *shape: int) -> Array:
    """Frobenius norm between 0.3 and 0.7."""
    G = rng.normal(size=shape)
    return G * (rng.uniform(0.3, 0.7) / np.linalg.norm(G))


def _matrix_cases(rng: np.random.Generator) -> list[Case]:
    """Wide, tall and square. Three steps at most: wrong polynomials are of the degree 5^steps, and
    what is no longer finite cannot be told from others."""
    few, some, many = sorted(int(n) for n in rng.choice(range(3, 9), 3, replace=False))
    return [
        (_gradient(rng, few, many), 3),
        (_gradient(rng, many, some), 3),
        (_gradient(rng, some, some), 2),
        (_gradient(rng, some, few), 1),
    ]


def _size_does_not_count(call: Any, args: Case, out: Any) -> str | None:
    G, steps = args
    off = np.abs(call(8 * G, steps) - out).max()
    return None if off < 1e-3 else f"For eight times the matrix a number moved by {off:.4g}."


def _sides_do_not_count(call: Any, args: Case, out: Any) -> str | None:
    G, steps = args
    turned = call(G.T.copy(), steps)
    off = np.abs(turned.T - out).max() if turned.shape == out.T.shape else math.inf
    return None if off < 1e-3 else f"For the transpose a number is off by {off:.4g}."


NEWTON_SCHULZ = Exercise(
    id="muon.newton_schulz",
    lesson="08",
    title="Newton–Schulz",
    difficulty=2,
    minutes=10,
    why="It is the whole of Muon's arithmetic, and runs on every matrix of K2 in every step.",
    signature="newton_schulz(G, steps) -> (r, c)",
    axes="rc",
    cases=_matrix_cases,
    reference=_newton_schulz,
    invariants=(
        Invariant("Muon asks for a direction: eight times the matrix gives the same result.",
                  _size_does_not_count),
        Invariant("the transpose has the same singular values, so its result is the transpose.",
                  _sides_do_not_count),
    ),
    wrong=(
        wrong("not_normalised", partial(_newton_schulz, norm=lambda G: 1),
              """The iteration starts from G itself. A small gradient then does not get as far as
              1 in five steps, and one with singular values well above 1 flies off to infinity.""",
              "What does the polynomial do with a singular value of 10?"),
        wrong("another_norm",
              (partial(_newton_schulz, norm=lambda G: np.linalg.norm(G, 2)),
               partial(_newton_schulz, norm=lambda G: np.abs(G).sum())),
              """G is divided by something other than its Frobenius norm, the root of the sum of
              all its squares. The largest singular value would take an SVD, which is what is to be
              saved; the sum of all sizes is so large that the iteration starts far too low.""",
              "Which norm costs one pass over the numbers and is the length of all singular values "
              "taken as one vector?"),
        wrong("powers_of_numbers",
              (partial(_newton_schulz, step=_by_numbers),
               partial(_newton_schulz, step=_gram_by_numbers)),
              """`**` (or `*`) is taken number by number. The polynomial is one of matrices: only
              products of whole matrices leave the singular vectors alone and act on the singular
              values.""",
              "Which operator makes X times its transpose, and which one only looks like it?"),
        wrong("other_coefficients",
              (partial(_newton_schulz, coefficients=(1.5, -0.5, 0.0)),
               partial(_newton_schulz, coefficients=(15 / 8, -10 / 8, 3 / 8))),
              """These are the coefficients of the textbook, with slope 1.5 or 15/8 at zero. They
              end exactly at 1, but small singular values are still small after five steps.""",
              "By how much does your polynomial multiply a singular value of 0.001?"),
        wrong("gram_once", partial(_newton_schulz, once=True),
              """X Xᵀ is formed once, before the loop. From the second step on it is that of a
              matrix that is no longer there.""",
              "After the first step, what are the singular values of X, and what are those that "
              "your R knows?"),
        wrong("normalised_again",
              (partial(_newton_schulz, again="before"), partial(_newton_schulz, again="after")),
              """X is divided by its norm in every step. That undoes the growth to 1: with n
              equal singular values and a norm of 1 each of them is 1/√n.""",
              "Whose norm has to be at most 1, and how often?"),
        wrong("miscounted",
              (partial(_newton_schulz, more=1), partial(_newton_schulz, more=-1)),
              """There is one step too many or one too few.""",
              "How often does your loop run for steps=1?"),
        wrong("steps_ignored", lambda G, steps: _newton_schulz(G, 5),
              """It always takes five steps, whatever `steps` says.""",
              "Where does the number of steps come into your loop?"),
        wrong("term_forgotten",
              (partial(_newton_schulz, coefficients=(0.0, *MUON[1:])),
               partial(_newton_schulz, coefficients=(MUON[0], 0.0, MUON[2])),
               partial(_newton_schulz, coefficients=(*MUON[:2], 0.0))),
              """One of the three terms A X, B R X and C R² X is missing.""",
              "Which powers of a singular value does your step add up?"),
        wrong("exact", _exact,
              """This is the orthogonal matrix itself, from an SVD. Newton–Schulz comes near it and
              stops: it is an approximation that costs products only, and Muon is defined by it.""",
              "Where is the number of steps in your answer?"),
    ),
)


def _scale(rows: int, columns: int) -> float:
    return 0.2 * math.sqrt(max(rows, columns))


def _scale_cases(rng: np.random.Generator) -> list[Case]:
    few, some, many = (int(n) for n in np.cumsum(rng.integers(20, 200, size=3)))
    return [(few, many), (many, some), (some, some), (1, some)]


def _rms_is_02(call: Any, args: Case, out: Any) -> str | None:
    rows, columns = args
    # Ones on the diagonal: the quickest matrix whose singular values are all 1.
    rms = float(out) * math.sqrt((np.eye(rows, columns) ** 2).mean())
    return None if abs(rms - 0.2) < 1e-3 else \
        f"An orthogonal {rows} × {columns} matrix times {float(out):.4g} has the rms {rms:.4g}."


SCALE = Exercise(
    id="muon.scale",
    lesson="08",
    title="The scale of an update, by shape",
    difficulty=2,
    minutes=6,
    why="With it AdamW's learning rate and decay can be kept, as Moonlight and K2 do.",
    signature="scale(rows, columns) -> float",
    cases=_scale_cases,
    reference=_scale,
    formula=True,
    invariants=(Invariant("an orthogonal matrix times the scale has the root mean square 0.2.",
                          _rms_is_02),),
    wrong=(
        wrong("shorter_side", lambda rows, columns: 0.2 * math.sqrt(min(rows, columns)),
              """This is the shorter side. It counts the singular values, so it stands in the sum of
              squares; but that sum is divided by rows times columns, and what is left is the longer
              side.""",
              "A column of 100 numbers with length 1: what is its root mean square?"),
        wrong("one_side", (lambda rows, columns: 0.2 * math.sqrt(rows),
                           lambda rows, columns: 0.2 * math.sqrt(columns)),
              """It is always the same side. A matrix and its transpose have the same numbers, so
              they need the same scale.""",
              "What does your formula give for the transpose?"),
        wrong("all_numbers", lambda rows, columns: 0.2 * math.sqrt(rows * columns),
              """This would be right if the sum of all squares were 1. In an orthogonal matrix every
              one of its singular values is 1, and the sum of squares is their number.""",
              "What is the sum of squares of a 3 × 3 identity matrix?"),
        wrong("original", (lambda rows, columns: math.sqrt(max(1.0, rows / columns)),
                           lambda rows, columns: 0.2 * math.sqrt(max(1.0, rows / columns)),
                           lambda rows, columns: math.sqrt(max(rows, columns) /
                                                           min(rows, columns))),
              """This is a ratio of the sides, as in the first version of Muon, which wants learning
              rates of its own near 0.02. A square matrix of any size then has the same scale, but
              its root mean square falls as it grows.""",
              "Does the root mean square of an n × n identity matrix depend on n?"),
        wrong("no_root", lambda rows, columns: 0.2 * max(rows, columns),
              """The root is missing: the mean of squares is made right, not the root mean
              square.""",
              "If a matrix is doubled, what happens to the mean of its squares?"),
        wrong("without_rms", lambda rows, columns: math.sqrt(max(rows, columns)),
              """The root mean square comes out as 1. It should be that of AdamW's updates, 0.2.""",
              "What root mean square is asked for, and where is it in your formula?"),
        wrong("upside_down", (lambda rows, columns: 0.2 / math.sqrt(max(rows, columns)),
                              lambda rows, columns: 1 / math.sqrt(max(rows, columns))),
              """This is the root mean square that an orthogonal matrix has (perhaps times 0.2), not
              what has to be multiplied with.""",
              "What times 1/√n is 0.2?"),
    ),
)


def _average(M: Array, G: Array, momentum: float) -> Array:
    return momentum * M + (1 - momentum) * G


def _nesterov(G: Array, new: Array, old: Array, momentum: float) -> Array:
    return (1 - momentum) * G + momentum * new


def _decay_weights(W: Array, update: Array, lr: float, decay: float, size: float) -> Array:
    return W - lr * (size * update + decay * W)


def _step(
    W: Array, M: Array, G: Array, lr: float, momentum: float, weight_decay: float, *,
    average: Any = _average, ahead: Any = _nesterov, settle: Any = _decay_weights,
    size: Any = _scale, orthogonal: Any = _newton_schulz,
) -> dict[str, Array]:
    """Right as it stands: each keyword is one thing to get wrong."""
    new = average(M, G, momentum)
    update = orthogonal(ahead(G, new, M, momentum))
    return {"weight": settle(W, update, lr, weight_decay, size(*W.shape)), "momentum": new}


def _decay_in_gradient(
    W: Array, M: Array, G: Array, lr: float, momentum: float, weight_decay: float
) -> dict[str, Array]:
    return _step(W, M, G + weight_decay * W, lr, momentum, 0.0)


def _too_early(
    W: Array, M: Array, G: Array, lr: float, momentum: float, weight_decay: float,
    nesterov: bool,
) -> dict[str, Array]:
    ahead = _nesterov if nesterov else _look_back
    return _step(W, M, _newton_schulz(G), lr, momentum, weight_decay, ahead=ahead,
                 orthogonal=lambda U: U)


def _look_back(G: Array, new: Array, old: Array, momentum: float) -> Array:
    return new


def _step_cases(rng: np.random.Generator) -> list[Case]:
    """Wide, tall and square; the first step of all, whose momentum is 0, comes last."""
    few, some, many = sorted(int(n) for n in rng.choice(range(3, 9), 3, replace=False))
    cases: list[Case] = []
    for shape in ((few, many), (many, some), (some, some), (some, few)):
        M = _gradient(rng, *shape) * (len(cases) < 3)
        cases.append((rng.normal(size=shape), M, _gradient(rng, *shape),
                      float(rng.uniform(0.2, 0.4)), float(rng.uniform(0.55, 0.8)),
                      float(rng.uniform(0.4, 0.8))))
    return cases


def _loss_units_do_not_count(call: Any, args: Case, out: Any) -> str | None:
    W, M, G, *rest = args
    off = np.abs(call(W, 8 * M, 8 * G, *rest)["weight"] - out["weight"]).max()
    return None if off < 1e-3 else f"With eight times of both a weight moved by {off:.4g}."


def _decay_alone(call: Any, args: Case, out: Any) -> str | None:
    """The difference between two weights with the same gradients is only decayed."""
    W, M, G, lr, momentum, decay = args
    apart = call(W + 1, M, G, lr, momentum, decay)["weight"] - out["weight"]
    off = np.abs(apart - (1 - lr * decay)).max()
    return None if off < 1e-3 else \
        f"1 - lr weight_decay is {1 - lr * decay:.4g}; what was left of 1 is off by {off:.4g}."


STEP = Exercise(
    id="muon.step",
    lesson="08",
    title="One step of Muon",
    difficulty=3,
    minutes=12,
    why="It is the line that changes nearly all of K2's trillion weights.",
    signature="step(W, M, G, lr, momentum, weight_decay) -> "
              "{'weight': (r, c), 'momentum': (r, c)}",
    axes="rc",
    cases=_step_cases,
    reference=_step,
    invariants=(
        Invariant("the unit of the loss does not count: eight times all gradients, past ones too, "
                  "give the same weights.", _loss_units_do_not_count),
        Invariant("the decay is all that depends on the weight: of a 1 added to it, "
                  "1 - lr weight_decay is left.", _decay_alone),
    ),
    wrong=(
        wrong("no_look_ahead", partial(_step, ahead=_look_back),
              """The momentum itself is made orthogonal. With Nesterov's look ahead it is averaged
              with the gradient once more.""",
              "How many times does G enter what you hand to Newton–Schulz?"),
        wrong("look_ahead_by_sum",
              (partial(_step, ahead=lambda G, new, old, mu: G + mu * new),
               partial(_step, ahead=lambda G, new, old, mu: G + new)),
              """The look ahead adds the whole gradient to an average that holds but a share of it.
              G + μ M belongs to the sum M = μ M + G; to the average belongs (1 - μ) G + μ M.""",
              "For a gradient that never changes, how large is U compared with M?"),
        wrong("sum_for_average",
              (partial(_step, average=lambda M, G, mu: mu * M + G,
                       ahead=lambda G, new, old, mu: G + mu * new),
               partial(_step, average=lambda M, G, mu: mu * M + G)),
              """The momentum is the sum μ M + G, as in the papers. From zero on that gives the same
              direction, for it is 1 / (1 - μ) times as large; but here M comes in as an
              average.""",
              "For a gradient that never changes, where does your M end up?"),
        wrong("shares_swapped",
              (partial(_step, average=lambda M, G, mu: (1 - mu) * M + mu * G),
               partial(_step, average=lambda M, G, mu: (1 - mu) * M + mu * G,
                       ahead=lambda G, new, old, mu: mu * G + (1 - mu) * new)),
              """The old momentum and the gradient have each other's shares.""",
              "With momentum=0.95, how much of the past should remain?"),
        wrong("orthogonal_too_early",
              (partial(_too_early, nesterov=True), partial(_too_early, nesterov=False)),
              """Newton–Schulz is run on the gradient, and the results are averaged. A sum of
              orthogonal matrices is not orthogonal.""",
              "What are the singular values of the update that you subtract?"),
        wrong("scale_forgotten", partial(_step, size=lambda rows, columns: 1.0),
              """The update is not multiplied with the scale of its shape.""",
              "What is the root mean square of your update, and what should it be?"),
        wrong("decay_with_the_scale",
              partial(_step, settle=lambda W, U, lr, decay, size: W - lr * size * (U + decay * W)),
              """The decay is multiplied with the scale as well. The scale makes up for the size of
              an orthogonal matrix; the weight needs no such thing.""",
              "Should a matrix with longer sides forget faster?"),
        wrong("decay_in_the_gradient", _decay_in_gradient,
              """The decay is added to the gradient. Newton–Schulz then makes its size up anew, with
              everything else's.""",
              "How much does one of your weights shrink in a step in which it has no gradient?"),
        wrong("decay_last",
              partial(_step, settle=lambda W, U, lr, decay, size: (
                  (W - lr * size * U) * (1 - lr * decay))),
              """The weight is decayed after the update, and the update with it. Both belong to the
              weight of before.""",
              "Is your new update already smaller than it was made?"),
        wrong("uphill",
              (partial(_step, settle=lambda W, U, lr, decay, size: W + lr * (size * U - decay * W)),
               partial(_step, settle=lambda W, U, lr, decay, size: W + lr * (size * U + decay * W)),
               partial(_step,
                       settle=lambda W, U, lr, decay, size: W - lr * (size * U - decay * W))),
              """A sign is wrong: the update, the decay or both are added.""",
              "Does the loss grow or fall along the gradient, and which do you want?"),
    ),
)


def _stacked(
    U: Array, *, norm: Any = None, sizes: Any = lambda E, r, c: (r, c), size: Any = _scale
) -> Array:
    """Right as it stands; norm(U): what every expert is divided by in place of its own norm."""
    own = [_newton_schulz(matrix, norm=_frobenius if norm is None else lambda _: norm(U))
           for matrix in U]
    return np.asarray(np.stack(own) * size(*sizes(*U.shape)))


def _flattened(G: Array, order: tuple[int, int, int], rows: int, whole: bool) -> Array:
    """As one matrix whose rows run over the first so many axes of G in this order."""
    turned = G.transpose(order)
    flat = turned.reshape(math.prod(turned.shape[:rows]), -1)
    update = _newton_schulz(flat).reshape(turned.shape).transpose(np.argsort(order))
    return np.asarray(update * (_scale(*flat.shape) if whole else _scale(*G.shape[1:])))


def _wrong_axis(G: Array, axis: int) -> Array:
    moved = np.moveaxis(G, axis, 0)
    return np.moveaxis(_stacked(moved), 0, axis)


def _wrong_axis_right_scale(G: Array, axis: int) -> Array:
    moved = np.moveaxis(G, axis, 0)
    out = _stacked(moved) * (_scale(*G.shape[1:]) / _scale(*moved.shape[1:]))
    return np.asarray(np.moveaxis(out, 0, axis))


def _stack_cases(rng: np.random.Generator) -> list[Case]:
    """More experts than rows and fewer, wide and tall; busy experts and nearly idle ones."""
    few, some, many = sorted(int(n) for n in rng.choice(range(3, 9), 3, replace=False))
    cases = []
    for shape in ((few, some, many), (many, some, few), (some, some, some), (many, few, some)):
        norms = np.geomspace(0.02, 0.8, shape[0])[rng.permutation(shape[0])]
        G = rng.normal(size=shape)
        norms /= np.linalg.norm(G, axis=(1, 2))
        cases.append((G * norms[:, None, None],))
    return cases


def _each_by_itself(call: Any, args: Case, out: Any) -> str | None:
    (G,) = args
    changed = G.copy()
    changed[0] = 3 * G[0][::-1, ::-1]
    off = np.abs(call(changed)[1:] - out[1:]).max()
    return None if off < 1e-3 else f"Expert 0 was changed, and another's update moved by {off:.4g}."


STACKED_EXPERTS = Exercise(
    id="muon.stacked_experts",
    lesson="08",
    title="A stack of experts",
    difficulty=2,
    minutes=8,
    why="K2's experts are nearly all of its weights, and every framework stores them as stacks.",
    signature="stacked_experts(U) -> (E, r, c)",
    axes="erc",
    cases=_stack_cases,
    reference=_stacked,
    invariants=(
        Invariant("experts are matrices of their own: what one is given does not touch the others.",
                  _each_by_itself),
    ),
    wrong=(
        wrong("flattened",
              tuple(partial(_flattened, order=order, rows=rows, whole=whole)
                    for order, rows in (((0, 1, 2), 2), ((0, 1, 2), 1), ((1, 0, 2), 1))
                    for whole in (True, False)),
              """The stack is laid out as one large matrix. All experts then share its few
              directions: what is made orthogonal is no expert's update, and an expert that got
              few tokens gets next to nothing.""",
              "How many directions has your matrix in all, and how many has each expert?"),
        wrong("one_norm",
              (partial(_stacked, norm=_frobenius),
               partial(_stacked, norm=lambda G: np.linalg.norm(G, axis=(1, 2)).max())),
              """All experts are divided by one norm, of the whole stack or of the largest. An
              expert with a small gradient starts from singular values so small that five steps do
              not bring them to 1.""",
              "Over which axes does the norm of one expert run?"),
        wrong("scale_of_the_stack",
              (partial(_stacked, sizes=lambda E, r, c: (E * r, c)),
               partial(_stacked, sizes=lambda E, r, c: (E, r * c)),
               partial(_stacked, sizes=lambda E, r, c: (E, r)),
               partial(_stacked, sizes=lambda E, r, c: (E, max(r, c)))),
              """The number of experts has got into the scale. Each update is an orthogonal matrix
              (r, c), however many of them there are.""",
              "Should an expert learn faster because it has more siblings?"),
        wrong("wrong_axis",
              tuple(partial(f, axis=axis) for f in (_wrong_axis, _wrong_axis_right_scale)
                    for axis in (1, 2)),
              """The loop runs over rows or columns, and its matrices have one row or column from
              each of the experts.""",
              "Which axis of (E, r, c) do you loop over, and what is left?"),
        wrong("scale_forgotten", partial(_stacked, size=lambda rows, columns: 1.0),
              """The updates are orthogonal but not multiplied with the scale of (r, c).""",
              "What is the root mean square of one expert's update?"),
    ),
)
