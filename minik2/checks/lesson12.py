"""Lesson 12: many machines.

Unusual here: no process is started. Each answer is what one rank computes between two exchanges,
so it can be checked on arrays alone; the lesson runs the exchanges for real. Experts to a rank and
ranks differ in most cases, and a case in which they agree stands among them.
"""

from typing import Any

import numpy as np

from minik2.checks.exercise import Case, Exercise, Invariant, wrong
from minik2.reference import muon

TITLE = "Many machines"

Array = np.ndarray[Any, np.dtype[Any]]


def _from_zero(counts: Array) -> Array:
    return np.concatenate([[0], np.cumsum(counts)])


def _owners(indices: Array, experts: int, ranks: int) -> Array:
    return indices.reshape(-1) // (experts // ranks)


def _send_counts(indices: Array, experts: int, ranks: int) -> tuple[Array, Array]:
    counts = np.bincount(_owners(indices, experts, ranks), minlength=ranks)
    return counts, _from_zero(counts)


def _counted(count: Any) -> Any:
    """The counts that `count` makes, and offsets that follow from them."""
    def send_counts(indices: Array, experts: int, ranks: int) -> tuple[Array, Array]:
        counts = count(indices, experts, ranks)
        return counts, _from_zero(counts)

    return send_counts


def _with_offsets(offsets: Any) -> Any:
    """The right counts, and offsets of its own."""
    def send_counts(indices: Array, experts: int, ranks: int) -> tuple[Array, Array]:
        counts = _send_counts(indices, experts, ranks)[0]
        return counts, offsets(counts)

    return send_counts


def _tokens_only(indices: Array, experts: int, ranks: int) -> Array:
    """A token counts once for a rank, however many of its experts are there."""
    owner = indices // (experts // ranks)
    return (owner[:, :, None] == np.arange(ranks)).any(1).sum(0)


def _busy_ranks(indices: Array, experts: int, ranks: int) -> Array:
    return np.unique(_owners(indices, experts, ranks), return_counts=True)[1]


def _choices(rng: np.random.Generator, tokens: int, chosen: int, among: Array) -> Array:
    """(tokens, chosen) experts out of `among`, different ones for a token, in no order."""
    return np.stack([rng.permutation(among)[:chosen] for _ in range(tokens)]).astype(np.int64)


def _send_cases(rng: np.random.Generator) -> list[Case]:
    """(tokens, K, E, ranks). Nobody sends to the last rank of the first case, nor to the middle one
    of the second; in the fourth all numbers are equal, in the fifth there is one token."""
    first = _choices(rng, 9, 3, np.arange(8))
    second = _choices(rng, int(rng.integers(9, 14)), 3, np.r_[0:5, 10:15])
    # Half of the tokens want the same three experts, so that ranks differ in what they get.
    third = np.where(rng.random((40, 1)) < 0.5, [[1, 2, 6]], _choices(rng, 40, 3, np.arange(3, 20)))
    return [(first, 12, 3), (second, 15, 3), (third.astype(np.int64), 20, 5),
            (_choices(rng, 4, 4, np.arange(4)), 4, 4), (_choices(rng, 1, 2, np.arange(6)), 6, 2),
            (_choices(rng, 11, 4, np.arange(16)), 16, 8)]  # fmt: skip


def _every_pair_leaves(call: Any, args: Case, out: Any) -> str | None:
    pairs, total = args[0].size, int(out[0].sum())
    return None if total == pairs else f"There are {pairs} pairs, and {total} rows are sent."


def _offsets_fit(call: Any, args: Case, out: Any) -> str | None:
    counts, offsets = out
    if offsets[0] != 0:
        return f"The first rank's rows begin at {offsets[0]}."
    off = np.flatnonzero(np.diff(offsets) != counts)
    if not off.size:
        return None
    rank = int(off[0])
    return (f"Rank {rank} gets {counts[rank]} rows; its offsets are {offsets[rank]} and "
            f"{offsets[rank + 1]}.")


SEND_COUNTS = Exercise(
    id="ranks.send_counts",
    lesson="12",
    title="How many rows go to whom",
    difficulty=2,
    minutes=10,
    why="Ranks that disagree about these numbers stop with an error, or wait for each other.",
    signature="send_counts(indices, experts, ranks) -> counts (R,) and offsets (R + 1,), of int",
    cases=_send_cases,
    reference=_send_counts,
    invariants=(
        Invariant("every (token, choice) pair is one row, and every row goes to one rank.",
                  _every_pair_leaves),
        Invariant("offsets[r] to offsets[r + 1] are the places of the rows for rank r.",
                  _offsets_fit),
    ),
    wrong=(
        wrong("dealt_round", _counted(lambda indices, experts, ranks: np.bincount(
            indices.reshape(-1) % ranks, minlength=ranks)),
              """The experts are dealt out like cards, expert e to rank e % R. Here a rank holds
              experts that are neighbours, so that rows sorted by expert are sorted by rank too.""",
              "With 12 experts on 3 ranks, which rank has expert 1?"),
        wrong("ranks_for_experts", _counted(lambda indices, experts, ranks: np.bincount(
            indices.reshape(-1) // ranks, minlength=ranks)),
              """The expert's number is divided by the number of ranks. How many experts a rank
              holds is another number.""",
              "With 12 experts on 3 ranks, how many experts does one rank hold?"),
        wrong("a_token_once", _counted(_tokens_only),
              """A token that has chosen two experts of one rank is counted once for it. Some
              systems do send it once; this one sends a row for every choice.""",
              "How many rows does a token with K choices make?"),
        wrong("first_choice", _counted(lambda indices, experts, ranks: np.bincount(
            _owners(indices[:, 0], experts, ranks), minlength=ranks)),
              """Only each token's first choice is sent. The other K - 1 experts wait for their
              rows as well.""",
              "How many numbers does `indices` hold for a token?"),
        wrong("by_expert", _counted(lambda indices, experts, ranks: np.bincount(
            indices.reshape(-1), minlength=experts)),
              """There is a number for every expert. A message goes to a rank, and holds the rows
              for all of its experts.""",
              "How many messages does a rank send?"),
        wrong("busy_ranks_only", (
            _counted(_busy_ranks),
            _counted(lambda indices, experts, ranks: np.bincount(
                _owners(indices, experts, ranks)))),
              """Ranks to which nothing goes have no number. They wait for a message all the same,
              and have to be told 0.""",
              "What does np.bincount leave out unless it gets minlength?"),
        wrong("no_zero_in_front", (
            _with_offsets(lambda counts: np.cumsum(counts)),
            _with_offsets(lambda counts: np.r_[np.cumsum(counts), counts.sum()])),
              """The offsets begin with the end of the first rank's rows. They should begin with
              0, where its rows begin.""",
              "At which place does the first row of all stand?"),
        wrong("no_end", _with_offsets(lambda counts: _from_zero(counts)[:-1]),
              """The end of the last rank's rows is missing: R ranks have R + 1 bounds.""",
              "Where do the rows of the last rank end?"),
    ),
)


def _arriving_experts(arriving: Array) -> Array:
    ranks, own = arriving.shape
    return np.repeat(np.tile(np.arange(own), ranks), arriving.reshape(-1))


def _arriving_cases(rng: np.random.Generator) -> list[Case]:
    """(R, experts of this rank); some counts are 0, a whole row is in the third."""
    cases: list[Case] = []
    for ranks, own in ((3, 2), (2, 5), (4, 3), (3, 3), (5, 4)):
        counts = rng.integers(1, 6, (ranks, own))
        counts[0, -1], counts[-1, 0] = 0, 3
        if ranks == 4:
            counts[1] = 0
        cases.append((counts,))
    return cases


def _as_many(call: Any, args: Case, out: Any) -> str | None:
    (arriving,) = args
    for expert, count in enumerate(arriving.sum(0)):
        found = int((out == expert).sum())
        if found != count:
            return f"Expert {expert} gets {count} rows, and {found} are marked for it."
    return None


ARRIVING_EXPERTS = Exercise(
    id="ranks.arriving_experts",
    lesson="12",
    title="Whose rows have arrived",
    difficulty=3,
    minutes=10,
    why="The rows bring no label. A wrong guess computes them with another expert, and no error "
        "says so.",
    signature="arriving_experts(arriving) -> (rows,) of int",
    cases=_arriving_cases,
    reference=_arriving_experts,
    invariants=(
        Invariant("each expert gets as many rows as all ranks together announced for it.",
                  _as_many),
    ),
    wrong=(
        wrong("as_if_sorted", lambda a: np.repeat(np.arange(a.shape[1]), a.sum(0)),
              """The rows are taken to be sorted by expert. They are so within what one rank sent;
              then the next rank's begin, with the first expert again.""",
              "Rank 0 sent rows for experts 0 and 1, rank 1 as well. In which order do they lie?"),
        wrong("the_sender", lambda a: np.repeat(np.arange(a.shape[0]), a.sum(1)),
              """This says which rank sent each row. The expert is wanted that is to work on it.""",
              "Which axis of `arriving` counts experts?"),
        wrong("all_numbered", lambda a: np.repeat(np.arange(a.size), a.reshape(-1)),
              """The numbers go on from one rank to the next. This rank has no more experts than
              `arriving` has columns, and every sender means the same ones.""",
              "How many experts are there for `arriving` of shape (R, n)?"),
        wrong("repeat_for_tile", lambda a: np.repeat(
            np.repeat(np.arange(a.shape[1]), a.shape[0]), a.reshape(-1)),
              """The experts' numbers run 0 0 0 1 1 1 over the senders. They run 0 1, 0 1, 0 1:
              all experts of one sender, then those of the next.""",
              "What is the difference between np.repeat and np.tile?"),
        wrong("experts_first", lambda a: np.repeat(
            np.tile(np.arange(a.shape[1]), a.shape[0]), a.T.reshape(-1)),
              """The counts are read column by column: expert 0 of every rank first. They lie rank
              by rank.""",
              "In which order does reshape(-1) read the array, and in which its transpose?"),
        wrong("one_row_each", (lambda a: np.tile(np.arange(a.shape[1]), a.shape[0]),
                               lambda a: np.nonzero(a)[1]),
              """Every rank is taken to send one row for an expert. How many it sends is what
              `arriving` says.""",
              "How many rows arrive if `arriving` holds a 3?"),
    ),
)


def _all_to_all_bytes(
    moe_layers: int, chosen: int, hidden: int, number_bytes: int, ranks: int
) -> float:
    return 4 * moe_layers * chosen * hidden * number_bytes * (ranks - 1) / ranks


def _times(factor: Any) -> Any:
    """The product of what a row is and how often it is sent, times factor(ranks)."""
    def all_to_all_bytes(
        moe_layers: int, chosen: int, hidden: int, number_bytes: int, ranks: int
    ) -> float:
        return float(moe_layers * chosen * hidden * number_bytes * factor(ranks))

    return all_to_all_bytes


def _bytes_cases(rng: np.random.Generator) -> list[Case]:
    """K2's shape on as many ranks as it had, and drawn ones; a rank by itself sends nothing."""
    cases: list[Case] = [(60, 8, 7168, 2, 16)]
    for ranks in (4, 3, 8, 1):
        cases.append((int(rng.integers(2, 30)), int(rng.integers(2, 9)),
                      int(8 * rng.integers(4, 200)), int(rng.choice([1, 2, 4, 8])), ranks))
    return cases


def _alone_sends_nothing(call: Any, args: Case, out: Any) -> str | None:
    alone = call(*args[:4], 1)
    return None if alone == 0 else f"With one rank it gives {alone:g}."


ALL_TO_ALL_BYTES = Exercise(
    id="ranks.all_to_all_bytes",
    lesson="12",
    title="What a token sends",
    difficulty=2,
    minutes=5,
    why="It decides how many machines may share a layer's experts before the network is what "
        "everybody waits for.",
    signature="all_to_all_bytes(moe_layers, chosen, hidden, number_bytes, ranks) -> float",
    formula=True,
    cases=_bytes_cases,
    reference=_all_to_all_bytes,
    invariants=(
        Invariant("a rank that has all experts sends nothing.", _alone_sends_nothing),
    ),
    wrong=(
        wrong("two_trips", _times(lambda ranks: 2 * (ranks - 1) / ranks),
              """Two trips are counted and there are four: a row to the expert and its result back,
              and on the backward pass a gradient each way.""",
              "Which two trips does the backward pass make?"),
        wrong("one_trip", _times(lambda ranks: (ranks - 1) / ranks),
              """One trip is counted. The result comes back, and in training gradients travel both
              ways as well.""",
              "Who needs an expert's result, and where is it?"),
        wrong("own_rows_too", _times(lambda ranks: 4),
              """All rows are counted, those for a rank's own experts among them. These do not
              travel.""",
              "Of R ranks, how many are another one?"),
        wrong("a_copy_for_everybody", _times(lambda ranks: 4 * (ranks - 1)),
              """A row is sent to every other rank. It goes to the one that has the expert, if that
              is another one.""",
              "How many ranks have the expert that a row is for?"),
        wrong("what_stays", _times(lambda ranks: 4 / ranks),
              """This is what stays: the share of a rank's own experts is 1 / R.""",
              "With very many ranks, does nearly everything travel, or nearly nothing?"),
        wrong("bits", _times(lambda ranks: 32 * (ranks - 1) / ranks),
              """These are bits. `number_bytes` says how many bytes a number has.""",
              "Is 2 the size of a bfloat16 in bits or in bytes?"),
    ),
)


def _rows_of(pieces: list[Array], rank: int) -> slice:
    start = sum(map(len, pieces[:rank]))
    return slice(start, start + len(pieces[rank]))


def _orthogonal(X: Array) -> Array:
    return muon.plain(X, 5)


def _scaled(X: Array) -> Array:
    return muon.scale(len(X), X.shape[1], "match_rms_adamw") * _orthogonal(X)


def _sharded_update(pieces: list[Array], rank: int) -> Array:
    return _scaled(np.concatenate(pieces))[_rows_of(pieces, rank)]


def _piece_alone(pieces: list[Array], rank: int) -> Array:
    return _scaled(pieces[rank])


def _piece_alone_large_scale(pieces: list[Array], rank: int) -> Array:
    whole = (sum(map(len, pieces)), pieces[0].shape[1])
    return muon.scale(*whole, "match_rms_adamw") * _orthogonal(pieces[rank])


def _scale_of_the_piece(pieces: list[Array], rank: int) -> Array:
    own = muon.scale(len(pieces[rank]), pieces[rank].shape[1], "match_rms_adamw")
    return own * _orthogonal(np.concatenate(pieces))[_rows_of(pieces, rank)]


def _summed(pieces: list[Array], rank: int) -> Array:
    return _scaled(np.sum(pieces, axis=0))


def _side_by_side(pieces: list[Array], rank: int) -> Array:
    width = pieces[0].shape[1]
    return _scaled(np.concatenate(pieces, axis=1))[:, rank * width : (rank + 1) * width]


def _even_pieces(pieces: list[Array], rank: int) -> Array:
    """Rows from rank times the own piece's length on."""
    own = len(pieces[rank])
    return _scaled(np.concatenate(pieces))[rank * own : (rank + 1) * own]


def _update_cases(rng: np.random.Generator) -> list[Case]:
    """(rows of each rank, columns, rank): even cuts, then last ranks with fewer rows or none."""
    cases: list[Case] = []
    for rows, columns, rank in (((4, 4, 4), 9, 1), ((5, 5), 6, 1), ((3, 3, 2), 11, 2),
                                ((2, 2, 1, 0), 3, 2), ((6, 6, 6, 6), 6, 3)):
        cases.append(([rng.normal(size=(n, columns)) for n in rows], rank))
    return cases


def _together_nearly_orthogonal(call: Any, args: Case, out: Any) -> str | None:
    pieces, _ = args
    parts = [call(pieces, rank) for rank, piece in enumerate(pieces) if len(piece)]
    whole = np.concatenate(parts)
    values = np.linalg.svd(whole, compute_uv=False) / (0.2 * np.sqrt(max(whole.shape)))
    # A weak direction may not have come up in five steps; none may be beyond the polynomial's top.
    if values.max() < 1.3:
        return None
    return f"Put together, the ranks' rows have a singular value of {values.max():.3g}."


SHARDED_UPDATE = Exercise(
    id="ranks.sharded_update",
    lesson="12",
    title="Muon on a matrix in pieces",
    difficulty=3,
    minutes=15,
    why="AdamW works number by number and minds no cut. Muon done piece by piece is another "
        "optimizer, and still trains, so nobody would notice.",
    signature="sharded_update(pieces, rank) -> (rows of this rank, c)",
    axes="rc",
    cases=_update_cases,
    reference=_sharded_update,
    invariants=(
        Invariant("the rows of all ranks together are one update: over its scale, no singular "
                  "value is far above 1.", _together_nearly_orthogonal),
    ),
    wrong=(
        wrong("each_for_itself", _piece_alone,
              """This rank's rows are made orthogonal by themselves. Rows of different ranks then
              may point the same way, and together they are not orthogonal.""",
              "Can a rank know, from its own rows alone, what the other rows look like?"),
        wrong("each_for_itself_large_scale", _piece_alone_large_scale,
              """The scale is that of the whole matrix, but the rows are made orthogonal by
              themselves. The others' rows are needed first.""",
              "Which matrix has to be made orthogonal?"),
        wrong("scale_of_the_piece", _scale_of_the_piece,
              """The rows are right and the scale is that of a matrix with as many rows as this rank
              has. The update is one of the whole.""",
              "Whose sides stand in 0.2 √max(r, c)?"),
        wrong("summed", _summed,
              """The pieces are added up, as gradients of several ranks are. These are different
              rows of one matrix: they belong below each other.""",
              "If three ranks have 4 rows each, how many rows has the matrix?"),
        wrong("side_by_side", _side_by_side,
              """The pieces are put side by side. Each rank holds some rows, with all of their
              columns.""",
              "Which axis of the matrix was cut?"),
        wrong("all_rows", lambda pieces, rank: _scaled(np.concatenate(pieces)),
              """All rows are returned. Each rank updates the rows that it keeps.""",
              "How many rows does this rank's weight have?"),
        wrong("even_pieces", _even_pieces,
              """The first row of this rank is taken to be rank times its own number of rows. The
              last ranks may have fewer rows than those before them.""",
              "If ranks hold 3, 3 and 2 rows, where do the rows of rank 2 begin?"),
        wrong("no_scale", lambda pieces, rank: _orthogonal(np.concatenate(pieces))[
            _rows_of(pieces, rank)],
              """The rows are orthogonal and not scaled. An update's root mean square is to be near
              0.2.""",
              "What does lesson 08 multiply an orthogonal matrix with?"),
    ),
)


def _joint_gamma(maxima: Array, tau: float) -> Array:
    return tau / np.maximum(maxima.max(axis=0), tau)


def _gamma_of(top: Array, tau: float) -> Array:
    return tau / np.maximum(top, tau)


def _gamma_cases(rng: np.random.Generator) -> list[Case]:
    """(ranks, H): in head 0 the last rank alone is above tau, in head 1 all are; head 2 is quiet;
    head 3 is negative everywhere, on one rank far below."""
    cases: list[Case] = []
    for ranks, heads in ((3, 6), (2, 5), (4, 4), (5, 7)):
        tau = float(rng.uniform(10, 100))
        ratios = rng.uniform(0.3, 2.5, (ranks, heads))
        ratios[:, 0] = rng.uniform(0.3, 0.7, ranks)
        ratios[-1, 0] = rng.uniform(2.5, 4)
        ratios[:, 1] = rng.uniform(1.3, 2.2, ranks) + np.linspace(0, 1, ranks)
        ratios[:, 2] = rng.uniform(0.65, 0.9, ranks)
        ratios[:, 3] = -rng.uniform(0.2, 0.5, ranks)
        ratios[0, 3] = -rng.uniform(2, 3)
        cases.append((tau * ratios, tau))
    return cases


def _held_everywhere(call: Any, args: Case, out: Any) -> str | None:
    maxima, tau = args
    after = maxima * out
    if (after <= tau * 1.001).all():
        return None
    rank, head = np.unravel_index(after.argmax(), after.shape)
    return (f"On rank {rank} head {head} still reaches {after[rank, head]:.4g}, and tau is "
            f"{tau:.4g}.")


def _quiet_heads_stay(call: Any, args: Case, out: Any) -> str | None:
    maxima, tau = args
    quiet = np.flatnonzero(maxima.max(0) < tau)
    off = np.abs(out[quiet] - 1)
    if (off < 1e-3).all():
        return None
    head = int(quiet[off.argmax()])
    return (f"Head {head} reaches {maxima[:, head].max():.4g} at most, tau is {tau:.4g}, and its "
            f"factor is {out[head]:.4g}.")


JOINT_GAMMA = Exercise(
    id="ranks.joint_gamma",
    lesson="12",
    title="One clip for all ranks",
    difficulty=2,
    minutes=10,
    why="Ranks that clip by their own tokens end with different weights under one name.",
    signature="joint_gamma(maxima, tau) -> (H,)",
    axes="H",
    cases=_gamma_cases,
    reference=_joint_gamma,
    invariants=(
        Invariant("times its factor, no rank's largest logit is above tau.", _held_everywhere),
        Invariant("a head that is above tau on no rank has the factor 1.", _quiet_heads_stay),
    ),
    wrong=(
        wrong("summed", lambda maxima, tau: _gamma_of(maxima.sum(0), tau),
              """The ranks' maxima are added up, which is what an all-reduce does unless it is told
              otherwise. Two quiet ranks do not make a loud head.""",
              "Of two batches, is the largest logit the sum of both largest ones?"),
        wrong("mean", lambda maxima, tau: _gamma_of(maxima.mean(0), tau),
              """The mean of the ranks' maxima is taken, as one does with gradients. One rank's
              tokens are enough to pass tau, and quiet ranks must not hide it.""",
              "What is the largest of 10, 10 and 130, and what is their mean?"),
        wrong("mean_of_factors", lambda maxima, tau: _gamma_of(maxima, tau).mean(0),
              """Every rank makes a factor and their mean is taken. On the rank with the largest
              logit the head stays above tau.""",
              "Which rank's factor brings the largest logit down to tau?"),
        wrong("product_of_factors", lambda maxima, tau: _gamma_of(maxima, tau).prod(0),
              """Each rank clips by its own factor, one after the other. A head that is too loud on
              several ranks shrinks several times.""",
              "If two ranks saw 2 tau, what should the factor be, and what is it here?"),
        wrong("largest_factor", lambda maxima, tau: _gamma_of(maxima, tau).max(0),
              """The largest factor is taken, that of the quietest rank. The smallest one is
              needed: it belongs to the largest logit.""",
              "Does the loudest rank have the largest factor or the smallest?"),
        wrong("own_rank_only", (lambda maxima, tau: _gamma_of(maxima[0], tau),
                                lambda maxima, tau: _gamma_of(maxima[-1], tau)),
              """One rank's maxima alone are looked at. The others have seen other tokens.""",
              "Who has seen the token with the largest logit?"),
        wrong("one_factor_a_rank", _gamma_of,
              """Every rank has factors of its own. They hold copies, or pieces, of the same
              weights, which need one factor a head.""",
              "If two copies of a head are scaled differently, which one is the model's?"),
        wrong("one_for_all_heads", lambda maxima, tau: np.full(
            maxima.shape[1], _gamma_of(maxima.max(), tau)),
              """The maximum runs over heads as well as ranks. A head is clipped for itself.""",
              "Which of the two axes should be left?"),
        wrong("size", lambda maxima, tau: _gamma_of(np.abs(maxima).max(0), tau),
              """The largest size is taken, whatever its sign. A logit far below zero does no
              harm.""",
              "Is a largest logit of -500 above tau?"),
    ),
)
