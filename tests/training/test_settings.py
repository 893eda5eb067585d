"""Settings: what makes no sense is refused, and what was written is read back."""

import math

import pytest

from minik2.training import Settings
from minik2.training.settings import OPTIMIZERS


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"engine": "jax"}, "reference, pytorch"),
        ({"optimizer": "sgd"}, "muonclip, muon, adamw"),
        ({"steps": 0}, "steps"),
        ({"steps": 2.5}, "steps"),
        ({"batch": True}, "batch"),
        ({"window": -1}, "window"),
        ({"accumulate": 0}, "accumulate"),
        ({"warmup": -1}, "warmup"),
        ({"seed": -1}, "seed"),
        ({"rate": 0.0}, "rate"),
        ({"rate": math.nan}, "rate"),
        ({"rate": "fast"}, "rate"),
        ({"rate": None}, "rate"),
        ({"adamw_rate": -1.0}, "adamw_rate"),
        ({"adamw_rate": 0.001, "optimizer": "adamw"}, "what Muon leaves to AdamW"),
        ({"clip_norm": 0}, "clip_norm"),
        ({"tau": math.inf}, "tau"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"bias_speed": -1e-3}, "bias_speed"),
        ({"balance_alpha": math.inf}, "balance_alpha"),
        ({"decay": 1.5}, "decay"),
        ({"final": -0.1}, "final"),
        ({"bias_until": 2}, "bias_until"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_nonsense_is_one_sentence_that_names_it(change, named):
    with pytest.raises(ValueError, match=named) as caught:
        Settings(**change)
    assert "\n" not in str(caught.value)
    assert repr(next(iter(change.values()))) in str(caught.value)


def test_what_is_written_comes_back():
    settings = Settings(optimizer=OPTIMIZERS[1], steps=7, adamw_rate=1e-3, clip_norm=1.0, seed=5)
    assert Settings.from_json(settings.to_json()) == settings


def test_settings_of_another_version_are_named():
    with pytest.raises(ValueError, match="momentum_of_the_moon"):
        Settings.from_json({"momentum_of_the_moon": 1})


def test_tokens_of_a_step():
    assert Settings(batch=3, accumulate=5, window=7).tokens_a_step == 105
