"""Lesson 11: the full-scale configuration.

Unusual here: most answers are sums of a few terms, so the right one is written as its terms by
name, and a wrong answer is the same sum with one term counted otherwise. Sizes are drawn so that no
two slips cost the same.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from minik2.checks.exercise import Case, Exercise, Invariant, wrong

TITLE = "The full-scale configuration"

Array = np.ndarray[Any, np.dtype[Any]]
Config = dict[str, Any]
Terms = dict[str, Any]


def _attention(c: Config) -> int:
    """The five matrices of attention, as lesson 02 counts them."""
    heads, rank, latent = c["num_attention_heads"], c["q_lora_rank"], c["kv_lora_rank"]
    nope, rope, value = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
    shared = c["hidden_size"] * (rank + latent + rope)
    per_head = (nope + rope) * rank + (nope + value) * latent + value * c["hidden_size"]
    return int(shared + heads * per_head)


def _config(rng: np.random.Generator, dense: int, shared: int) -> Config:
    """Sizes that all differ, `dense` dense layers at the start, `shared` shared experts."""
    hidden, wide, narrow, rank, latent = (int(n) for n in rng.choice(
        np.arange(41, 97, 2), 5, replace=False))  # fmt: skip
    chosen = int(rng.integers(4, 9))
    return {
        "vocab_size": 1009 * int(rng.integers(20, 90)),
        "hidden_size": 8 * hidden,
        "num_hidden_layers": dense + int(rng.integers(9, 30)),
        "num_attention_heads": int(rng.integers(5, 14)),
        "first_k_dense_replace": dense,
        "intermediate_size": 16 * wide,
        "moe_intermediate_size": 4 * narrow,
        "n_routed_experts": chosen * int(rng.integers(7, 20)) + 3,
        "n_shared_experts": shared,
        "num_experts_per_tok": chosen,
        "q_lora_rank": 3 * rank,
        "kv_lora_rank": 2 * latent,
        "qk_nope_head_dim": 24,
        "qk_rope_head_dim": 2 * int(rng.integers(5, 9)),
        "v_head_dim": 28,
    }


def _layer_terms(c: Config, layer: int) -> Terms:
    hidden = c["hidden_size"]
    terms = {"attention": _attention(c), "norms": 2 * hidden,
             "latent_norms": c["q_lora_rank"] + c["kv_lora_rank"]}  # fmt: skip
    if layer < c["first_k_dense_replace"]:
        return terms | {"dense": 3 * hidden * c["intermediate_size"]}
    expert = 3 * hidden * c["moe_intermediate_size"]
    return terms | {"routed": c["n_routed_experts"] * expert,
                    "shared": c["n_shared_experts"] * expert,
                    "router": c["n_routed_experts"] * hidden,
                    "biases": c["n_routed_experts"]}  # fmt: skip


def _count_layer(config: Config, layer: int) -> int:
    return int(sum(_layer_terms(config, layer).values()))


def _layer_with(**changes: Callable[[Config], int]) -> Any:
    """The count with some terms, where the layer has them, counted otherwise."""

    def count(config: Config, layer: int) -> int:
        terms = _layer_terms(config, layer)
        changed = {n: f(config) for n, f in changes.items() if n in terms}
        return int(sum((terms | changed).values()))

    return count


def _none(c: Config) -> int:
    return 0


def _experts(which: Callable[[Config], int], width: str = "moe_intermediate_size") -> Any:
    return lambda c: 3 * which(c) * c["hidden_size"] * c[width]


def _routed(c: Config) -> int:
    return int(c["n_routed_experts"])


def _layer_cases(rng: np.random.Generator) -> list[Case]:
    """The first layer, the last dense one, the first with experts, and the last of all."""
    cases: list[Case] = []
    for dense, shared in ((1, 1), (3, 2), (2, 3)):
        config = _config(rng, dense, shared)
        last = config["num_hidden_layers"] - 1
        cases += [(config, layer) for layer in sorted({0, dense - 1, dense, last})]
    return cases


def _layers_of_a_kind(call: Any, args: Case, out: Any) -> str | None:
    config, layer = args
    after = config["first_k_dense_replace"]
    other = 0 if layer < after else int(config["num_hidden_layers"]) - 1
    count = call(config, other)
    return None if count == out else f"Layer {other} has {count}, and layer {layer} has {out}."


COUNT_LAYER = Exercise(
    id="fullscale.count_layer",
    lesson="11",
    title="Count a layer",
    difficulty=2,
    minutes=10,
    why="Sixty of these are K2. Whoever can count one to the last weight can check a checkpoint.",
    signature="count_layer(config, layer) -> int",
    cases=_layer_cases,
    keys=("first_k_dense_replace", "num_hidden_layers", "n_routed_experts", "n_shared_experts",
          "num_experts_per_tok", "hidden_size", "intermediate_size", "moe_intermediate_size"),
    reference=_count_layer,
    invariants=(
        Invariant("dense layers are alike, and so are layers with experts.", _layers_of_a_kind),
    ),
    wrong=(
        wrong("every_layer_has_experts",
              lambda c, layer: _count_layer(c, int(c["num_hidden_layers"])),
              """The dense layers at the start are counted with experts. They have one wide block
              and no router.""",
              "Which layers does first_k_dense_replace speak of?"),
        wrong("off_by_one_layer",
              (lambda c, layer: _count_layer(c, layer - 1),
               lambda c, layer: _count_layer(c, layer + 1)),
              """The change from dense layers to layers with experts comes one layer too early or
              too late. Layers count from 0.""",
              "With first_k_dense_replace 1, which layers are dense?"),
        wrong("only_chosen_experts",
              _layer_with(routed=_experts(lambda c: c["num_experts_per_tok"])),
              """The experts of one token are counted. All of them are stored.""",
              "How many experts of layer 1 are in the checkpoint?"),
        wrong("dense_width",
              (_layer_with(routed=_experts(_routed, "intermediate_size"),
                           shared=_experts(lambda c: c["n_shared_experts"], "intermediate_size")),
               _layer_with(routed=_experts(_routed, "intermediate_size"))),
              """Experts are counted with the width of the dense block. They are narrower.""",
              "Which key of the config holds the width of an expert?"),
        wrong("expert_width_in_dense_layers",
              _layer_with(dense=_experts(lambda c: 1)),
              """The dense block is counted with the width of an expert. It is wider.""",
              "Which key of the config holds the width of the dense block?"),
        wrong("two_matrices",
              (_layer_with(dense=lambda c: 2 * c["hidden_size"] * c["intermediate_size"],
                           routed=lambda c: 2 * _experts(_routed)(c) // 3,
                           shared=lambda c: 2 * _experts(lambda c: c["n_shared_experts"])(c) // 3),
               _layer_with(routed=lambda c: 2 * _experts(_routed)(c) // 3,
                           shared=lambda c: 2 * _experts(lambda c: c["n_shared_experts"])(c) // 3)),
              """Two matrices are counted in a feed-forward block. SwiGLU has three: gate, up and
              down.""",
              "Which tensors does mlp.experts.0 have?"),
        wrong("no_shared_expert", _layer_with(shared=_none),
              """The shared expert is missing. It is stored beside the routed ones.""",
              "Which tensors of layer 1 have shared_experts in their names?"),
        wrong("one_shared_expert", _layer_with(shared=_experts(lambda c: 1)),
              """One shared expert is counted whatever the config says. Some models have more.""",
              "What does n_shared_experts say in the config that failed?"),
        wrong("no_router", (_layer_with(router=_none, biases=_none), _layer_with(router=_none)),
              """The router's matrix is missing: a row of hidden_size numbers for each expert.""",
              "What makes the scores by which experts are chosen?"),
        wrong("no_correction_bias", _layer_with(biases=_none),
              """The correction biases are missing. They are a tensor of the checkpoint, one number
              for each expert.""",
              "What moves the router's choice and is trained by no gradient?"),
        wrong("no_norms", _layer_with(norms=_none, latent_norms=_none),
              """The norms are missing, all four of them: one before attention, one before the
              experts, and one on each latent.""",
              "Which tensors of a layer have a single axis?"),
        wrong("no_latent_norms", _layer_with(latent_norms=_none),
              """The norms on the two latents are missing. They are as long as the latents are.""",
              "What are q_a_layernorm and kv_a_layernorm, and how many numbers have they?"),
        wrong("one_norm", _layer_with(norms=lambda c: c["hidden_size"]),
              """One norm of hidden_size is counted. There are two: before attention and before the
              feed-forward half.""",
              "What does post_attention_layernorm stand before?"),
    ),
)


def _model(c: Config, **changes: Any) -> dict[str, int]:
    """total and active; a change is a function of (config, total, unchosen, table)."""
    layers, hidden = c["num_hidden_layers"], c["hidden_size"]
    table = c["vocab_size"] * hidden
    total = 2 * table + hidden + sum(_count_layer(c, layer) for layer in range(layers))
    unchosen = ((layers - c["first_k_dense_replace"])
                * (c["n_routed_experts"] - c["num_experts_per_tok"]) * _experts(lambda c: 1)(c))
    right = {"total": total, "active": total - unchosen - table}
    return {name: int(changes[name](c, total, unchosen, table)) if name in changes else int(value)
            for name, value in right.items()}  # fmt: skip


def _both(less: Callable[[Config], int]) -> Any:
    """Both counts too small by the same weights."""
    return lambda c: {name: int(n - less(c)) for name, n in _model(c).items()}


def _active(change: Any) -> Any:
    return lambda c: _model(c, active=change)


def _expert(c: Config) -> int:
    return int(_experts(lambda c: 1)(c))


def _moe_layers(c: Config) -> int:
    return int(c["num_hidden_layers"] - c["first_k_dense_replace"])


def _table(c: Config) -> int:
    return int(c["vocab_size"] * c["hidden_size"])


def _model_cases(rng: np.random.Generator) -> list[Case]:
    return [(_config(rng, dense, shared),) for dense, shared in ((1, 1), (3, 1), (2, 2), (4, 3))]


def _a_layer_more(call: Any, args: Case, out: Any) -> str | None:
    (config,) = args
    layers = config["num_hidden_layers"]
    more = call(config | {"num_hidden_layers": layers + 1})["total"] - out["total"]
    want = _count_layer(config, layers)
    return None if more == want else f"A layer more makes {more:,} more; it has {want:,}."


COUNT_MODEL = Exercise(
    id="fullscale.count_model",
    lesson="11",
    title="Stored, and at work on a token",
    difficulty=3,
    minutes=15,
    why="A model costs its total to hold and its active weights to run; K2's differ by 32 times.",
    signature="count_model(config) -> dict",
    cases=_model_cases,
    keys=COUNT_LAYER.keys,
    reference=lambda config: _model(config),
    invariants=(
        Invariant("one layer more is one layer's weights more.", _a_layer_more),
    ),
    wrong=(
        wrong("last_norm_forgotten", _both(lambda c: c["hidden_size"]),
              """The norm after the last layer is missing from both counts.""",
              "What does model.norm stand between?"),
        wrong("one_table", (_both(_table), lambda c: _model(c, total=lambda c, n, u, t: n - t)),
              """One table of tokens is missing from the total. Embedding and head are two tensors
              here, of the same shape.""",
              "What are model.embed_tokens and lm_head for?"),
        wrong("embedding_at_work", _active(lambda c, n, u, t: n - u),
              """The embedding is counted as active. A token looks up one row of it and multiplies
              with none, so here it is left out.""",
              "How many rows of the embedding does one token need?"),
        wrong("head_not_at_work", _active(lambda c, n, u, t: n - u - 2 * t),
              """The head is left out of the active weights with the embedding. It is multiplied
              with, all of it, whenever a token is to be written.""",
              "Which product makes the logits?"),
        wrong("share_of_everything",
              (_active(lambda c, n, u, t: n * c["num_experts_per_tok"] // c["n_routed_experts"]),
               _active(lambda c, n, u, t: (n - t) * c["num_experts_per_tok"]
                       // c["n_routed_experts"])),
              """All weights are taken as sparse. Attention, shared experts, router and head meet
              every token; only routed experts rest.""",
              "Which parts of a layer does the router have no say in?"),
        wrong("chosen_taken_away",
              _active(lambda c, n, u, t: n - t - _moe_layers(c) * c["num_experts_per_tok"]
                      * _expert(c)),
              """The experts that were chosen are taken away. Those that were not are at rest.""",
              "Of 384 experts 8 are chosen: how many are left out?"),
        wrong("shared_is_one_of_the_chosen",
              _active(lambda c, n, u, t: n - u - t - _moe_layers(c) * c["n_shared_experts"]
                      * _expert(c)),
              """Shared experts are counted among the chosen ones. They come on top.""",
              "Is the shared expert one of num_experts_per_tok?"),
        wrong("dense_layers_too",
              _active(lambda c, n, u, t: n - t - c["num_hidden_layers"]
                      * (c["n_routed_experts"] - c["num_experts_per_tok"]) * _expert(c)),
              """Resting experts are taken away in every layer. The dense layers at the start have
              none.""",
              "How many layers have experts?"),
        wrong("one_layer",
              _active(lambda c, n, u, t: n - t - (c["n_routed_experts"] - c["num_experts_per_tok"])
                      * _expert(c)),
              """Resting experts are taken away in one layer. Each layer with experts has its
              own.""",
              "In how many layers does the router choose?"),
        wrong("router_rows_of_the_chosen",
              _active(lambda c, n, u, t: n - u - t - _moe_layers(c) * c["hidden_size"]
                      * (c["n_routed_experts"] - c["num_experts_per_tok"])),
              """The router's rows of experts that were not chosen are left out. A token must be
              scored against all experts before any can be chosen.""",
              "How many scores does the router make for a token?"),
        wrong("all_at_work", _active(lambda c, n, u, t: n - t),
              """All experts are counted as active. A token goes to a few of them.""",
              "What does num_experts_per_tok say?"),
    ),
)


def _row(c: Config) -> int:
    return int(c["num_hidden_layers"] * (c["kv_lora_rank"] + c["qk_rope_head_dim"]))


def _full_keys(c: Config) -> int:
    head = c["qk_nope_head_dim"] + c["qk_rope_head_dim"] + c["v_head_dim"]
    return int(c["num_hidden_layers"] * c["num_attention_heads"] * head)


def _rounded_up(lengths: Array, page: int) -> Array:
    """Tokens that there is room for, where each conversation has whole pages."""
    room: Array = -(-lengths // page) * page
    return room


def _cache_bytes(
    config: Config, lengths: Array, page: int, tp: int, *,
    row: Callable[[Config], int] = _row,
    held: Callable[[Array, int], Any] = _rounded_up,
    copies: Callable[[Config, int], float] = lambda c, tp: tp,
    size: float = 2,
) -> int:
    """Right as it stands. row: numbers a token; held: tokens that there is room for; copies: how
    often all GPUs together hold them; size: bytes a number."""
    return int(copies(config, tp) * size * row(config) * int(np.sum(held(lengths, page))))


def _cache_with(**changes: Any) -> Any:
    return lambda *args: _cache_bytes(*args, **changes)


def _cache_cases(rng: np.random.Generator) -> list[Case]:
    """Lengths of which one fills its pages exactly and the longest comes first; the last case is
    one conversation on one GPU."""
    cases: list[Case] = []
    for page, tp in ((16, 8), (64, 3), (7, 4), (32, 16)):
        lengths = rng.integers(1, 12 * page, int(rng.integers(4, 9)))
        lengths[1] = page * rng.integers(2, 9)
        lengths[0] = 14 * page + rng.integers(1, page - 1)
        cases.append((_config(rng, int(rng.integers(1, 4)), 1), lengths, page, tp))
    alone = np.array([int(rng.integers(5, 9)) * 10 + 3])
    return [*cases, (_config(rng, 1, 1), alone, 10, 1)]


def _a_page_at_a_time(call: Any, args: Case, out: Any) -> str | None:
    config, lengths, page, tp = args
    filled = _rounded_up(lengths, page)
    same = call(config, filled, page, tp)
    if same == out:
        return None
    return f"With every last page filled it gives {same:,} in place of {out:,}."


def _each_for_itself(call: Any, args: Case, out: Any) -> str | None:
    config, lengths, page, tp = args
    parts = sum(call(config, lengths[n : n + 1], page, tp) for n in range(len(lengths)))
    return None if parts == out else f"One by one they take {parts:,}, together {out:,}."


CACHE_BYTES = Exercise(
    id="fullscale.cache_bytes",
    lesson="11",
    title="The caches of a whole server",
    difficulty=2,
    minutes=10,
    why="What is left beside the weights, divided by this, is how many people can be served.",
    signature="cache_bytes(config, lengths, page, tp) -> int",
    cases=_cache_cases,
    keys=("num_hidden_layers", "first_k_dense_replace", "kv_lora_rank", "qk_rope_head_dim",
          "num_attention_heads"),
    reference=lambda config, lengths, page, tp: _cache_bytes(config, lengths, page, tp),
    invariants=(
        Invariant("a page that is begun takes as much as a full one.", _a_page_at_a_time),
        Invariant("conversations share no pages.", _each_for_itself),
    ),
    wrong=(
        wrong("no_pages", _cache_with(held=lambda lengths, page: lengths),
              """Only the tokens that are there are counted. Pages are handed out whole, and the
              last one of a conversation is seldom full.""",
              "How many pages of 4 tokens does a conversation of 5 have?"),
        wrong("pages_of_the_sum",
              _cache_with(held=lambda lengths, page: _rounded_up(lengths.sum(), page)),
              """All tokens are added up, and the sum is rounded up to whole pages. Each
              conversation has pages of its own.""",
              "Two conversations of 5 tokens, pages of 4: how many pages?"),
        wrong("full_pages_only", _cache_with(held=lambda lengths, page: lengths // page * page),
              """A page that is not full is left out. Its tokens need room too.""",
              "Where does the fifth token of a conversation go, if pages have 4?"),
        wrong("a_page_more", _cache_with(held=lambda lengths, page: (lengths // page + 1) * page),
              """A conversation whose pages are all full is given one more, with nothing in it.""",
              "How many pages of 4 do 8 tokens need?"),
        wrong("all_as_the_longest",
              _cache_with(held=lambda lengths, page: len(lengths) * _rounded_up(
                  lengths.max(), page)),
              """Every conversation is given as much as the longest. That is what pages are there to
              avoid.""",
              "Does a conversation of 5 tokens need the pages of its neighbour of 500?"),
        wrong("pages_counted",
              _cache_with(held=lambda lengths, page: _rounded_up(lengths, page) // page),
              """Pages are counted as if they had one token each.""",
              "How many tokens have room in a page?"),
        wrong("one_conversation",
              (_cache_with(held=lambda lengths, page: _rounded_up(lengths[:1], page)),
               _cache_with(held=lambda lengths, page: _rounded_up(lengths[-1:], page))),
              """The cache of a single conversation is counted. Each has its own.""",
              "How many lengths are there, and how many did you use?"),
        wrong("heads_divide_it", _cache_with(copies=lambda c, tp: 1),
              """The GPUs are taken to share the cache out as they share the heads. A head needs the
              whole latent of every token, and so does each GPU that has a head.""",
              "Which part of a latent belongs to head 5?"),
        wrong("one_gpu", _cache_with(copies=lambda c, tp: 1 / tp),
              """The cache is divided by the number of GPUs, as if they shared it out and one of
              them were asked for. Each holds all of it, and all GPUs are asked for.""",
              "With twice the GPUs, are there more copies of a latent or fewer?"),
        wrong("copy_per_head", _cache_with(copies=lambda c, tp: c["num_attention_heads"]),
              """There is a copy of the cache for each head. Heads on the same GPU read the same
              one.""",
              "Two heads on one GPU: how often must a latent lie in its memory?"),
        wrong("one_layer", _cache_with(row=lambda c: _row(c | {"num_hidden_layers": 1})),
              """The cache of a single layer is counted. Every layer has its own.""",
              "In how many layers is there attention?"),
        wrong("layers_with_experts",
              _cache_with(row=lambda c: _row(c | {"num_hidden_layers": _moe_layers(c)})),
              """Dense layers are left out. They have a dense block in place of experts, but
              attention like all others.""",
              "Does layer 0 look at the past?"),
        wrong("no_rotary_key", _cache_with(row=lambda c: _row(c | {"qk_rope_head_dim": 0})),
              """A cached row is counted without its rotary key.""",
              "Which two parts has a row of the latent cache?"),
        wrong("keys_and_values", _cache_with(row=_full_keys),
              """Keys and values of all heads are counted. Kept are the latents that they are made
              from.""",
              "What did lesson 03 keep of a token?"),
        wrong("one_byte_a_number", _cache_with(size=1),
              """A cached number is counted as one byte. In bfloat16 it has two.""",
              "How many bits has a bfloat16?"),
        wrong("four_bytes_a_number", _cache_with(size=4),
              """It is twice too much: a number is counted with four bytes, or the latent twice, for
              keys and for values. It is kept once, in two bytes a number.""",
              "How many bytes has a bfloat16, and how many latents has a token?"),
    ),
)


def _decode_rate(
    config: Config, always: float, experts: float, context: int, batch: int, bandwidth: float, *,
    fixed: Any = lambda always, batch: always,
    share: Any = lambda c, batch: 1 - (1 - c["num_experts_per_tok"] / c["n_routed_experts"])**batch,
    cached: Any = lambda c, context, batch: batch * 2 * context * _row(c),
    rate: Any = lambda batch, seconds: batch / seconds,
) -> float:
    read = fixed(always, batch) + experts * share(config, batch) + cached(config, context, batch)
    return float(rate(batch, read / bandwidth))


def _rate_with(**changes: Any) -> Any:
    return lambda *args: _decode_rate(*args, **changes)


def _chosen_share(c: Config) -> float:
    return float(c["num_experts_per_tok"] / c["n_routed_experts"])


def _rate_cases(rng: np.random.Generator) -> list[Case]:
    """Weights, experts and cache all matter; several sequences, then one."""
    cases: list[Case] = []
    for batch in (int(rng.integers(3, 7)), int(rng.integers(8, 20)), 2, 1):
        config = _config(rng, int(rng.integers(1, 4)), 1)
        context = int(rng.integers(1000, 9000))
        cache = 2.0 * context * _row(config)
        cases.append((config, cache * float(rng.uniform(0.6, 3)),
                      cache * float(rng.uniform(10, 40)), context, batch,
                      cache * float(rng.uniform(20, 90))))  # fmt: skip
    return cases


def _more_at_once(call: Any, args: Case, out: float) -> str | None:
    *rest, batch, bandwidth = args
    more = call(*rest, batch + 1, bandwidth)
    if more > out and more / (batch + 1) < out / batch:
        return None
    return f"With {batch} at once it gives {out:.4g}, with {batch + 1} {more:.4g}."


DECODE_RATE = Exercise(
    id="fullscale.decode_rate",
    lesson="11",
    title="As fast as memory can be read",
    difficulty=3,
    minutes=15,
    why="It is the most that any engine can reach on a machine, and it takes five numbers to know.",
    signature="decode_rate(config, always, experts, context, batch, bandwidth) -> float",
    cases=_rate_cases,
    keys=("num_hidden_layers", "n_routed_experts", "num_experts_per_tok", "kv_lora_rank",
          "qk_rope_head_dim", "num_attention_heads"),
    reference=lambda config, always, experts, context, batch, bandwidth: _decode_rate(
        config, always, experts, context, batch, bandwidth),
    invariants=(
        Invariant("with one sequence more, all together get more tokens and each gets fewer.",
                  _more_at_once),
    ),
    wrong=(
        wrong("all_experts", _rate_with(share=lambda c, batch: 1),
              """All experts are read in every step. Only those that some token chose are.""",
              "With a single sequence, how many of 384 experts are needed in a layer?"),
        wrong("no_expert_is_shared",
              (_rate_with(share=lambda c, batch: batch * _chosen_share(c)),
               _rate_with(share=lambda c, batch: min(1.0, batch * _chosen_share(c)))),
              """Every sequence reads its experts for itself. Where two tokens chose the same one it
              is read once, for both.""",
              "If two tokens choose the same 8 experts, how many are read?"),
        wrong("all_choose_alike", _rate_with(share=lambda c, batch: _chosen_share(c)),
              """The experts of one token are read, whatever the batch. Other tokens choose
              others.""",
              "By which probability does an expert stay unchosen by all of the batch?"),
        wrong("weights_for_each_sequence",
              _rate_with(fixed=lambda always, batch: always * batch),
              """What all tokens need is read once for each sequence. One reading serves the whole
              batch, and that is why batches pay.""",
              "How often does a step read attention's matrices?"),
        wrong("one_cache", _rate_with(cached=lambda c, context, batch: 2 * context * _row(c)),
              """The cache of one sequence is counted. Each has its own, and reads all of it.""",
              "Can two conversations read the same latents?"),
        wrong("no_cache", _rate_with(cached=lambda c, context, batch: 0),
              """The cache is not counted. A new token looks at every row of it, in each layer.""",
              "What must be read so that attention can see the past?"),
        wrong("cache_of_one_layer",
              _rate_with(cached=lambda c, context, batch: batch * 2 * context * _row(
                  c | {"num_hidden_layers": 1})),
              """The cache of a single layer is counted. Every layer has its own.""",
              "In how many layers is there attention?"),
        wrong("no_rotary_key",
              _rate_with(cached=lambda c, context, batch: batch * 2 * context * _row(
                  c | {"qk_rope_head_dim": 0})),
              """A cached row is counted without its rotary key.""",
              "Which two parts has a row of the latent cache?"),
        wrong("one_byte_a_number",
              _rate_with(cached=lambda c, context, batch: batch * context * _row(c)),
              """A cached number is counted as one byte. In bfloat16 it has two.""",
              "How many bits has a bfloat16?"),
        wrong("keys_and_values",
              _rate_with(cached=lambda c, context, batch: batch * 2 * context * _full_keys(c)),
              """Keys and values of all heads are read. The absorbed form looks at the latents and
              never makes them.""",
              "What did lesson 03 keep of a token?"),
        wrong("each_sequence", _rate_with(rate=lambda batch, seconds: 1 / seconds),
              """This is the rate of one sequence. Asked for are the tokens of all of them
              together.""",
              "How many tokens does one step of the batch make?"),
        wrong("seconds_of_a_step", _rate_with(rate=lambda batch, seconds: seconds),
              """This is the time of a step, in seconds. Asked for are tokens a second.""",
              "If a step takes a tenth of a second, how many steps are there in one?"),
        wrong("seconds_of_a_token", _rate_with(rate=lambda batch, seconds: seconds / batch),
              """These are seconds a token. Asked for are tokens a second.""",
              "Should the number grow or shrink with the bandwidth?"),
    ),
)


def _states(
    experts: int, matrices: int, rest: int, ep: int, dp: int, *,
    held: Any = lambda experts, others, ep: experts / ep + others,
    weights: float = 2, gradients: float = 4, matrix: float = 8, table: float = 12,
    over: Any = lambda ep, dp: (ep * dp, ep * dp),
) -> dict[str, float]:
    """Right as it stands. weights, gradients, matrix, table: bytes a number, the last two of the
    optimizer's; held: weights on this GPU; over(ep, dp): by what the optimizer's bytes of the
    stage's experts and of its other weights are divided."""
    mine = held(experts, matrices + rest, ep)
    for_experts, for_others = over(ep, dp)
    return {
        "weights": float(weights * mine),
        "gradients": float(gradients * mine),
        "optimizer": float(matrix * experts / for_experts
                           + (matrix * matrices + table * rest) / for_others),
    }


def _states_with(**changes: Any) -> Any:
    return lambda *args: _states(*args, **changes)


def _split(*names: str) -> Any:
    """These lines divided by the copies too."""

    def count(experts: int, matrices: int, rest: int, ep: int, dp: int) -> dict[str, float]:
        out = _states(experts, matrices, rest, ep, dp)
        return {name: n / dp if name in names else n for name, n in out.items()}

    return count


def _states_cases(rng: np.random.Generator) -> list[Case]:
    """Odd numbers of weights, so that no result is whole; experts outweigh the rest."""
    cases: list[Case] = []
    for ep, dp in ((16, 8), (4, 32), (8, 3), (6, 5)):
        matrices, rest = (int(n) for n in rng.integers(1_000, 9_000, 2))
        experts = 2 * int(rng.integers(5_000, 90_000)) + 1
        cases.append((experts, 2 * matrices + 1, 2 * rest + 1, ep, dp))
    return cases


def _all_of_it(call: Any, args: Case, out: Any) -> str | None:
    experts, matrices, rest, ep, dp = args
    whole = 8 * (experts + matrices) + 12 * rest
    found = ep * dp * out["optimizer"]
    if abs(found - whole) < 1e-4 * whole:
        return None
    return f"Of {whole:,} bytes all GPUs together hold {found:,.0f}."


def _same_weights(call: Any, args: Case, out: Any) -> str | None:
    *rest, dp = args
    more = call(*rest, 2 * dp)["weights"]
    if abs(more - out["weights"]) < 1e-4 * abs(out["weights"]):
        return None
    return f"With {dp} copies it gives {out['weights']:,.0f}, with {2 * dp} {more:,.0f}."


STATES = Exercise(
    id="fullscale.states",
    lesson="11",
    title="What a GPU holds under ZeRO-1",
    difficulty=3,
    minutes=15,
    why="These three lines decide how many GPUs a trillion parameters need at the least.",
    signature="states(experts, matrices, rest, ep, dp) -> dict",
    cases=_states_cases,
    reference=lambda experts, matrices, rest, ep, dp: _states(experts, matrices, rest, ep, dp),
    invariants=(
        Invariant("ZeRO-1 keeps each number of the optimizer's once among the GPUs.", _all_of_it),
        Invariant("ZeRO-1 leaves weights whole: more copies make no GPU's smaller.",
                  _same_weights),
    ),
    wrong=(
        wrong("optimizer_whole", _states_with(over=lambda ep, dp: (ep, 1)),
              """The optimizer's numbers are kept whole by every GPU that holds the weights. ZeRO-1
              is there to keep each of them once.""",
              "How many GPUs hold the same weight, and how many need its momentum?"),
        wrong("weights_and_gradients_split",
              (_split("weights", "gradients"), _split("weights", "gradients", "optimizer")),
              """Weights and gradients are divided by the copies too. That would be ZeRO-3; stage 1
              divides the optimizer's numbers alone.""",
              "What does a copy need whole to run forward and backward by itself?"),
        wrong("gradients_split", _split("gradients"),
              """Gradients are divided by the copies. That would be ZeRO-2; stage 1 divides the
              optimizer's numbers alone.""",
              "Which of the three lines does ZeRO-1 make smaller?"),
        wrong("experts_split_twice", _states_with(over=lambda ep, dp: (ep * ep * dp, ep * dp)),
              """The experts' part of the optimizer is divided by ep twice. A GPU holds 1 / ep of
              the experts, and only dp GPUs hold the same ones.""",
              "How many GPUs have a copy of one expert?"),
        wrong("only_copies_share", _states_with(over=lambda ep, dp: (ep * dp, dp)),
              """The other matrices' part is divided by dp. All ep GPUs of a stage hold these too,
              so ep times dp share it.""",
              "How many GPUs hold the same attention matrix?"),
        wrong("no_master_copy",
              (_states_with(matrix=4, table=8),
               _states_with(matrix=4, table=8, weights=4)),
              """The optimizer's line lacks the float32 copy of the weights. It is the copy that
              steps are added to; bfloat16 would round small steps away.""",
              "What is updated: the weights in bfloat16, or something finer?"),
        wrong("adamw_for_all", _states_with(matrix=12),
              """Two buffers are counted for every weight. AdamW has two; Muon, which takes the
              matrices, has one.""",
              "What does Muon keep beside the weights?"),
        wrong("muon_for_all", _states_with(table=8),
              """One buffer is counted for tables and norms too. Muon leaves them to AdamW, which
              keeps two.""",
              "Which optimizer takes the embedding?"),
        wrong("experts_whole", _states_with(held=lambda experts, others, ep: experts + others),
              """Every GPU holds all experts of the stage. They are what expert parallelism shares
              out.""",
              "Of 384 experts and ep 16, how many are on one GPU?"),
        wrong("all_shared_out",
              _states_with(held=lambda experts, others, ep: (experts + others) / ep),
              """The other matrices are divided by ep as well. Expert parallelism shares out the
              experts alone; every GPU needs attention for its own tokens.""",
              "Which weights does a GPU need for a token before the router has chosen?"),
        wrong("gradients_in_16_bits", _states_with(gradients=2),
              """Gradients are counted with two bytes. They are added up over many micro-batches,
              and in this recipe in float32.""",
              "How many bytes has a float32?"),
        wrong("weights_in_32_bits", _states_with(weights=4),
              """The weights to compute with are counted with four bytes. They are bfloat16; the
              float32 copy belongs to the optimizer.""",
              "In which format do the GPUs multiply?"),
    ),
)


def _e4m3() -> Array:
    """The value of each of the 256 bytes: sign, four bits of exponent, three of fraction."""
    code = np.arange(256)
    exponent, fraction = code >> 3 & 15, code & 7
    size = np.where(exponent > 0, (8 + fraction) * 2.0 ** (exponent - 10), fraction * 2.0**-9)
    table: Array = np.where(code < 128, size, -size)
    table[[127, 255]] = np.nan
    return table


_VALUES = _e4m3()


def _spread(scales: Array, shape: tuple[int, ...], block: int) -> Array:
    rows, columns = shape
    return scales.repeat(block, 0)[:rows].repeat(block, 1)[:, :columns]


def _dequantize(codes: Array, scales: Array, block: int) -> Array:
    return _VALUES[codes] * _spread(scales, codes.shape, block)


def _stretched(codes: Array, scales: Array, block: int) -> Array:
    """Blocks as large as the matrix divides into, all alike."""
    rows, columns = (np.arange(n) * m // n for n, m in zip(codes.shape, scales.shape, strict=True))
    return _VALUES[codes] * scales[rows][:, columns]


def _tiled(codes: Array, scales: Array, block: int) -> Array:
    rows, columns = codes.shape
    return _VALUES[codes] * np.tile(scales, (block, block))[:rows, :columns]


def _edge(left: float) -> Any:
    """Whole blocks only; what is beyond them is multiplied with `left`."""

    def answer(codes: Array, scales: Array, block: int) -> Array:
        factor = _spread(scales, codes.shape, block)
        factor[codes.shape[0] // block * block :] = left
        factor[:, codes.shape[1] // block * block :] = left
        return _VALUES[codes] * factor

    return answer


def _along(codes: Array, scales: Array, block: int) -> Array:
    """A scale for each block * block numbers, in the order in which they lie in memory."""
    flat = _VALUES[codes].ravel()
    return (flat * scales.ravel()[np.arange(flat.size) // block**2]).reshape(codes.shape)


def _codes(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    """Bytes whose values are between 1/2 and 15 in size, of both signs."""
    exponents, fractions = rng.integers(6, 11, shape), rng.integers(0, 8, shape)
    signs = rng.integers(0, 2, shape)
    return (signs << 7 | exponents << 3 | fractions).astype(np.uint8)


def _fp8_cases(rng: np.random.Generator) -> list[Case]:
    """Ragged below, on the right, at both edges, nowhere; the last two have square scales."""
    cases: list[Case] = []
    for rows, columns, block in ((9, 16, 4), (12, 17, 5), (11, 20, 3), (10, 11, 6), (16, 16, 8)):
        shape = (-(-rows // block), -(-columns // block))
        scales = np.exp2(rng.uniform(-1.5, 1.5, shape))
        cases.append((_codes(rng, (rows, columns)), scales, block))
    return cases


def _twice_the_scales(call: Any, args: Case, out: Array) -> str | None:
    codes, scales, block = args
    off = np.abs(call(codes, 2 * scales, block) - 2 * out).max()
    if off < 1e-3 * np.abs(out).max():
        return None
    return f"With all scales twice as large a weight is {off:.4g} away from twice its value."


def _first_block(call: Any, args: Case, out: Array) -> str | None:
    codes, scales, block = args
    alone = call(codes[:block, :block], scales[:1, :1], block)
    off = np.abs(alone - out[:block, :block]).max()
    if off < 1e-3 * np.abs(out).max():
        return None
    return f"Cut out of the matrix, a weight of the first block comes out {off:.4g} away."


DEQUANTIZE = Exercise(
    id="fullscale.dequantize",
    lesson="11",
    title="Weights out of FP8 blocks",
    difficulty=2,
    minutes=10,
    why="K2 was released like this. A loader that gets the edge blocks wrong still loads.",
    signature="dequantize(codes, scales, block) -> (rows, columns)",
    axes="row column",
    cases=_fp8_cases,
    reference=_dequantize,
    invariants=(
        Invariant("twice the scales are twice the weights.", _twice_the_scales),
        Invariant("a block has nothing to do with the others.", _first_block),
    ),
    wrong=(
        wrong("divided", lambda codes, scales, block: _VALUES[codes] / _spread(
                  scales, codes.shape, block),
              """The numbers are divided by their scales. The tensor is called weight_scale_inv, and
              is multiplied with all the same.""",
              "What was the largest number of a block divided by, to become 448?"),
        wrong("not_scaled", lambda codes, scales, block: _VALUES[codes],
              """The scales are not used. The bytes alone give numbers of up to 448.""",
              "How large are a model's weights, and how large are these numbers?"),
        wrong("bytes_as_numbers", lambda codes, scales, block: codes * _spread(
                  scales, codes.shape, block),
              """The bytes are taken as whole numbers from 0 to 255. They are sign, exponent and
              fraction; the table has their values.""",
              "What is E4M3[56], and what is 56?"),
        wrong("stretched", _stretched,
              """The matrix is divided evenly among its scales. All blocks have `block` rows and
              columns, but the last ones, of which only a part is there.""",
              "Which rows of a matrix of 9 rows have the second scale, with blocks of 4?"),
        wrong("edge_left_out", (_edge(0.0), _edge(1.0)),
              """Only whole blocks are scaled. The rows and columns that are left at the edges have
              scales too, those of the last blocks.""",
              "How many blocks of 4 rows do 9 rows need?"),
        wrong("tiled", _tiled,
              """The scales are laid out over and over, number by number. A scale belongs to
              neighbours: repeat each before the next.""",
              "What do np.tile and np.repeat make of [1, 2]?"),
        wrong("one_scale", lambda codes, scales, block: _VALUES[codes] * scales[0, 0],
              """All numbers have the first scale. Each block has its own.""",
              "Which scale belongs to row r and column c?"),
        wrong("a_scale_for_a_band",
              (lambda codes, scales, block: _VALUES[codes] * _spread(
                  scales[:, :1], (codes.shape[0], block), block)[:, :1],
               lambda codes, scales, block: _VALUES[codes] * _spread(
                  scales[:1], (block, codes.shape[1]), block)[:1]),
              """The scale changes along one axis only. Blocks end in both directions.""",
              "How many scales meet in one row of the matrix?"),
        wrong("blocks_in_memory_order", _along,
              """A scale is given to as many neighbours in memory as a block has numbers. A block is
              a square: its rows lie apart in memory.""",
              "Which numbers are in the block at the left upper corner?"),
        wrong("scales_transposed", lambda codes, scales, block: _VALUES[codes] * _spread(
                  scales.T, codes.shape, block),
              """The scales are transposed. Their first axis is that of the rows, like the
              matrix's.""",
              "Which axis of the scales belongs to the rows?"),
    ),
)  # fmt: skip
