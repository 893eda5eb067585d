"""benchmarks.sizing: its configurations are of every branch, and it fails where it should."""

from benchmarks import sizing


def test_the_configurations_are_of_every_branch():
    drawn = sizing.draw(12)
    assert len(set(drawn)) == 12
    for field, values in {
        "topk_method": {"noaux_tc", "greedy", "group_limited_greedy"}, "n_group": {1, 4},
        "norm_topk_prob": {True, False}, "tie_word_embeddings": {True, False},
        "n_shared_experts": {1, 2}, "first_k_dense_replace": {0, 1, 2, 3},
    }.items():  # fmt: skip
        assert {getattr(cfg, field) for cfg in drawn} == values, field
    assert {cfg.q_lora_rank is None for cfg in drawn} == {True, False}
    assert {cfg.is_all_dense for cfg in drawn} == {True, False}
    assert sizing.draw(12) == drawn


def test_a_figure_that_is_off_is_named():
    rows = sizing.compare(2, tokens=16, batch=2, device="cpu")
    assert sizing.shortfalls(rows) == [] and all(row["peak"] is None for row in rows)
    rows[1]["gradients"]["ratio"] = 1 + 1e-9
    rows[0]["activations"]["ratio"] = 0.94
    first, second = sizing.shortfalls(rows)
    assert first.startswith("Configuration 0: activations measured ")
    assert second.startswith("Configuration 1: gradients measured ")
    assert sizing.table(rows).splitlines()[1].startswith("0 ")
