"""The ladder, rung by rung: what a learner is told when something of a kind goes wrong.

Most functions here are what a learner might hand in for a lesson's exercise; where an exercise of
another shape is needed, a small one is made.
"""

import dataclasses
import functools
import json
import linecache
import re
import signal
import threading
import time
from html.parser import HTMLParser

import numba
import numpy as np
import pytest
import torch

from minik2.checks import check, find
from minik2.checks.exercise import Exercise, Invariant, wrong
from minik2.checks.ladder import climb
from minik2.checks.picture import COLUMNS, LEGEND, ROWS, Picture
from minik2.checks.subject import Local, OutOfTime, is_stub, run_limited
from minik2.checks.values import compare, fit

RIGHT = {e: find(e).reference for e in (
    "config.read", "attention.causal", "rope.rotate", "rope.to_halves", "attention.one_head")}


def line_of(function, text: str) -> int:
    """The number in this file of the line of `function` that holds `text`."""
    first = function.__code__.co_firstlineno
    with open(__file__, encoding="utf-8") as file:
        lines = file.read().splitlines()
    return next(n for n in range(first, len(lines)) if text in lines[n - 1])


def small(**changes) -> Exercise:
    """An exercise to double an array, or whatever `changes` make of it."""
    squared = wrong("squared", lambda x: x**2, "It is squared.", "Is 2 times 3 six or nine?")
    exercise = Exercise(
        id="test.double", lesson="99", title="Double", difficulty=1, minutes=1, why="-",
        signature="double(x) -> (T, D)", axes="T D", reference=lambda x: 2 * x,
        cases=lambda rng: [(rng.normal(size=(t, 3)),) for t in (1, 2, 4)], wrong=(squared,))
    return dataclasses.replace(exercise, **changes)


def outcome(exercise: Exercise, function, seed: int = 1):
    return climb(exercise, Local(function), seed, callable_given=callable(function))


# Rung 1: it ran, and it is the learner's own function that did.

def fails_itself(q, k, v):
    scores = q @ k
    return scores @ v


def fails_inside_numpy(q, k, v):
    return np.linalg.inv(np.zeros((2, 2))) @ v


def fails_in_a_helper(q, k, v):
    return helper(q)


def helper(q):
    return q["key"]


@pytest.mark.parametrize(("function", "line", "error"), [
    (fails_itself, "q @ k", "ValueError"),
    (fails_inside_numpy, "inv(", "LinAlgError"),
    (fails_in_a_helper, "q[", "IndexError"),
])
def test_an_exception_is_shown_with_the_learners_own_line(function, line, error):
    at = line_of(helper if function is fails_in_a_helper else function, line)
    result = check("attention.causal", function)
    assert (result.state, result.rung) == ("not yet", 1)
    assert f"It raised {error} at line {at} of your code: `" in result.seen
    assert line in result.seen and f"{error} says: " in result.seen
    assert len(result.message.splitlines()) < 6, "no stack trace"
    assert "numpy" not in result.seen.partition(" says: ")[0]


def test_the_line_is_known_inside_a_notebook_cell():
    """IPython gives each cell a file name of its own and puts its text where linecache looks."""
    names: dict = {}
    cell(7, "def causal(q, k, v):\n    scores = q @ k.T\n    return socres @ v\n", names)
    result = check("attention.causal", names["causal"])
    assert "NameError at line 3 of your code: `return socres @ v`" in result.seen


def test_the_line_may_be_in_another_cell():
    names: dict = {}
    cell(1, "\n\ndef softmax(scores):\n    return scores / scores.sum(2)\n", names)
    cell(2, "def causal(q, k, v):\n    return softmax(q @ k.T) @ v\n", names)
    seen = check("attention.causal", names["causal"]).seen
    assert "at line 4 of your code: `return scores / scores.sum(2)`" in seen


def cell(number: int, source: str, names: dict) -> None:
    """Run a cell as IPython does."""
    name = f"<cell {number}>"
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    exec(compile(source, name, "exec"), names)


@pytest.mark.parametrize("error", [SystemExit(3), RecursionError("deep"), MemoryError(),
                                   GeneratorExit(), StopIteration(), Warning("w")])
def test_no_exception_of_a_learner_gets_out(error):
    def function(size):
        raise error

    result = check("rope.to_halves", function)
    assert (result.state, result.rung) == ("not yet", 1)
    assert type(error).__name__ in result.seen


def test_nor_one_that_cannot_be_printed():
    class Odd(Exception):
        def __str__(self):
            raise ValueError

    def function(size):
        raise Odd

    assert "Odd says: something that cannot be shown" in check("rope.to_halves", function).seen


def test_control_c_gets_out():
    def function(size):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check("rope.to_halves", function)


@pytest.mark.parametrize("function", [
    lambda q, k: q, lambda q, k, v, mask: v, lambda q, k, *, v: v, lambda: 1,
    functools.partial(RIGHT["attention.causal"], v=1), object,
])
def test_wrong_arguments_are_told_how_the_check_calls(function):
    result = check("attention.causal", function)
    assert (result.state, result.rung) == ("not yet", 1)
    assert "TypeError" in result.seen
    assert result.seen.endswith("; the check calls it as causal(q, k, v).")


def test_a_type_error_of_the_learners_own_is_not_taken_for_one():
    def function(q, k, v):
        return q + "1"

    result = check("attention.causal", function)
    assert "at line" in result.seen and "calls it as" not in result.seen


def endless(x):
    while True:
        x = x + 1


def endless_and_catching(x):
    while True:
        try:
            x = x + 1
        except BaseException:
            x = 0


@pytest.mark.parametrize("function", [endless, endless_and_catching])
@pytest.mark.parametrize("own_thread", [False, True], ids=["main thread", "another thread"])
def test_an_endless_loop_is_stopped_and_its_line_shown(function, own_thread):
    found, calls = [], []

    def counted(x):
        calls.append(1)
        return function(x)

    def climb_it():
        found.append(outcome(small(seconds=0.3), counted))

    start = time.monotonic()
    if own_thread:
        thread = threading.Thread(target=climb_it)
        thread.start()
        thread.join(20)
    else:
        climb_it()
    result = found[0]
    assert len(calls) == 1 and time.monotonic() - start < 15, "it is not tried again"
    assert (result.state, result.rung) == ("not yet", 1)
    assert result.cases == 3, "all were drawn, though one was enough"
    assert re.search(r"still running after 0\.3 s, so it was stopped at line (\d+)", result.seen)
    assert "never ends" in result.seen


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no alarms here")
def test_an_alarm_that_was_set_before_still_rings():
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(time.monotonic()))
    old = signal.setitimer(signal.ITIMER_REAL, 0.4)
    try:
        with pytest.raises(OutOfTime):
            run_limited(lambda: endless(0), 0.1)
        assert not rung
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
        deadline = time.monotonic() + 5
        while not rung and time.monotonic() < deadline:
            time.sleep(0.01)
        assert rung
    finally:
        signal.setitimer(signal.ITIMER_REAL, *old)
        signal.signal(signal.SIGALRM, before)


def test_a_call_that_comes_back_leaves_no_alarm():
    left = signal.getitimer(signal.ITIMER_REAL)[0]
    assert run_limited(lambda: 7, 0.2) == 7
    now = signal.getitimer(signal.ITIMER_REAL)[0]
    assert (now == 0) == (left == 0) and now <= left


def test_none_is_named():
    def function(q, k, v):
        q @ k.T

    result = check("attention.causal", function)
    assert (result.state, result.rung) == ("not yet", 1)
    assert "returned None; is the `return` missing?" in result.seen


def test_none_from_something_that_is_no_plain_function_is_named_too():
    class Model:
        def __call__(self, q, k, v):
            self.out = q

    assert "returned None" in check("attention.causal", Model()).seen
    assert "returned None" in check("attention.causal", lambda *a: [].append(a)).seen


@pytest.mark.parametrize(("bad", "named"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")])
def test_numbers_that_are_not_finite_are_named_and_placed(bad, named):
    def function(x):
        y = 2 * x
        y[-1, 1] = bad
        return y

    result = outcome(small(), function)
    assert (result.state, result.rung) == ("not yet", 1)
    assert result.seen == f"It ran, but 1 of 3 numbers is not finite, the first at [0, 1]: {named}."


def test_nan_where_nan_is_right_is_right():
    exercise = small(reference=lambda x: np.where(x > 0, x, np.nan), wrong=())
    assert outcome(exercise, lambda x: np.where(x > 0, x, np.nan)).passed
    assert not outcome(exercise, lambda x: x).passed


def test_nan_does_not_hide_the_diagnosis():
    with np.errstate(invalid="ignore"):
        mistake = next(w for w in find("attention.causal").wrong if w.id == "mask_hides_itself")
        result = check("attention.causal", mistake.functions[0])
    assert result.rung == 1 and "nan" in result.seen
    assert result.looks_like == "mask_hides_itself"


def fails(x):
    raise OSError


@pytest.mark.parametrize(("mistake", "answer"), [
    (fails, fails),  # an error alone, without a number anywhere, is no sign of a thought
    (lambda x: 2 * x, lambda x: x.__imul__(2)),  # nor is a right value
    (lambda x: fails(x) if len(x) == 1 else 2 * x, lambda x: fails(x) if len(x) == 2 else 2 * x),
    (lambda x: fails(x) if len(x) == 1 else x, lambda x: x[9] if len(x) == 1 else x),
    (lambda x: 3 * x, lambda x: 3 * x if len(x) < 4 else 2 * x),
], ids=["error", "right", "error elsewhere", "another error", "in one case only"])
def test_a_mistake_is_not_named_on_too_little(mistake, answer):
    known = (wrong("known", mistake, "It is so.", "Is it?"),)
    result = outcome(small(wrong=known), answer)
    assert result.state == "not yet" and result.looks_like is None


def test_an_error_in_some_cases_belongs_to_the_picture_of_a_mistake():
    def mistake(x):
        return fails(x) if len(x) == 1 else x

    known = (wrong("known", mistake, "It is so.", "Is it?"),)
    result = outcome(small(wrong=known), lambda x: mistake(x))
    assert (result.rung, result.looks_like) == (1, "known")


@pytest.mark.parametrize(("theta", "looks_like"), [
    (lambda config: config["rope_theta"], "old_rope_key_only"),
    (lambda config: config["rope_parameters"]["rope_theta"], "new_rope_key_only"),
    (lambda config: config["rope_scaling"]["rope_theta"], None),
    (lambda config: config["theta"], None),
])
def test_a_key_that_is_missing_where_a_mistake_misses_it_names_the_mistake(theta, looks_like):
    """Also where the other numbers are wrong in a way that the mistake does not explain."""
    result = check("config.read", lambda config: RIGHT["config.read"](config) | {
        "moe_layers": config["num_hidden_layers"], "rope_theta": theta(config)})
    assert (result.rung, result.looks_like) == (1, looks_like), result.message
    assert "KeyError" in result.seen


def test_a_key_that_is_missing_everywhere_is_no_sign():
    def mistake(x):
        raise KeyError("a")

    known = (wrong("known", mistake, "It is so.", "Is it?"),)
    assert outcome(small(wrong=known), lambda x: mistake(x)).looks_like is None


def test_a_learners_strict_numpy_settings_do_not_reach_the_right_answer():
    with np.errstate(all="raise"):
        q = check("attention.causal", lambda q, k, v: v)
    assert q.rung == 4


# A stub is neither red nor green.

class Holder:
    def method(self, x):
        """Words."""
        ...

    def __call__(self, x):
        pass


STUBS = {
    "dots": lambda x: ..., "none": None, "ellipsis": ..., "method": Holder().method,
    "callable object": Holder(), "numba": numba.njit(lambda x: None),
    "partial": functools.partial(lambda x: ...),
}


def raises(x):
    """Words."""
    raise NotImplementedError


def raises_words(x):
    raise NotImplementedError("to be done")


def returns_not_implemented(x):
    return NotImplemented


def begun(x):
    y = x + 1
    raise NotImplementedError(f"and then? {y}")


@pytest.mark.parametrize("stub", [*STUBS.values(), raises, raises_words, returns_not_implemented,
                                  begun], ids=[*STUBS, "raises", "words", "returns", "begun"])
def test_a_stub_is_not_attempted_yet(stub):
    result = outcome(small(), stub)
    assert (result.state, result.rung) == ("not attempted", 1)
    assert not result.passed and not result.attempted
    assert result.headline == "test.double: not attempted yet"
    assert "Write the body" in result.message and "seed" not in result.message


def unfinished_helper(x):
    return raises(x)


def test_a_stub_that_an_answer_leans_on_is_an_error_of_the_answer():
    result = outcome(small(), unfinished_helper)
    assert (result.state, result.rung) == ("not yet", 1)
    at = line_of(raises, "raise NotImplementedError")
    assert f"It raised NotImplementedError at line {at} of your code" in result.seen
    assert result.seen.startswith("`raises`, which it uses, is not written yet. ")


def handed_in_later(x):
    ...


def leans(x):
    return 2 * handed_in_later(x)["result"]


def test_what_is_missing_is_named_where_nothing_came_from_it():
    """Its None breaks the answer two steps later, in words that do not help."""
    seen = outcome(small(), leans).seen
    assert seen.startswith("`handed_in_later`, which it uses, is not written yet. It raised Type")
    alone = outcome(small(), lambda x: x[()]["result"]).seen
    assert alone.startswith("It raised IndexError")


def test_code_is_shown_as_code():
    page = outcome(small(), leans)._repr_html_()
    assert "<code>handed_in_later</code>, which it uses" in page and "`" not in page


@pytest.mark.parametrize("function", [
    lambda x: print("todo"), lambda x: x, lambda x: np.nan, print, Holder, np.double,
    lambda x, y=...: None if x is None else x,
])
def test_what_does_something_is_no_stub(function):
    assert not is_stub(function)
    assert outcome(small(), function).state == "not yet"


@pytest.mark.parametrize("given", [3, "rotate", np.zeros(3), [], torch.zeros(2)])
def test_a_value_in_place_of_the_function_is_told(given):
    result = check("rope.rotate", given)
    assert (result.state, result.rung) == ("not yet", 1)
    assert "the function itself: check('rope.rotate', rotate)." in result.seen


def test_an_exercise_without_cases_is_a_failure_and_no_pass():
    with pytest.raises(RuntimeError, match="no cases: it would pass anything"):
        outcome(small(cases=lambda rng: []), lambda x: 2 * x)


@pytest.mark.parametrize("id", ["rope.rotat", "rotate", "ROPE.ROTATE", "", None, 3, ["rope"]])
def test_an_unknown_id_is_a_sentence(id):
    with pytest.raises(ValueError, match=r"There is no exercise .*; (the exercises are "
                                         r".*rope\.rotate.*\.|did you mean .*rope\.rotate.*\?)$"):
        check(id, RIGHT["rope.rotate"])


@pytest.mark.parametrize("seed", [-1, 1.5, "1"])
def test_a_strange_seed_is_a_sentence(seed):
    with pytest.raises(ValueError, match="seed is a whole number"):
        check("rope.rotate", RIGHT["rope.rotate"], seed)


# Rung 2: structure, shape, type, and arguments left alone.

@pytest.mark.parametrize(("function", "said"), [
    (lambda x: (2 * x).T, r"to have shape \(1, 3\); came \(3, 1\)\. That is the transpose"),
    (lambda x: (2 * x)[None], r"to have shape \(1, 3\); came \(1, 1, 3\)\.$"),
    (lambda x: (2 * x).sum(), r"to have shape \(1, 3\); came \(\)"),
    (lambda x: x.astype(int), "floating-point numbers .*; came int64"),
    (lambda x: x > 0, "floating-point numbers .*; came bool"),
    (lambda x: 2j * x, "floating-point numbers .*; came complex128"),
    (lambda x: x.astype(np.float16), "floating-point numbers .*; came float16"),
    (lambda x: torch.tensor(x, dtype=torch.bfloat16), r"Tensor \(torch.bfloat16\)"),
    (lambda x: "words", "came str 'words'"),
    (lambda x: {"y": 2 * x}, "came a dict of length 1"),
    (lambda x: [2 * x, [1]], "rows differ in length"),
    (lambda x: (2 * x, np.ones((1, 1))), "came a tuple of length 2; return the output alone"),
    (lambda x: (2 * x, x), "came a tuple of length 2; return the output alone"),
    (lambda x: [[None] * 3] * len(x), "a list of length 1 that does not hold numbers alone"),
    (lambda x: (n for n in x), "an object of type generator"),
    (lambda x: object(), "an object of type object"),
    (lambda x: np.array([["a"] * 3] * len(x)), "an object of type array of <U1"),
], ids=range(17))
def test_a_wrong_shape_or_type_says_what_came_and_what_was_expected(function, said):
    cases = [(np.ones((1, 3)),), (np.ones((2, 3)),)]
    result = outcome(small(cases=lambda rng: cases), function)
    assert (result.state, result.rung) == ("not yet", 2)
    assert result.seen.startswith("Expected the result to ")
    assert re.search(said, result.seen), result.seen


def test_whole_numbers_must_be_whole():
    result = check("rope.to_halves", lambda size: RIGHT["rope.to_halves"](size).astype(float))
    assert result.rung == 2 and "whole numbers (an integer type); came float64" in result.seen


def entry(key, change):
    return lambda config: {**(read := RIGHT["config.read"](config)), key: change(read[key])}


@pytest.mark.parametrize(("function", "rung", "said"), [
    (lambda c: {}, 2, "The dict lacks layers, moe_layers, heads,"),
    (lambda c: RIGHT["config.read"](c) | {"x": 1}, 2, "The dict has x too much; expected the keys"),
    (lambda c: list(RIGHT["config.read"](c).values()), 2, "to be a dict with the keys layers, .*"
                                                          "came a list of length 7"),
    (lambda c: RIGHT["config.read"](c)["layers"], 2, "to be a dict .*; came int 61"),
    (entry("layers", str), 2, r"\['layers'\] to be one number \(int\); came str '61'"),
    (entry("layers", float), 2, r"\['layers'\] to hold whole numbers"),
    (entry("layers", lambda n: [n]), 2, r"\['layers'\] to be one number \(int\); came a list"),
    (entry("layers", lambda n: None), 2, r"\['layers'\] to be one number \(int\); came None"),
    (entry("layers", lambda n: n + 1), 4, r"At \['layers'\] it gave 62, expected 61\."),
    (entry("sparsity", lambda n: n + 1), 4, r"At \['sparsity'\] it gave 49, expected 48\."),
    (entry("sparsity", lambda n: 10**400), 4, r"At \['sparsity'\] it gave inf, expected 48\."),
    (entry("sparsity", lambda n: np.nan), 1, r"not finite, the first at \['sparsity'\]: nan"),
], ids=range(12))
def test_structures_are_walked_to_the_entry_that_differs(function, rung, said):
    result = check("config.read", function)
    assert (result.state, result.rung) == ("not yet", rung), result.message
    assert re.search(said, result.seen), result.seen
    assert result.shapes.startswith("config {num_hidden_layers 61, ")


def test_of_a_large_dict_a_message_shows_the_keys_in_question():
    function = entry("rope_theta", lambda theta: theta + 1000)
    result = check("config.read", lambda config: function(config) if "rope_parameters" in config
                   else RIGHT["config.read"](config))
    assert re.fullmatch(
        r"config \{num_hidden_layers \d+, num_attention_heads \d+, first_k_dense_replace \d+, "
        r"n_routed_experts \d+, num_experts_per_tok \d+, "
        r"rope_parameters \{rope_theta \d+\.0, …\}, …\}", result.shapes), result.shapes
    assert len(result.message) < 500


def test_tuples_and_lists_are_structures_too():
    exercise = small(reference=lambda x: (2 * x, {"n": [1, 2.0, "a", None, True]}), wrong=())
    assert outcome(exercise, lambda x: [2 * x, {"n": (1, 2, "a", None, True)}]).passed
    for bad, said in (
        (lambda x: 2 * x, "a tuple of 2; came an array of shape"),
        (lambda x: (2 * x,), "a tuple of 2; came a tuple of length 1"),
        (lambda x: (2 * x, {"n": [1, 2.0, "b", None, True]}), r"\[1\]\['n'\]\[2\] it gave 'b'"),
        (lambda x: (2 * x, {"n": [1, 2.0, "a", 0, True]}), r"\[1\]\['n'\]\[3\] it gave 0"),
        (lambda x: (2 * x, {"n": [1, 2.0, "a", None, 1]}), r"\[1\]\['n'\]\[4\] it gave 1"),
    ):
        result = outcome(exercise, bad)
        assert not result.passed and re.search(said, result.seen), result.seen


@pytest.mark.parametrize("change", [
    lambda x: x.__imul__(2), lambda x: x.sort(), lambda x: x.__setitem__((0, 0), 9.0),
])
def test_a_changed_argument_is_told(change):
    def function(x):
        y = 2 * x
        change(x)
        return y

    result = outcome(small(), function)
    assert (result.state, result.rung) == ("not yet", 2)
    assert "changed one of its arguments in place; work on a copy" in result.seen
    assert result.looks_like is None


def test_a_changed_dict_is_told():
    def function(config):
        return RIGHT["config.read"](config) if config.pop("model_type") else {}

    assert "changed one of its arguments" in check("config.read", function).seen


def test_one_case_never_sees_what_another_did():
    kept = []

    def hoards(x):
        kept.append(x)
        for old in kept[:-1]:
            old += 100
        return 2 * x

    assert outcome(small(), hoards).passed


# Rung 3: what must hold.

@pytest.mark.parametrize(("id", "function", "meaning"), [
    ("attention.causal", lambda q, k, v: v.mean(0, keepdims=True) + 0 * v, "a token sees itself"),
    ("attention.causal", lambda q, k, v: 0.9 * RIGHT["attention.causal"](q, k, v),
     "the weights of a row sum to one"),
    ("rope.rotate", lambda x, positions, theta: 1.1 * x, "a rotation keeps the length"),
    ("rope.rotate", lambda x, positions, theta: -x, "position 0 is an angle of 0"),
    ("rope.rotate", lambda x, p, theta: RIGHT["rope.rotate"](x, p**2, theta), "dot products dep"),
    ("rope.to_halves", lambda size: np.zeros(size, int), "a permutation names every index"),
    ("attention.one_head", lambda *a: 2 * RIGHT["attention.one_head"](*a), "the first token sees"),
])
def test_a_broken_invariant_is_told_with_its_meaning(id, function, meaning):
    result = check(id, function)
    assert (result.state, result.rung) == ("not yet", 3), result.message
    assert result.seen.startswith(f"This must hold: {meaning}")
    assert re.search(r"\d", result.seen.partition(". ")[2]), "and what was seen instead"
    assert result.picture is not None, "the output was of the right shape, so it can be drawn"


def test_a_function_that_fails_only_inside_an_invariant_is_caught():
    def called_again(call, args, out):
        call(np.zeros((7, 3)))

    exercise = small(invariants=(Invariant("zero stays zero.", called_again),))

    def fails_on_seven(x):
        return 1 / 0 if len(x) == 7 else 2 * x

    result = outcome(exercise, fails_on_seven)
    assert result.rung == 1 and "ZeroDivisionError" in result.seen
    assert result.shapes == "x (7, 3)"
    shape = outcome(exercise, lambda x: x.T if len(x) == 7 else 2 * x)
    assert shape.rung == 2 and "came (3, 7)" in shape.seen


# Rung 4: the values, the first that differs, and the picture.

def test_the_first_index_that_differs_is_named_with_its_axes():
    def function(x):
        y = 2 * x
        y[1:, 2] += 0.5
        return y

    exercise = small(cases=lambda rng: [(np.ones((4, 3)),)])
    result = outcome(exercise, function)
    assert (result.state, result.rung) == ("not yet", 4)
    assert result.seen == "At [T=1, D=2] it gave 2.5, expected 2. 3 of 12 numbers differ."
    assert result.picture.first == (1, 2)
    assert np.array_equal(result.picture.strength > 0, function(np.ones((4, 3))) != 2)


def test_a_small_error_is_an_error_and_rounding_is_none():
    for factor, passes in ((1 + 1e-6, True), (1 + 1e-3, False)):
        assert outcome(small(), lambda x, factor=factor: 2 * x * factor).passed == passes


def test_rounding_to_float32_passes_and_is_remarked():
    result = outcome(small(), lambda x: (2 * x).astype(np.float32).astype(np.float64))
    assert result.passed and "only as exact as float32" in result.message
    assert not outcome(small(), lambda x: (2 * x).astype(np.float32)).remark
    assert not outcome(small(), lambda x: 2 * x).remark


def test_the_picture_shows_the_window_with_the_first_error():
    expected = np.zeros((3, 20, 50)) + 1
    got = expected.copy()
    got[1, 15, 40] = got[2, 0, 0] = 3
    difference, _ = compare(expected, fit(expected, got))
    picture = Picture.of(difference, "B T D")
    assert picture.strength.shape == (ROWS, COLUMNS)
    assert picture.strength[picture.first] > 0 and (picture.strength > 0).sum() == 1
    assert "a part of it; rows are B × T, columns D." in picture.caption


def test_no_picture_of_a_single_number_and_one_of_a_row():
    assert check("config.count_expert", lambda c: 1).picture is None
    picture = check("rope.to_halves", lambda size: RIGHT["rope.to_halves"](size)[::-1]).picture
    assert picture.strength.shape[0] == 1
    assert picture.caption == f"Output ({picture.strength.size},)."


def test_a_further_number_is_drawn_darker_and_nan_darkest():
    expected = np.ones((1, 5))
    got = expected + [[0, 1e-3, 1e-1, 10, np.nan]]
    strength = Picture.of(compare(expected, fit(expected, got))[0]).strength[0]
    assert strength[0] == 0 and strength[1] >= 1
    assert list(strength[1:4]) == sorted(set(strength[1:4])) and strength[4] == 9


# What is said, and that it is the same each time.

ANSWERS = {
    "passed": RIGHT["attention.causal"],
    "unknown mistake": lambda q, k, v: RIGHT["attention.causal"](q, k, v) + 0.1 * np.tri(
        len(v), v.shape[1]),
    "known mistake": lambda q, k, v: RIGHT["attention.causal"](q, k, v, scale=1.0),
    "raised": lambda q, k, v: v[99],
    "stub": lambda q, k, v: ...,
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_seed_says_the_same_again_and_every_seed_the_same_first(name):
    one, again = (check("attention.causal", ANSWERS[name], 7) for _ in range(2))
    assert one.message == again.message and repr(one) == repr(again)
    assert one._repr_html_() == again._repr_html_()
    others = [check("attention.causal", ANSWERS[name]) for _ in range(5)]
    assert {o.headline for o in others} == {one.headline}
    assert {o.looks_like for o in others} == {one.looks_like}
    assert len({o.explanation for o in others}) == 1
    assert "0x" not in one.message, "no addresses"


def test_the_failing_seed_is_printed_and_draws_the_same_numbers():
    drawn = []
    exercise = small(cases=lambda rng: [(rng.normal(size=(2, 3)),)])
    first = outcome(exercise, lambda x: drawn.append(x) or x, seed=None)
    assert f"The same numbers again: seed={first.seed}." in first.message
    outcome(exercise, lambda x: drawn.append(x) or x, seed=first.seed)
    assert np.array_equal(*drawn)
    other = outcome(exercise, lambda x: drawn.append(x) or x, seed=first.seed + 1)
    assert other.seed != first.seed and not np.array_equal(drawn[0], drawn[2])


def test_what_the_learner_prints_is_shown_once(capsys):
    check("rope.to_halves", lambda size: print("size", size) or RIGHT["rope.to_halves"](size))
    assert capsys.readouterr().out == "size 6\n"


class Text(HTMLParser):
    """The text of a page, and its tags: closed properly, or an AssertionError."""

    def __init__(self, html: str):
        super().__init__()
        self.words, self.open, self.tags = [], [], set()
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_html_escapes_what_a_learner_can_put_into_it():
    def function(q, k, v):
        raise ValueError("<script>alert('x')</script> & <b>")

    result = check("attention.causal", function)
    page = Text(result._repr_html_())
    assert page.tags <= {"div", "span", "code"}
    assert "<script>alert('x')</script> & <b>" in "".join(page.words)
    keys = check("config.read", lambda c: {"<img src=x onerror=y>": 1})
    assert "img" not in Text(keys._repr_html_()).tags
    strange = dataclasses.replace(result, id="<u>", seen="<i>", shapes="<s>", looks_like="<q>",
                                  explanation="<p>", question="<h1>", remark="<em>")
    assert Text(strange._repr_html_()).tags <= {"div", "span"}


@pytest.mark.parametrize("name", ANSWERS)
def test_nothing_is_said_by_colour_alone(name):
    """Sign and words say the outcome; the box and the terminal say the same words."""
    result = check("attention.causal", ANSWERS[name])
    page = Text(result._repr_html_())
    words = "".join(page.words)
    word = {"passed": "passed", "not yet": "not yet (rung", "not attempted": "not attempted yet"}
    assert word[result.state] in words
    assert words.strip()[0] == repr(result)[0] in "✓✗○"
    for line in result.message.splitlines():
        assert line.replace("`", "") in words and line in repr(result)
    if result.picture:
        # Each cell of the box holds the character that the terminal has.
        typed = result.picture.text()
        table = Text(result.picture.table())
        assert table.tags == {"table", "tr", "td"}
        assert table.words == typed.split() and typed in repr(result)
        assert set(typed.split()) - {"."}, "something is wrong, and filled"
        assert result.picture.table().count("outline:2px solid") == 1, "the first has a frame"
        for told in (words, repr(result)):
            assert f"{result.picture.caption} {LEGEND}" in told


# What JupyterLab leaves of the HTML in a notebook that it does not trust (its sanitizer's lists).
KEPT = {"div", "span", "code", "table", "tr", "td"}
KEPT_STYLES = {"border", "border-left", "border-collapse", "background", "padding", "margin",
               "margin-top", "max-width", "line-height", "opacity", "font-size", "font-style",
               "font-weight", "width", "text-align", "outline"}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_untrusted_notebook_still_shows_the_whole_box(name):
    html = check("attention.causal", ANSWERS[name])._repr_html_()
    assert Text(html).tags <= KEPT
    styles = [s for style in re.findall(r'style="([^"]*)"', html) for s in style.split(";") if s]
    assert {s.partition(":")[0] for s in styles} <= KEPT_STYLES


@pytest.mark.parametrize("name", ANSWERS)
def test_the_outcome_as_json(name):
    result = check("attention.causal", ANSWERS[name])
    told = json.loads(json.dumps(result.to_dict()))
    assert told["passed"] == (name == "passed") == result.passed
    assert told["message"].splitlines()[0] == result.headline


# Functions of other kinds than `def`.

def test_functions_of_every_kind_are_taken():
    class Model:
        def method(self, size):
            return RIGHT["rope.to_halves"](size)

        @classmethod
        def of_class(cls, size):
            return RIGHT["rope.to_halves"](size)

        @staticmethod
        def static(size):
            return RIGHT["rope.to_halves"](size)

        __call__ = method

    @functools.wraps(Model.static)
    def wrapped(*args, **kwargs):
        return Model.static(*args, **kwargs)

    @numba.njit
    def compiled(size):
        return np.concatenate((np.arange(0, size, 2), np.arange(1, size, 2)))

    for function in (Model().method, Model.of_class, Model.static, Model(), wrapped, compiled,
                     functools.cache(Model.static), torch.no_grad()(Model.static)):
        result = check("rope.to_halves", function)
        assert result.passed, (function, result.message)


def test_a_tensor_that_still_has_its_gradient_is_taken():
    assert outcome(small(), lambda x: 2 * torch.tensor(x, requires_grad=True)).passed
    assert outcome(small(), lambda x: [list(row) for row in 2 * torch.tensor(x)]).passed


def test_an_answer_deeper_than_any_structure_is_refused():
    loop: list = []
    loop.append(loop)
    assert outcome(small(), lambda x: loop).rung == 2
