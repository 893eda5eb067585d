"""Lesson 12's right answers are the engine's: what it sends, cuts, gathers and counts."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import minik2
from minik2 import reference, sizing
from minik2.checks.exercise import find
from minik2.pytorch import distributed, grouped, qk_clip


def right(name):
    return find(f"ranks.{name}").reference


@pytest.mark.parametrize(("experts", "ranks"), [(16, 4), (12, 3), (8, 8), (6, 1)])
def test_the_counts_are_those_of_the_engines_dispatch(experts, ranks):
    rng = np.random.default_rng()
    indices = np.stack([rng.permutation(experts)[:3] for _ in range(50)])
    counts, offsets = right("send_counts")(indices, experts, ranks)
    token, _, by_expert = grouped.dispatch(torch.tensor(indices), experts)
    np.testing.assert_array_equal(by_expert.view(ranks, -1).sum(1).numpy(), counts)
    # A rank's piece of the sorted buffer holds the rows for its experts, and no others.
    chosen = np.sort(indices.ravel())
    assert offsets[-1] == len(token) == len(chosen)
    for rank in range(ranks):
        own = chosen[offsets[rank] : offsets[rank + 1]] // (experts // ranks)
        assert (own == rank).all()


def test_rows_that_arrive_have_the_experts_they_were_sent_to():
    """All ranks in one process: what each sends is cut and put together as an all-to-all does."""
    rng, experts, ranks = np.random.default_rng(), 12, 4
    own = experts // ranks
    sorted_rows, bounds, by_expert = [], [], []
    for _ in range(ranks):
        indices = np.stack([rng.permutation(experts)[:3] for _ in range(20)])
        sorted_rows.append(np.sort(indices.ravel()))  # each row is labelled with its expert
        bounds.append(right("send_counts")(indices, experts, ranks)[1])
        by_expert.append(np.bincount(indices.ravel(), minlength=experts).reshape(ranks, own))
    for rank in range(ranks):
        came = np.concatenate([rows[b[rank] : b[rank + 1]]
                               for rows, b in zip(sorted_rows, bounds, strict=True)])
        announced = np.array([counts[rank] for counts in by_expert])
        found = right("arriving_experts")(announced)
        np.testing.assert_array_equal(found + rank * own, came)
        # As the torch engine has it.
        twin = torch.arange(own).repeat(ranks).repeat_interleave(torch.tensor(announced).flatten())
        np.testing.assert_array_equal(twin.numpy(), found)


@pytest.mark.parametrize("preset", ["kimi-k2", "deepseek-v3", "moonlight-16b-a3b", "tiny"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
@pytest.mark.parametrize("ep", [1, 2, 8])
def test_the_bytes_are_those_of_sizing(preset, dtype, ep):
    cfg = minik2.ModelConfig.preset(preset)
    moe = sum(map(cfg.is_moe, range(cfg.num_hidden_layers)))
    size = {"bfloat16": 2, "float64": 8}[dtype]
    found = right("all_to_all_bytes")(moe, cfg.num_experts_per_tok, cfg.hidden_size, size, ep)
    assert found == float(sizing.communication(cfg, sizing.Layout(ep=ep), dtype).all_to_all)


@pytest.mark.parametrize(("rows", "ranks"), [(12, 4), (13, 4), (5, 4), (2, 4), (7, 1)])
def test_a_matrix_in_the_engines_pieces_takes_one_step_of_muon(rows, ranks):
    rng = np.random.default_rng()
    whole = rng.normal(size=(rows, 9))
    pieces = []
    for rank in range(ranks):
        mesh = SimpleNamespace(size=lambda: ranks, get_local_rank=lambda rank=rank: rank)
        pieces.append(whole[distributed.own_rows(rows, mesh)])
    optimizer = reference.muon.Muon(lr=1.0, momentum=0.0, weight_decay=0.0)
    weights = {"w": np.zeros_like(whole)}
    optimizer.step(weights, {"w": whole})
    found = [right("sharded_update")(pieces, rank) for rank in range(ranks)]
    assert [part.shape for part in found] == [piece.shape for piece in pieces]
    np.testing.assert_allclose(np.concatenate(found), -weights["w"], rtol=0, atol=1e-12)


def test_the_joint_factor_is_that_of_all_tokens_in_one_process():
    cfg = minik2.ModelConfig.preset("small")
    rng, heads = np.random.default_rng(), cfg.num_attention_heads
    logits = 60 * rng.normal(size=(4, 30, heads))  # ranks, pairs that are seen, heads
    found = right("joint_gamma")(logits.max(1), 40.0)
    alone = torch.tensor(logits.reshape(-1, heads).max(0))
    np.testing.assert_allclose(found, qk_clip.gamma(alone, cfg, 40.0).numpy(), rtol=1e-12)
