"""Lesson 04: YaRN, from the boundary pairs to one score.

Unusual here: every answer takes a config.json as a dict, as a released file holds it, or rather the
few keys of it that positions need. Cases are drawn backwards: the place of a boundary first, then
the number of turns that puts it there, so that a ramp, a step and both clamps are always met.
"""

import math
from functools import partial
from typing import Any

import numpy as np

from minik2.checks.exercise import Case, Exercise, Invariant, wrong

TITLE = "Long context: YaRN"

Array = np.ndarray[Any, np.dtype[Any]]
Config = dict[str, Any]


def _config(
    size: int, theta: float, context: int, fast: float, slow: float, factor: float, *,
    nope: int = 128, strength: float = 1.0, rotation: float | None = None,
) -> Config:
    """The keys that positions need; fast, slow: pairs, with fractions, whose turns are the betas.

    strength: mscale_all_dim; rotation: mscale, the same where it is not given.
    """
    def turns(pair: float) -> float:
        return float(f"{context / (2 * math.pi) * theta ** (-2 * pair / size):.4g}")

    return {
        "qk_nope_head_dim": nope,
        "qk_rope_head_dim": size,
        "rope_theta": theta,
        "max_position_embeddings": round(factor * context),
        "rope_scaling": {
            "type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": context,
            "beta_fast": turns(fast),
            "beta_slow": turns(slow),
            "mscale": strength if rotation is None else rotation,
            "mscale_all_dim": strength,
        },
    }


def _released(theta: float, factor: float, beta_fast: float, strength: float = 1.0) -> Config:
    """K2 with 50,000, 32 and 1; DeepSeek-V3 with 10,000, 40 and 32."""
    config = _config(64, theta, 4096, 0, 1, factor, strength=strength)
    config["rope_scaling"] |= {"beta_fast": beta_fast, "beta_slow": 1.0}
    return config


def _fraction(rng: np.random.Generator) -> float:
    """Far enough from a whole number that no rounding of a beta moves a boundary."""
    return float(rng.uniform(0.2, 0.8))


# Boundary pairs.

def _places(
    config: Config, *, context: str = "", circle: float = 2 * math.pi, index: float = 2.0,
    betas: tuple[float, float] | None = None, upside_down: bool = False,
) -> list[float]:
    """The two pairs, with fractions, that make beta_fast and beta_slow turns; right as it stands.

    Each keyword is one thing to get wrong.
    """
    yarn, size = config["rope_scaling"], config["qk_rope_head_dim"]
    length = config[context] if context else yarn["original_max_position_embeddings"]
    out = []
    for beta in betas or (yarn["beta_fast"], yarn["beta_slow"]):
        turns = length * beta / circle if upside_down else length / (circle * beta)
        out.append(size * math.log(turns) / (index * math.log(config["rope_theta"])))
    return out


def _boundary_pairs(
    config: Config, *, down: Any = math.floor, up: Any = math.ceil, least: bool = True,
    most: int | None = 1, pairs: bool = False, places: Any = _places,
) -> Array:
    """Right as it stands; least, most: the clamps; pairs: the upper one counts pairs."""
    fast, slow = places(config)
    low, high = down(fast), up(slow)
    if least:
        low = max(low, 0)
    if most is not None:
        high = min(high, config["qk_rope_head_dim"] // (2 if pairs else 1) - most)
    return np.array([low, high])


def _as_it_is(x: float) -> float:
    return x


def _exchanged(config: Config) -> Array:
    fast, slow = _places(config)
    last = config["qk_rope_head_dim"] - 1
    return np.array([max(math.floor(slow), 0), min(math.ceil(fast), last)])


_ROUNDED_OTHERWISE = tuple(
    partial(_boundary_pairs, down=down, up=up)
    for down, up in ((math.ceil, math.floor), (math.floor, math.floor), (math.ceil, math.ceil),
                     (round, round)))
_NOT_ROUNDED = partial(_boundary_pairs, down=_as_it_is, up=_as_it_is)
_V3_BETAS = partial(_boundary_pairs, places=partial(_places, betas=(32.0, 1.0)))
_NOT_CLAMPED = tuple(partial(_boundary_pairs, least=least, most=most)
                     for least, most in ((False, None), (True, None), (False, 1)))
_LAST_PAIR = partial(_boundary_pairs, pairs=True)
_SERVED, _NO_CIRCLE, _NUMBERS, _TIMES_BETA = (
    partial(_boundary_pairs, places=partial(_places, **change))
    for change in ({"context": "max_position_embeddings"}, {"circle": 1.0}, {"index": 1.0},
                   {"upside_down": True}))


def _boundary_cases(rng: np.random.Generator) -> list[Case]:
    """K2, DeepSeek-V3, a ramp inside, and one at each of the three ends that are clamped."""
    cases: list[Case] = [(_released(50_000.0, 32.0, 1.0),), (_released(10_000.0, 40.0, 32.0),)]
    for _ in range(4):
        size = 2 * int(rng.integers(10, 20))
        low, inside = int(rng.integers(2, 5)), size // 2 - int(rng.integers(2, 4))
        fast, slow = [
            (low + _fraction(rng), inside - _fraction(rng)),
            (-low + _fraction(rng) - 1, inside - _fraction(rng)),
            (low + _fraction(rng), size + low + _fraction(rng)),
            (low + _fraction(rng), size - low - _fraction(rng)),
        ][len(cases) - 2]
        cases.append((_config(size, float(rng.integers(200, 20_000)),
                              int(rng.integers(500, 20_000)), fast, slow,
                              float(rng.integers(4, 40))),))
    return cases


BOUNDARY_PAIRS = Exercise(
    id="yarn.boundary_pairs",
    lesson="04",
    title="Where YaRN begins, and where it ends",
    difficulty=2,
    minutes=10,
    why="Two whole numbers decide which of K2's clocks keep their speed. One library's default for "
        "them is not K2's.",
    signature="boundary_pairs(config) -> (2,) of int",
    axes="boundary",
    cases=_boundary_cases,
    reference=_boundary_pairs,
    formula=True,
    wrong=(
        wrong("betas_exchanged", (_exchanged, lambda config: _boundary_pairs(config)[[1, 0]]),
              """`low` and `high` have changed places, or the betas have. The more turns, the faster
              the pair, and the fast pairs come first: beta_fast makes the low boundary.""",
              "Which pair makes more turns, pair 0 or the last one?"),
        wrong("no_circle", _NO_CIRCLE,
              """There is no 2 pi in it. theta^(-2i/R) is in radians a token, and a turn has 2 pi of
              them.""",
              "How many tokens does pair 0, at one radian a token, take for one turn?"),
        wrong("numbers_for_pairs", _NUMBERS,
              """The 2 in front of ln(theta) is missing, so the places count the numbers of the
              rotary part and not its pairs: they are twice as large.""",
              "Pair i turns at theta^(-2i/R): what is left of i when you solve for it?"),
        wrong("served_context", _SERVED,
              """The turns are counted over max_position_embeddings, the context that is to be
              reached. What the pairs have shown in training is decided by the context before:
              original_max_position_embeddings.""",
              "Within which context was the model trained before it was stretched?"),
        wrong("times_beta", _TIMES_BETA,
              """The context is multiplied by the number of turns. A pair that makes beta turns
              within the context takes context / beta tokens for each.""",
              "If 4,096 tokens hold 32 turns, how many tokens does one turn take?"),
        wrong("betas_of_v3", _V3_BETAS,
              """The betas are 32 and 1, whatever the config says. These are DeepSeek-V3's, and the
              default of some libraries; K2's are 1 and 1. Such a difference between training and
              serving raises no error.""",
              "What does this config say for beta_fast?"),
        wrong("not_rounded", _NOT_ROUNDED,
              """The places are right but are returned with their fractions. The low one is rounded
              down and the high one up, so that both are whole pairs.""",
              "Between which two pairs does a boundary at 19.2 lie?"),
        wrong("rounded_otherwise", _ROUNDED_OTHERWISE,
              """The rounding is another one. The low boundary is rounded down and the high one up,
              away from each other: that is why K2, whose two places are the same, still gets two
              different pairs.""",
              "Which two whole numbers enclose 19.2?"),
        wrong("not_clamped", _NOT_CLAMPED,
              """A boundary lies outside the vector: `low` is to be at least 0, and `high` at most
              R - 1.""",
              "What is the place of a pair that makes more turns than pair 0 does?"),
        wrong("clamped_to_the_last_pair", _LAST_PAIR,
              """`high` is held to R/2 - 1, the last pair. That is the better thought, but the
              released code says R - 1, so a ramp may end beyond the last pair, which then is
              divided in part only. To run other people's weights we keep to their code.""",
              "What does the task say `high` is to be at most?"),
    ),
)


# Inverse frequencies.

def _plain(config: Config) -> Array:
    size = config["qk_rope_head_dim"]
    return config["rope_theta"] ** (-np.arange(0, size, 2) / size)


def _clipped(i: Array, low: float, high: float) -> Array:
    return np.clip((i - low) / (high - low or 0.001), 0, 1)


def _blend(plain: Array, factor: float, slow: Array) -> Array:
    return plain * (1 - slow) + plain / factor * slow


def _inverse_frequencies(
    config: Config, *, boundaries: Any = _boundary_pairs, ramp: Any = _clipped, step: int = 1,
    blend: Any = _blend,
) -> Array:
    """Right as it stands; `step`: by how much the ramp's index grows from pair to pair."""
    index = step * np.arange(config["qk_rope_head_dim"] // 2)
    low, high = boundaries(config)
    return blend(_plain(config), config["rope_scaling"]["factor"], ramp(index, low, high))


def _upside_down(i: Array, low: float, high: float) -> Array:
    return 1 - _clipped(i, low, high)


def _not_clipped(i: Array, low: float, high: float) -> Array:
    return (i - low) / (high - low or 0.001)


def _no_widening(i: Array, low: Any, high: Any) -> Array:
    return np.clip((i - low) / (np.float64(high) - low), 0, 1)


def _no_widening_in_python(i: Array, low: Any, high: Any) -> Array:
    return np.array([min(max((int(n) - int(low)) / (int(high) - int(low)), 0), 1) for n in i])


def _multiplied(plain: Array, factor: float, slow: Array) -> Array:
    return plain * (1 - slow) + plain * factor * slow


def _wavelengths_blended(plain: Array, factor: float, slow: Array) -> Array:
    return plain / (1 - slow + factor * slow)


def _logarithms_blended(plain: Array, factor: float, slow: Array) -> Array:
    return plain * factor**-slow


def _frequency_cases(rng: np.random.Generator) -> list[Case]:
    """Small thetas: a slow pair's frequency must not vanish beside that of pair 0, which is 1.

    A ramp; a step; boundaries that coincide at pair 0; a ramp that ends beyond the vector; K2.
    """
    cases: list[Case] = []
    for kind in range(4):
        size = 2 * int(rng.integers(7, 11))
        low, f = int(rng.integers(1, 3)), _fraction(rng)
        # The first is nearer to the pair after it, so that rounding to the nearest shows.
        fast, slow = [
            (low + 0.5 + 0.4 * f, low + 3 + _fraction(rng)), (1 + f, 1 + f),
            (-1 - f, f - 1), (low + f, size + 2 + f),
        ][kind]
        # A small factor in the second: a step taken too late must still divide some pairs there.
        factor = float(rng.integers(3, 5) if kind == 1 else rng.integers(4, 30))
        cases.append((_config(size, float(rng.integers(30, 60)), int(rng.integers(60, 900)),
                              fast, slow, factor),))
    return [*cases, (_released(50_000.0, 32.0, 1.0),)]


def _first_pair_keeps_its_speed(call: Any, args: Case, out: Array) -> str | None:
    if abs(out[0] - 1) < 1e-3:
        return None
    return f"It turns {out[0]:.4g} radians a token."


def _slow_pairs_stand_where_they_stood(call: Any, args: Case, out: Array) -> str | None:
    config = args[0]
    low, high = _boundary_pairs(config)
    high = max(high, low + 1)  # where the two coincide, that pair is kept
    factor, plain = config["rope_scaling"]["factor"], _plain(config)
    off = np.abs(out[high:] * factor / plain[high:] - 1)
    if not (off > 1e-3).any():
        return None
    pair = high + int((off > 1e-3).argmax())
    return (f"Pair {pair}, from the high boundary {high} on, turns {out[pair] / plain[pair]:.4g} "
            f"times as fast as before, and the factor is {factor:g}.")


INVERSE_FREQUENCIES = Exercise(
    id="yarn.inverse_frequencies",
    lesson="04",
    title="The speeds of the clocks, under YaRN",
    difficulty=3,
    minutes=15,
    why="These 32 numbers are all that changes in K2's rotation between 4,096 and 131,072 tokens.",
    signature="inverse_frequencies(config) -> (R/2,)",
    axes="pair",
    cases=_frequency_cases,
    reference=_inverse_frequencies,
    invariants=(
        Invariant("pair 0 is never slowed, so neighbours stay as far apart as they were.",
                  _first_pair_keeps_its_speed),
        Invariant("`factor` times as far away, a slow pair stands at the angle that it had before.",
                  _slow_pairs_stand_where_they_stood),
    ),
    wrong=(
        wrong("all_divided", lambda config: _plain(config) / config["rope_scaling"]["factor"],
              """Every pair is divided by the factor. That is position interpolation: it keeps all
              angles within what was seen, and makes neighbouring tokens hard to tell apart.""",
              "After how many tokens has pair 0 turned by one radian now?"),
        wrong("none_divided", _plain,
              """No pair is divided: these are the speeds without YaRN.""",
              "Where does `factor` enter your function?"),
        wrong("ramp_upside_down", partial(_inverse_frequencies, ramp=_upside_down),
              """The fast pairs are divided and the slow ones are kept. The fast ones have shown
              their whole circle in training; it is the slow ones that would come to new angles.""",
              "Is it small i or large i whose angle at the last token was never seen?"),
        wrong("ramp_over_numbers", partial(_inverse_frequencies, step=2),
              """The ramp runs over 0, 2, 4, …, the numbers of the vector. `low` and `high` are
              pairs, so it must run over 0, 1, 2, ….""",
              "For which i is the ramp to be 1 for the first time?"),
        wrong("factor_multiplied", partial(_inverse_frequencies, blend=_multiplied),
              """The slow pairs are multiplied by the factor: they turn faster than before. A
              longer context needs slower clocks.""",
              "Should a pair take more tokens for a turn now, or fewer?"),
        wrong("blend_of_something_else",
              (partial(_inverse_frequencies, blend=_wavelengths_blended),
               partial(_inverse_frequencies, blend=_logarithms_blended)),
              """Between the boundaries something else is blended: the wavelengths, or the
              logarithms. YaRN blends the two speeds themselves, (1 - ramp) of the old one and ramp
              of the divided one.""",
              "Halfway up the ramp, what is the mean of a speed of 1 and one of 1/32?"),
        wrong("always_a_step",
              (partial(_inverse_frequencies, ramp=lambda i, low, high: (i > low) * 1.0),
               partial(_inverse_frequencies, ramp=lambda i, low, high: (i >= high) * 1.0)),
              """Every pair is either kept or divided. That is right for K2, whose boundaries are
              neighbours; other models have pairs between them, which are divided in part.""",
              "What is the ramp of the pair halfway between `low` and `high`?"),
        wrong("ramp_not_clipped", partial(_inverse_frequencies, ramp=_not_clipped),
              """The ramp goes on beyond its ends: below 0 for the fast pairs, above 1 for the slow
              ones. It must be held between 0 and 1.""",
              "What is (i - low) / (high - low) for i = 0, and what should the ramp be there?"),
        wrong("no_widening",
              (partial(_inverse_frequencies, ramp=_no_widening),
               partial(_inverse_frequencies, ramp=_no_widening_in_python)),
              """Where `low` and `high` are the same pair, the ramp divides by zero. Its width is
              then to be 0.001: that pair is kept, and all after it are divided.""",
              "What is high - low where both are 0?"),
        wrong("boundaries_not_rounded", partial(_inverse_frequencies, boundaries=_NOT_ROUNDED),
              """The ramp runs between boundaries with fractions. `low` is rounded down and `high`
              up first.""",
              "Between which two whole pairs does the ramp run?"),
        wrong("betas_of_v3", partial(_inverse_frequencies, boundaries=_V3_BETAS),
              """The boundaries are made with 32 and 1 turns, whatever the config says. These are
              DeepSeek-V3's numbers, and the default of some libraries.""",
              "What does this config say for beta_fast?"),
        wrong("boundaries_off",
              tuple(partial(_inverse_frequencies, boundaries=f) for f in
                    (_NO_CIRCLE, _NUMBERS, _SERVED, _TIMES_BETA, *_ROUNDED_OTHERWISE,
                     *_NOT_CLAMPED, _LAST_PAIR)),
              """The ramp is right, but it runs between the wrong pairs: `low` or `high` is off. The
              check of yarn.boundary_pairs says more.""",
              "What does your boundary_pairs give for this config, and what does its check say?"),
    ),
)


# The softmax scale.

def _mscale(factor: float, strength: float) -> float:
    return 0.1 * strength * math.log(factor) + 1 if factor > 1 else 1.0


def _softmax_scale(
    config: Config, *, size: Any = None, log: Any = math.log, of: str = "factor", power: float = 2,
    strength: str = "mscale_all_dim",
) -> float:
    """Right as it stands; each keyword is one thing to get wrong."""
    yarn = config["rope_scaling"]
    head = size(config) if size else config["qk_nope_head_dim"] + config["qk_rope_head_dim"]
    k = yarn[strength] if strength else 1.0
    return head**-0.5 * (0.1 * k * log({**config, **yarn}[of]) + 1) ** power


def _strength_outside(config: Config) -> float:
    yarn = config["rope_scaling"]
    head = config["qk_nope_head_dim"] + config["qk_rope_head_dim"]
    return head**-0.5 * (yarn["mscale_all_dim"] * (0.1 * math.log(yarn["factor"]) + 1)) ** 2


def _squared_inside(config: Config) -> float:
    yarn = config["rope_scaling"]
    head = config["qk_nope_head_dim"] + config["qk_rope_head_dim"]
    return head**-0.5 * (0.1 * yarn["mscale_all_dim"] * math.log(yarn["factor"]) ** 2 + 1)


def _scale_cases(rng: np.random.Generator) -> list[Case]:
    """K2; DeepSeek-V2-Lite's strength; others whose two strengths differ; one switched off."""
    cases: list[Case] = [(_released(50_000.0, 32.0, 1.0),),
                         (_released(10_000.0, 40.0, 32.0, 0.707),)]
    for strength in (float(rng.uniform(0.3, 0.8)), float(rng.uniform(1.2, 2.0)), 0.0):
        size, nope = 2 * int(rng.integers(4, 40)), int(rng.integers(8, 128))
        cases.append((_config(size, 10_000.0, int(rng.integers(100, 5000)), 1.5, 3.5,
                              float(rng.integers(2, 100)), nope=nope, strength=round(strength, 3),
                              rotation=round(float(rng.uniform(0.9, 1.1)), 3)),))
    return cases


SOFTMAX_SCALE = Exercise(
    id="yarn.softmax_scale",
    lesson="04",
    title="The temperature of a longer context",
    difficulty=2,
    minutes=8,
    why="An attention kernel that is not told uses 1/sqrt(d), which is 45% too little for K2. "
        "Nothing fails; the model is only worse.",
    signature="softmax_scale(config) -> float",
    cases=_scale_cases,
    reference=_softmax_scale,
    formula=True,
    wrong=(
        wrong("no_temperature", partial(_softmax_scale, power=0),
              """This is 1/sqrt(N + R), the scale of a model without YaRN.""",
              "Where do `factor` and `mscale_all_dim` enter?"),
        wrong("not_squared", partial(_softmax_scale, power=1),
              """m enters once. YaRN multiplies queries by m and keys by m, so their product, which
              is what the scale stands for, takes m twice.""",
              "If q and k both grow by m, by how much does q·k grow?"),
        wrong("squared_inside", _squared_inside,
              """The logarithm is squared, and not m as a whole.""",
              "What is m for K2, and what is m times m?"),
        wrong("other_logarithm",
              (partial(_softmax_scale, log=math.log10), partial(_softmax_scale, log=math.log2)),
              """The logarithm is to another base. The 0.1 was fitted with the natural one, which
              Python calls math.log.""",
              "What is ln 32?"),
        wrong("log_of_the_context",
              (partial(_softmax_scale, of="max_position_embeddings"),
               partial(_softmax_scale, of="original_max_position_embeddings")),
              """The logarithm is that of a number of tokens. What counts is how many times longer
              the context becomes: `factor`.""",
              "What should m be for a model whose context is not stretched at all?"),
        wrong("upside_down", partial(_softmax_scale, power=-2),
              """It divides by m². A longer context has more keys to choose from, and the softmax
              must become sharper, so the scores must grow.""",
              "Do larger scores make a softmax sharper or flatter?"),
        wrong("head_without_rope",
              partial(_softmax_scale, size=lambda config: config["qk_nope_head_dim"]),
              """The head's size lacks the rotary numbers. q·k sums over both parts, N + R
              products.""",
              "How many products are summed in one score of K2?"),
        wrong("rope_alone",
              partial(_softmax_scale, size=lambda config: config["qk_rope_head_dim"]),
              """The head's size is that of the rotary part alone. q·k sums over both parts, N + R
              products.""",
              "How many products are summed in one score of K2?"),
        wrong("strength_of_the_rotation", partial(_softmax_scale, strength="mscale"),
              """The strength is read from `mscale`. That one belongs to the rotated part (cos and
              sin); the scale of the whole score is `mscale_all_dim`. In released models of this
              family the two are equal, which hides the slip.""",
              "Which of the two keys says that it is about all dimensions?"),
        wrong("strength_ignored", partial(_softmax_scale, strength=""),
              """`mscale_all_dim` is taken for 1. It is for K2; DeepSeek-V2-Lite has 0.707, and 0
              switches the temperature off.""",
              "What should the scale be where mscale_all_dim is 0?"),
        wrong("strength_outside", _strength_outside,
              """`mscale_all_dim` multiplies the 1 as well. It stands before the logarithm only, so
              that 0 gives m = 1 and not 0.""",
              "What should m be where mscale_all_dim is 0?"),
    ),
)


# One score.

def _turned(x: Array, angles: Array, *, halves: bool = False) -> Array:
    a, b = np.split(x, 2) if halves else (x[0::2], x[1::2])
    pairs = (a + 1j * b) * np.exp(1j * angles)
    return np.concatenate([pairs.real, pairs.imag])


def _score(
    q: Array, k: Array, m: int, n: int, config: Config, *, speeds: Any = _inverse_frequencies,
    scale: Any = _softmax_scale, turn_q: float = 1, turn_k: float = 1, halves: bool = False,
    rotary_first: bool = False, hotter: float = 1.0, nope: float = 1.0,
) -> float:
    """Right as it stands; each keyword is one thing to get wrong.

    hotter, nope: powers by which the rotary and the other part are multiplied by m² or left out.
    """
    size = config["qk_rope_head_dim"]
    cut = size if rotary_first else config["qk_nope_head_dim"]
    (q_nope, q_rope), (k_nope, k_rope) = ((x[:cut], x[cut:]) for x in (q, k))
    if rotary_first:
        q_nope, q_rope, k_nope, k_rope = q_rope, q_nope, k_rope, k_nope
    w = speeds(config)
    rotary = _turned(q_rope, turn_q * m * w, halves=halves) @ _turned(
        k_rope, turn_k * n * w, halves=halves)
    return float((nope * (q_nope @ k_nope) + hotter * rotary) * scale(config))


_cold = partial(_softmax_scale, power=0)


def _temperature(config: Config) -> float:
    yarn = config["rope_scaling"]
    return _mscale(yarn["factor"], yarn["mscale_all_dim"]) ** 2


def _rotary_hotter(q: Array, k: Array, m: int, n: int, config: Config) -> float:
    return _score(q, k, m, n, config, scale=_cold, hotter=_temperature(config))


def _hotter_twice(q: Array, k: Array, m: int, n: int, config: Config) -> float:
    return _score(q, k, m, n, config, hotter=_temperature(config))


def _hotter_twice_in_all(q: Array, k: Array, m: int, n: int, config: Config) -> float:
    return _score(q, k, m, n, config) * _temperature(config)


def _divided(config: Config) -> Array:
    return _plain(config) / config["rope_scaling"]["factor"]


def _divided_twice(config: Config) -> Array:
    return _inverse_frequencies(config) / config["rope_scaling"]["factor"]


def _score_cases(rng: np.random.Generator) -> list[Case]:
    """No score is near 0: one whose terms cancel would leave float32 too few digits."""
    cases: list[Case] = []
    for kind in range(4):
        size = 2 * int(rng.integers(6, 10))
        nope = size if kind == 3 else size + 2 * int(rng.integers(1, 5))
        low = int(rng.integers(1, 3))
        slow = low + (3 if kind % 2 else 0) + 0.5
        config = _config(size, float(rng.integers(20, 60)), int(rng.integers(60, 300)), low + 0.5,
                         slow, float(rng.integers(4, 30)), nope=nope,
                         strength=float(rng.choice([1.0, 0.707])))
        n = int(rng.integers(3, 40))
        m = n + int(rng.integers(3, 30))
        q, k = rng.normal(size=(2, nope + size))
        while abs(_score(q, k, m, n, config)) < 0.2:
            q, k = rng.normal(size=(2, nope + size))
        cases.append((q, k, m, n, config))
    return cases


def _same_place_no_rotation(call: Any, args: Case, out: float) -> str | None:
    q, k, m, _, config = args
    found, should = call(q, k, m, m, config), float(q @ k) * _softmax_scale(config)
    if abs(found - should) < 1e-3 * max(1, abs(should)):
        return None
    return f"With m = n the score is {found:.4g}, and q·k times the scale is {should:.4g}."


def _only_the_difference(call: Any, args: Case, out: float) -> str | None:
    q, k, m, n, config = args
    change = abs(call(q, k, m + 7, n + 7, config) - out)
    if change < 1e-3 * max(1, abs(out)):
        return None
    return f"With both positions 7 later the score changed by {change:.4g}."


SCORE = Exercise(
    id="yarn.score",
    lesson="04",
    title="One score of K2, end to end",
    difficulty=3,
    minutes=12,
    why="Everything that K2 knows about distance goes through this one number.",
    signature="score(q, k, m, n, config) -> float",
    cases=_score_cases,
    reference=_score,
    invariants=(
        Invariant("at the same position both sides turn alike, so only q·k and the scale count.",
                  _same_place_no_rotation),
        Invariant("a score depends on the difference of the positions only.",
                  _only_the_difference),
    ),
    wrong=(
        wrong("rotary_first", partial(_score, rotary_first=True),
              """The first R numbers are turned. In this family the rotary numbers come last: N
              without position, then R with.""",
              "Which of the two sizes comes first in the docstring's q: (N + R,)?"),
        wrong("rotary_alone", partial(_score, nope=0.0),
              """The numbers without position are left out. They take part in every score, unturned:
              it is they that carry most of the content.""",
              "Over how many numbers does q·k sum?"),
        wrong("no_temperature", partial(_score, scale=_cold),
              """The scale is 1/sqrt(N + R) without m².""",
              "What does yarn.softmax_scale give for this config?"),
        wrong("temperature_on_rotary_only", _rotary_hotter,
              """m² multiplies the rotary part only. That is how the YaRN paper does it, in models
              whose heads are rotary throughout. In this family mscale_all_dim says that all
              dimensions are meant.""",
              "What does the `all_dim` in mscale_all_dim stand for?"),
        wrong("temperature_twice", (_hotter_twice, _hotter_twice_in_all),
              """m² enters twice: in the scale, and once more in the rotated numbers or in the
              score.""",
              "How many factors of m has q·k if q takes one and k takes one?"),
        wrong("no_yarn", partial(_score, speeds=_plain),
              """The pairs turn at their old speeds, theta^(-2i/R): YaRN's division is missing.""",
              "Where does yarn.inverse_frequencies enter?"),
        wrong("all_divided", partial(_score, speeds=_divided),
              """All pairs turn slower by the factor, the fast ones too. That is position
              interpolation.""",
              "Which pairs does YaRN leave alone?"),
        wrong("divided_twice", partial(_score, speeds=_divided_twice),
              """The positions are divided by the factor as well. YaRN's speeds contain that
              already, for the pairs that need it.""",
              "How many times is the angle of the last pair divided by the factor?"),
        wrong("turned_against_each_other",
              (partial(_score, turn_k=-1), partial(_score, turn_q=-1)),
              """Query and key turn in opposite directions, so the score depends on m + n.""",
              "If both positions grow by 7, does the angle between q and k change?"),
        wrong("one_side_turned", (partial(_score, turn_k=0), partial(_score, turn_q=0)),
              """Only one of the two is turned, so the score depends on one position alone.""",
              "What must both sides do for a difference of positions to come out?"),
        wrong("turns_backwards", partial(_score, turn_q=-1, turn_k=-1),
              """Both turn clockwise. The score depends on the difference of the positions, but with
              its sign reversed.""",
              "Turn (1, 0) by a quarter: is it (0, 1) or (0, -1) that should come out?"),
        wrong("half_split", partial(_score, halves=True),
              """Number i is paired with number i + R/2. K2's pairs are neighbours.""",
              "Which two numbers of the rotary part make up pair 0?"),
    ),
)
