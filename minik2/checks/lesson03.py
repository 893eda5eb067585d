"""Lesson 03: the latent cache and absorption.

Unusual here: the right answers are written for one sequence, as a learner would write them; the
tests hold them against minik2.reference. Most wrong answers are the right one with one step
changed, so a function takes the step as an argument.
"""

from functools import partial
from typing import Any

import numpy as np

from minik2.checks.exercise import Case, Exercise, Invariant, Wrong, wrong

TITLE = "The latent cache and absorption"

Array = np.ndarray[Any, np.dtype[Any]]
Config = dict[str, Any]


def _cache_bytes(config: Config, tokens: int, sequences: int, bits: int) -> int:
    row = config["kv_lora_rank"] + config["qk_rope_head_dim"]
    return config["num_hidden_layers"] * row * tokens * sequences * bits // 8


def _cache_of(row: Any, *, layers: Any = lambda c: c["num_hidden_layers"], times: int = 1) -> Any:
    """A count with another row (numbers a token and layer), other layers, or a factor too much."""

    def count(config: Config, tokens: int, sequences: int, bits: int) -> int:
        return times * layers(config) * row(config) * tokens * sequences * bits // 8

    return count


def _row(c: Config) -> int:
    return c["kv_lora_rank"] + c["qk_rope_head_dim"]


def _cache_cases(rng: np.random.Generator) -> list[Case]:
    """Every size differs, and so does every factor: heads are never 2 or 8."""
    cases: list[Case] = []
    for heads, bits in ((64, 16), (16, 8), (5, 16), (3, 4)):
        config = {
            "num_hidden_layers": int(rng.integers(9, 70)),
            "first_k_dense_replace": int(rng.integers(1, 4)),
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "hidden_size": 64 * int(rng.integers(10, 100)),
            "q_lora_rank": 8 * int(rng.integers(80, 120)),
            "kv_lora_rank": 8 * int(rng.integers(40, 70)),
            "qk_nope_head_dim": 8 * int(rng.integers(12, 18)),
            "qk_rope_head_dim": 8 * int(rng.integers(5, 9)),
            "v_head_dim": 8 * int(rng.integers(19, 24)),
            "max_position_embeddings": 1024 * int(rng.integers(100, 200)),
        }
        cases.append((config, int(rng.integers(100, 9000)), int(rng.integers(3, 8)), bits))
    return cases


def _twice_the_heads(call: Any, args: Case, out: Any) -> str | None:
    config, *rest = args
    heads = 2 * config["num_attention_heads"]
    more = call(config | {"num_attention_heads": heads, "num_key_value_heads": heads}, *rest)
    return None if more == out else f"With twice the heads it gives {more} in place of {out}."


def _twice_the_tokens(call: Any, args: Case, out: Any) -> str | None:
    config, tokens, *rest = args
    more = call(config, 2 * tokens, *rest)
    return None if more == 2 * out else f"With twice the tokens it gives {more}, not twice {out}."


BYTES = Exercise(
    id="cache.bytes",
    lesson="03",
    title="Bytes of a latent cache",
    difficulty=1,
    minutes=10,
    why="It decides how many conversations of what length one machine can hold.",
    signature="cache_bytes(config, tokens, sequences, bits) -> int",
    function="cache_bytes",
    formula=True,
    cases=_cache_cases,
    keys=("num_hidden_layers", "num_attention_heads", "kv_lora_rank", "qk_nope_head_dim",
          "qk_rope_head_dim", "v_head_dim"),
    reference=_cache_bytes,
    invariants=(
        Invariant("all heads share one latent, so their number does not matter.",
                  _twice_the_heads),
        Invariant("every token leaves the same, so twice the tokens are twice the bytes.",
                  _twice_the_tokens),
    ),
    wrong=(
        wrong("times_heads",
              (_cache_of(lambda c: c["num_attention_heads"] * _row(c)),
               _cache_of(lambda c: c["num_attention_heads"] * c["kv_lora_rank"]
                         + c["qk_rope_head_dim"])),
              """A latent is counted for every head. All heads make their keys and values from the
              same one.""",
              "Along which axis of the cache would you have to move to get from one head to the "
              "next?"),
        wrong("rotary_key_per_head",
              _cache_of(lambda c: c["kv_lora_rank"]
                        + c["num_attention_heads"] * c["qk_rope_head_dim"]),
              """A rotary key is counted for every head. There is one a token, which all heads
              share.""",
              "How many rows has kv_a_proj_with_mqa beyond those of the latent?"),
        wrong("keys_and_values_kept",
              tuple(_cache_of(lambda c, more=more: c["num_attention_heads"] * (
                  c["qk_nope_head_dim"] + c["v_head_dim"] + more * c["qk_rope_head_dim"]))
                  for more in (0, 1)),
              """These are the keys and values of all heads: what plain attention keeps. MLA keeps
              what they can be made from.""",
              "What does kv_b_proj need as its input to make these anew?"),
        wrong("doubled_for_keys_and_values",
              (_cache_of(_row, times=2),
               _cache_of(lambda c: 2 * c["kv_lora_rank"] + c["qk_rope_head_dim"])),
              """Something is counted twice, once for keys and once for values. One latent serves
              both.""",
              "From which vector are the values made, and is it another than that of the keys?"),
        wrong("rotary_key_forgotten", _cache_of(lambda c: c["kv_lora_rank"]),
              """Only the latent is counted. The rotary key is not made from it, so it has to be
              kept as well.""",
              "What would a later token need to know about an earlier one besides its latent?"),
        wrong("one_layer", _cache_of(_row, layers=lambda c: 1),
              """This is the cache of one layer. Each layer's attention reads its own.""",
              "Is the latent of a token the same in layer 0 and in layer 1?"),
        wrong("expert_layers_only",
              _cache_of(_row,
                        layers=lambda c: c["num_hidden_layers"] - c["first_k_dense_replace"]),
              """The dense layers are left out. They have no experts, but the same attention.""",
              "Which half of a layer reads the cache, and do the first layers have it?"),
        wrong("bits_for_bytes", _cache_of(_row, times=8),
              """The result is in bits.""",
              "How many bytes are 16 bits?"),
        wrong("always_two_bytes", lambda c, tokens, sequences, bits: _cache_bytes(
                  c, tokens, sequences, 16),
              """Every number is counted with two bytes. The argument `bits` says how wide it
              is; caches of 8 bits and fewer are in use.""",
              "Where does `bits` enter your function?"),
        wrong("whole_bytes_too_early",
              (lambda c, tokens, sequences, bits: _cache_bytes(c, tokens, sequences, bits // 8 * 8),
               lambda c, tokens, sequences, bits: _cache_bytes(
                   c, tokens, sequences, (bits + 7) // 8 * 8)),
              """The bits of one number are rounded to whole bytes before anything is multiplied.
              With 8 and 16 bits that is the same; but two numbers of 4 bits share a byte.""",
              "What does your function make of one number of 4 bits, and of a thousand?"),
        wrong("one_sequence", lambda c, tokens, sequences, bits: _cache_bytes(c, tokens, 1, bits),
              """Only one sequence is counted. Each conversation keeps its own tokens.""",
              "What do two conversations that share no text have in common in the cache?"),
        wrong("query_rank",
              _cache_of(lambda c: c["q_lora_rank"] + c["qk_rope_head_dim"]),
              """The rank is that of the query latent. Queries are used once, by their own token,
              and never kept.""",
              "Does a later token ever ask for the query of an earlier one?"),
        wrong("longest_context",
              lambda c, tokens, sequences, bits: _cache_bytes(
                  c, c["max_position_embeddings"], sequences, bits),
              """This is the cache of the longest context that the model allows, whatever `tokens`
              says.""",
              "Where does `tokens` enter your function?"),
    ),
)


def _per_head(kv_b_proj: Array, heads: int) -> Array:
    """(H, N + V, C): each head's key rows, then its value rows."""
    return kv_b_proj.reshape(heads, -1, kv_b_proj.shape[1])


def _heads_last(kv_b_proj: Array, heads: int) -> Array:
    return kv_b_proj.reshape(-1, heads, kv_b_proj.shape[1]).transpose(1, 0, 2)


def _columns_for_rows(kv_b_proj: Array, heads: int) -> Array:
    return kv_b_proj.reshape(kv_b_proj.shape[1], heads, -1).transpose(1, 2, 0)


def _absorb_query(
    q_nope: Array, kv_b_proj: Array, *, split: Any = _per_head, subscripts: str = "thn,hnc->thc"
) -> Array:
    heads, nope = q_nope.shape[1:]
    return np.einsum(subscripts, q_nope, split(kv_b_proj, heads)[:, :nope])


def _value_rows_for_keys(q_nope: Array, kv_b_proj: Array, start: Any) -> Array:
    heads, nope = q_nope.shape[1:]
    w = _per_head(kv_b_proj, heads)[:, start(nope):]
    return np.einsum("thn,hnc->thc", q_nope, w)


def _all_keys_first(q_nope: Array, kv_b_proj: Array) -> Array:
    _, heads, nope = q_nope.shape
    w = kv_b_proj[: heads * nope].reshape(heads, nope, -1)
    return np.einsum("thn,hnc->thc", q_nope, w)


def _query_batched(q_nope: Array, kv_b_proj: Array) -> Array:
    heads, nope = q_nope.shape[1:]
    return q_nope @ _per_head(kv_b_proj, heads)[:, :nope]


# (T, H, N, V, C): all different; keys as wide as values; one token; as many tokens as heads.
_SIZES = ((5, 3, 4, 6, 7), (4, 3, 5, 5, 6), (1, 4, 3, 7, 5), (4, 4, 6, 3, 5), (6, 2, 3, 4, 8))


def _query_cases(rng: np.random.Generator) -> list[Case]:
    return [(rng.normal(size=(t, h, n)), rng.normal(size=(h * (n + v), c)))
            for t, h, n, v, c in _SIZES]


def _same_scores(call: Any, args: Case, out: Array) -> str | None:
    q_nope, kv_b_proj = args
    heads, nope = q_nope.shape[1:]
    latent = np.cos(1.0 + np.arange(kv_b_proj.shape[1]))
    keys = (kv_b_proj @ latent).reshape(heads, -1)[:, :nope]
    want, got = (q_nope * keys).sum(-1), out @ latent
    error = np.abs(want - got)
    if error.max() < 1e-3 * max(1, np.abs(want).max()):
        return None
    t, h = np.unravel_index(int(error.argmax()), error.shape)
    return (f"For token {t} and head {h} and some latent the one is {got[t, h]:.4g} and the other "
            f"{want[t, h]:.4g}.")


def _value_rows_do_not_matter(call: Any, args: Case, out: Array) -> str | None:
    q_nope, kv_b_proj = args
    heads, nope = q_nope.shape[1:]
    changed = _per_head(kv_b_proj.copy(), heads)
    changed[:, nope:] += 1
    moved = np.abs(call(q_nope, changed.reshape(kv_b_proj.shape)) - out).max()
    return None if moved < 1e-3 else f"With other value rows a number changed by {moved:.4g}."


def _reshaped_wrongly(absorb: Any) -> tuple[Wrong, ...]:
    """Two ways to take kv_b_proj apart that absorbing queries and absorbing outputs share."""
    return (
        wrong("heads_last", partial(absorb, split=_heads_last),
              """The rows are split as if the heads alternated, row by row. A head's N + V rows lie
              together, so the head is the first axis of the reshape.""",
              "In reshape(a, b, C), do neighbouring rows differ in a or in b?"),
        wrong("columns_for_rows", partial(absorb, split=_columns_for_rows),
              """kv_b_proj was reshaped with C in front. A reshape does not transpose: C is the
              last axis of the stored matrix, (out, in), and must stay last or be transposed.""",
              "What does a.reshape(3, 2) do to the rows of a (2, 3) matrix?"),
    )


ABSORB_QUERY = Exercise(
    id="mla.absorb_query",
    lesson="03",
    title="Move the queries to the latents",
    difficulty=2,
    minutes=15,
    why="It is what lets K2 read 576 numbers a token where its heads' keys and values are 20,480.",
    signature="absorb_query(q_nope, kv_b_proj) -> (T, H, C)",
    axes="T H C",
    cases=_query_cases,
    reference=_absorb_query,
    invariants=(
        Invariant("a moved query times a latent is the query times the key made of that latent.",
                  _same_scores),
        Invariant("a score has nothing to do with values, so the value rows may be anything.",
                  _value_rows_do_not_matter),
    ),
    wrong=(
        wrong("value_rows",
              (partial(_value_rows_for_keys, start=lambda nope: nope),
               partial(_value_rows_for_keys, start=lambda nope: -nope)),
              """The queries went through the value rows. In each head's part of kv_b_proj the key
              rows come first, N of them.""",
              "Which N rows of a head's part make its keys?"),
        wrong("all_keys_first", _all_keys_first,
              """The first H·N rows are taken for the keys of all heads. The rows go head by head:
              N key rows and V value rows of head 0, then those of head 1.""",
              "Which row of kv_b_proj is the first one of head 1?"),
        *_reshaped_wrongly(_absorb_query),
        wrong("one_heads_rows", lambda q, w: q @ w[: q.shape[2]],
              """All heads went through the key rows of head 0. Every head has rows of its own.""",
              "What would two heads with equal queries see then, and are they meant to?"),
        wrong("heads_summed",
              (partial(_absorb_query, subscripts="thn,hnc->tc"),
               lambda q, w: np.broadcast_to(
                   _absorb_query(q, w, subscripts="thn,hnc->tc")[:, None],
                   (*q.shape[:2], w.shape[1]))),
              """The heads are added up. Each of them has its own softmax, so each keeps its own
              query until then.""",
              "Which letter is missing on the right of your einsum, and what becomes of it?"),
        wrong("heads_against_heads",
              partial(_absorb_query, subscripts="thn,gnc->thc"),
              """Every head's query went through the key rows of all heads, added up. The head
              of the query and the head of the rows must be the same one, so they need the same
              letter, or the same place.""",
              "Which head's key rows may the query of head 2 meet?"),
        wrong("batched_over_tokens", _query_batched,
              """`@` takes the first axis of both sides as the batch: tokens on the left, heads on
              the right. Where T is not H it fails; where T is H it mixes them up in silence.""",
              "Which axis has to come first on both sides for @ to go head by head?"),
        wrong("scaled",
              (lambda q, w: _absorb_query(q, w) * q.shape[2] ** -0.5,
               lambda q, w: _absorb_query(q, w) * w.shape[1] ** -0.5),
              """The result carries a softmax scale already. Here the query only changes its
              space; the scale belongs to the whole score, rotary part included.""",
              "Which parts of a score would a factor on q_nope miss?"),
    ),
)


def _absorb_output(
    mixed: Array, kv_b_proj: Array, nope: int, *, split: Any = _per_head,
    subscripts: str = "thc,hvc->thv",
) -> Array:
    return np.einsum(subscripts, mixed, split(kv_b_proj, mixed.shape[1])[:, nope:])


def _key_rows_for_values(mixed: Array, kv_b_proj: Array, nope: int, stop: Any) -> Array:
    w = _per_head(kv_b_proj, mixed.shape[1])
    return np.einsum("thc,hvc->thv", mixed, w[:, : stop(w.shape[1], nope)])


def _all_values_last(mixed: Array, kv_b_proj: Array, nope: int) -> Array:
    heads = mixed.shape[1]
    w = kv_b_proj[heads * nope :].reshape(heads, -1, kv_b_proj.shape[1])
    return np.einsum("thc,hvc->thv", mixed, w)


def _one_heads_values(mixed: Array, kv_b_proj: Array, nope: int) -> Array:
    return mixed @ _per_head(kv_b_proj, mixed.shape[1])[0, nope:].T


def _output_batched(mixed: Array, kv_b_proj: Array, nope: int) -> Array:
    w = _per_head(kv_b_proj, mixed.shape[1])[:, nope:]
    return mixed @ w.transpose(0, 2, 1)


def _output_cases(rng: np.random.Generator) -> list[Case]:
    return [(rng.normal(size=(t, h, c)), rng.normal(size=(h * (n + v), c)), n)
            for t, h, n, v, c in _SIZES]


def _one_latent_is_its_value(call: Any, args: Case, out: Array) -> str | None:
    mixed, kv_b_proj, nope = args
    latent = np.cos(1.0 + np.arange(kv_b_proj.shape[1]))
    want = (kv_b_proj @ latent).reshape(mixed.shape[1], -1)[:, nope:]
    got = call(np.broadcast_to(latent, mixed.shape).copy(), kv_b_proj, nope)
    error = np.abs(got - want).max()
    if error < 1e-3 * max(1, np.abs(want).max()):
        return None
    return f"It is off by {error:.4g}."


def _key_rows_do_not_matter(call: Any, args: Case, out: Array) -> str | None:
    mixed, kv_b_proj, nope = args
    changed = _per_head(kv_b_proj.copy(), mixed.shape[1])
    changed[:, :nope] += 1
    moved = np.abs(call(mixed, changed.reshape(kv_b_proj.shape), nope) - out).max()
    return None if moved < 1e-3 else f"With other key rows a number changed by {moved:.4g}."


ABSORB_OUTPUT = Exercise(
    id="mla.absorb_output",
    lesson="03",
    title="From weighted latents to values",
    difficulty=2,
    minutes=10,
    why="The second half of absorption: V numbers are made once a head, not once a cached token.",
    signature="absorb_output(mixed, kv_b_proj, nope) -> (T, H, V)",
    axes="T H V",
    cases=_output_cases,
    reference=_absorb_output,
    invariants=(
        Invariant("if all the weight lies on one token, the result is that token's value.",
                  _one_latent_is_its_value),
        Invariant("a value has nothing to do with keys, so the key rows may be anything.",
                  _key_rows_do_not_matter),
    ),
    wrong=(
        wrong("key_rows",
              (partial(_key_rows_for_values, stop=lambda rows, nope: nope),
               partial(_key_rows_for_values, stop=lambda rows, nope: rows - nope)),
              """The latents went through rows that make keys. The first `nope` rows of each head
              are its key rows; values are made by those after them.""",
              "Where in a head's part of kv_b_proj does the first value row stand?"),
        wrong("all_values_last", _all_values_last,
              """The last H·V rows are taken for the values of all heads. The rows go head by head:
              N key rows and V value rows of head 0, then those of head 1.""",
              "Which row of kv_b_proj is the last one of head 0?"),
        *_reshaped_wrongly(_absorb_output),
        wrong("one_heads_rows", _one_heads_values,
              """All heads went through the value rows of head 0. Every head has rows of its
              own.""",
              "What would two heads that look at the same tokens bring back then?"),
        wrong("heads_summed", partial(_absorb_output, subscripts="thc,hvc->tv"),
              """The heads are added up. o_proj takes them side by side, H·V numbers, and weighs
              each of them on its own.""",
              "Which letter is missing on the right of your einsum, and what becomes of it?"),
        wrong("heads_against_heads", partial(_absorb_output, subscripts="thc,gvc->thv"),
              """Every head's latent went through the value rows of all heads, added up. The head
              of the latent and the head of the rows must be the same one, so they need the same
              letter, or the same place.""",
              "Which head's value rows may the latent of head 2 meet?"),
        wrong("batched_over_tokens", _output_batched,
              """`@` takes the first axis of both sides as the batch: tokens on the left, heads on
              the right. Where T is not H it fails; where T is H it mixes them up in silence.""",
              "Which axis has to come first on both sides for @ to go head by head?"),
        wrong("heads_joined", lambda m, w, n: _absorb_output(m, w, n).reshape(len(m), -1),
              """The numbers are right, but the heads are joined into one axis. That is o_proj's
              first step, and it comes after this function.""",
              "Which axis of (T, H, V) did your reshape take away?"),
    ),
)


def _rms_norm(x: Array, weight: Array) -> Array:
    return weight * x / np.sqrt(np.mean(x * x, -1, keepdims=True) + 1e-6)


def _turn(x: Array, positions: Any, theta: float) -> Array:
    """Rows of x (T, R) turned by their positions, pairs of neighbours."""
    size = x.shape[-1]
    angles = np.outer(positions, theta ** (-np.arange(0, size, 2) / size))
    cos, sin = np.cos(angles), np.sin(angles)
    pair = x[:, 0::2], x[:, 1::2]
    turned = pair[0] * cos - pair[1] * sin, pair[0] * sin + pair[1] * cos
    return np.stack(turned, -1).reshape(x.shape)


def _normed(new: Array, weight: Array) -> Array:
    return _rms_norm(new[: len(weight)], weight)


def _normed_with_the_rotary_key(new: Array, weight: Array) -> Array:
    ones = np.ones(len(new) - len(weight))
    return _rms_norm(new, np.append(weight, ones))[: len(weight)]


def _one_rms(rotary: Array, new: Array) -> Array:
    return rotary / np.sqrt(np.mean(new * new) + 1e-6)


def _decode_step(
    q: Array, new: Array, rows: Array, norm: Array, kv_b_proj: Array, theta: float, *,
    latent: Any = _normed, key: Any = lambda rotary, new: rotary, at: Any = lambda s: (s, s),
    again: bool = False, norm_again: bool = False, itself: bool = True, first: bool = False,
    scale: Any = lambda n, r, c: (n + r) ** -0.5, rotary_scores: bool = True,
    values: bool = True, axis: int = 1, kept: Any = None,
) -> tuple[Array, Array]:
    """Right as it stands; each keyword is one thing to get wrong.

    at: the positions of query and key after s cached tokens; again: all cached keys are turned
    again; itself: the new token sees itself; kept: what is handed back as the cache.
    """
    heads, rank, cached = len(q), len(norm), len(rows)
    rotary = len(new) - rank
    nope = q.shape[1] - rotary
    q_at, k_at = at(cached)
    k_rope = _turn(key(new[rank:], new)[None], [k_at], theta)[0]
    row = np.append(latent(new, norm), k_rope)[None]
    held = np.concatenate([row, rows] if first else [rows, row])
    if again:
        turned = np.concatenate([rows[:, rank:], key(new[rank:], new)[None]])
        held[:, rank:] = _turn(turned, np.arange(cached + 1), theta)
    if norm_again:
        held[:, :rank] = _rms_norm(np.append(rows[:, :rank], [new[:rank]], 0), norm)

    w = _per_head(kv_b_proj, heads)
    wide = np.concatenate([
        np.einsum("hn,hnc->hc", q[:, :nope], w[:, :nope]),
        rotary_scores * _turn(q[:, nope:], np.full(heads, q_at), theta)], 1)
    seen = held if itself else rows
    scores = wide @ seen.T * scale(nope, rotary, rank)
    powers = np.exp(scores - scores.max(axis, keepdims=True))
    mixed = powers / powers.sum(axis, keepdims=True) @ seen[:, :rank]
    y = np.einsum("hc,hvc->hv", mixed, w[:, nope:]) if values else mixed
    return y, held if kept is None else kept(rows, row, new, rank)


def _decode_cases(rng: np.random.Generator) -> list[Case]:
    """(S, H, N, R, V, C), all different; then as many heads as tokens; then an empty cache."""
    cases: list[Case] = []
    for s, h, n, r, v, c in ((7, 3, 5, 4, 6, 8), (5, 2, 6, 8, 3, 7), (3, 4, 5, 2, 5, 9),
                             (int(rng.integers(9, 14)), 3, 8, 6, 4, 5), (0, 3, 5, 4, 6, 7)):
        theta = float(rng.integers(50, 20000))
        weight = 1 + 0.3 * rng.normal(size=c)
        old = rng.normal(size=(s, c + r))
        rows = np.concatenate([_rms_norm(old[:, :c], weight),
                               _turn(old[:, c:], np.arange(s), theta)], 1)
        # A latent far from length 1 as it leaves its matrix, so that its norm has work to do.
        new = np.append(2.5 * rng.normal(size=c), rng.normal(size=r))
        up = 0.6 * rng.normal(size=(h * (n + v), c))
        cases.append((rng.normal(size=(h, n + r)), new, rows, weight, up, theta))
    return cases


def _first_token_is_its_value(call: Any, args: Case, out: Any) -> str | None:
    q, new, rows, weight, up, theta = args
    y = call(q, new, rows[:0], weight, up, theta)[0]
    nope = q.shape[1] - (len(new) - len(weight))
    want = (up @ _normed(new, weight)).reshape(len(q), -1)[:, nope:]
    error = np.abs(y - want).max()
    if error < 1e-3 * max(1, np.abs(want).max()):
        return None
    return f"With an empty cache the output is off by {error:.4g}."


def _old_rows_stay(call: Any, args: Case, out: Any) -> str | None:
    rows = args[2]
    kept = out[1][: len(rows)]
    if kept.shape == rows.shape and np.abs(kept - rows).max(initial=0) < 1e-3:
        return None
    return "In the cache that came back they are others, or stand elsewhere."


def _only_rows(rows: Array, row: Array, new: Array, rank: int) -> Array:
    return rows


def _raw_latent_kept(rows: Array, row: Array, new: Array, rank: int) -> Array:
    return np.concatenate([rows, np.append(new[:rank], row[0, rank:])[None]])


def _raw_key_kept(rows: Array, row: Array, new: Array, rank: int) -> Array:
    return np.concatenate([rows, np.append(row[0, :rank], new[rank:])[None]])


DECODE_STEP = Exercise(
    id="mla.decode_step",
    lesson="03",
    title="One token against the latent cache",
    difficulty=4,
    minutes=25,
    why="This runs once a layer for every token that K2 ever writes.",
    signature="decode_step(q, new, rows, norm, kv_b_proj, theta) -> (H, V), (S + 1, C + R)",
    cases=_decode_cases,
    reference=_decode_step,
    invariants=(
        Invariant("the first token sees itself alone, so every head gives back its own value.",
                  _first_token_is_its_value),
        Invariant("a new token changes nothing about the old ones: their rows stay.",
                  _old_rows_stay),
    ),
    wrong=(
        wrong("itself_not_seen",
              (partial(_decode_step, itself=False),
               partial(_decode_step, itself=False, kept=_only_rows)),
              """The new token looks at the old ones only. In causal attention a token sees itself
              too, so its row must be in the cache before it looks.""",
              "What does the very first token look at?"),
        wrong("row_not_kept", partial(_decode_step, kept=_only_rows),
              """The output is right, but the cache that comes back is the old one. The next token
              would not know of this one.""",
              "What will the next call find of this token?"),
        wrong("new_row_first", partial(_decode_step, first=True),
              """The new row stands before the old ones. The output does not mind: a key carries
              its position within it, so attention is the same in any order. But a row is found
              again by its place, and whoever shortens the cache cuts off its end.""",
              "Which rows would be cut off to take back the last token?"),
        wrong("latent_not_normed",
              (partial(_decode_step, latent=lambda new, norm: new[: len(norm)]),
               partial(_decode_step, kept=_raw_latent_kept)),
              """The latent is cached as it leaves its matrix. kv_b_proj expects it after the norm,
              and the rows that are there already hold it so.""",
              "Between which two matrices does kv_a_layernorm stand?"),
        wrong("old_latents_normed_again", partial(_decode_step, norm_again=True),
              """All latents of the cache go through the norm, those too that have been through it
              once. Its weights then count twice.""",
              "Which rows of the cache have not been normed yet?"),
        wrong("rotary_key_in_the_norm",
              (partial(_decode_step, latent=_normed_with_the_rotary_key),
               partial(_decode_step, latent=_normed_with_the_rotary_key, key=_one_rms)),
              """The norm was taken over all C + R numbers. It belongs to the latent alone; the
              rotary key has no norm.""",
              "How many numbers has the norm's weight?"),
        wrong("key_not_turned",
              (partial(_decode_step, at=lambda s: (s, 0)),
               partial(_decode_step, kept=_raw_key_kept)),
              """The rotary key is cached unturned, as if every token stood at position 0. The old
              rows hold theirs turned.""",
              "Where in the row of a cache is it written at which position its token stood?"),
        wrong("query_not_turned", partial(_decode_step, at=lambda s: (0, s)),
              """The query's rotary part is not turned, as if the token stood at position 0. Then
              scores depend on where the keys stand, and not on how far away.""",
              "For a score to depend on a difference of positions, what must both sides do?"),
        wrong("nothing_turned", partial(_decode_step, at=lambda s: (0, 0)),
              """Neither the query nor the new key is turned: the token asks from position 0 and is
              found there ever after.""",
              "At which position does the new token stand if S tokens stand before it?"),
        wrong("one_position_short",
              tuple(partial(_decode_step, at=at)
                    for at in (lambda s: (s - 1, s - 1), lambda s: (s, s - 1),
                               lambda s: (s - 1, s))),
              """The position is S - 1, which is where the last cached token stands already.
              Positions count from 0, so S tokens fill 0 to S - 1.""",
              "With an empty cache, which position does the first token get?"),
        wrong("one_position_far",
              tuple(partial(_decode_step, at=at)
                    for at in (lambda s: (s + 1, s + 1), lambda s: (s, s + 1),
                               lambda s: (s + 1, s))),
              """The position is S + 1: the rows were counted after the new one had been added, or
              from 1.""",
              "With an empty cache, which position does the first token get?"),
        wrong("old_keys_turned_again", partial(_decode_step, again=True),
              """All rotary keys of the cache are turned, the old ones once more. They were turned
              when they came in, and a cache is only worth having if nothing is done twice.""",
              "Which rows of the cache have not been turned yet?"),
        wrong("scale_of_the_latents",
              partial(_decode_step, scale=lambda n, r, c: (c + r) ** -0.5),
              """The scores are scaled by (C + R)^-0.5, since that is how long the vectors are now.
              But the score is the same number as before absorption, so its scale is the same:
              (N + R)^-0.5.""",
              "Did moving the matrix to the other side change the value of q · k?"),
        wrong("scale_without_rotary", partial(_decode_step, scale=lambda n, r, c: n**-0.5),
              """The scores are scaled by N^-0.5. A head's query and key are N + R numbers long,
              the rotary part included.""",
              "How many products are summed in one score of the expanded form?"),
        wrong("no_scale", partial(_decode_step, scale=lambda n, r, c: 1.0),
              """The scores are not scaled.""",
              "What is the spread of a dot product of N + R independent numbers?"),
        wrong("no_rotary_score", partial(_decode_step, rotary_scores=False),
              """Only the latents are compared. The rotary part of query and key belongs to the
              score too; without it a head cannot tell how far away a token is.""",
              "Which part of a cached row did no query of yours meet?"),
        wrong("values_are_latents", partial(_decode_step, values=False),
              """The weighted latents are returned, C numbers a head. A head's value rows have yet
              to make its V numbers of them.""",
              "What shape does o_proj expect of every head?"),
        wrong("softmax_over_heads", partial(_decode_step, axis=0),
              """The softmax runs over the heads: each token shares its weight among them. What
              must sum to one is what a head gives to all tokens.""",
              "Over which index does a head's weighted mean of values run?"),
    ),
)
