"""Who writes which tensor, and into which file: all of them once, and evenly."""

from types import SimpleNamespace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from minik2.config import ModelConfig
from minik2.pytorch.distributed import ShardedModel
from minik2.training import shards
from tests.oracle.configs import configs


def spread(cfg, ranks, expert):
    """What is asked of a model here; none is made."""
    model = SimpleNamespace(cfg=cfg, mesh=SimpleNamespace(ranks=ranks, expert=expert))
    model.experts_of = lambda rank: ShardedModel.experts_of(model, rank)
    return model


def layout(cfg):
    wide, narrow = np.dtype(np.float32), np.dtype(np.float16)
    return {name: (wide if name.endswith("_bias") else narrow, shape)
            for name, shape in cfg.tensor_shapes().items()}  # fmt: skip


@given(cfg=configs(), data=st.data(), ranks=st.integers(2, 8))
@settings(max_examples=60, deadline=None)
def test_every_tensor_is_written_once_and_experts_by_who_keeps_them(cfg, data, ranks):
    expert = data.draw(st.sampled_from(
        [n for n in range(1, ranks + 1) if ranks % n == 0 and cfg.n_routed_experts % n == 0]))
    model, told = spread(cfg, ranks, expert), layout(cfg)
    owned = [number for rank in range(ranks) for number in model.experts_of(rank)]
    assert sorted(owned) == list(range(cfg.n_routed_experts))
    keepers = shards.who_writes(model, told)
    assert keepers.keys() == told.keys()
    for name, rank in keepers.items():
        if ".experts." in name:
            assert int(name.split(".experts.")[1].split(".")[0]) in model.experts_of(rank)
    limit = data.draw(st.integers(1, 10**6))
    files = shards._files(keepers, told, ranks, limit)
    assert sorted(name for _, names in files for name in names) == sorted(told)
    assert [rank for rank, _ in files] == sorted(rank for rank, _ in files)
    sizes = {name: kind.itemsize * int(np.prod(shape)) for name, (kind, shape) in told.items()}
    for rank, names in files:
        assert names and all(keepers[name] == rank for name in names)
        assert len(names) == 1 or sum(map(sizes.get, names)) <= limit
        widths = [told[name][0].itemsize for name in names]
        assert widths == sorted(widths, reverse=True)
        order = [name for name in keepers if name in names]
        assert order == names
    # No rank that got more than it had to has more than another by more than one tensor.
    load = np.zeros(ranks)
    fixed = np.zeros(ranks)
    for name, rank in keepers.items():
        load[rank] += sizes[name]
        fixed[rank] += sizes[name] * (".experts." in name)
    largest = max(size for name, size in sizes.items() if ".experts." not in name)
    assert all(load[load > fixed] <= load.min() + largest)


def test_k2_on_64_ranks_is_written_in_even_parts():
    """In 16 bits, 32 GB each: nobody has more than one table of tokens above a fair share."""
    cfg = ModelConfig.preset("kimi-k2")
    told = layout(cfg)
    load = np.zeros(64)
    for name, rank in shards.who_writes(spread(cfg, 64, 8), told).items():
        load[rank] += told[name][0].itemsize * np.prod(told[name][1])
    table = 2 * cfg.vocab_size * cfg.hidden_size
    assert 32e9 < load.mean() < load.max() <= load.mean() + table
