"""Rows of what an optimizer keeps, out of as many files as there are."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minik2.checkpoint import CheckpointError
from minik2.training import shards
from minik2.training.pieces import Pieces


def spread(folder, array, cuts):
    """The array in as many files as the cuts make of its rows, the last rows first."""
    edges = [0, *sorted(cuts), len(array)]
    paths = []
    for n, (start, stop) in enumerate(itertools.pairwise(edges)):
        if start < stop:
            paths.append(folder / f"{n}.safetensors")
            shards.save_rows(paths[-1], {f"w/kind/{start}": array[start:stop]})
    return paths[::-1]


@given(rows=st.integers(1, 9), data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_rows_come_out_of_any_files(tmp_path_factory, rows, data):
    array = np.random.default_rng(rows).random((rows, 3)).astype(np.float32)
    places = st.integers(0, rows)
    cuts = data.draw(st.sets(places, max_size=4))
    wanted = sorted(data.draw(st.tuples(places, places)))
    found = Pieces(spread(tmp_path_factory.mktemp("some"), array, cuts))
    assert list(found) == ["w/kind"] and np.array_equal(found["w/kind"], array)
    part = found.rows("w/kind", slice(*wanted))
    assert part.dtype == array.dtype and np.array_equal(part, array[slice(*wanted)])
    part[...] = found["w/kind"][...] = 0
    assert np.array_equal(found["w/kind"], array), "what is given is a copy"


def test_whole_arrays_and_numbers_are_there_as_they_are(tmp_path):
    held = {"w/kind": np.arange(4.0), "w/step": np.float32(3)[...], "v/count": np.array([7])}
    shards.save_rows(tmp_path / "file", held)
    found = Pieces([tmp_path / "file"])
    assert len(found) == 3
    for key, array in held.items():
        assert found[key].dtype == array.dtype and np.array_equal(found[key], array)


@pytest.mark.parametrize("firsts", [(1, 3), (0, 3), (0, 1), (0, 0)], ids=str)
def test_rows_that_are_missing_or_twice_there_are_no_array(tmp_path, firsts):
    paths = [tmp_path / f"{n}.safetensors" for n in range(2)]
    for path, first in zip(paths, firsts, strict=True):
        shards.save_rows(path, {f"w/kind/{first}": np.zeros((2, 2))})
    with pytest.raises(ValueError, match="the rows of w/kind are not there once each"):
        Pieces(paths)


def test_a_file_that_is_cut_is_named(tmp_path):
    shards.save_rows(tmp_path / "file", {"w/kind": np.zeros(9)})
    (tmp_path / "file").write_bytes((tmp_path / "file").read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="truncated"):
        Pieces([tmp_path / "file"])
