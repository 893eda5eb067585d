"""Lesson 09: MuonClip.

Unusual here: a head's maximum is signed, and where it is negative formulas that look the same come
apart. So some cases have heads that like nothing. The right answers are held against both engines
by the tests.
"""

from functools import partial
from typing import Any

import numpy as np

from minik2.checks.exercise import Case, Exercise, Invariant, wrong

TITLE = "MuonClip"

Array = np.ndarray[Any, np.dtype[Any]]


def _logits(q: Array, k: Array, scale: float) -> Array:
    """(H, T, S), all pairs, seen or not."""
    return scale * np.einsum("thd,shd->hts", q, k)


def _masked(q: Array, k: Array, scale: float) -> Array:
    return np.where(np.tri(len(q), dtype=bool), _logits(q, k, scale), -np.inf)


def _max_logits(q: Array, k: Array, scale: float) -> Array:
    top: Array = _masked(q, k, scale).max(axis=(1, 2))
    return top


def _masked_with_zero(q: Array, k: Array, scale: float) -> Array:
    top: Array = (_logits(q, k, scale) * np.tri(len(q))).max(axis=(1, 2))
    return top


def _sizes_of_logits(q: Array, k: Array, scale: float) -> Array:
    top: Array = np.abs(np.where(np.tri(len(q), dtype=bool), _logits(q, k, scale), 0)).max((1, 2))
    return top


def _log_sum(q: Array, k: Array, scale: float) -> Array:
    """The largest log-sum-exp of a row, which fused attention hands out."""
    top: Array = np.logaddexp.reduce(_masked(q, k, scale), axis=2).max(axis=1)
    return top


def _weights(q: Array, k: Array, scale: float) -> Array:
    scores = _masked(q, k, scale)
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    top: Array = (powers / powers.sum(-1, keepdims=True)).max(axis=(1, 2))
    return top


def _lengths(q: Array, k: Array, scale: float) -> Array:
    longest = [np.linalg.norm(a, axis=-1).max(0) for a in (q, k)]
    return scale * longest[0] * longest[1]


# (T, H, d): all different, then all equal, then one token.
_TOKENS = ((7, 3, 5), (9, 4, 6), (5, 2, 8), (4, 4, 4), (6, 5, 3), (1, 3, 4))


def _logit_cases(rng: np.random.Generator) -> list[Case]:
    """Head 0's largest logit is of a pair that nobody may see; the last head likes nothing."""
    cases: list[Case] = []
    for tokens, heads, size in _TOKENS:
        q, k = rng.normal(size=(2, tokens, heads, size))
        q[:, -1] = np.abs(q[:, -1]) + 0.2
        k[:, -1] = -np.abs(k[:, -1]) - 0.2
        k[-1, 0] = 4 * q[0, 0] / np.linalg.norm(q[0, 0])
        cases.append((2 * q, 2 * k, float(rng.uniform(0.2, 0.7))))
    return cases


def _twice_the_query(call: Any, args: Case, out: Array) -> str | None:
    q, k, scale = args
    off = np.abs(call(2 * q, k, scale) - 2 * out).max()
    if off < 1e-3 * max(1, np.abs(out).max()):
        return None
    return f"With all queries twice as long, a maximum is {off:.4g} away from twice its value."


def _unseen(call: Any, args: Case, out: Array) -> str | None:
    q, k, scale = args
    cut = call(q[:1], k[:1], scale)
    want = scale * (q[0] * k[0]).sum(-1)
    off = np.abs(cut - want).max()
    if off < 1e-3 * max(1, np.abs(want).max()):
        return None
    return f"With the first token alone a maximum is off by {off:.4g}."


MAX_LOGITS = Exercise(
    id="muonclip.max_logits",
    lesson="09",
    title="Each head's largest logit",
    difficulty=2,
    minutes=10,
    why="It is all that QK-Clip asks of the forward pass.",
    signature="max_logits(q, k, scale) -> (H,)",
    axes="H",
    cases=_logit_cases,
    reference=_max_logits,
    invariants=(
        Invariant("a logit is a product, so queries twice as long make every maximum twice as "
                  "large.", _twice_the_query),
        Invariant("the first token sees itself alone, so without the others its own logit is "
                  "the maximum.", _unseen),
    ),
    wrong=(
        wrong("unseen_pairs", lambda q, k, s: _logits(q, k, s).max(axis=(1, 2)),
              """Pairs in which the key is later than the query are looked at too. No softmax ever
              sees their logits.""",
              "Which logits does the causal mask leave?"),
        wrong("masked_with_zero", _masked_with_zero,
              """Unseen pairs are set to 0. A head whose logits are all negative then has the
              maximum 0, which belongs to no pair.""",
              "What can you fill in that a maximum will never choose?"),
        wrong("no_scale", lambda q, k, s: _max_logits(q, k, 1.0),
              """The products are not multiplied with the softmax scale. Tau is a limit for what
              goes into the softmax.""",
              "Is the scale applied before the softmax or after it?"),
        wrong("absolute", _sizes_of_logits,
              """The largest size is taken, whatever the sign. A logit far below zero makes a weight
              of nothing and does no harm; the maximum is signed.""",
              "What does exp make of a very negative logit?"),
        wrong("log_sum_exp", _log_sum,
              """This is the log of the sum of exponentials, which fused attention hands out. It is
              above the maximum by up to the log of the number of keys.""",
              "What is log(exp(a) + exp(a)), and what is the larger of a and a?"),
        wrong("after_the_softmax", _weights,
              """These are the largest attention weights. They never pass 1, however large the
              logits grow.""",
              "Can a number between 0 and 1 tell a logit of 50 from one of 5,000?"),
        wrong("product_of_lengths", _lengths,
              """This is the longest query times the longest key: a bound. The two may belong to
              different tokens and point in different directions.""",
              "What is the product of two long vectors at a right angle?"),
        wrong("one_for_all_heads",
              (lambda q, k, s: np.full(q.shape[1], _max_logits(q, k, s).max()),
               lambda q, k, s: _max_logits(q, k, s).max()),
              """One maximum is taken over all heads. A head with small logits must not be clipped
              for what another one does.""",
              "Which axis should be left after the maximum?"),
        wrong("a_maximum_for_each_query",
              (lambda q, k, s: _masked(q, k, s).max(axis=2),
               lambda q, k, s: _masked(q, k, s).max(axis=2).T),
              """There is one number for every query of every head. The largest of all queries is
              wanted.""",
              "Over which two axes does the maximum run?"),
    ),
)


def _gamma(max_logits: Array, tau: float) -> Array:
    return tau / np.maximum(max_logits, tau)


def _gamma_cases(rng: np.random.Generator) -> list[Case]:
    """Some heads above tau, some below, some negative, one of them far below -tau."""
    cases: list[Case] = []
    for above, below, negative in ((3, 2, 2), (1, 3, 2), (4, 1, 1), (2, 2, 3)):
        tau = float(rng.uniform(5, 100))
        ratios = np.concatenate([rng.uniform(1.2, 12, above), rng.uniform(0.1, 0.8, below),
                                 -rng.uniform(0.1, 0.8, negative), [-rng.uniform(1.5, 4)]])
        cases.append((tau * rng.permutation(ratios), tau))
    return cases


def _held(call: Any, args: Case, out: Array) -> str | None:
    maxima, tau = args
    if (out * maxima <= tau * 1.001).all():
        return None
    head = int((out * maxima).argmax())
    return f"Head {head} still reaches {out[head] * maxima[head]:.4g}, and tau is {tau:.4g}."


def _left_alone(call: Any, args: Case, out: Array) -> str | None:
    maxima, tau = args
    quiet = maxima < tau
    if (np.abs(out[quiet] - 1) < 1e-3).all():
        return None
    head = int(np.flatnonzero(quiet)[np.abs(out[quiet] - 1).argmax()])
    return (f"Head {head} has the maximum {maxima[head]:.4g}, tau is {tau:.4g}, and its factor is "
            f"{out[head]:.4g}.")


GAMMA = Exercise(
    id="muonclip.gamma",
    lesson="09",
    title="By how much a head is clipped",
    difficulty=1,
    minutes=5,
    why="It decides which heads are touched at all, and most of K2's never were.",
    signature="gamma(max_logits, tau) -> (H,)",
    axes="H",
    formula=True,
    cases=_gamma_cases,
    reference=_gamma,
    invariants=(
        Invariant("a logit times its head's factor is at most tau.", _held),
        Invariant("a head that stays below tau is left alone: its factor is 1.", _left_alone),
    ),
    wrong=(
        wrong("negative_maximum", lambda m, tau: np.minimum(1, tau / m),
              """A head whose largest logit is negative gets a negative factor: tau / max is below
              0, and so is the smaller of it and 1. Such a head is below tau and stays as it
              is.""",
              "What does min(1, tau / max) give for a maximum of -5, and what is its root?"),
        wrong("size_of_the_maximum", lambda m, tau: tau / np.maximum(np.abs(m), tau),
              """A head whose largest logit is far below zero is clipped. Only large positive
              logits take over a softmax.""",
              "Is a maximum of -500 above tau?"),
        wrong("quiet_heads_grow", (lambda m, tau: tau / m, lambda m, tau: tau / np.abs(m)),
              """Heads below tau get a factor of another size than 1: they would be scaled until
              they reach tau. Tau is a limit, not a goal.""",
              "What should happen to a head whose largest logit is tau / 2?"),
        wrong("upside_down", lambda m, tau: np.maximum(m, tau) / tau,
              """The fraction is upside down: heads above tau would grow.""",
              "Should a head above tau get a factor above 1 or below it?"),
        wrong("root", lambda m, tau: np.sqrt(_gamma(m, tau)),
              """This is the root of the factor. The logit as a whole must shrink by gamma; how that
              is shared between query and key comes later.""",
              "What is the largest logit after your factor, and is it tau?"),
        wrong("one_for_all_heads", lambda m, tau: np.full_like(m, _gamma(m, tau).min()),
              """All heads get the factor of the worst one. Those below tau are harmed for
              nothing.""",
              "Which heads have to change if one of them is above tau?"),
        wrong("zero_or_one", lambda m, tau: np.where(m > tau, 0.0, 1.0),
              """Heads above tau are switched off. They are to be scaled so that they reach tau
              exactly.""",
              "Which factor brings a maximum of 3 tau down to tau?"),
    ),
)


def _row_factors(
    gamma: Array, nope: int, rope: int, value: int, *,
    query: Any = np.sqrt, turned: Any = lambda g: g, key: Any = np.sqrt,
    values: Any = np.ones_like, order: Any = np.hstack,
) -> tuple[Array, Array]:
    """What each part of a head is scaled with; order: how the parts of all heads are laid out."""
    def rows(*parts: tuple[Array, int]) -> Array:
        out: Array = order([np.repeat(f[:, None], size, axis=1) for f, size in parts]).ravel()
        return out

    return (rows((query(gamma), nope), (turned(gamma), rope)),
            rows((key(gamma), nope), (values(gamma), value)))


def _part_by_part(parts: list[Array]) -> Array:
    """All heads' first parts, then all heads' second parts."""
    return np.concatenate([part.ravel() for part in parts])


def _interleaved(parts: list[Array]) -> Array:
    return np.hstack(parts).T


def _other_part_first(parts: list[Array]) -> Array:
    return np.hstack(parts[::-1])


def _same(gamma: Array) -> Array:
    return gamma


def _row_cases(rng: np.random.Generator) -> list[Case]:
    """(H, N, R, V): all different, one head left alone in each; the last with all equal."""
    cases: list[Case] = []
    for heads, nope, rope, value in ((3, 4, 2, 5), (5, 3, 4, 2), (2, 6, 4, 3), (4, 4, 4, 4)):
        gamma = rng.permutation(np.append(1.0, rng.uniform(0.1, 0.7, heads - 1)))
        cases.append((gamma, nope, rope, value))
    return cases


def _logit_shrinks(call: Any, args: Case, out: Any) -> str | None:
    gamma, nope, rope, value = args
    q = np.reshape(out[0], (len(gamma), nope + rope))
    k = np.reshape(out[1], (len(gamma), nope + value))
    plain, turned = q[:, 0] * k[:, 0], q[:, -1]
    for name, got in (("no-position", plain), ("rotary", turned)):
        off = np.abs(got - gamma)
        if off.max() > 1e-3:
            head = int(off.argmax())
            return (f"In head {head}, whose gamma is {gamma[head]:.4g}, the {name} part shrinks by "
                    f"{got[head]:.4g}.")
    return None


def _values_stay(call: Any, args: Case, out: Any) -> str | None:
    gamma, nope, _, value = args
    rest = np.reshape(out[1], (len(gamma), nope + value))[:, nope:]
    worst = float(rest.flat[np.abs(rest - 1).argmax()])
    return None if abs(worst - 1) < 1e-3 else f"One of its rows has the factor {worst:.4g}."


ROW_FACTORS = Exercise(
    id="muonclip.row_factors",
    lesson="09",
    title="Which rows, and by how much",
    difficulty=3,
    minutes=15,
    why="A factor on a wrong row changes what heads say, or heads that did nothing wrong.",
    signature="row_factors(gamma, nope, rope, value) -> (H (N + R),), (H (N + V),)",
    cases=_row_cases,
    reference=_row_factors,
    invariants=(
        Invariant("both parts of a head's logit shrink by its gamma.", _logit_shrinks),
        Invariant("the content of a head is not its logits: value rows stay.", _values_stay),
    ),
    wrong=(
        wrong("no_root", partial(_row_factors, query=_same, key=_same),
              """The no-position parts of query and key both take gamma. They meet in a product,
              which then shrinks by gamma squared.""",
              "If the query shrinks by a and the key by b, by what does their product?"),
        wrong("rotary_takes_the_root", partial(_row_factors, turned=np.sqrt),
              """The rotary query takes the root, like the rest. Its partner, the rotary key, stays
              as it is, because all heads share it.""",
              "Who shrinks the rotary part of the logit besides the query?"),
        wrong("rotary_left_alone", partial(_row_factors, turned=np.ones_like),
              """The rotary query rows stay as they are. A logit has two parts, and both must
              shrink.""",
              "What is left of a logit that comes from the rotary part alone?"),
        wrong("values_too", (partial(_row_factors, values=np.sqrt),
                             partial(_row_factors, values=_same)),
              """The value rows are scaled too. They do not enter the logit; scaling them makes what
              the head passes on smaller.""",
              "Which of a head's vectors meet in its logit?"),
        wrong("values_for_keys", partial(_row_factors, key=np.ones_like, values=np.sqrt),
              """The value rows take the root and the key rows stay. In each head's part of
              kv_b_proj the N key rows come first.""",
              "Which rows of a head's part of kv_b_proj make its keys?"),
        wrong("rotary_first", partial(_row_factors, order=_other_part_first),
              """The parts of a head are in the wrong order. The no-position rows come first, then
              the rotary rows, or the values.""",
              "Which N + R rows belong to a head, and which come first among them?"),
        wrong("part_by_part", partial(_row_factors, order=_part_by_part),
              """The first parts of all heads come first, then the second parts. The rows go head by
              head.""",
              "Which row of q_b_proj is the first one of head 1?"),
        wrong("heads_alternate", partial(_row_factors, order=_interleaved),
              """Neighbouring rows belong to different heads, as np.tile lays them out. A head's
              rows lie together.""",
              "Does np.repeat([a, b], 2) give a a b b or a b a b?"),
        wrong("query_takes_all", partial(_row_factors, query=_same, key=np.ones_like),
              """The query takes the whole gamma and the key nothing. The logits come out right, but
              the algorithm shares the no-position part evenly, a root each.""",
              "What happens to the lengths of queries and keys if it is always the query?"),
        wrong("key_takes_all", partial(_row_factors, query=np.ones_like, key=_same),
              """The key takes the whole gamma and the no-position query nothing. The logits come
              out right, but the algorithm shares evenly, a root each.""",
              "What happens to the lengths of queries and keys if it is always the key?"),
    ),
)


def _clip_block(
    q_b_proj: Array, kv_b_proj: Array, max_logits: Array, tau: float, nope: int, rope: int, *,
    gamma: Any = _gamma, factors: Any = _row_factors,
) -> tuple[Array, Array]:
    value = len(kv_b_proj) // len(max_logits) - nope
    query, key = factors(gamma(max_logits, tau), nope, rope, value)
    return q_b_proj * query[:, None], kv_b_proj * key[:, None]


def _columns(q_b_proj: Array, kv_b_proj: Array, max_logits: Array, tau: float, nope: int,
             rope: int) -> tuple[Array, Array]:
    heads = len(max_logits)
    g = _gamma(max_logits, tau)
    out = []
    for w in (q_b_proj, kv_b_proj):
        out.append(w * np.resize(np.sqrt(np.repeat(g, w.shape[1] // heads)), w.shape[1]))
    return out[0], out[1]


def _only(which: int, *args: Any) -> tuple[Array, Array]:
    out = list(_clip_block(*args))
    out[1 - which] = args[1 - which]
    return out[0], out[1]


def _block_cases(rng: np.random.Generator) -> list[Case]:
    """(H, N, R, V, Q, C): different, then equal. Heads above tau, below it, and negative."""
    cases: list[Case] = []
    for h, n, r, v, q, c in ((3, 4, 2, 5, 7, 6), (4, 3, 4, 2, 9, 8), (5, 2, 6, 3, 11, 10),
                             (4, 4, 4, 4, 8, 8)):
        tau = float(rng.uniform(5, 60))
        ratios = np.concatenate([rng.uniform(1.5, 8, h - 2), [rng.uniform(0.2, 0.8)],
                                 [-rng.uniform(0.2, 0.8)]])
        cases.append((rng.normal(size=(h * (n + r), q)), rng.normal(size=(h * (n + v), c)),
                      tau * rng.permutation(ratios), tau, n, r))
    return cases


def _to_tau(call: Any, args: Case, out: Any) -> str | None:
    """A query latent, a latent and a rotary key: their logits before and after."""
    q_b, kv_b, maxima, tau, nope, rope = args
    heads = len(maxima)
    latents = [np.cos(1.0 + np.arange(w.shape[1])) for w in (q_b, kv_b)]
    turned = np.sin(1.0 + np.arange(rope))

    def logits(q_up: Array, kv_up: Array) -> Array:
        q, kv = ((w @ x).reshape(heads, -1) for w, x in zip((q_up, kv_up), latents, strict=True))
        both: Array = (q[:, :nope] * kv[:, :nope]).sum(1) + q[:, nope:] @ turned
        return both

    before, after = logits(q_b, kv_b), logits(*out)
    want = before * tau / np.maximum(maxima, tau)
    off = np.abs(after - want)
    if off.max() < 1e-3 * max(1, np.abs(before).max()):
        return None
    head = int(off.argmax())
    return (f"A logit of head {head}, {before[head]:.4g}, became {after[head]:.4g} and should "
            f"be {want[head]:.4g}.")


CLIP_BLOCK = Exercise(
    id="muonclip.clip_block",
    lesson="09",
    title="Clip a block of attention",
    difficulty=3,
    minutes=15,
    why="This is QK-Clip as K2 ran it after every step, in the checkpoint's own layout.",
    signature="clip_block(q_b_proj, kv_b_proj, max_logits, tau, nope, rope) -> "
              "(H (N + R), Q), (H (N + V), C)",
    cases=_block_cases,
    reference=_clip_block,
    invariants=(
        Invariant("for unchanged inputs every logit of a head is its old one times gamma.",
                  _to_tau),
    ),
    wrong=(
        wrong("one_gamma_for_all",
              partial(_clip_block, gamma=lambda m, tau: np.full_like(m, _gamma(m, tau).min())),
              """All heads of the layer are scaled by the worst one's gamma. QK-Clip works head by
              head, so that it harms no more than it must.""",
              "Which rows belong to heads that stayed below tau?"),
        wrong("quiet_heads_grow",
              partial(_clip_block, gamma=lambda m, tau: np.where(m > 0, tau / np.abs(m), 1)),
              """Heads below tau are scaled up to it. Gamma is never above 1.""",
              "What is gamma for a head with its maximum at tau / 2?"),
        wrong("negative_maximum",
              partial(_clip_block, gamma=lambda m, tau: np.minimum(1, tau / m)),
              """For a head whose largest logit is negative, gamma came out negative, and its root
              is no number. Such a head is below tau.""",
              "What does min(1, tau / max) give for a maximum of -5?"),
        wrong("no_root", partial(_clip_block, factors=partial(_row_factors, query=_same,
                                                              key=_same)),
              """The no-position parts of query and key both take gamma, so their product shrinks by
              gamma squared.""",
              "How is one factor shared between two sides of a product?"),
        wrong("rotary_takes_the_root",
              partial(_clip_block, factors=partial(_row_factors, turned=np.sqrt)),
              """The rotary query rows take the root. No rows of these matrices make the rotary
              key, so the query must take the whole gamma.""",
              "Which matrix makes the rotary key, and for how many heads?"),
        wrong("rotary_left_alone",
              partial(_clip_block, factors=partial(_row_factors, turned=np.ones_like)),
              """The rotary query rows are as before. That part of the logit stays as large as it
              was.""",
              "What are the last R rows of a head in q_b_proj for?"),
        wrong("values_too",
              (partial(_clip_block, factors=partial(_row_factors, values=np.sqrt)),
               partial(_clip_block, factors=partial(_row_factors, values=_same))),
              """The value rows of kv_b_proj are scaled too. They do not enter a logit.""",
              "Which rows of a head's part of kv_b_proj make values?"),
        wrong("part_by_part",
              partial(_clip_block, factors=partial(_row_factors, order=_part_by_part)),
              """The rows are taken as if the parts of all heads lay together. They go head by
              head.""",
              "Which row of q_b_proj is the first one of head 1?"),
        wrong("columns", _columns,
              """Columns are scaled in place of rows. A checkpoint stores a matrix as (out, in), so
              the heads are along the first axis.""",
              "Which axis of q_b_proj has the length H (N + R)?"),
        wrong("query_only", partial(_only, 0),
              """kv_b_proj is as before. The no-position part then shrinks by the root of gamma
              only.""",
              "Which of the two matrices makes the keys?"),
        wrong("keys_only", partial(_only, 1),
              """q_b_proj is as before. The no-position part then shrinks by the root of gamma only,
              and the rotary part not at all.""",
              "Which of the two matrices makes the queries?"),
    ),
)
