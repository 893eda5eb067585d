"""Lesson 02: multi-head latent attention.

Unusual here: the right answers are written for one sequence and no batch, as a learner would write
them; the tests hold them against minik2.reference. The whole block is one function that takes each
of its steps as an argument, so that a wrong answer is the right one with one step changed. Cases
have an eps far larger than a model's, because one that is lost should show.
"""

from functools import partial
from typing import Any

import numpy as np

from minik2.checks.exercise import Case, Exercise, Invariant, wrong

TITLE = "MLA: attention through a bottleneck"

Array = np.ndarray[Any, np.dtype[Any]]
Weights = dict[str, Array]


def _norm(x: Array, gain: Array, eps: float) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * gain


def _norm_of_length(x: Array, gain: Array, eps: float) -> Array:
    return x / np.sqrt((x**2).sum(-1, keepdims=True) + eps) * gain


def _norm_around_mean(x: Array, gain: Array, eps: float) -> Array:
    return _norm(x - x.mean(-1, keepdims=True), gain, eps)


def _no_norm(x: Array, gain: Array, eps: float) -> Array:
    return x


def _norm_without_gain(x: Array, gain: Array, eps: float) -> Array:
    return _norm(x, np.ones_like(gain), eps)


def _norm_with_eps_outside(x: Array, gain: Array, eps: float) -> Array:
    return x / (np.sqrt((x**2).mean(-1, keepdims=True)) + eps) * gain


def _norm_with_no_eps(x: Array, gain: Array, eps: float) -> Array:
    return _norm(x, gain, 1e-6)


def _compress(compressed: Array, gain: Array, eps: float, norm: Any = _norm) -> Array:
    return norm(compressed[:, : len(gain)], gain, eps)


def _norm_over_both(compressed: Array, gain: Array, eps: float) -> Array:
    return _norm(compressed, np.ones(compressed.shape[1]), eps)[:, : len(gain)] * gain


def _latent_behind(compressed: Array, gain: Array, eps: float) -> Array:
    return _norm(compressed[:, -len(gain) :], gain, eps)


def _per_head(kv: Array, heads: int, nope: int) -> tuple[Array, Array]:
    kv = kv.reshape(len(kv), heads, -1)
    return kv[..., :nope], kv[..., nope:]


def _keys_then_values(kv: Array, heads: int, nope: int) -> tuple[Array, Array]:
    k, v = np.split(kv, [heads * nope], axis=1)
    return k.reshape(len(kv), heads, -1), v.reshape(len(kv), heads, -1)


def _heads_inside(kv: Array, heads: int, nope: int) -> tuple[Array, Array]:
    kv = kv.reshape(len(kv), -1, heads).transpose(0, 2, 1)
    return kv[..., :nope], kv[..., nope:]


def _values_first(kv: Array, heads: int, nope: int) -> tuple[Array, Array]:
    kv = kv.reshape(len(kv), heads, -1)
    return kv[..., -nope:], kv[..., :-nope]


def _given_back_swapped(kv: Array, heads: int, nope: int) -> tuple[Array, Array]:
    k, v = _per_head(kv, heads, nope)
    return v, k


def _tokens_and_heads_mixed(kv: Array, heads: int, nope: int) -> tuple[Array, Array]:
    kv = kv.reshape(heads, len(kv), -1).transpose(1, 0, 2)
    return kv[..., :nope], kv[..., nope:]


def _expand_kv(
    x: Array, kv_a_proj_with_mqa: Array, kv_a_layernorm: Array, kv_b_proj: Array, heads: int,
    nope: int, eps: float, *, compress: Any = _compress, split: Any = _per_head,
) -> tuple[Array, Array]:
    latent = compress(x @ kv_a_proj_with_mqa.T, kv_a_layernorm, eps)
    k_nope, v = split(latent @ kv_b_proj.T, heads, nope)
    return k_nope, v


def _not_transposed(down: bool, up: bool) -> Any:
    def expand(x: Array, kv_a_proj_with_mqa: Array, kv_a_layernorm: Array, kv_b_proj: Array,
               heads: int, nope: int, eps: float) -> tuple[Array, Array]:
        a = kv_a_proj_with_mqa.T if down else kv_a_proj_with_mqa
        b = kv_b_proj.T if up else kv_b_proj
        return _expand_kv(x, a, kv_a_layernorm, b, heads, nope, eps)

    return expand


def _expand_cases(rng: np.random.Generator) -> list[Case]:
    """All sizes differ; then keys are as wide as values; then both matrices are square."""
    cases: list[Case] = []
    for heads, nope, value, latent, rotary, hidden in (
            (3, 4, 5, 7, 2, 8), (2, 5, 3, 6, 4, 9), (4, 3, 3, 5, 2, 8), (2, 2, 3, 10, 2, 12)):
        tokens = int(rng.integers(9, 12))
        cases.append((
            2 * rng.normal(size=(tokens, hidden)),
            rng.normal(size=(latent + rotary, hidden)) / hidden**0.5,
            rng.uniform(0.5, 1.5, latent),
            rng.normal(size=(heads * (nope + value), latent)),
            heads, nope, float(rng.uniform(0.2, 0.5))))
    return cases


def _length_is_divided_out(call: Any, args: Case, out: Any) -> str | None:
    x, *rest, _ = args
    change = max(float(np.abs(a - b).max()) for a, b in
                 zip(call(x, *rest, 0.0), call(2 * x, *rest, 0.0), strict=True))
    if change < 1e-3 * max(float(np.abs(part).max()) for part in out):
        return None
    return f"With x twice as long and eps 0, a number changed by {change:.4g}."


EXPAND_KV = Exercise(
    id="mla.expand_kv",
    lesson="02",
    title="Keys and values out of a latent",
    difficulty=2,
    minutes=15,
    why="In K2 a latent of 512 numbers is all that 64 heads have to make keys and values of.",
    signature="expand_kv(x, kv_a_proj_with_mqa, kv_a_layernorm, kv_b_proj, heads, nope, eps)"
              " -> (T, H, N), (T, H, V)",
    axes="T H N",
    cases=_expand_cases,
    reference=_expand_kv,
    invariants=(
        Invariant("the norm divides the length of the latent out, so a longer x changes nothing.",
                  _length_is_divided_out),
    ),
    wrong=(
        wrong("no_norm", partial(_expand_kv, compress=partial(_compress, norm=_no_norm)),
              """The latent is not normalised. kv_a_layernorm stands between the two matrices;
              without it the two are one matrix of low rank.""",
              "Where do `kv_a_layernorm` and `eps` enter your function?"),
        wrong("norm_over_both", partial(_expand_kv, compress=_norm_over_both),
              """The norm is taken over all C + R numbers, so the rotary key has a say in how long
              the latent is. Only the latent is normalised, and the rotary key never is.""",
              "How many numbers does kv_a_layernorm have, and over how many is your mean?"),
        wrong("norm_without_gain",
              partial(_expand_kv, compress=partial(_compress, norm=_norm_without_gain)),
              """The latent is normalised, and its weights are forgotten: each of its numbers is
              multiplied by its own number of kv_a_layernorm.""",
              "What does your function use kv_a_layernorm for, besides its length?"),
        wrong("divided_by_the_length",
              partial(_expand_kv, compress=partial(_compress, norm=_norm_of_length)),
              """The latent is divided by its length, the root of the *sum* of squares. RMSNorm
              takes the root of the *mean* of squares, which is sqrt(C) times smaller.""",
              "What should the mean square of a latent be after the norm, before its weights?"),
        wrong("mean_subtracted",
              partial(_expand_kv, compress=partial(_compress, norm=_norm_around_mean)),
              """The latent's mean is subtracted first. That is LayerNorm; RMSNorm leaves the mean
              where it is.""",
              "Which statistics does RMSNorm take of a vector?"),
        wrong("eps_outside_the_root",
              partial(_expand_kv, compress=partial(_compress, norm=_norm_with_eps_outside)),
              """eps is added to the root. It belongs under it, beside the mean square. With 1e-6
              hardly anybody notices; the check takes a larger eps.""",
              "Of which quantity should eps keep the root away from zero?"),
        wrong("eps_of_its_own",
              partial(_expand_kv, compress=partial(_compress, norm=_norm_with_no_eps)),
              """eps is left out, or is a constant such as 1e-6. Whoever calls says how large it is;
              the check takes a larger one than most models, so that it shows.""",
              "What happens in your function when its argument eps becomes 0.5?"),
        wrong("latent_behind_the_rotary_key", partial(_expand_kv, compress=_latent_behind),
              """The latent is taken from the end. kv_a_proj_with_mqa gives C numbers of latent
              first, and R numbers of rotary key after them.""",
              "Which rows of kv_a_proj_with_mqa make the latent?"),
        wrong("keys_then_values", partial(_expand_kv, split=_keys_then_values),
              """The rows of kv_b_proj are taken for the keys of all heads and then the values of
              all heads. They go head by head: N of key, then V of value, then the next head.""",
              "Which rows of kv_b_proj belong to head 1?"),
        wrong("heads_as_last_axis", partial(_expand_kv, split=_heads_inside),
              """The heads are the fast axis: rows 0, H, 2H, … went to head 0. The rows of one head
              stand together.""",
              "If two neighbouring rows of kv_b_proj are both of head 0, which axis of the reshape "
              "comes first, heads or N + V?"),
        wrong("tokens_and_heads_mixed", partial(_expand_kv, split=_tokens_and_heads_mixed),
              """(T, H (N + V)) was reshaped to (H, T, N + V). A reshape does not move numbers, so
              heads got what belongs to tokens. First split the last axis, then transpose.""",
              "Which numbers stand next to each other in memory: those of a token or of a head?"),
        wrong("values_before_keys", partial(_expand_kv, split=_values_first),
              """In each head the value is taken from the front and the key from the end. The key
              comes first.""",
              "Of a head's N + V rows, which are the first N?"),
        wrong("returned_in_the_other_order", partial(_expand_kv, split=_given_back_swapped),
              """The values are returned first. The keys come first, (T, H, N), then the values,
              (T, H, V).""",
              "In which order does the docstring name the two results?"),
        wrong("weights_not_transposed",
              (_not_transposed(True, True), _not_transposed(True, False),
               _not_transposed(False, True)),
              """A product is x @ weight. A checkpoint stores weights as (out, in), so it must be
              x @ weight.T; only square weights let the slip pass without an error.""",
              "Which axis of kv_b_proj has the size of the latent?"),
    ),
)


def _rotate(x: Array, positions: Array, theta: float, halves: bool = False) -> Array:
    """x (T, ..., R); `halves`: number i is paired with i + R/2."""
    size = x.shape[-1]
    angles = np.outer(positions, theta ** (-np.arange(0, size, 2) / size))
    turn = np.exp(1j * angles).reshape(len(x), *[1] * (x.ndim - 2), -1)
    if halves:
        pairs = (x[..., : size // 2] + 1j * x[..., size // 2 :]) * turn
        return np.concatenate([pairs.real, pairs.imag], -1)
    pairs = (x[..., 0::2] + 1j * x[..., 1::2]) * turn
    return np.stack([pairs.real, pairs.imag], -1).reshape(x.shape)


def _not_turned(x: Array, positions: Array, theta: float) -> Array:
    return x


def _rows_counted(x: Array, positions: Array, theta: float) -> Array:
    return _rotate(x, np.arange(len(x)), theta)


def _queries(q: Array, heads: int, nope: int) -> tuple[Array, Array]:
    q = q.reshape(len(q), heads, -1)
    return q[..., :nope], q[..., nope:]


def _queries_by_part(q: Array, heads: int, nope: int) -> tuple[Array, Array]:
    parts = np.split(q, [heads * nope], axis=1)
    return parts[0].reshape(len(q), heads, -1), parts[1].reshape(len(q), heads, -1)


def _queries_heads_inside(q: Array, heads: int, nope: int) -> tuple[Array, Array]:
    q = q.reshape(len(q), -1, heads).transpose(0, 2, 1)
    return q[..., :nope], q[..., nope:]


def _queries_rotary_first(q: Array, heads: int, nope: int) -> tuple[Array, Array]:
    q = q.reshape(len(q), heads, -1)
    return q[..., -nope:], q[..., :-nope]


def _shared(k_rope: Array, heads: int) -> Array:
    return np.repeat(k_rope[:, None], heads, axis=1)


def _first_head_only(k_rope: Array, heads: int) -> Array:
    return _shared(k_rope, heads) * (np.arange(heads) == 0)[:, None]


def _put_behind(nope: Array, rotary: Array) -> Array:
    return np.concatenate([nope, rotary], -1)


def _put_before(nope: Array, rotary: Array) -> Array:
    return np.concatenate([rotary, nope], -1)


def _split_and_rotate(
    q: Array, k_nope: Array, compressed: Array, positions: Array, theta: float, *,
    queries: Any = _queries, turn_q: Any = _rotate, turn_k: Any = _rotate, share: Any = _shared,
    join_q: Any = _put_behind, join_k: Any = _put_behind, key_in_front: bool = False,
) -> tuple[Array, Array]:
    _, heads, nope = k_nope.shape
    rotary = q.shape[1] // heads - nope
    q_nope, q_rope = queries(q, heads, nope)
    k_rope = compressed[:, :rotary] if key_in_front else compressed[:, -rotary:]
    k_rope = share(turn_k(k_rope, positions, theta), heads)
    return join_q(q_nope, turn_q(q_rope, positions, theta)), join_k(k_nope, k_rope)


def _all_turned(keys: bool, queries: bool = True) -> Any:
    """The rotation on whole heads, after the parts were joined."""
    def split(q: Array, k_nope: Array, compressed: Array, positions: Array, theta: float,
              ) -> tuple[Array, Array]:
        plain = _split_and_rotate(q, k_nope, compressed, positions, theta,
                                  turn_q=_not_turned, turn_k=_not_turned)
        right = _split_and_rotate(q, k_nope, compressed, positions, theta)
        whole = [_rotate(part, positions, theta) for part in plain]
        return whole[0] if queries else right[0], whole[1] if keys else right[1]

    return split


def _nope_turned(q: Array, k_nope: Array, compressed: Array, positions: Array, theta: float,
                 ) -> tuple[Array, Array]:
    def nope_too(nope: Array, rotary: Array) -> Array:
        return np.concatenate([_rotate(nope, positions, theta), rotary], -1)

    return _split_and_rotate(q, k_nope, compressed, positions, theta, turn_q=_not_turned,
                             turn_k=_not_turned, join_q=nope_too, join_k=nope_too)


def _split_cases(rng: np.random.Generator) -> list[Case]:
    """N is even, so that turning the wrong part gives a result; then N = R, then all are alike."""
    cases: list[Case] = []
    for heads, nope, rotary, latent in ((3, 6, 4, 7), (2, 4, 8, 9), (5, 6, 6, 8), (4, 4, 4, 4)):
        tokens = heads if latent == 4 else int(rng.integers(6, 9))
        positions = np.sort(rng.choice(range(2, 30), tokens, replace=False))
        cases.append((
            rng.normal(size=(tokens, heads * (nope + rotary))),
            rng.normal(size=(tokens, heads, nope)),
            rng.normal(size=(tokens, latent + rotary)),
            positions, float(rng.integers(50, 20000))))
    return cases


def _content_keeps_still(call: Any, args: Case, out: Any) -> str | None:
    q, k_nope, compressed, positions, theta = args
    nope = k_nope.shape[2]
    later = call(q, k_nope, compressed, positions + 3, theta)
    for name, before, after in zip(("query", "key"), out, later, strict=True):
        change = float(np.abs(after[..., :nope] - before[..., :nope]).max())
        if change > 1e-3:
            return f"With all positions 3 later, one of a {name}'s changed by {change:.4g}."
    return None


def _scores_know_differences_only(call: Any, args: Case, out: Any) -> str | None:
    q, k_nope, compressed, positions, theta = args

    def scores(pair: Any) -> Array:
        return np.einsum("thd,shd->hts", *pair)

    change = np.abs(scores(call(q, k_nope, compressed, positions + 3, theta)) - scores(out)).max()
    if change < 1e-3 * max(1.0, float(np.abs(scores(out)).max())):
        return None
    return f"With all positions 3 later, a score changed by {change:.4g}."


SPLIT_AND_ROTATE = Exercise(
    id="mla.split_and_rotate",
    lesson="02",
    title="The decoupled rotary part",
    difficulty=3,
    minutes=15,
    why="One rotary key for all heads: K2 caches 64 more numbers a token and layer, not 4,096.",
    signature="split_and_rotate(q, k_nope, compressed, positions, theta)"
              " -> (T, H, N + R), (T, H, N + R)",
    axes="T H d",
    cases=_split_cases,
    reference=_split_and_rotate,
    invariants=(
        Invariant("the first N numbers of a query or key carry no position.",
                  _content_keeps_still),
        Invariant("scores depend on the difference of two positions only.",
                  _scores_know_differences_only),
    ),
    wrong=(
        wrong("everything_rotated",
              (_all_turned(keys=True), _all_turned(keys=False), _all_turned(True, False)),
              """A whole query or key is rotated, the part without position too. Then there is
              nothing left that could be moved through the latent.""",
              "Which numbers of a head should be the same wherever its token stands?"),
        wrong("wrong_part_rotated", _nope_turned,
              """The first N numbers are rotated and the last R are left alone: the parts have
              changed roles. "nope" is short for "no position".""",
              "Which part of a query does the name qk_nope_head_dim speak of?"),
        wrong("nothing_rotated",
              partial(_split_and_rotate, turn_q=_not_turned, turn_k=_not_turned),
              """Nothing is rotated: split and joined, the queries and keys know no position.""",
              "Where do `positions` enter your function?"),
        wrong("queries_not_rotated", partial(_split_and_rotate, turn_q=_not_turned),
              """Only the key is rotated. A score then depends on where the key stands, not on how
              far away it is.""",
              "For a score to depend on a difference, what must happen to both sides?"),
        wrong("keys_not_rotated", partial(_split_and_rotate, turn_k=_not_turned),
              """Only the queries are rotated. A score then depends on where the query stands, not
              on how far away the key is.""",
              "For a score to depend on a difference, what must happen to both sides?"),
        wrong("half_split",
              partial(_split_and_rotate, turn_q=partial(_rotate, halves=True),
                      turn_k=partial(_rotate, halves=True)),
              """Number i of the rotary part is paired with number i + R/2. Checkpoints of this
              family pair neighbours (lesson 01).""",
              "Which two numbers does the first angle turn together?"),
        wrong("queries_split_by_part", partial(_split_and_rotate, queries=_queries_by_part),
              """The queries are taken for the nope parts of all heads and then the rotary parts of
              all heads. They go head by head: N, then R, then the next head.""",
              "Which of the H (N + R) numbers belong to head 1?"),
        wrong("heads_as_last_axis", partial(_split_and_rotate, queries=_queries_heads_inside),
              """The heads are the fast axis of the reshape: numbers 0, H, 2H, … went to head 0. The
              numbers of one head stand together.""",
              "Does the first reshape of q end in heads, or in N + R?"),
        wrong("query_rotary_taken_from_the_front",
              (partial(_split_and_rotate, queries=_queries_rotary_first),
               partial(_split_and_rotate, queries=_queries_rotary_first, join_q=_put_before),
               partial(_split_and_rotate, queries=_queries_rotary_first, join_q=_put_before,
                       join_k=_put_before)),
              """Of each head's query the first R numbers are taken for the rotary part. They are
              the last R; the first N carry no position.""",
              "In q_b_proj, which rows of a head come first: nope or rotary?"),
        wrong("rotary_put_first",
              partial(_split_and_rotate, join_q=_put_before, join_k=_put_before),
              """Queries and keys are right, but their rotary part stands in front. Scores do not
              mind, since both sides agree. Asked for is nope first, as in the checkpoint.""",
              "In which order does the docstring put the two parts of a result?"),
        wrong("the_two_sides_disagree",
              (partial(_split_and_rotate, join_q=_put_before),
               partial(_split_and_rotate, join_k=_put_before)),
              """One side has its rotary part behind, the other in front. Nothing fails, and the
              dot product multiplies content with position.""",
              "In q · k, which number of the key does number 0 of the query meet?"),
        wrong("rotary_key_taken_from_the_front", partial(_split_and_rotate, key_in_front=True),
              """The rotary key is taken from the first R of the compressed numbers. There the
              latent begins; the rotary key stands behind it.""",
              "Of the C + R numbers that kv_a_proj_with_mqa makes, which are the last R?"),
        wrong("rotary_key_for_one_head", partial(_split_and_rotate, share=_first_head_only),
              """Only head 0 gets the rotary key, the others zeros. It is one key, and all heads
              use it.""",
              "How do heads 1, 2, … learn how far away a token is?"),
        wrong("positions_ignored",
              partial(_split_and_rotate, turn_q=_rows_counted, turn_k=_rows_counted),
              """The rows are numbered 0, 1, 2, … and `positions` is not used. Whoever calls says
              where each token stands, and may leave gaps.""",
              "With positions 3, 4 and 9, how many steps apart are the last two tokens?"),
    ),
)


def _softmax(scores: Array, axis: int = -1) -> Array:
    powers = np.exp(scores - scores.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def _merge(context: Array) -> Array:
    """(H, T, V) -> (T, H V)."""
    return context.transpose(1, 0, 2).reshape(context.shape[1], -1)


def _merge_without_transposing(context: Array) -> Array:
    return context.reshape(context.shape[1], -1)


def _merge_heads_inside(context: Array) -> Array:
    return context.transpose(1, 2, 0).reshape(context.shape[1], -1)


def _scale(nope: int, rotary: int, value: int, hidden: int) -> float:
    return float((nope + rotary) ** -0.5)


def _forward(
    x: Array, weights: Weights, positions: Array, heads: int, nope: int, theta: float, eps: float,
    *, q_norm: Any = _norm, compress: Any = _compress, expand: Any = _per_head,
    rotate: Any = _split_and_rotate, scale: Any = _scale, masked: bool = True,
    softmax_axis: int = 2, merge: Any = _merge, project: bool = True, drop: str = "",
) -> Array:
    w = {name.removesuffix(".weight"): weight for name, weight in weights.items()}
    q = q_norm(x @ w["q_a_proj"].T, w["q_a_layernorm"], eps) @ w["q_b_proj"].T
    compressed = x @ w["kv_a_proj_with_mqa"].T
    latent = compress(compressed, w["kv_a_layernorm"], eps)
    k_nope, v = expand(latent @ w["kv_b_proj"].T, heads, nope)
    q, k = rotate(q, k_nope, compressed, positions, theta)
    if drop == "rotary":
        q, k = q[..., :nope], k[..., :nope]
    sizes = nope, q.shape[-1] - nope, v.shape[-1], x.shape[-1]
    scores = np.einsum("thd,shd->hts", q, k) * scale(*sizes)
    if masked:
        scores = np.where(np.tri(len(x), dtype=bool), scores, -1e30)
    context = merge(_softmax(scores, softmax_axis) @ v.transpose(1, 0, 2))
    return context @ w["o_proj"].T if project else context


def _rotary_part_left_out(x: Array, weights: Weights, positions: Array, heads: int, nope: int,
                          theta: float, eps: float) -> Array:
    whole = len(weights["q_b_proj.weight"]) // heads
    return _forward(x, weights, positions, heads, nope, theta, eps, drop="rotary",
                    scale=lambda *sizes: whole**-0.5)


def _forward_cases(rng: np.random.Generator) -> list[Case]:
    cases: list[Case] = []
    for heads, nope, rotary, value, latent, rank, hidden in (
            (3, 4, 2, 5, 7, 9, 16), (2, 6, 4, 3, 5, 8, 14), (4, 4, 4, 4, 6, 7, 12)):
        tokens = int(rng.integers(6, 9))
        shapes = {"q_a_proj": (rank, hidden), "q_b_proj": (heads * (nope + rotary), rank),
                  "kv_a_proj_with_mqa": (latent + rotary, hidden),
                  "kv_b_proj": (heads * (nope + value), latent),
                  "o_proj": (hidden, heads * value)}
        weights = {f"{name}.weight": 1.5 * rng.normal(size=shape) / shape[1] ** 0.5
                   for name, shape in shapes.items()}
        weights["q_a_layernorm.weight"] = rng.uniform(0.5, 1.5, rank)
        weights["kv_a_layernorm.weight"] = rng.uniform(0.5, 1.5, latent)
        positions = np.sort(rng.choice(range(2, 20), tokens, replace=False))
        cases.append((rng.normal(size=(tokens, hidden)), weights, positions, heads, nope,
                      float(rng.integers(20, 2000)), float(rng.uniform(0.2, 0.5))))
    return cases


def _first_token_alone(call: Any, args: Case, out: Array) -> str | None:
    x, weights, _, heads, nope, _, eps = args
    _, v = _expand_kv(x[:1], weights["kv_a_proj_with_mqa.weight"],
                      weights["kv_a_layernorm.weight"], weights["kv_b_proj.weight"], heads, nope,
                      eps)
    change = np.abs(out[0] - weights["o_proj.weight"] @ v.ravel()).max()
    if change < 1e-3 * max(1.0, float(np.abs(out).max())):
        return None
    return f"Its output is off by {change:.4g}."


def _no_look_ahead(call: Any, args: Case, out: Array) -> str | None:
    x, *rest = args
    middle = len(x) // 2
    x = x.copy()
    x[middle:] = 1 - x[middle:]
    moved = np.abs(call(x, *rest)[:middle] - out[:middle]).max(-1) > 1e-3
    if not moved.any():
        return None
    return (f"x was changed from token {middle} on, and the output of token "
            f"{int(moved.argmax())} changed with it.")


def _shift_changes_nothing(call: Any, args: Case, out: Array) -> str | None:
    x, weights, positions, *rest = args
    change = np.abs(call(x, weights, positions + 5, *rest) - out).max()
    if change < 1e-3 * max(1.0, float(np.abs(out).max())):
        return None
    return f"With all positions 5 later, an output changed by {change:.4g}."


FORWARD = Exercise(
    id="mla.forward",
    lesson="02",
    title="The whole block",
    difficulty=4,
    minutes=25,
    why="This is K2's attention, all of it. What follows in the course computes the same, faster.",
    signature="forward(x, weights, positions, heads, nope, theta, eps) -> (T, D)",
    axes="T D",
    cases=_forward_cases,
    reference=_forward,
    invariants=(
        Invariant("the first token sees only itself, so its output is o_proj of its own values.",
                  _first_token_alone),
        Invariant("a token sees itself and earlier tokens, so what comes later changes nothing.",
                  _no_look_ahead),
        Invariant("only differences of positions count, so moving all of them changes nothing.",
                  _shift_changes_nothing),
    ),
    wrong=(
        wrong("scale_by_nope", partial(_forward, scale=lambda n, r, v, d: n**-0.5),
              """The scores are divided by sqrt(N). A query and a key have N + R numbers, and all of
              them are in the dot product.""",
              "How many products are summed in one score?"),
        wrong("scale_by_value", partial(_forward, scale=lambda n, r, v, d: v**-0.5),
              """The scores are divided by sqrt(V), the size of a value. In other models a head has
              one size; here queries and keys have N + R numbers and values have V.""",
              "Which of a head's three vectors are in the dot product?"),
        wrong("scale_by_hidden", partial(_forward, scale=lambda n, r, v, d: d**-0.5),
              """The scores are divided by sqrt(D), the hidden size. The dot product runs over a
              head's N + R numbers.""",
              "How many products are summed in one score?"),
        wrong("no_scale", partial(_forward, scale=lambda *sizes: 1.0),
              """The scores are not divided by sqrt(N + R).""",
              "What is the spread of a dot product of N + R independent numbers?"),
        wrong("no_mask", partial(_forward, masked=False),
              """Every token attends to later ones too: the causal mask is missing.""",
              "What may the first token of the sequence look at?"),
        wrong("query_norm_forgotten", partial(_forward, q_norm=_no_norm),
              """The query latent is not normalised. Both latents have a norm of their own.""",
              "Where does `q_a_layernorm.weight` enter your function?"),
        wrong("latent_norm_forgotten",
              partial(_forward, compress=partial(_compress, norm=_no_norm)),
              """The key/value latent is not normalised. Both latents have a norm of their own.""",
              "Where does `kv_a_layernorm.weight` enter your function?"),
        wrong("both_norms_forgotten",
              partial(_forward, q_norm=_no_norm, compress=partial(_compress, norm=_no_norm)),
              """Neither latent is normalised.""",
              "Which two of the seven weights does your function not use?"),
        wrong("norm_over_both", partial(_forward, compress=_norm_over_both),
              """The norm is taken over latent and rotary key together. Only the latent is
              normalised.""",
              "How many numbers does kv_a_layernorm have, and over how many is your mean?"),
        wrong("eps_of_its_own",
              partial(_forward, q_norm=_norm_with_no_eps,
                      compress=partial(_compress, norm=_norm_with_no_eps)),
              """eps is a constant of your own. Whoever calls says how large it is; the check takes
              a larger one than most models, so that it shows.""",
              "What happens in your function when its argument eps becomes 0.5?"),
        wrong("keys_then_values", partial(_forward, expand=_keys_then_values),
              """The rows of kv_b_proj are taken for all keys and then all values. They go head by
              head: N of key, then V of value.""",
              "Which rows of kv_b_proj belong to head 1?"),
        wrong("rotary_part_left_out", _rotary_part_left_out,
              """The scores are those of the nope parts alone, so no head knows how far away a token
              is.""",
              "From which parts of a query and a key is a score made?"),
        wrong("nothing_rotated",
              partial(_forward, rotate=partial(_split_and_rotate, turn_q=_not_turned,
                                               turn_k=_not_turned)),
              """The rotary parts are there, but nothing turns them.""",
              "Where do `positions` enter your function?"),
        wrong("everything_rotated", partial(_forward, rotate=_all_turned(keys=True)),
              """Queries and keys are rotated whole. Only the last R numbers of each turn.""",
              "Which numbers of a head should be the same wherever its token stands?"),
        wrong("half_split",
              partial(_forward, rotate=partial(_split_and_rotate,
                                               turn_q=partial(_rotate, halves=True),
                                               turn_k=partial(_rotate, halves=True))),
              """Number i of the rotary part is paired with number i + R/2. These weights expect
              neighbours as pairs.""",
              "Which two rows of q_b_proj make the first pair of head 0?"),
        wrong("the_two_sides_disagree",
              partial(_forward, rotate=partial(_split_and_rotate, join_k=_put_before)),
              """Queries are nope, then rotary; keys are rotary, then nope. Nothing fails, and the
              dot product multiplies content with position.""",
              "In q · k, which number of the key does number 0 of the query meet?"),
        wrong("rotary_key_for_one_head",
              partial(_forward, rotate=partial(_split_and_rotate, share=_first_head_only)),
              """Only head 0 gets the rotary key. It is one key, and all heads use it.""",
              "How do heads 1, 2, … learn how far away a token is?"),
        wrong("rotary_key_taken_from_the_front",
              partial(_forward, rotate=partial(_split_and_rotate, key_in_front=True)),
              """The rotary key is taken from where the latent begins; it stands behind it.""",
              "Of the C + R numbers that kv_a_proj_with_mqa makes, which are the last R?"),
        wrong("positions_ignored",
              partial(_forward, rotate=partial(_split_and_rotate, turn_q=_rows_counted,
                                               turn_k=_rows_counted)),
              """The rows are numbered one after the other, and `positions` is not used.""",
              "With positions 3, 4 and 9, how many steps apart are the last two tokens?"),
        wrong("softmax_over_heads", partial(_forward, softmax_axis=0),
              """The softmax runs over the heads: they share out one weight for each pair of tokens.
              What must sum to one is what one query of one head gives to its keys.""",
              "Which axis of your scores is that of the keys?"),
        wrong("heads_not_put_back", partial(_forward, merge=_merge_without_transposing),
              """(H, T, V) was reshaped to (T, H V). A reshape does not move numbers, so tokens got
              what belongs to heads. First transpose, then reshape.""",
              "In which order must the axes stand for a token's H V numbers to be neighbours?"),
        wrong("heads_woven", partial(_forward, merge=_merge_heads_inside),
              """The heads were joined number by number: 0 of all heads, 1 of all heads, …. The V
              numbers of one head stay together.""",
              "Which columns of o_proj belong to head 1?"),
        wrong("no_output_projection", partial(_forward, project=False),
              """What comes back is H V numbers a token, not D: o_proj is missing.""",
              "What is the shape of what you return, and what is it to be added to?"),
    ),
)


def _parameters(config: dict[str, Any]) -> int:
    return sum(_parts(config).values())


def _parts(config: dict[str, Any]) -> dict[str, int]:
    """Weights by name. `per_head`: what a learner might add to each head's rows."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    q_rank, latent = config["q_lora_rank"], config["kv_lora_rank"]
    nope, rotary = config["qk_nope_head_dim"], config["qk_rope_head_dim"]
    value = config["v_head_dim"]
    return {
        "q_a_proj": q_rank * hidden,
        "q_b_proj": heads * (nope + rotary) * q_rank,
        "kv_a_proj_with_mqa": (latent + rotary) * hidden,
        "kv_b_proj": heads * (nope + value) * latent,
        "o_proj": hidden * heads * value,
    }


def _changed(**changes: Any) -> Any:
    """The count with some parts counted otherwise: name=function of the config."""
    def count(config: dict[str, Any]) -> int:
        return sum((_parts(config) | {n: f(config) for n, f in changes.items()}).values())

    return count


def _full_queries(config: dict[str, Any]) -> int:
    heads, size = config["num_attention_heads"], _head(config)
    return int(config["hidden_size"] * heads * size)


def _head(config: dict[str, Any]) -> int:
    return int(config["qk_nope_head_dim"] + config["qk_rope_head_dim"])


def _square(config: dict[str, Any]) -> int:
    return int(config["hidden_size"] ** 2)


def _parameter_cases(rng: np.random.Generator) -> list[Case]:
    """All sizes differ, H V is not D, and no two slips cost the same."""
    cases: list[Case] = []
    for _ in range(5):
        primes = rng.permutation([17, 19, 23, 29, 31])
        cases.append(({
            "hidden_size": int(rng.integers(600, 900)),
            "num_attention_heads": int(rng.integers(5, 14)),
            "q_lora_rank": int(primes[0]) * 5,
            "kv_lora_rank": int(primes[1]) * 4,
            "qk_nope_head_dim": int(primes[2]),
            "qk_rope_head_dim": 2 * int(rng.integers(3, 8)),
            "v_head_dim": int(primes[3]),
        },))
    return cases


PARAMETERS = Exercise(
    id="mla.parameters",
    lesson="02",
    title="What a block of attention weighs",
    difficulty=2,
    minutes=10,
    why="Which of its matrices are heavy says what fewer heads save, and what they do not.",
    signature="parameters(config) -> int",
    cases=_parameter_cases,
    reference=_parameters,
    formula=True,
    wrong=(
        wrong("rotary_key_forgotten",
              _changed(kv_a_proj_with_mqa=lambda c: c["kv_lora_rank"] * c["hidden_size"]),
              """The rotary key is missing: kv_a_proj_with_mqa makes C + R numbers of a token, the
              latent and the one rotary key.""",
              "Which matrix makes the rotary key?"),
        wrong("rotary_key_per_head",
              (_changed(kv_b_proj=lambda c: c["num_attention_heads"] * c["kv_lora_rank"] * (
                  _head(c) + c["v_head_dim"])),
               _changed(kv_b_proj=lambda c: c["num_attention_heads"] * c["kv_lora_rank"] * (
                   _head(c) + c["v_head_dim"]),
                   kv_a_proj_with_mqa=lambda c: c["kv_lora_rank"] * c["hidden_size"])),
              """kv_b_proj is counted with a rotary key for every head. There is one for all heads,
              and it does not come out of the latent: kv_a_proj_with_mqa makes it.""",
              "How many rows of kv_b_proj belong to one head, and to which of its vectors?"),
        wrong("queries_without_rotary",
              _changed(q_b_proj=lambda c: c["num_attention_heads"] * c["qk_nope_head_dim"]
                       * c["q_lora_rank"]),
              """q_b_proj is counted with N rows a head. A query has N + R: each head has a rotary
              query of its own, only the rotary key is shared.""",
              "What shape has a query that can meet a key of N + R numbers?"),
        wrong("no_query_latent",
              (_changed(q_a_proj=_full_queries, q_b_proj=lambda c: 0),
               _changed(q_b_proj=_full_queries)),
              """q_b_proj is counted as if it read the hidden state. The queries have a latent as
              well, of q_lora_rank numbers.""",
              "What are the shapes of q_a_proj and q_b_proj?"),
        wrong("no_key_value_latent",
              _changed(kv_b_proj=lambda c: c["num_attention_heads"] * c["hidden_size"] * (
                  c["qk_nope_head_dim"] + c["v_head_dim"])),
              """kv_b_proj is counted as if it read the hidden state. It reads the latent, which is
              the point of it.""",
              "What is the input of kv_b_proj, and how many numbers has it?"),
        wrong("output_forgotten", _changed(o_proj=lambda c: 0),
              """o_proj is missing, in K2 the heaviest of the five.""",
              "Which matrix leads from the heads back to the hidden size?"),
        wrong("output_square", _changed(o_proj=_square),
              """o_proj is counted as D times D. The heads together need not be as wide as the
              model: in K2, 64 values of 128 numbers are 8,192 and D is 7,168.""",
              "How many numbers do the values of all heads have together?"),
        wrong("output_from_queries",
              _changed(o_proj=lambda c: c["num_attention_heads"] * _head(c) * c["hidden_size"]),
              """o_proj is counted with N + R columns a head. What it reads are means of values, V
              numbers a head.""",
              "A weighted mean of values has how many numbers?"),
        wrong("one_head",
              lambda c: _parameters({**c, "num_attention_heads": 1}),
              """The matrices of one head are counted. q_b_proj, kv_b_proj and o_proj have a share
              for every head.""",
              "Which of the five matrices grow with the number of heads?"),
    ),
)
