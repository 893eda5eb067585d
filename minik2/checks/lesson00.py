"""Lesson 00: reading a config.json, and the first arithmetic from it.

Unusual here: cases are whole dicts as released files hold them, half with the old rope keys and
half with transformers 5's, with sizes drawn anew each time so that no constant can be right.
"""

import importlib.resources
import json
from typing import Any

import numpy as np

from minik2.checks.exercise import Case, Exercise, Invariant, wrong

TITLE = "K2 in one hour"

Config = dict[str, Any]


def _k2() -> Config:
    """K2's config.json as the lesson prints it."""
    file = importlib.resources.files("minik2") / "presets" / "kimi-k2.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    return {key: value for key, value in config.items() if not key.startswith("_")}


def _config(rng: np.random.Generator, new_rope_keys: bool) -> Config:
    """K2's with other sizes, which differ from each other, so that mixing two up shows."""
    hidden, wide, narrow, latent, query = (
        int(n) for n in rng.choice(range(8, 80), 5, replace=False))
    chosen = int(rng.integers(3, 9))
    heads = int(rng.integers(8, 40)) * 2
    config = _k2() | {
        "model_type": "deepseek_v3",
        "hidden_size": 64 * hidden,
        "num_hidden_layers": int(rng.integers(20, 70)),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "q_lora_rank": 48 * query,
        "kv_lora_rank": 16 * latent,
        "qk_rope_head_dim": int(rng.choice([32, 64, 96])),
        "v_head_dim": 112,
        "first_k_dense_replace": int(rng.integers(1, 8)),
        "intermediate_size": 128 * wide,
        "moe_intermediate_size": 32 * narrow,
        "n_routed_experts": chosen * int(rng.integers(5, 40)) + 1,
        "n_shared_experts": int(rng.integers(1, 3)),
        "num_experts_per_tok": chosen,
        "rope_theta": float(rng.integers(11, 90) * 1000),
    }
    if new_rope_keys:
        scaling = config.pop("rope_scaling")
        scaling["rope_type"] = scaling.pop("type")
        config["rope_parameters"] = {"rope_theta": config.pop("rope_theta"), **scaling}
    return config


def _configs(rng: np.random.Generator) -> list[Case]:
    """K2 itself, then old and new rope keys in turn."""
    return [(_k2(),), *((_config(rng, new),) for new in (False, True, False, True))]


def _read(
    config: Config, *, moe_layers: Any = None, experts: Any = None, chosen: Any = None,
    sparsity: Any = None, theta: Any = None,
) -> Config:
    """Right as it stands; each keyword is a function of config that replaces one entry."""
    total = experts(config) if experts else config["n_routed_experts"]
    active = chosen(config) if chosen else config["num_experts_per_tok"]
    layers, dense = config["num_hidden_layers"], config["first_k_dense_replace"]
    return {
        "layers": layers,
        "moe_layers": moe_layers(layers, dense) if moe_layers else layers - dense,
        "heads": config["num_attention_heads"],
        "experts": total,
        "experts_per_token": active,
        "sparsity": sparsity(total, active) if sparsity else total / active,
        "rope_theta": theta(config) if theta else _theta(config),
    }


def _theta(config: Config) -> float:
    return (config.get("rope_parameters") or config)["rope_theta"]


def _reads(**changes: Any) -> Any:
    return lambda config: _read(config, **changes)


def _with_shared(config: Config) -> int:
    return config["n_routed_experts"] + config["n_shared_experts"]


def _chosen_with_shared(config: Config) -> int:
    return config["num_experts_per_tok"] + config["n_shared_experts"]


READ = Exercise(
    id="config.read",
    lesson="00",
    title="Read a released config",
    difficulty=1,
    minutes=10,
    why="A model's shape is ten numbers in a JSON file; all the course's arithmetic starts there.",
    signature="read(config) -> dict",
    cases=_configs,
    keys=("num_hidden_layers", "first_k_dense_replace", "num_attention_heads", "n_routed_experts",
          "num_experts_per_tok", "rope_theta", "rope_parameters"),
    reference=_read,
    wrong=(
        wrong("every_layer_has_experts", _reads(moe_layers=lambda layers, dense: layers),
              """All layers are counted as layers with experts. The first few are dense: they have
              one wide feed-forward block and no router.""",
              "What does the 1 in K2's first_k_dense_replace say about layer 0?"),
        wrong("dense_layers_counted", _reads(moe_layers=lambda layers, dense: dense),
              """first_k_dense_replace is taken for the number of layers with experts. It counts
              the layers at the start that have none.""",
              "K2 has 61 layers and first_k_dense_replace 1: how many of them have experts?"),
        wrong("off_by_one_layer",
              (_reads(moe_layers=lambda layers, dense: layers - dense - 1),
               _reads(moe_layers=lambda layers, dense: layers - dense + 1)),
              """The number of layers with experts is off by one. Layers count from 0, and the
              dense ones are 0 to first_k_dense_replace - 1.""",
              "Of 5 layers with first_k_dense_replace 2, which numbers have experts?"),
        wrong("sparsity_upside_down", _reads(sparsity=lambda total, active: active / total),
              """Sparsity is chosen over all here. K2's report defines it the other way round: 384
              experts, 8 chosen, sparsity 48.""",
              "Should a sparser model have a larger or a smaller sparsity?"),
        wrong("sparsity_is_a_share", _reads(sparsity=lambda total, active: 1 - active / total),
              """This is the share of the experts that do nothing for a token. Sparsity often means
              that, but K2's report gives it as a ratio: 384 experts, 8 chosen, sparsity 48.""",
              "Which number over which gives 48 for K2?"),
        wrong("chosen_for_all",
              (lambda config: _read(config) | {"experts": config["num_experts_per_tok"]},
               _reads(experts=lambda config: config["num_experts_per_tok"])),
              """`experts` holds the number of experts that a token is sent to. That is
              experts_per_token; `experts` is how many routed experts there are in a layer.""",
              "How many experts does a layer of K2 store, and how many of them see a token?"),
        wrong("sparsity_rounded",
              (_reads(sparsity=lambda total, active: total // active),
               _reads(sparsity=lambda total, active: round(total / active))),
              """The ratio is rounded to a whole number. It is whole for K2, but not for every
              model.""",
              "What is 64 experts over 6 chosen, and what does // make of it?"),
        wrong("shared_expert_counted",
              (_reads(experts=_with_shared), _reads(chosen=_chosen_with_shared),
               _reads(experts=_with_shared, chosen=_chosen_with_shared),
               _reads(sparsity=lambda total, active: total / (active + 1))),
              """The shared expert is counted in. It sees every token and is never chosen, so it
              belongs neither to the experts routed to nor to those chosen.""",
              "Does the router have a score for the shared expert?"),
        wrong("old_rope_key_only",
              (_reads(theta=lambda config: config["rope_theta"]),
               _reads(theta=lambda config: config.get("rope_theta")),
               _reads(theta=lambda config: config.get("rope_theta", 10000.0))),
              """rope_theta is looked for at the top level only. Files that transformers 5 writes
              keep it inside rope_parameters.""",
              "Which keys about rope does the config that failed have?"),
        wrong("new_rope_key_only",
              (_reads(theta=lambda config: config["rope_parameters"]["rope_theta"]),
               _reads(theta=lambda config: config.get("rope_parameters", {}).get("rope_theta")),
               _reads(theta=lambda config: config.get("rope_parameters", {}).get(
                   "rope_theta", 10000.0))),
              """rope_theta is looked for inside rope_parameters only. The released files are older
              than that key and have rope_theta at the top level.""",
              "Which keys about rope does the config that failed have?"),
    ),
)


def _count_expert(config: Config) -> int:
    return 3 * config["hidden_size"] * config["moe_intermediate_size"]


_WIDTHS = ("hidden_size", "intermediate_size", "moe_intermediate_size", "n_routed_experts",
           "n_shared_experts", "num_experts_per_tok")

COUNT_EXPERT = Exercise(
    id="config.count_expert",
    lesson="00",
    title="Count one expert",
    difficulty=1,
    minutes=5,
    why="K2 stores 384 of these in each of 60 layers: 98.9% of the trillion.",
    signature="count_expert(config) -> int",
    formula=True,
    cases=_configs,
    keys=_WIDTHS,
    reference=_count_expert,
    wrong=(
        wrong("two_matrices", lambda c: 2 * c["hidden_size"] * c["moe_intermediate_size"],
              """Two matrices are counted, one up and one down. A SwiGLU expert has three: the gate
              is a matrix of the size of up_proj.""",
              "Which three tensor names does model.layers.1.mlp.experts.0 have?"),
        wrong("dense_width", lambda c: 3 * c["hidden_size"] * c["intermediate_size"],
              """intermediate_size is the width of the dense layers' feed-forward block. An expert
              is much narrower.""",
              "Which key of config.json holds the width of an expert?"),
        wrong("all_experts", lambda c: _count_expert(c) * c["n_routed_experts"],
              """This is the number of parameters in all routed experts of a layer, not in one.""",
              "By which number would you divide to have a single expert?"),
        wrong("shared_expert_counted",
              (lambda c: _count_expert(c) * (1 + c["n_shared_experts"]),
               lambda c: _count_expert(c) * c["num_experts_per_tok"],
               lambda c: _count_expert(c) * (c["num_experts_per_tok"] + c["n_shared_experts"])),
              """Several experts are counted together: those that work on a token. The question is
              what one of them holds.""",
              "How many experts does model.layers.1.mlp.experts.0 name?"),
        wrong("router_row_counted", lambda c: _count_expert(c) + c["hidden_size"],
              """hidden_size too many: one row of the router, the one that scores this expert. It
              is stored with the router, mlp.gate.weight.""",
              "Which tensor must move with an expert to another machine, and which stays?"),
    ),
)


def _cache_numbers(config: Config) -> int:
    return config["num_hidden_layers"] * (config["kv_lora_rank"] + config["qk_rope_head_dim"])


def _heads_do_not_matter(call: Any, args: Case, out: Any) -> str | None:
    config = args[0]
    heads = 2 * config["num_attention_heads"]
    more = call(config | {"num_attention_heads": heads, "num_key_value_heads": heads})
    if more == out:
        return None
    return f"With twice the heads it gives {more} in place of {out}."


_CACHED = ("num_hidden_layers", "num_attention_heads", "kv_lora_rank", "qk_nope_head_dim",
           "qk_rope_head_dim", "v_head_dim")

CACHE_NUMBERS = Exercise(
    id="config.cache_numbers",
    lesson="00",
    title="What one token leaves in the cache",
    difficulty=2,
    minutes=10,
    why="This number, times two bytes, times the tokens, is what a long conversation costs.",
    signature="cache_numbers(config) -> int",
    formula=True,
    cases=_configs,
    keys=_CACHED,
    reference=_cache_numbers,
    invariants=(
        Invariant("the latent is shared by all heads, so their number does not matter.",
                  _heads_do_not_matter),
    ),
    wrong=(
        wrong("keys_and_values_per_head",
              lambda c: c["num_hidden_layers"] * c["num_attention_heads"] * (
                  c["qk_nope_head_dim"] + c["qk_rope_head_dim"] + c["v_head_dim"]),
              """Full keys and values of every head are counted, as plain attention would cache
              them. MLA caches the latent from which they can be made.""",
              "Which two parts of the output of kv_a_proj_with_mqa are kept?"),
        wrong("rotary_key_forgotten", lambda c: c["num_hidden_layers"] * c["kv_lora_rank"],
              """Only the latent is counted. The rotary key cannot be made from it, so it is kept
              as well: one for all heads.""",
              "Why is the rotary key not part of the latent?"),
        wrong("rotary_key_per_head",
              lambda c: c["num_hidden_layers"] * (
                  c["kv_lora_rank"] + c["num_attention_heads"] * c["qk_rope_head_dim"]),
              """A rotary key is counted for every head. There is one, shared by all: the "mqa" in
              kv_a_proj_with_mqa.""",
              "How many rows does kv_a_proj_with_mqa have beyond kv_lora_rank?"),
        wrong("one_layer", lambda c: c["kv_lora_rank"] + c["qk_rope_head_dim"],
              """This is the cache of one layer. Every layer keeps its own.""",
              "Could layer 5 use the keys that layer 4 made?"),
        wrong("latent_twice",
              lambda c: c["num_hidden_layers"] * (
                  2 * c["kv_lora_rank"] + c["qk_rope_head_dim"]),
              """The latent is counted twice, once for keys and once for values. Both are made from
              the same one.""",
              "How many latents does kv_b_proj take as its input?"),
        wrong("counted_twice", lambda c: 2 * _cache_numbers(c),
              """Twice the number: bytes are counted, two a number, or the whole cache once for keys
              and once for values. Asked for are numbers, and both are made from the same
              latent.""",
              "Does your 2 stand for bytes, or for keys and values, and does either belong here?"),
        wrong("moe_layers_only",
              lambda c: _cache_numbers(c | {"num_hidden_layers": c["num_hidden_layers"]
                                            - c["first_k_dense_replace"]}),
              """Only the layers with experts are counted. A dense layer has another feed-forward
              block, but the same attention, and attention is what fills the cache.""",
              "Which part of a layer reads the cache, and does layer 0 have it?"),
        wrong("times_heads",
              (lambda c: _cache_numbers(c) * c["num_attention_heads"],
               lambda c: c["num_hidden_layers"] * (
                   c["num_attention_heads"] * c["kv_lora_rank"] + c["qk_rope_head_dim"])),
              """A latent is counted for every head. There is one a token and layer, and kv_b_proj
              makes the keys and values of all heads from it.""",
              "What in the figure of the latent was drawn once, and not once a head?"),
    ),
)
