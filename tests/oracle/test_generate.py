"""Greedy text against transformers' own generate on the same checkpoint, both with a cache."""

import numpy as np
import pytest
import torch

from minik2 import pytorch, reference
from minik2.config import ModelConfig
from tests.oracle import twin

TINY = ModelConfig.preset("tiny")
NEW = 200
# V3's groups, V2's softmax router, plain queries, no rope scaling: between them every branch that
# decoding takes.
MODELS = {
    "tiny": TINY,
    "small": ModelConfig.preset("small"),
    "V3": TINY.replace(n_group=4, topk_group=2, rope_scaling=None, q_lora_rank=None),
    "V2": TINY.replace(scoring_func="softmax", topk_method="greedy", norm_topk_prob=False),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_greedy_text_is_transformers_text(name, tmp_path):
    """200 tokens in float32. Where the two part, the logits there must be a tie to rounding."""
    cfg = MODELS[name]
    theirs = twin.build(cfg, 0, torch.float32)
    theirs.save_pretrained(tmp_path)
    prompt = np.random.default_rng(0).integers(0, cfg.vocab_size, (1, 9))
    with torch.inference_mode():
        made = theirs.generate(
            torch.from_numpy(prompt),
            max_new_tokens=NEW,
            do_sample=False,
            use_cache=True,
            eos_token_id=None,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
        )
    want, logits = made.sequences.numpy(), torch.stack(made.logits, 1).numpy()
    assert len(np.unique(want[0, 9:])) > 20, "a text that repeats itself shows little"
    for engine in (reference.Model, pytorch.Model):
        got = np.asarray(engine.from_pretrained(tmp_path).generate(prompt, NEW))
        apart = np.flatnonzero((got != want)[0])
        if apart.size:
            step, scale = apart[0] - 9, np.abs(logits[0]).max()
            two = logits[0, step, [got[0, apart[0]], want[0, apart[0]]]]
            assert step > 20 and abs(two[0] - two[1]) < 1e-5 * scale, (engine, step, two)
