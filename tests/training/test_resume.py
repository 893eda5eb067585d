"""Nothing lost: runs in processes of their own, killed, starved, interrupted, and gone on with.

Every one must end with the bits of a run that nobody disturbed: weights, optimizer, sampler, and
each line of the metrics, times apart.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minik2.training import metrics, store
from tests.training.drive import INTERRUPTED, REFUSED
from tests.training.runs import bits, seen, settings, tree

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks, and kills by signals")
ROOT = Path(__file__).parents[2]
KILLED = -signal.SIGKILL
# Everything that keeps state between steps, in both engines.
RECIPES = [("pytorch", "muonclip"), ("reference", "muonclip"), ("pytorch", "adamw"),
           ("reference", "adamw"), ("pytorch", "muon"), ("reference", "muon")]  # fmt: skip


class Runs:
    """The forking process of `drive`, and the runs that it was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.training.drive"], cwd=ROOT, text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
            env=os.environ | {"NUMBA_NUM_THREADS": "2"},  # whatever share a worker has
        )  # fmt: skip

    def start(self, out: Path, recipe, habits=None, **more) -> int:
        self.log = self.folder / "log"
        job = {"out": str(out), "settings": recipe.to_json(), "log": str(self.log),
               "habits": {"evaluate_every": 5, "threads": 1} | (habits or {}), **more}  # fmt: skip
        self.process.stdin.write(json.dumps(job) + "\n")
        self.pid = int(self.process.stdout.readline())
        return self.pid

    def wait(self) -> int:
        """The exit status of the run that was started last."""
        return int(self.process.stdout.readline())

    def whole(self, out: Path, recipe, habits=None, **more) -> str:
        """A run to its end; what it said."""
        self.start(out, recipe, habits, **more)
        status = self.wait()
        assert status == 0, self.said
        return self.said

    @property
    def said(self) -> str:
        return self.log.read_text()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    runs = Runs(tmp_path_factory.mktemp("drive"))
    yield runs
    runs.process.stdin.close()
    runs.process.wait()


@pytest.fixture(scope="module")
def undisturbed(runs, tmp_path_factory):
    """The end of a run of some recipe: made once, for every test that asks."""
    made = {}

    def run(recipe):
        if recipe not in made:
            out = tmp_path_factory.mktemp("undisturbed") / "run"
            runs.whole(out, recipe, {"save_every": 1000})
            made[recipe] = bits(out), seen(out)
        return made[recipe]

    return run


def steps_made(out: Path) -> int:
    path = out / metrics.NAME
    return path.read_text().count('"kind": "step"') if path.exists() else 0


def wait_for(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "nothing happened for a minute"
        time.sleep(0.0005)


def hidden(out: Path) -> set[Path]:
    return set((out / "checkpoints").glob(".step-*"))


def kill_at_random(runs, out, recipe, moments, kills) -> int:
    """Begin or go on `kills` times, each time killed; returns how many died while they saved."""
    saving = 0
    for number in range(kills):
        before, left = steps_made(out), hidden(out)
        pid = runs.start(out, recipe, {"save_every": 1})
        if number % 2 == 0:  # in a save
            wait_for(lambda left=left: hidden(out) - left)
            time.sleep(moments.uniform(0, 0.01))
        else:  # anywhere
            least = before + moments.choice([0, 1, 2])
            wait_for(lambda least=least: steps_made(out) >= least)
            time.sleep(moments.uniform(0, 0.05))
        os.kill(pid, signal.SIGKILL)
        ended = runs.wait()
        assert ended == KILLED, f"kill {number} came too late ({ended}): {runs.said}"
        saving += bool(hidden(out) - left)
    return saving


def same_end(runs, undisturbed, out, recipe, **more) -> str:
    """Go on to the end, and hold it against a run that nobody disturbed."""
    said = runs.whole(out, recipe, {"save_every": 3}, **more)
    end, lines = undisturbed(recipe)
    assert bits(out) == end
    assert seen(out) == lines
    assert sorted(path.name for path in out.iterdir()) == [
        ".lock", "checkpoints", metrics.NAME, "run.json"]  # fmt: skip
    assert not hidden(out)
    return said


def killed_and_gone_on(runs, undisturbed, out, recipe, kills, seed):
    print(f"moments drawn from seed {seed}")  # pytest shows it where the test fails
    saving = kill_at_random(runs, out, recipe, random.Random(seed), kills)
    assert saving > 0, "no kill fell into a save"
    same_end(runs, undisturbed, out, recipe)


@pytest.mark.parametrize(("engine", "optimizer"), [
    pytest.param(*RECIPES[0], marks=pytest.mark.slow), RECIPES[1]])  # fmt: skip
def test_killed_at_three_moments(runs, undisturbed, tmp_path, engine, optimizer):
    recipe = settings(engine=engine, optimizer=optimizer, steps=20)
    killed_and_gone_on(runs, undisturbed, tmp_path / "run", recipe, 3, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [11, 12])
@pytest.mark.parametrize(("engine", "optimizer"), RECIPES)
def test_killed_at_twenty_moments(runs, undisturbed, tmp_path, engine, optimizer, seed):
    recipe = settings(engine=engine, optimizer=optimizer, steps=100)
    killed_and_gone_on(runs, undisturbed, tmp_path / "run", recipe, 20, seed)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["pytorch", "reference"])
def test_killed_on_two_threads(runs, tmp_path, engine):
    """A model large enough that threads share its sums; they do it in the same way each time."""
    recipe = settings(engine=engine, steps=12, batch=4, window=128)
    habits, more = {"threads": 2, "save_every": 1}, {"preset": "small"}
    runs.whole(tmp_path / "whole", recipe, habits | {"save_every": 100}, **more)
    out = tmp_path / "run"
    for least in (2, 5, 9):
        pid = runs.start(out, recipe, habits, **more)
        wait_for(lambda least=least: steps_made(out) >= least)
        os.kill(pid, signal.SIGKILL)
        assert runs.wait() == KILLED, runs.said
    runs.whole(out, recipe, habits, **more)
    assert (bits(out), seen(out)) == (bits(tmp_path / "whole"), seen(tmp_path / "whole"))


def die_at_points_of_a_save(runs, undisturbed, out, recipe, points):
    """Each run goes on where the one before was killed, and dies at the next point of a save."""
    step, reached = 0, 0
    for point in points:
        runs.start(out, recipe, {"save_every": 1}, die_at=point)
        if (ended := runs.wait()) == 0:
            break
        reached += 1
        assert ended == KILLED, runs.said
        saved, warnings = store.newest(out)
        assert not warnings, f"at point {point}"
        assert saved is None or saved.step in (step, step + 1), f"at point {point}"
        step = saved.step if saved else 0
        if not step:  # some older ones, so that there is something to drop
            runs.start(out, recipe, {"save_every": 1}, die_at=10**6, slow=0.1)
            wait_for(lambda: steps_made(out) > 3)
            os.kill(runs.pid, signal.SIGINT)
            assert runs.wait() == INTERRUPTED, runs.said
            step = store.newest(out)[0].step
    same_end(runs, undisturbed, out, recipe)
    return reached


def test_killed_at_some_points_inside_a_save(runs, undisturbed, tmp_path):
    recipe = settings(engine="pytorch", steps=20)
    assert die_at_points_of_a_save(runs, undisturbed, tmp_path / "run", recipe, [1, 9, 25, 33]) == 4


@pytest.mark.slow
def test_killed_at_every_point_inside_a_save(runs, undisturbed, tmp_path):
    recipe = settings(engine="pytorch", steps=90)
    points = range(1, 500)
    reached = die_at_points_of_a_save(runs, undisturbed, tmp_path / "run", recipe, points)
    assert 30 < reached < 499  # every file operation of a save, and then none was left


def begun(runs, out, recipe, steps, habits=None, **more) -> int:
    """The id of a process that has made some steps and is in the middle of another one."""
    pid = runs.start(out, recipe, habits, **more)
    wait_for(lambda: steps_made(out) >= steps)
    return pid


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("engine", ["pytorch", "reference"])
def test_asked_to_stop_it_ends_the_step_and_saves(runs, undisturbed, tmp_path, engine, number):
    out, recipe = tmp_path / "run", settings(engine=engine, steps=20)
    os.kill(begun(runs, out, recipe, 2, slow=0.1), number)
    assert runs.wait() == INTERRUPTED, runs.said
    step = store.newest(out)[0].step
    assert 2 <= step < 20 and steps_made(out) == step
    assert f"outcome [{step}, true]" in runs.said
    assert "warning" not in same_end(runs, undisturbed, out, recipe)


def test_asked_twice_it_stops_at_once(runs, undisturbed, tmp_path):
    out, recipe = tmp_path / "run", settings(engine="pytorch", steps=20)
    pid = begun(runs, out, recipe, 2, {"save_every": 1}, slow=0.3)
    wait_for(lambda: (out / "checkpoints/step-00000002").exists())
    time.sleep(0.05)
    os.kill(pid, signal.SIGINT)
    time.sleep(0.05)
    asked = time.monotonic()
    os.kill(pid, signal.SIGINT)
    assert runs.wait() == INTERRUPTED and "outcome" not in runs.said
    assert time.monotonic() - asked < 0.2
    assert store.newest(out)[0].step == 2
    same_end(runs, undisturbed, out, recipe)


def interrupted(runs, out, recipe) -> None:
    """A run that was asked to stop after some steps, with two checkpoints."""
    os.kill(begun(runs, out, recipe, 4, {"save_every": 2}, slow=0.1), signal.SIGINT)
    assert runs.wait() == INTERRUPTED, runs.said
    assert len(list((out / "checkpoints").iterdir())) == 2


@pytest.mark.parametrize("engine", ["pytorch", "reference"])
def test_a_damaged_checkpoint_falls_back_and_ends_alike(runs, undisturbed, tmp_path, engine):
    out, recipe = tmp_path / "run", settings(engine=engine, steps=20)
    interrupted(runs, out, recipe)
    newest = store.newest(out)[0].path
    raw = bytearray((newest / store.OPTIMIZER).read_bytes())
    raw[-5] ^= 1
    (newest / store.OPTIMIZER).write_bytes(raw)
    said = same_end(runs, undisturbed, out, recipe)
    assert said.count("warning") == 1 and f"{newest.name} is damaged" in said


@pytest.mark.parametrize("engine", ["pytorch", "reference"])
def test_a_full_disk_is_a_sentence_and_loses_nothing(runs, undisturbed, tmp_path, engine):
    """A limit on the size of a file refuses as a full disk does, half way through a file."""
    out, recipe = tmp_path / "run", settings(engine=engine, steps=20)
    interrupted(runs, out, recipe)
    before = tree(out / "checkpoints")
    step = store.newest(out)[0].step
    for size in (100_000, (out / metrics.NAME).stat().st_size + 100):
        runs.start(out, recipe, {"save_every": 1}, size=size)
        assert runs.wait() == REFUSED, runs.said
        said = runs.said.strip().splitlines()[-1]
        assert said.startswith("OSError: ") and "File too large" in said and "Make room" in said
        assert str(out) in said
        assert tree(out / "checkpoints") == before
    assert store.newest(out)[0].step == step
    same_end(runs, undisturbed, out, recipe)


@pytest.mark.parametrize("engine", ["pytorch", "reference"])
def test_another_number_of_threads_is_a_warning(runs, tmp_path, engine):
    out, recipe = tmp_path / "run", settings(engine=engine, steps=8)
    os.kill(begun(runs, out, recipe, 2, {"threads": 2}, slow=0.1), signal.SIGINT)
    assert runs.wait() == INTERRUPTED
    assert "threads 2 until now, 1 from here" in runs.whole(out, recipe, {"threads": 1})
    went_on = [entry for entry in metrics.read(out) if entry["kind"] == "resumed"]
    assert [entry["threads"] for entry in went_on] == [1]


def test_a_second_process_is_refused_at_once(runs, undisturbed, tmp_path):
    out, recipe = tmp_path / "run", settings(engine="pytorch", steps=20)
    pid = begun(runs, out, recipe, 2, slow=0.2)
    second = Runs(tmp_path)
    started = time.monotonic()
    second.start(out, recipe)
    assert second.wait() == REFUSED
    assert "RunError: Another process is training in" in second.said
    assert time.monotonic() - started < 15  # imports and all; it does not wait for the first
    second.process.stdin.close()
    os.kill(pid, signal.SIGINT)
    assert runs.wait() == INTERRUPTED
    same_end(runs, undisturbed, out, recipe)


def test_a_finished_run_is_left_as_it_is(runs, tmp_path):
    out, recipe = tmp_path / "run", settings(engine="pytorch", steps=4)
    runs.whole(out, recipe)
    before = tree(out)
    said = runs.whole(out, recipe, {"threads": 1})
    assert "outcome [4, false]" in said and "warning" not in said
    assert tree(out) == before


def test_a_run_may_move_and_lie_behind_a_link(runs, undisturbed, tmp_path):
    out, recipe = tmp_path / "run", settings(engine="pytorch", steps=20)
    interrupted(runs, out, recipe)
    out.rename(tmp_path / "moved")
    (tmp_path / "link").symlink_to(tmp_path / "moved")
    assert "warning" not in same_end(runs, undisturbed, tmp_path / "link", recipe)
