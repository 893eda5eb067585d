"""ModelConfig: one frozen dataclass that describes every model of this course.

Unusual here: the fields are the keys of Hugging Face's config.json, so a released file is read
without a translation table, and one class covers DeepSeek-V2, V3, Moonlight and Kimi K2. Nothing
in the engine asks which model it is running: what differs between models is a field below.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from minik2 import config_json, config_rules
from minik2.config_json import ConfigError

__all__ = ["ConfigError", "ModelConfig", "RopeScaling"]

PRESETS = (
    "tiny",
    "small",
    "bench",
    "moonlight-16b-a3b",
    "deepseek-v2-lite",
    "deepseek-v3",
    "kimi-k2",
    "kimi-k2-thinking",
)


@dataclass(frozen=True)
class RopeScaling:
    """YaRN, the only rope scaling of this family (arXiv 2309.00071; DeepSeek-V3 §4.3).

    factor: how many times longer the context becomes; original_max_position_embeddings: tokens
    of context before; beta_fast, beta_slow: turns over the original context above which a pair
    keeps its frequency, below which it is divided by factor; mscale, mscale_all_dim: strength of
    the logarithmic temperature (0 switches a term off).
    """

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0


@dataclass(frozen=True)
class ModelConfig:
    """Shapes and constants of one model; every field is a key of config.json.

    Sizes are counts (tokens, numbers, experts). `q_lora_rank=None` means a plain `q_proj`;
    `rope_scaling=None` means unscaled RoPE. Raises ConfigError, one sentence, when the values
    contradict each other.

    >>> cfg = ModelConfig.preset("kimi-k2")
    >>> cfg.num_attention_heads, cfg.n_routed_experts, cfg.qk_head_dim
    (64, 384, 192)
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    first_k_dense_replace: int
    intermediate_size: int
    moe_intermediate_size: int
    n_routed_experts: int
    n_shared_experts: int
    num_experts_per_tok: int
    n_group: int = 1
    topk_group: int = 1
    scoring_func: str = "sigmoid"
    topk_method: str = "noaux_tc"
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0
    max_position_embeddings: int = 4096
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rope_interleave: bool = True
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    num_nextn_predict_layers: int = 0
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        config_rules.validate(self)

    @property
    def qk_head_dim(self) -> int:
        """Numbers in one head's query or key: the no-position part, then the rotary part."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def is_all_dense(self) -> bool:
        """True when no layer has experts."""
        return self.first_k_dense_replace >= self.num_hidden_layers

    def is_moe(self, layer: int) -> bool:
        """True when layer number `layer` (from 0) has routed experts rather than one wide FFN."""
        return layer >= self.first_k_dense_replace

    def replace(self, **changes: Any) -> ModelConfig:
        """A copy with some fields changed, validated again."""
        return dataclasses.replace(self, **changes)

    @staticmethod
    def presets() -> list[str]:
        """Names of the configurations that ship with minik2: our own first, then the released."""
        return list(PRESETS)

    @classmethod
    def preset(cls, name: str) -> ModelConfig:
        """One of `presets()`; the released ones hold the published values (source in the file)."""
        if name not in PRESETS:
            near = difflib.get_close_matches(str(name), PRESETS, 1)
            hint = f"did you mean {near[0]!r}" if near else f"choose one of {', '.join(PRESETS)}"
            raise ConfigError(f"There is no preset named {name!r}; {hint}.")
        return cls.from_json(Path(__file__).with_name("presets") / f"{name}.json")

    @classmethod
    def from_json(cls, source: str | Path | Mapping[str, Any]) -> ModelConfig:
        """Read a Hugging Face config: a config.json, a directory that holds one, or a dict.

        Rope keys may be in the old form (`rope_theta`, `rope_scaling`) or in that of
        transformers 5 (`rope_parameters`); keys that do not change the arithmetic are ignored.
        Raises ConfigError for values or architectures that this engine does not implement and
        OSError for a file that cannot be read.
        """
        if isinstance(source, Mapping):
            raw, where = source, "the config given"
        else:
            path = Path(source)
            path = path / "config.json" if path.is_dir() else path
            where = str(path)
            try:
                raw = json.loads(path.read_text(encoding="utf-8"))
            except OSError as error:
                raise type(error)(
                    f"{where} cannot be read ({error.strerror or error}); give a config.json or a "
                    "directory that holds one."
                ) from None
            except (ValueError, RecursionError) as error:
                raise ConfigError(
                    f"{where} is not valid JSON ({error}); restore the file from its source."
                ) from None
        known = config_json.normalise(raw, where)
        fields = {f.name: f for f in dataclasses.fields(cls)}
        missing = [n for n, f in fields.items() if f.default is MISSING and n not in known]
        if missing:
            raise ConfigError(
                f"{where} lacks {', '.join(missing)}; add them from the model's config.json."
            )
        scaling = known.pop("rope_scaling")
        kept = {name: value for name, value in known.items() if name in fields}
        return cls(**kept, rope_scaling=None if scaling is None else RopeScaling(**scaling))

    def to_json(self) -> dict[str, Any]:
        """The config as a dict for config.json; transformers loads it (old rope keys)."""
        return config_json.from_config(self)

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of every tensor of the checkpoint, one after the other, experts apart."""
        return _tensors(self)

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the checkpoint by its Hugging Face name, experts one by one."""
        return dict(self.tensors())


def _tensors(cfg: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, heads = cfg.hidden_size, cfg.num_attention_heads
    yield "model.embed_tokens.weight", (cfg.vocab_size, hidden)
    for layer in range(cfg.num_hidden_layers):
        base = f"model.layers.{layer}."
        yield base + "input_layernorm.weight", (hidden,)
        attention = base + "self_attn."
        if cfg.q_lora_rank is None:
            yield attention + "q_proj.weight", (heads * cfg.qk_head_dim, hidden)
        else:
            yield attention + "q_a_proj.weight", (cfg.q_lora_rank, hidden)
            yield attention + "q_a_layernorm.weight", (cfg.q_lora_rank,)
            yield attention + "q_b_proj.weight", (heads * cfg.qk_head_dim, cfg.q_lora_rank)
        latent_and_rope = cfg.kv_lora_rank + cfg.qk_rope_head_dim
        yield attention + "kv_a_proj_with_mqa.weight", (latent_and_rope, hidden)
        yield attention + "kv_a_layernorm.weight", (cfg.kv_lora_rank,)
        keys_and_values = heads * (cfg.qk_nope_head_dim + cfg.v_head_dim)
        yield attention + "kv_b_proj.weight", (keys_and_values, cfg.kv_lora_rank)
        yield attention + "o_proj.weight", (hidden, heads * cfg.v_head_dim)
        yield base + "post_attention_layernorm.weight", (hidden,)
        mlp = base + "mlp."
        if not cfg.is_moe(layer):
            yield from _ffn(mlp, hidden, cfg.intermediate_size)
            continue
        yield mlp + "gate.weight", (cfg.n_routed_experts, hidden)
        if cfg.topk_method == "noaux_tc":
            yield mlp + "gate.e_score_correction_bias", (cfg.n_routed_experts,)
        for expert in range(cfg.n_routed_experts):
            yield from _ffn(f"{mlp}experts.{expert}.", hidden, cfg.moe_intermediate_size)
        # The shared experts are stored as one FFN of their summed width.
        shared_width = cfg.n_shared_experts * cfg.moe_intermediate_size
        yield from _ffn(mlp + "shared_experts.", hidden, shared_width)
    yield "model.norm.weight", (hidden,)
    if not cfg.tie_word_embeddings:
        yield "lm_head.weight", (cfg.vocab_size, hidden)


def _ffn(base: str, hidden: int, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield base + "gate_proj.weight", (width, hidden)
    yield base + "up_proj.weight", (width, hidden)
    yield base + "down_proj.weight", (hidden, width)
