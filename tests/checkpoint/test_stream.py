"""Files written tensor by tensor: what the safetensors library writes and reads, and what is told
of tensors that are not those of the layout."""

import errno

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from minik2.checkpoint import stream
from minik2.checkpoint.files import header

DTYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int64]
SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)


def layout(arrays):
    return {name: (array.dtype, array.shape) for name, array in arrays.items()}


@given(kinds=st.lists(st.tuples(st.sampled_from(DTYPES), SHAPES), max_size=6), data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_library_reads_what_was_written(tmp_path_factory, kinds, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    kinds.sort(key=lambda kind: -np.dtype(kind[0]).itemsize)
    arrays = {f"t{n}": rng.integers(-9, 9, shape).astype(dtype)
              for n, (dtype, shape) in enumerate(kinds)}  # fmt: skip
    path = tmp_path_factory.mktemp("one") / "file.safetensors"
    stream.write(path, layout(arrays), iter(arrays.items()))
    with safetensors.safe_open(path, "np") as file:
        assert file.metadata() == {"format": "pt"} and set(file.keys()) == set(arrays)
    for name, array in safetensors.numpy.load_file(path).items():
        assert (array.dtype, array.shape) == (arrays[name].dtype, arrays[name].shape)
        assert np.array_equal(array, arrays[name])
    places = header(path)
    assert all(places[n].offset % a.itemsize == 0 for n, a in arrays.items())


def test_turned_arrays_are_written_by_rows(tmp_path):
    array = np.arange(12.0).reshape(3, 4).T
    stream.write(tmp_path / "file", layout({"a": array}), iter([("a", array)]))
    assert np.array_equal(safetensors.numpy.load_file(tmp_path / "file")["a"], array)


@pytest.mark.parametrize(("name", "array"), [
    ("b", np.zeros(2)), ("a", np.zeros(3)), ("a", np.zeros(2, np.float32)),
], ids=["name", "shape", "dtype"])  # fmt: skip
def test_a_tensor_that_was_not_told_is_refused(tmp_path, name, array):
    told = {"a": (np.dtype(np.float64), (2,))}
    with pytest.raises(ValueError, match=r"is to hold a, float64 of shape \(2,\), but "):
        stream.write(tmp_path / "file", told, iter([(name, array)]))


def test_no_file_is_written_over(tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(OSError) as caught:
        stream.write(tmp_path / "file", {}, iter([]))
    assert caught.value.errno == errno.EEXIST and (tmp_path / "file").read_text() == "kept"
