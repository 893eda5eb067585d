"""The checks are tested by what they will meet: stubs, right answers, other right answers, and
every known wrong one, which must be told apart from all others. Each on fresh numbers every time.
"""

import inspect
import os
import random
from pathlib import Path

import numba
import numpy as np
import pytest
import torch

import minik2
from lessons import build, views
from minik2 import reference
from minik2.checks import Exercise, check, exercises
from minik2.checks.exercise import lesson_title
from tests.course.other_ways import OTHER_WAYS

ALL = exercises()
EVERY = pytest.mark.parametrize("exercise", ALL, ids=lambda e: e.id)
WRONG = [(e, w) for e in ALL for w in e.wrong]
SOURCES = {path.stem[:2]: path for path in build.sources()}
# As many as `make test-all` draws are for a machine that nobody waits for.
FRESH = 5 if os.environ.get("MINIK2_SHORT") else 20
# What the set-up cells import, for stubs that are read without them.
NAMES = {"np": np, "njit": numba.njit}


def seeds() -> list[int]:
    """New ones in every run; they are printed, and a failing result names its own."""
    drawn = [random.SystemRandom().randrange(10**6) for _ in range(FRESH)]
    print("seeds:", drawn)
    return drawn


def source(exercise: Exercise) -> views.Source:
    assert exercise.lesson in SOURCES, f"lesson {exercise.lesson} has exercises but no source"
    return views.read(SOURCES[exercise.lesson])


def test_there_are_exercises():
    lessons = {e.lesson for e in ALL}
    assert {"00", "01"} <= lessons
    assert len({e.id for e in ALL}) == len(ALL)
    folder = Path(minik2.checks.__file__).parent
    assert lessons == {path.stem.removeprefix("lesson") for path in folder.glob("lesson??.py")}


def test_every_lesson_with_exercises_has_a_source_of_its_title():
    for lesson in {e.lesson for e in ALL}:
        assert lesson in SOURCES, f"minik2/checks/lesson{lesson}.py has no lessons/{lesson}_*.py"
        assert lesson_title(lesson) in SOURCES[lesson].read_text(encoding="utf-8").splitlines()[1]


@EVERY
def test_the_untouched_stub_is_not_attempted(exercise):
    lesson = source(exercise)
    names: dict = dict(NAMES)
    exec(views.stub(exercise.id, lesson.solved[exercise.id]), names)
    result = check(exercise.id, names[exercise.function])
    assert result.state == "not attempted"
    assert not result.passed and not result.attempted and result.looks_like is None


@EVERY
def test_stub_signature_and_reference_name_the_same_arguments(exercise):
    names: dict = dict(NAMES)
    exec(source(exercise).solved[exercise.id], names)
    solved = inspect.signature(names[exercise.function]).parameters
    own = [name for name, p in inspect.signature(exercise.reference).parameters.items()
           if p.kind is not p.KEYWORD_ONLY]
    assert list(solved) == own
    called, _, returned = exercise.signature.partition(" -> ")
    assert called == f"{exercise.function}({', '.join(own)})" and returned


@EVERY
def test_the_right_answer_passes(exercise):
    for seed in seeds():
        result = check(exercise.id, exercise.reference, seed)
        assert result.passed, result.message
        assert result.cases >= 3 and not result.remark


@EVERY
def test_the_solved_cell_of_the_lesson_passes(exercise):
    names: dict = {}
    for cell in views.views(source(exercise))["solutions"].cells:
        if cell.metadata.get("minik2", {}).get("role") in ("setup", "answer"):
            exec(cell.source, names)
    for seed in seeds():
        result = check(exercise.id, names[exercise.function], seed)
        assert result.passed, result.message


@EVERY
def test_enough_misconceptions_are_known(exercise):
    assert len(exercise.wrong) >= (3 if exercise.formula else 4)
    assert len(set(exercise.misconceptions)) == len(exercise.wrong)
    for wrong in exercise.wrong:
        assert wrong.functions and wrong.explanation and wrong.question.endswith("?")


# Rows of -inf, or an exponential too large, give nan: that is the mistake.
@pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow")
@pytest.mark.parametrize(("exercise", "wrong"), WRONG, ids=lambda x: x.id)
def test_a_wrong_answer_is_told_its_own_mistake(exercise, wrong):
    for seed in seeds():
        for function in wrong.functions:
            result = check(exercise.id, function, seed)
            assert result.state == "not yet" and result.looks_like == wrong.id, result.message
            assert wrong.explanation in result.message and wrong.question in result.message


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow")
@pytest.mark.parametrize(("exercise", "wrong"), WRONG, ids=lambda x: x.id)
def test_so_it_is_in_float32_and_in_torch(exercise, wrong):
    def single(out):
        floats = isinstance(out, np.ndarray) and out.dtype.kind == "f"
        return out.astype(np.float32) if floats else out

    def in_torch(out):
        return torch.tensor(out) if isinstance(out, np.ndarray) else out

    def given_as(convert, function):
        def wrapped(*args):
            out = function(*args)
            return tuple(map(convert, out)) if isinstance(out, tuple) else convert(out)
        return wrapped

    for seed in seeds()[:3]:
        for function in wrong.functions:
            for written in (given_as(single, function), given_as(in_torch, function)):
                result = check(exercise.id, written, seed)
                assert result.looks_like == wrong.id, result.message


@EVERY
def test_right_answers_written_another_way_pass(exercise):
    ways = OTHER_WAYS.get(exercise.id, [])
    assert len(ways) >= 3, f"tests/course/other_ways/ has {len(ways)} other ways, not three"
    for seed in seeds():
        for way in ways:
            result = check(exercise.id, way, seed)
            assert result.passed, f"{way.__name__}: {result.message}"


def test_other_ways_are_of_exercises_that_exist():
    assert set(OTHER_WAYS) <= {e.id for e in ALL}


def slightly_off(value):
    """The same with its last number a hundredth, or one, too large; the other truth value."""
    if isinstance(value, dict):
        last = list(value)[-1]
        return value | {last: slightly_off(value[last])}
    if isinstance(value, tuple):
        return (*value[:-1], slightly_off(value[-1]))
    if isinstance(value, np.ndarray):
        value = value.copy()
        value.flat[-1] = slightly_off(value.flat[-1])
        return value
    if isinstance(value, np.bool_):
        return not value  # 1.01 would be True as well
    return value + (1 if isinstance(value, (int, np.integer)) else 0.01 * max(1.0, abs(value)))


@EVERY
def test_a_mistake_that_nobody_knows_fails_without_a_diagnosis(exercise):
    for seed in seeds():
        result = check(exercise.id, lambda *args: slightly_off(exercise.reference(*args)), seed)
        assert result.state == "not yet" and result.rung > 1, result.message
        assert result.looks_like is None, result.message


def test_causal_is_the_engines_attention():
    rng = np.random.default_rng(seeds()[0])
    right = next(e.reference for e in ALL if e.id == "attention.causal")
    q, k, v = rng.normal(size=(9, 6)), rng.normal(size=(9, 6)), rng.normal(size=(9, 4))
    engine, _ = reference.attention.forward(
        q[None, :, None], k[None, :, None], v[None, :, None], 6**-0.5)
    np.testing.assert_allclose(right(q, k, v), engine[0, :, 0], rtol=0, atol=1e-12)


def test_rotate_and_to_halves_are_the_engines():
    rng = np.random.default_rng(seeds()[0])
    by_id = {e.id: e.reference for e in ALL}
    cfg = minik2.ModelConfig.preset("tiny").replace(
        qk_rope_head_dim=10, rope_theta=777.0, rope_scaling=None)
    positions = rng.choice(200, 7, replace=False)
    x = rng.normal(size=(7, 10))
    cos, sin = reference.rope.table(cfg, positions, np.float64)
    engine = reference.rope.rotate(x[:, None], cos, sin)[:, 0]
    np.testing.assert_allclose(by_id["rope.rotate"](x, positions, 777.0), engine,
                               rtol=0, atol=1e-12)
    for size in (2, 4, 64):
        np.testing.assert_array_equal(by_id["rope.to_halves"](size),
                                      reference.rope.to_halves(size))


def test_one_head_is_the_engines_parts_in_a_row():
    rng = np.random.default_rng(seeds()[0])
    right = next(e.reference for e in ALL if e.id == "attention.one_head")
    x, positions = rng.normal(size=(8, 12)), 5 + np.arange(8)
    weights = [rng.normal(size=s) for s in ((10, 12), (10, 12), (4, 12), (12, 4))]
    cfg = minik2.ModelConfig.preset("tiny").replace(
        qk_rope_head_dim=10, rope_theta=777.0, rope_scaling=None)
    cos, sin = reference.rope.table(cfg, positions, np.float64)
    q, k, v = ((x @ w.T)[None, :, None] for w in weights[:3])
    turned = (reference.rope.rotate(a, cos, sin) for a in (q, k))
    engine = reference.attention.forward(*turned, v, 10**-0.5)[0][0, :, 0] @ weights[3].T
    scale = np.abs(engine).max()
    np.testing.assert_allclose(right(x, *weights, positions, 777.0), engine,
                               rtol=0, atol=1e-12 * scale)


@pytest.mark.parametrize("preset", ["kimi-k2", "deepseek-v3", "moonlight-16b-a3b"])
def test_lesson_00_counts_as_the_package_does(preset):
    cfg = minik2.ModelConfig.preset(preset)
    by_id = {e.id: e.reference for e in ALL}
    config = cfg.to_json()
    counted = minik2.sizing.parameters(cfg)
    read = by_id["config.read"](config)
    experts = read["moe_layers"] * read["experts"]
    assert by_id["config.count_expert"](config) * experts == counted.by_part["routed_experts"]
    assert read["rope_theta"] == cfg.rope_theta
    # The latent and the rotary key of a token are what kv_a_proj_with_mqa makes of it.
    made = sum(shape[0] for name, shape in cfg.tensor_shapes().items()
               if name.endswith("kv_a_proj_with_mqa.weight"))
    assert by_id["config.cache_numbers"](config) == made
