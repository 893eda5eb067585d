"""The loops are compiled by `prepare`: what a learner runs first finds all of them there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# In a process of its own: this one may have compiled anything.
PROGRAM = """
import sys
import numpy as np
from numba.core import event
from minik2 import ModelConfig, reference
from minik2.reference import prepare
from minik2.reference.muon import MuonClip

dtype, folder = sys.argv[1:]
assert prepare.main([dtype]) == 0
with event.install_recorder("numba:compile") as compiled:
    cfg = ModelConfig.preset("small").replace(num_hidden_layers=2)
    reference.Model.init(cfg, dtype=dtype).save_pretrained(folder)
    model, watch = reference.Model.from_pretrained(folder, dtype), reference.Watch(cfg)
    tokens = np.random.default_rng(0).integers(0, cfg.vocab_size, (1, 40))
    loss, grads = model.loss_and_grads(tokens, tokens, watch=watch)
    MuonClip(model, 1e-3, tau=100.0).step(grads, watch.max_logits)
    model.generate(tokens, 3, temperature=1.0)
print([e.data["dispatcher"].py_func.__name__ for _, e in compiled.buffer if e.is_start])
"""


@pytest.mark.slow
def test_afterwards_training_and_decoding_compile_nothing(tmp_path):
    where = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "loops")}  # as on a new machine
    done = subprocess.run([sys.executable, "-c", PROGRAM, "float32", tmp_path / "model"], cwd=ROOT,
                          env=where, text=True, capture_output=True)  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
