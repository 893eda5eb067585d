"""Checkpoints of a run: whole, checked, two kept; anything else is passed over with a warning."""

import errno
import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from minik2 import ModelConfig, reference
from minik2.training import store

CFG = ModelConfig.preset("tiny")
SAMPLER = np.random.default_rng(3).bit_generator.state


@pytest.fixture(scope="module")
def weights():
    return reference.Model.init(CFG, seed=1).weights


def save(run, step, weights):
    optimizer = {f"{name}/momentum_buffer": array * step for name, array in weights.items()}
    optimizer["model.norm.weight/count"] = np.array([step])
    return store.save(run, step, lambda folder: store.write_whole(folder, CFG, weights, optimizer),
                      {"sampler": SAMPLER, "trained": 1.5})  # fmt: skip


def test_what_is_saved_comes_back_to_the_bit(tmp_path, weights):
    save(tmp_path, 7, weights)
    saved, warnings = store.newest(tmp_path)
    assert (saved.step, warnings) == (7, [])
    assert saved.state["sampler"] == SAMPLER
    assert saved.optimizer["model.norm.weight/count"] == [7]
    for name, array in weights.items():
        assert np.array_equal(saved.optimizer[f"{name}/momentum_buffer"], array * 7)
    model = reference.Model.from_pretrained(saved.model)
    assert all(np.array_equal(model.weights[name], array) for name, array in weights.items())
    assert model.cfg == CFG


def test_the_sums_are_those_of_the_usual_command(tmp_path, weights):
    path = save(tmp_path, 1, weights)
    lines = (path / store.SUMS).read_text().splitlines()
    sums = dict(reversed(line.split("  ")) for line in lines)
    files = (p for p in path.rglob("*") if p.is_file())
    assert set(sums) == {p.relative_to(path).as_posix() for p in files} - {store.SUMS}
    for name, value in sums.items():
        assert hashlib.sha256((path / name).read_bytes()).hexdigest() == value
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--strict", store.SUMS], cwd=path, check=True)


def test_two_are_kept_and_nothing_hidden_stays(tmp_path, weights):
    for step in (5, 10, 15, 100):
        save(tmp_path, step, weights)
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000015", "step-00000100"]


def cut(path: Path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) * 2 // 3] ^= 1
    path.write_bytes(raw)


FILES = (
    "model/config.json",
    "model/model.safetensors",
    "optimizer.safetensors",
    "state.json",
    store.SUMS,
)


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink, lambda path: path.write_bytes(b"")],
                         ids=["cut", "a bit", "missing", "empty"])  # fmt: skip
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_one_falls_back_to_the_one_before(tmp_path, weights, name, damage):
    save(tmp_path, 10, weights)
    newest = save(tmp_path, 20, weights)
    damage(newest / name)
    saved, warnings = store.newest(tmp_path)
    assert saved.step == 10
    assert len(warnings) == 1
    assert "step-00000020 is damaged" in warnings[0]
    # It is kept, under a name that nobody reads again, and the step can be saved anew.
    assert newest.with_name(newest.name + ".damaged").is_dir()
    assert store.newest(tmp_path)[1] == []
    save(tmp_path, 20, weights)
    assert store.newest(tmp_path)[0].step == 20


def test_sums_that_leave_a_file_out_do_not_pass_for_whole(tmp_path, weights):
    save(tmp_path, 10, weights)
    newest = save(tmp_path, 20, weights)
    lines = (newest / store.SUMS).read_text().splitlines(keepends=True)
    (newest / store.SUMS).write_text("".join(x for x in lines if "optimizer" not in x))
    cut(newest / "optimizer.safetensors")
    assert store.newest(tmp_path)[0].step == 10
    (tmp_path / "checkpoints/step-00000010" / store.SUMS).write_text("")
    with pytest.raises(store.RunError):
        store.newest(tmp_path)


def test_when_none_is_whole_it_says_so_and_keeps_them(tmp_path, weights):
    for step in (10, 20):
        cut(save(tmp_path, step, weights) / "state.json")
    with pytest.raises(store.RunError, match="--out"):
        store.newest(tmp_path)
    assert len(list((tmp_path / "checkpoints").glob("*.damaged"))) == 2


def test_a_run_that_never_saved(tmp_path):
    assert store.newest(tmp_path) == (None, [])


def test_leftovers_of_a_kill_are_no_checkpoints_and_are_swept(tmp_path, weights):
    whole = save(tmp_path, 10, weights)
    for name in (".step-00000020.ab12cd34", "..step-00000020.ab12cd34.00ff.new",
                 ".step-00000005.old"):  # fmt: skip
        shutil.copytree(whole, whole.with_name(name))
    assert store.newest(tmp_path)[0].step == 10
    store.tidy(tmp_path)
    assert [p.name for p in whole.parent.iterdir()] == [whole.name]


@pytest.mark.parametrize("fails", ["model", "optimizer", "state", "sums", "rename"])
def test_a_full_disk_leaves_the_older_ones(tmp_path, weights, monkeypatch, fails):
    save(tmp_path, 10, weights)

    def full(*arguments, **keywords):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if fails == "model":
            patch.setattr(store.checkpoint.write.safetensors.numpy, "save_file", full)
        elif fails == "optimizer":
            whole = store.safetensors.numpy.save_file
            patch.setattr(store.safetensors.numpy, "save_file", lambda tensors, path, **more:
                          (full if path.name == store.OPTIMIZER else whole)(tensors, path, **more))
        elif fails == "state":
            patch.setattr(store.Path, "write_text", full)
        elif fails == "sums":
            patch.setattr(store, "_sha256", full)
        else:
            patch.setattr(store, "_flush", full)
        with pytest.raises(OSError, match="No space left on device") as caught:
            save(tmp_path, 20, weights)
    assert "step 20" in str(caught.value)
    assert "the last one is of step 10" in str(caught.value)
    assert "\n" not in str(caught.value)
    store.tidy(tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000010"]
    assert store.newest(tmp_path)[0].step == 10


def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(tmp_path, weights, monkeypatch):
    save(tmp_path, 10, weights)

    def refused(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(store, "_sha256", refused)
    with pytest.raises(PermissionError):
        store.newest(tmp_path)
    assert (tmp_path / "checkpoints/step-00000010").is_dir()


def test_the_state_is_plain_json(tmp_path, weights):
    path = save(tmp_path, 3, weights)
    state = json.loads((path / store.STATE).read_text())
    assert state == {"step": 3, "sampler": SAMPLER, "trained": 1.5}
