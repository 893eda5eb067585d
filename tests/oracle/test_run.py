"""What a run leaves is a model for everybody: transformers opens its checkpoint as it is."""

import numpy as np
import pytest
import torch
import transformers

from minik2 import reference
from minik2.training import train
from tests.oracle import twin
from tests.training.runs import CFG, settings, text


@pytest.mark.parametrize("engine", ["reference", "pytorch"])
def test_a_runs_checkpoint_is_transformers_model(tmp_path, engine):
    outcome = train(CFG, settings(engine=engine, steps=2), text(), tmp_path)
    model = outcome.checkpoint / "model"
    tokens = np.arange(24).reshape(2, 12)
    ours = reference.Model.from_pretrained(model, dtype="float64")(tokens)
    with twin.in_float64(), torch.no_grad():
        theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
            model, dtype=torch.float64, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"]
        logits = twin.plain(theirs)(torch.from_numpy(tokens)).logits.numpy()
    assert np.abs(logits - ours).max() < 1e-9 * np.abs(ours).max()
