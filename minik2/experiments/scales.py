"""How large the experiments are: the sizes of a laptop and of a GPU.

Unusual here: every experiment changes one thing of the same base run, so that runs which several of
them need are trained once. Rates are the experiments' business; what is here is the same for all.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from minik2.config import ModelConfig
from minik2.doctor import machine
from minik2.training import Settings

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Scale:
    """A model and its recipe, and how runs of it are shared out.

    settings: the base run; at_once: processes beside each other, of `threads` threads (None: as
    many as PyTorch takes); evaluate_every, save_every: steps; timed_steps: of the short run alone
    on the machine that says what a step takes; runs: where they lie; data: text, None for the
    standard library.
    """

    name: str
    model: ModelConfig
    settings: Settings
    device: str = "cpu"
    at_once: int = 1
    threads: int | None = 1
    evaluate_every: int = 25
    save_every: int = 50
    timed_steps: int = 40
    runs: Path = ROOT / "runs" / "experiments"
    data: Path | None = None

    @property
    def tokens(self) -> int:
        """Tokens of a whole run."""
        return self.settings.steps * self.settings.tokens_a_step


def scales() -> dict[str, Scale]:
    """The scales by name.

    cpu: the preset `small`, 1.7 million parameters, 256 thousand bytes a run. gpu: 25 times the
    parameters, 128 times the bytes; nobody has run it yet.
    """
    small = ModelConfig.preset("small")
    wide = small.replace(
        hidden_size=512, num_hidden_layers=8, num_attention_heads=8, q_lora_rank=192,
        kv_lora_rank=128, qk_nope_head_dim=48, qk_rope_head_dim=32, v_head_dim=64,
        intermediate_size=1536, moe_intermediate_size=192, initializer_range=0.02,
    )  # fmt: skip
    # K2 names no clipping of gradients. AdamW wants it, so all runs have it.
    return {
        "cpu": Scale("cpu", small, Settings(steps=250, clip_norm=1.0), at_once=machine.cores()),
        "gpu": Scale(
            "gpu", wide, Settings(steps=2000, batch=32, window=512, warmup=100, clip_norm=1.0,
                                  bias_speed=0.003),
            "cuda", threads=None, evaluate_every=100, save_every=500, timed_steps=100,
        ),
    }  # fmt: skip
