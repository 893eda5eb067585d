"""Parameter counts: published figures, the sum over the shapes, and another library's count."""

import math

import pytest
from hypothesis import given, settings

from minik2 import sizing
from minik2.config import ModelConfig
from tests.oracle.configs import configs

TOTALS = {
    "kimi-k2": 1_026_408_232_448,
    "kimi-k2-thinking": 1_026_408_232_448,  # the same body
    "deepseek-v3": 671_026_419_200,
}
# In billions, as far as they are published: total; active with embedding and head, without the
# embedding, without either; total without either.
BILLIONS = {
    "kimi-k2": (1026.41, 32.86, 31.69, 30.51, None),
    "deepseek-v3": (671.03, 37.55, 36.63, None, None),
    "moonlight-16b-a3b": (15.96, None, None, 2.24, 15.29),
    "deepseek-v2-lite": (15.706, None, None, None, None),
}


@pytest.mark.parametrize("name", TOTALS)
def test_totals_are_exact(name):
    assert sizing.parameters(ModelConfig.preset(name)).total == TOTALS[name]


@pytest.mark.parametrize("name", BILLIONS)
def test_counts_round_to_the_published_billions(name):
    cfg = ModelConfig.preset(name)
    count = sizing.parameters(cfg)
    without_both = count.total - 2 * count.by_part["embedding"]
    counted = (count.total, count.active, count.active_without_embedding,
               count.active_without_embedding_and_head, without_both)  # fmt: skip
    for ours, published in zip(counted, BILLIONS[name], strict=True):
        if published is not None:
            digits = 3 if name == "deepseek-v2-lite" else 2
            assert round(ours / 1e9, digits) == published


def test_the_pieces_of_k2():
    """One layer's attention 101.1M (V3: 187.1M), one expert 44.04M, one MoE layer 16.96B."""
    def megas(name: str, *fragments: str) -> float:
        shapes = ModelConfig.preset(name).tensor_shapes()
        return sum(math.prod(s) for n, s in shapes.items() if any(f in n for f in fragments)) / 1e6

    assert round(megas("kimi-k2", "layers.7.self_attn."), 1) == 101.1
    assert round(megas("deepseek-v3", "layers.7.self_attn."), 1) == 187.1
    assert round(megas("kimi-k2", "layers.7.mlp.experts.383."), 2) == 44.04
    assert round(megas("kimi-k2", "layers.7.mlp."), -1) == 16960


def summed(cfg: ModelConfig) -> int:
    return sum(math.prod(shape) for shape in cfg.tensor_shapes().values())


@pytest.mark.parametrize("name", ModelConfig.presets())
def test_the_count_is_the_sum_over_the_checkpoints_shapes(name):
    cfg = ModelConfig.preset(name)
    assert sizing.parameters(cfg).total == summed(cfg)


@given(cfg=configs())
@settings(max_examples=200, deadline=None)
def test_counts_of_random_models(cfg):
    count, shapes = sizing.parameters(cfg), cfg.tensor_shapes()
    assert count.total == sum(count.by_part.values()) == summed(cfg)

    def part(*fragments: str) -> int:
        return sum(math.prod(s) for n, s in shapes.items() if any(f in n for f in fragments))

    parts = count.by_part
    assert parts["embedding"] == part("embed_tokens")
    assert parts["head"] == part("lm_head")
    assert parts["norms"] == part("norm.weight")
    assert parts["attention"] == part("self_attn.") - part("a_layernorm")
    assert parts["routed_experts"] == part(".experts.")
    assert parts["shared_experts"] == part(".shared_experts.")
    assert parts["router"] == part(".gate.")
    # A token meets its own experts only: give the model no others, and everything is active.
    if not cfg.is_all_dense:
        chosen = {f".experts.{e}." for e in range(cfg.num_experts_per_tok)}
        active = count.total - parts["routed_experts"] + part(*chosen)
        assert count.active == active
    else:
        assert count.active == count.total
    head = cfg.vocab_size * cfg.hidden_size
    assert count.active_without_embedding == count.active - parts["head"]
    assert count.active_without_embedding_and_head == count.active_without_embedding - head


@pytest.mark.parametrize("name", ModelConfig.presets())
def test_counts_equal_transformers_on_the_meta_device(name):
    """Parameters plus the correction biases, which transformers keeps as buffers."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    cfg = ModelConfig.preset(name)
    with torch.device("meta"):
        theirs = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(**cfg.to_json())
        )
    biases = [b.numel() for n, b in theirs.named_buffers() if n.endswith("e_score_correction_bias")]
    assert len(biases) == (
        0 if cfg.topk_method == "greedy" else cfg.num_hidden_layers - cfg.first_k_dense_replace
    )
    theirs_total = sum(p.numel() for p in theirs.parameters()) + sum(biases)
    assert theirs_total == sizing.parameters(cfg).total


def test_the_table_adds_up_as_it_is_printed():
    counted = sizing.parameters(ModelConfig.preset("kimi-k2"))
    header, *rows, total, active = str(counted).splitlines()
    columns = [[int(n.replace(",", "")) for n in row.split()[1:] if "%" not in n] for row in rows]
    sums = [sum(column) for column in zip(*columns, strict=True)]
    assert sums == [1_026_408_232_448, counted.read, counted.computed]
    assert total.split() == ["total", *(f"{n:,}" for n in sums)]
    assert active.split() == ["active", f"{counted.active:,}"]
    assert header.split() == ["part", "stored", "read", "a", "token", "multiplied"]


@given(cfg=configs())
@settings(max_examples=200, deadline=None)
def test_what_is_read_and_multiplied_for_one_token(cfg):
    """By the tensors' names: one row of the table, the first K experts, all else."""
    count = sizing.parameters(cfg)
    read = multiplied = 0
    for name, shape in cfg.tensors():
        size, expert = math.prod(shape), name.partition(".experts.")[2].partition(".")[0]
        if "embed_tokens" in name:
            # A tied table is read whole, as the head, and its row is among what is read.
            read += size if cfg.tie_word_embeddings else cfg.hidden_size
            multiplied += size if cfg.tie_word_embeddings else 0
        elif not expert or int(expert) < cfg.num_experts_per_tok:
            read += size
            multiplied += size if len(shape) == 2 else 0
    assert (count.read, count.computed) == (read, multiplied)
    assert all(v >= 0 for v in count.read_by_part.values())
    assert count.computed <= count.read <= count.total and count.read <= count.active


def test_more_of_anything_is_never_less():
    cfg = ModelConfig.preset("tiny")
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
                 "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "v_head_dim",
                 "intermediate_size", "moe_intermediate_size", "n_shared_experts"):  # fmt: skip
        more = sizing.parameters(cfg.replace(**{name: getattr(cfg, name) + 1}))
        less = sizing.parameters(cfg)
        assert more.total > less.total and more.computed >= less.computed, name
    wider = sizing.parameters(cfg.replace(n_routed_experts=2 * cfg.n_routed_experts))
    assert wider.total > less.total and wider.by_part["routed_experts"] == 2 * (
        less.by_part["routed_experts"])
    assert wider.read_by_part["routed_experts"] == less.read_by_part["routed_experts"]
