"""Runs in processes of their own: made once, gone on with, and ended with whoever began them."""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from minik2 import sizing
from minik2.experiments import runs, sparsity
from minik2.experiments.runs import Run, RunFailed, finish, place
from minik2.experiments.scales import scales
from minik2.training import metrics
from tests.experiments import tiny

ROOT = Path(__file__).parents[2]


def run_of(scale, **changes):
    return Run(scale.model, replace(scale.settings, **changes))


def losses(lines):
    return [(line["step"], line["loss"]) for line in lines if line["kind"] == "step"]


def quiet(made, total, what):
    pass


def test_runs_are_made_side_by_side_and_once(tmp_path, monkeypatch):
    scale, told = tiny.scale(tmp_path), []
    wanted = [run_of(scale, seed=0), run_of(scale, seed=1), run_of(scale, seed=0)]
    found = finish(scale, wanted, "two runs", lambda *facts: told.append(facts))
    assert [len(losses(lines)) for lines in found] == [tiny.STEPS] * 3
    assert losses(found[0]) == losses(found[2]) != losses(found[1])
    assert told[0] == (0, 2 * tiny.STEPS, "two runs")
    assert told[-1] == (2 * tiny.STEPS, 2 * tiny.STEPS, "two runs")
    assert len(list(scale.runs.iterdir())) == 2
    # Their lines stay, their checkpoints do not; and what is finished starts no process.
    assert not list(scale.runs.glob("*/checkpoints"))
    monkeypatch.setattr(runs.subprocess, "Popen", None)
    assert finish(scale, wanted, "again", lambda *facts: told.append(facts)) == found
    assert told[-1] == (0, 0, "again")


def test_a_run_from_before_steps_told_a_fact_is_made_again(tmp_path):
    scale = tiny.scale(tmp_path)
    wanted = [run_of(scale, seed=0), run_of(scale, seed=1)]
    finish(scale, wanted, "two runs", quiet)
    old = place(scale, wanted[0]) / metrics.NAME
    lines = metrics.read(old.parent)
    old.write_text("".join(json.dumps({k: v for k, v in line.items() if k != "head_logits"}) + "\n"
                           for line in lines))  # fmt: skip
    for run in wanted:
        runs.forget_without(scale, run, "head_logits")
        runs.forget_without(replace(scale, runs=tmp_path / "none"), run, "head_logits")
    told = []
    again, _ = finish(scale, wanted, "again", lambda *facts: told.append(facts))
    assert told[0][1] == tiny.STEPS
    for new, line in zip(again, lines, strict=True):
        assert new.get("head_logits") == line.get("head_logits")


def test_another_setting_model_or_text_is_another_run(tmp_path):
    scale = tiny.scale(tmp_path)
    run = run_of(scale)
    other_text = tmp_path / "other.py"
    other_text.write_text("y = 1\n" * 500)
    places = {place(scale, run), place(scale, run_of(scale, rate=0.02)),
              place(scale, Run(scale.model.replace(num_attention_heads=4), run.settings)),
              place(replace(scale, data=other_text), run)}  # fmt: skip
    assert len(places) == 4


def test_what_can_go_wrong_is_a_sentence(tmp_path):
    scale = tiny.scale(tmp_path)
    run = Run(scale.model.replace(vocab_size=100), scale.settings)
    with pytest.raises(RunFailed, match=r"A run of `grid` failed: .*vocab.*tries it again"):
        finish(scale, [run], "grid", quiet)


def test_a_run_that_diverges_is_a_result(tmp_path):
    scale = tiny.scale(tmp_path)
    hot = run_of(scale, optimizer="adamw", rate=1e30, warmup=0)
    (lines,) = finish(scale, [hot], "too hot", quiet)
    assert losses(lines)[-1][0] < tiny.STEPS


def test_the_gpu_scale_with_a_stand_in_on_the_cpu(tmp_path):
    """Everything of it but its device and sizes; and its own model can be had at every sparsity."""
    gpu, small = scales()["gpu"], tiny.scale(tmp_path)
    assert gpu.device == "cuda" and gpu.settings.window <= gpu.model.max_position_embeddings
    assert sizing.parameters(gpu.model).total > 15 * sizing.parameters(scales()["cpu"].model).total
    assert all(cfg.hidden_size == 512 for cfg in sparsity.models(gpu.model).values())
    scale = replace(gpu, device="cpu", model=small.model, runs=small.runs, data=small.data,
                    settings=replace(gpu.settings, steps=3, batch=2, window=16, warmup=1))
    (lines,) = finish(scale, [Run(scale.model, scale.settings)], "stand-in", quiet)
    assert [step for step, _ in losses(lines)] == [1, 2, 3]


def wait_for(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
def test_an_interrupted_batch_goes_on_where_it_stopped(tmp_path, monkeypatch):
    """Ctrl-C saves what is at work; together the two calls end as one call does."""
    long = replace(tiny.scale(tmp_path).settings, steps=80)
    scale = replace(tiny.scale(tmp_path), settings=long, at_once=1, save_every=1000,
                    evaluate_every=40)
    run = run_of(scale)
    log = place(scale, run) / metrics.NAME

    def interrupt(seconds, wait=time.sleep):
        wait(seconds / 10)
        if runs._steps(log.parent) >= 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runs.time, "sleep", interrupt)
        finish(scale, [run], "stopped", quiet)
    (saved,) = (log.parent / "checkpoints").glob("step-*")
    stopped = int(saved.name[5:])
    assert 5 <= stopped < 80
    told = []
    (whole,) = finish(scale, [run], "on", lambda *facts: told.append(facts))
    assert told[0][1] == 80 - stopped
    other = replace(scale, runs=tmp_path / "unbroken")
    (unbroken,) = finish(other, [run], "at a stretch", quiet)
    assert losses(whole) == losses(unbroken)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="kill -9")
def test_a_run_ends_with_whoever_began_it(tmp_path):
    """Not even kill -9 leaves processes behind; the run is saved."""
    scale = tiny.scale(tmp_path)
    run = run_of(scale, steps=100_000)
    job = json.dumps(runs._job(scale, run, place(scale, run)))
    parent = subprocess.Popen(
        [sys.executable, "-c", "import subprocess, sys, time\n"
         "child = subprocess.Popen([sys.executable, '-m', 'minik2.experiments.one'],"
         " stdin=subprocess.PIPE, start_new_session=True)\n"
         "child.stdin.write(sys.argv[1].encode() + b'\\n'); child.stdin.flush()\n"
         "print(child.pid, flush=True); time.sleep(600)", job],
        stdout=subprocess.PIPE, text=True, cwd=ROOT)  # fmt: skip
    child = int(parent.stdout.readline())
    threading.Thread(target=parent.stdout.read, daemon=True).start()
    try:
        wait_for(lambda: runs._steps(place(scale, run)) >= 3)
    finally:
        parent.kill()
        parent.wait()

    def gone():
        status = Path(f"/proc/{child}/status")
        return not status.exists() or "State:\tZ" in status.read_text()

    wait_for(gone)
    assert list((place(scale, run) / "checkpoints").glob("step-*"))
