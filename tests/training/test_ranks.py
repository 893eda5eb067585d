"""Several processes on one run, for real: torchrun, gloo, kills. Held against one process."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import transformers

from minik2 import reference, sizing
from minik2.checkpoint import open_checkpoint
from minik2.config import ModelConfig
from minik2.training import store
from minik2.training.observe import rms_by_kind
from minik2.training.settings import Settings
from tests.oracle import twin
from tests.training.several import batches

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.skipif(os.name != "posix", reason="starts processes and kills them"),
              pytest.mark.slow, pytest.mark.timeout(900)]  # fmt: skip
# Ranks, and how many of them share the experts: every way to lay out up to four.
LAYOUTS = [(2, 1), (2, 2), (4, 1), (4, 2), (4, 4)]
TINY = ModelConfig.preset("tiny")
PLAIN = TINY.replace(q_lora_rank=None, num_hidden_layers=2, first_k_dense_replace=0,
                     n_routed_experts=12, num_experts_per_tok=3, hidden_size=24)  # fmt: skip
# Whatever is cut comes out even, so that nothing is padded.
EVEN = TINY.replace(kv_lora_rank=16, qk_rope_head_dim=8, q_lora_rank=24)
MOE = sum(map(EVEN.is_moe, range(EVEN.num_hidden_layers)))
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def launch(count: int, *arguments, restarts: int = 0) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1",
         f"--nproc-per-node={count}", f"--max-restarts={restarts}", *map(str, arguments)],
        cwd=ROOT, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True)  # fmt: skip


def finish(process: subprocess.Popen, seconds: float = 300) -> tuple[int, str]:
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
        pytest.fail(f"still running after {seconds:.0f} s:\n{said}")
    return process.returncode, said


def job(folder: Path, cfg, expert=1, dtype="float64", saved=None, steps=20, recompute=False,
        **more) -> dict:
    """One job of `several`; `more` are settings."""
    folder.mkdir(exist_ok=True)
    recipe = {"batch": 8, "window": 12, "rate": 0.02, "tau": 0.05, "balance_alpha": 0.01} | more
    return {"config": cfg.to_json(), "settings": recipe, "dtype": dtype, "out": str(folder),
            "steps": steps, "expert": expert, "saved": str(saved) if saved else None,
            "recompute": recompute}  # fmt: skip


def do(count: int, *jobs: dict) -> list[dict]:
    """What `count` ranks saw of these jobs, one after the other; their weights are in `out`."""
    path = Path(jobs[0]["out"]) / "jobs.json"
    path.write_text(json.dumps(jobs))
    module = ["-m", "tests.training.several", path]
    if count == 1:
        done = subprocess.run([sys.executable, *module], cwd=ROOT, env=ENVIRONMENT,
                              capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0, done.stderr
    else:
        status, said = finish(launch(count, *module))
        assert status == 0, said
    return [json.loads((Path(job["out"]) / "seen.json").read_text()) for job in jobs]


def kept(folder: Path, cfg) -> dict[str, np.ndarray]:
    source = open_checkpoint(store.newest(folder)[0].model, cfg)
    return {name: np.asarray(source[name]) for name in cfg.tensor_shapes()}


JOBS = {
    "muonclip": (TINY, {}),
    "plain, two batches a step": (PLAIN, {"accumulate": 2}),
    "adamw": (TINY, {"optimizer": "adamw", "rate": 0.003}),
    "float32": (TINY, {"dtype": "float32"}),
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process makes of each job."""
    home = tmp_path_factory.mktemp("alone")
    seen = do(1, *(job(home / name, cfg, **more) for name, (cfg, more) in JOBS.items()))
    return {name: (one, kept(home / name, JOBS[name][0]))
            for name, one in zip(JOBS, seen, strict=True)}


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_any_layout_trains_as_one_process_does(tmp_path, alone, layout):
    ranks, expert = layout
    jobs = [job(tmp_path / name, cfg, expert, **more) for name, (cfg, more) in JOBS.items()]
    for (name, (cfg, _)), seen in zip(JOBS.items(), do(ranks, *jobs), strict=True):
        expected, weights = alone[name]
        assert len(seen["losses"]) == 20
        if name == "float32":
            # Sums in another order: rounding, until it decides a near-tie of the router's.
            np.testing.assert_allclose(seen["losses"][:2], expected["losses"][:2], rtol=1e-6)
            np.testing.assert_allclose(seen["losses"], expected["losses"], rtol=1e-2)
            continue
        for what in ("losses", "norms", "held_out", "again"):
            np.testing.assert_allclose(seen[what], expected[what], rtol=1e-10, atol=0)
        for what in ("loads", "clipped", "text"):
            assert seen[what] == expected[what]
        assert (sum(seen["clipped"]) > 0) == (name != "adamw"), "QK-Clip is to bite"
        for tensor, weight in kept(tmp_path / name, cfg).items():
            scale = np.abs(weights[tensor]).max()
            assert np.abs(weight - weights[tensor]).max() <= 1e-9 * scale, tensor


@pytest.mark.parametrize("layout", [(2, 1), (2, 2), (4, 2)], ids=str)
def test_recomputing_changes_no_bit_and_sends_rows_to_experts_once_more(tmp_path, layout):
    ranks, expert = layout
    jobs = [job(tmp_path / str(again), TINY, expert, steps=3, recompute=again, accumulate=2)
            for again in (False, True)]  # fmt: skip
    plain, again = do(ranks, *jobs)
    for what in ("losses", "norms", "loads", "clipped", "held_out", "again", "text"):
        assert plain[what] == again[what], what
    for name, weight in kept(tmp_path / "False", TINY).items():
        np.testing.assert_array_equal(weight, kept(tmp_path / "True", TINY)[name], err_msg=name)
    # Forwards there and back, backwards there and back, and now forwards once more.
    counts = 2 * 8 * TINY.n_routed_experts * (expert - 1) // expert * MOE
    for once, twice in zip(plain["sent"], again["sent"], strict=True):
        rows, more = (one.pop("exchange", 0) for one in (once, twice))
        assert once == twice and 2 * more == 3 * rows + counts


def test_what_four_ranks_saved_two_and_one_go_on_with(tmp_path):
    """No step between: what comes back is what was saved, to the bit, in every layout."""
    kinds = {"muonclip": {}, "adamw": {"optimizer": "adamw", "rate": 0.003}}
    do(4, *(job(tmp_path / f"4 {kind}", TINY, 2, steps=3, **more)
            for kind, more in kinds.items()))  # fmt: skip
    before = "4"
    for count, expert in ((2, 2), (1, 1), (4, 1)):
        now = f"{count} {expert}"
        do(count, *(job(tmp_path / f"{now} {kind}", TINY, expert, steps=0,
                        saved=tmp_path / f"{before} {kind}", **more)
                    for kind, more in kinds.items()))  # fmt: skip
        for kind in kinds:
            old, new = tmp_path / f"{before} {kind}", tmp_path / f"{now} {kind}"
            for name, weight in kept(old, TINY).items():
                np.testing.assert_array_equal(weight, kept(new, TINY)[name], err_msg=name)
            states = [store.newest(folder)[0].optimizer for folder in (old, new)]
            assert len(states[0]) and set(states[0]) == set(states[1])
            for name in states[0]:
                np.testing.assert_array_equal(states[0][name], states[1][name], err_msg=name)
        before = now


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_rank_gathers_one_tensor_at_a_time_and_sends_its_rows_once(tmp_path, layout):
    ranks, expert = layout
    (seen,) = do(ranks, job(tmp_path / "run", PLAIN, expert, steps=1))
    sizes = {name: (shape[0], 8 * int(np.prod(shape[1:]))) for name, shape
             in PLAIN.tensor_shapes().items() if ".experts." not in name and "bias" not in name}
    # A rank's rows, filled up where they do not come out even.
    each = {name: -(-rows // ranks) * size for name, (rows, size) in sizes.items()}
    collected, sent, held = zip(*map(json.loads, seen["saving"]), strict=True)
    assert sum(collected) == (ranks - 1) * sum(each.values())
    assert collected == sent, "nothing else travels, the optimizer not at all"
    assert max(held) == ranks * max(each.values())
    model = store.newest(tmp_path / "run")[0].model
    written = [path.stat().st_size for path in model.glob("*.safetensors")]
    assert len(written) == ranks
    # Headers aside, no rank writes more than a fair share and one tensor.
    whole = 8 * sum(np.prod(shape) for shape in PLAIN.tensor_shapes().values())
    largest = max(rows * size for rows, size in sizes.values())
    assert max(written) <= whole / ranks + largest + 200 * len(PLAIN.tensor_shapes())


@pytest.mark.parametrize("layout", [(2, 1), (2, 2), (4, 2), (4, 4)], ids=str)
def test_bytes_on_the_wire_are_those_that_sizing_predicts(tmp_path, layout):
    """To the byte: weights gathered and gradients scattered once a step, the momentum of whole
    matrices gathered, and rows to experts and back, in both directions.

    Everything here is float64, 8 bytes, where sizing has 4 for gradients and weights.
    """
    ranks, expert = layout
    (seen,) = do(ranks, job(tmp_path / "run", EVEN, expert, steps=2))
    held = sizing.Layout(ep=expert, dp=ranks // expert)
    predicted = sizing.communication(EVEN, held, "float64")
    matrices = sum(
        np.prod(shape) for name, shape in EVEN.tensor_shapes().items()
        if len(shape) == 2 and ".experts." not in name
        and "embed_tokens" not in name and "lm_head" not in name)  # fmt: skip
    for step in range(2):
        sent = [of_rank[step] for of_rank in seen["all"]]
        momentum = 8 * matrices * (ranks - 1) // ranks
        for own in sent:
            assert own["scatter"] + own["gather"] == 2 * predicted.adamw + momentum
    # The router's choices decide what travels to whom; of the first step they are known here.
    counts = 8 * EVEN.n_routed_experts * (expert - 1) // expert * ranks * MOE
    rows = travelling(EVEN, layout)
    assert sum(of_rank[0].get("exchange", 0) for of_rank in seen["all"]) == (
        4 * rows * EVEN.hidden_size * 8 + counts)


def travelling(cfg, layout) -> int:
    """(token, choice) pairs whose expert is on another rank than the token, over all layers: what
    the untrained reference model routes.
    """
    ranks, expert = layout
    recipe = Settings(batch=8, window=12)
    tokens, _ = batches(cfg, recipe, 0)[0]
    _, saved = reference.Model.init(cfg, recipe.seed, dtype="float64").forward(tokens)
    sequences = np.repeat(np.arange(8) // (8 // ranks), 12)
    total = 0
    for layer in saved:
        if "router" in layer.get("mlp", {}):
            owner = layer["mlp"]["router"]["indices"] // (cfg.n_routed_experts // expert)
            total += int((owner != (sequences % expert)[:, None]).sum())
    return total


def test_transformers_opens_what_four_ranks_saved(tmp_path):
    do(4, job(tmp_path / "run", TINY, 2, steps=2))
    model = store.newest(tmp_path / "run")[0].model
    assert len(list(model.glob("model-0000?-of-00004.safetensors"))) == 4
    tokens = np.arange(24).reshape(2, 12)
    ours = reference.Model.from_pretrained(model, dtype="float64")(tokens)
    with twin.in_float64(), torch.no_grad():
        theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
            model, dtype=torch.float64, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"]
        logits = twin.plain(theirs)(torch.from_numpy(tokens)).logits.numpy()
    assert np.abs(logits - ours).max() < 1e-9 * np.abs(ours).max()


COMMON = ["-m", "minik2.training", "--preset", "tiny", "--batch", "8", "--window", "16",
          "--warmup", "2", "--evaluate-every", "1000"]  # fmt: skip


@pytest.fixture
def text(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    for path in sorted((ROOT / "minik2").glob("*.py")):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def children(process: subprocess.Popen) -> dict[int, psutil.Process]:
    """The ranks by number, once all have begun."""
    found = {}
    for child in psutil.Process(process.pid).children():
        rank = child.environ().get("RANK")
        if rank is not None:
            found[int(rank)] = child
    return found


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.1)


def test_a_run_is_saved_by_four_and_finished_by_one(tmp_path, text):
    out = tmp_path / "run"
    more = [*COMMON, "--data", text, "--out", out, "--steps", "12", "--save-every", "4"]
    process = launch(4, *more, "--expert-ranks", "2")
    wait_for(lambda: store._steps(out / "checkpoints") or process.poll() is not None)
    for child in children(process).values():
        child.send_signal(signal.SIGTERM)
    status, said = finish(process)
    reached = store.newest(out)[0].step
    if status:  # it may have been done before it was asked
        assert "To go on from there" in said and reached < 12
    done = subprocess.run([sys.executable, *map(str, more)], cwd=ROOT, env=ENVIRONMENT,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert store.newest(out)[0].step == 12
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "step"] == list(range(1, 13))
    # Each of the four looked at its own part of the first weights; what is told is of all of them.
    first = next(line for line in lines if line["kind"] == "evaluation")
    begun = reference.Model.init(TINY, seed=0)
    assert first["step"] == 0 and first["weight_rms"] == pytest.approx(rms_by_kind(begun.weights))


@pytest.mark.parametrize("victim", [0, 3])
def test_a_killed_rank_is_named_and_all_end(tmp_path, text, victim):
    out = tmp_path / "run"
    process = launch(4, *COMMON, "--data", text, "--out", out, "--steps", "100000",
                     "--save-every", "2")  # fmt: skip
    wait_for(lambda: store._steps(out / "checkpoints"))
    children(process)[victim].kill()
    start = time.monotonic()
    status, said = finish(process, 60)
    assert status != 0 and time.monotonic() - start < 60
    named = re.findall(r"^Rank (\d) of 4 ended or no longer answers.*$", said, re.M)
    assert named == [str(victim)], said
    assert store.newest(out)[0].step >= 2


def test_at_every_moment_of_a_save_what_is_there_is_whole(tmp_path, text):
    """Before each file operation of either rank: what a kill -9 there would leave."""
    out, log = tmp_path / "run", tmp_path / "log"
    more = ["--data", text, "--out", out, "--steps", "6", "--save-every", "1"]
    status, said = finish(launch(2, "-m", "tests.training.looking", log, *COMMON[2:], *more))
    assert status == 0, said
    for rank in range(2):
        looks = [json.loads(line) for line in Path(f"{log}.{rank}").read_text().splitlines()]
        # Both write and hash; the first also puts the new one in place and drops the oldest.
        assert len(looks) >= 5 * (20, 6)[rank] and all(looks), "never none"
        assert {step for steps in looks for step in steps} == set(range(1, 7 - rank))
        assert max(map(len, looks)) == store.KEPT + 1 - rank


@pytest.mark.parametrize("full", [0, 1])
def test_one_ranks_disk_that_is_full_ends_all_with_one_sentence(tmp_path, text, full):
    out = tmp_path / "run"
    script = tmp_path / "full.py"
    script.write_text("import os, resource, signal, sys; from minik2.cli import main\n"
                      f"if os.environ['RANK'] == '{full}':\n"
                      "    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
                      "    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
                      "sys.argv[1:1] = ['train']; main()")
    status, said = finish(launch(2, script, *COMMON[2:], "--data", text, "--out", out,
                                 "--steps", "4", "--save-every", "2"), 120)  # fmt: skip
    assert status != 0
    told = re.findall(r"^The checkpoint of step 2 could not be written to .*$", said, re.M)
    assert len(told) == 1 and "File too large" in told[0], said
    assert store.newest(out) == (None, []) and not list(out.glob("checkpoints/.*"))


def test_torchrun_starts_it_again_from_the_last_checkpoint(tmp_path, text):
    out = tmp_path / "run"
    process = launch(2, *COMMON, "--data", text, "--out", out, "--steps", "30", "--save-every",
                     "2", restarts=1)  # fmt: skip
    wait_for(lambda: store._steps(out / "checkpoints"))
    children(process)[1].kill()
    status, said = finish(process)
    assert status == 0, said
    assert re.search(r"Going on from step \d+ of 30", said), said
    assert store.newest(out)[0].step == 30


def test_ranks_that_differ_are_told_how(tmp_path, text):
    """Each rank gets its own --rate through its environment."""
    code = ("import os, sys; from minik2.cli import main; "
            "sys.argv = ['minik2', 'train', *sys.argv[1:], '--rate', "
            "'0.01' if os.environ['RANK'] != '2' else '0.02']; main()")
    script = tmp_path / "differ.py"
    script.write_text(code)
    status, said = finish(launch(4, script, *COMMON[2:], "--data", text, "--out",
                                 tmp_path / "run", "--steps", "4"))  # fmt: skip
    assert status != 0
    told = re.findall(r"^Rank \d was started for another run.*$", said, re.M)
    assert len(told) == 1, said
    assert told[0].startswith("Rank 2 ") and "settings rate: 0.01 at rank 0, 0.02 at rank 2" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("options", "sentence"), [
    (["--out", "{file}"], r"is a file; a run needs a directory, so name another --out"),
    (["--batch", "9"], r"A batch of 9 windows cannot be shared evenly among 2 ranks"),
    (["--expert-ranks", "3"], r"2 ranks cannot be arranged with 3 ranks to an expert group"),
    (["--engine", "reference"], r"The reference computes in one process; use --engine pytorch"),
], ids=lambda x: x[0] if isinstance(x, list) else "")  # fmt: skip
def test_what_cannot_be_is_said_once(tmp_path, text, options, sentence):
    (tmp_path / "file").write_text("")
    options = [o.format(file=tmp_path / "file") for o in options]
    status, said = finish(launch(2, *COMMON, "--data", text, "--steps", "4", "--out",
                                 tmp_path / "run", *options))  # fmt: skip
    assert status != 0
    assert len(re.findall(sentence, said)) == 1, said


def test_experts_shared_by_nobody_are_refused(tmp_path, text):
    command = [sys.executable, *COMMON, "--data", text, "--steps", "2", "--expert-ranks", "2"]
    done = subprocess.run([*command, "--out", tmp_path / "run"], cwd=ROOT, env=ENVIRONMENT,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 1
    assert "start them with torchrun --nproc-per-node 2 -m minik2.training" in done.stderr
