"""The channel to a submission: what is sent arrives, and whatever else arrives is refused."""

import json
import socket
import struct
import threading
import time

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis.extra import numpy as hnp

from minik2.checks import wire
from minik2.checks.values import Foreign, plain

ARRAYS = hnp.arrays(
    st.sampled_from(sorted(wire.DTYPES)), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0))
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-10**30, 10**30),
                    st.floats(allow_nan=False), st.text())
VALUES = st.recursive(
    st.one_of(SCALARS, ARRAYS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.tuples(inner, inner),
                            st.dictionaries(st.text(), inner, max_size=4)),
    max_leaves=12)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3),
                            st.dictionaries(st.sampled_from([*"adltf", "x"]), inner, max_size=2)),
    max_leaves=10)


def equal(one, other) -> bool:
    """The same types all the way down, and the same bits in arrays."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return (one.dtype == other.dtype and one.shape == other.shape
                and one.tobytes() == other.tobytes())
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def over_a_socket(message):
    one, other = socket.socketpair()
    with one, other:
        sender = threading.Thread(target=wire.send, args=(one, message))
        sender.start()
        arrived = wire.receive(other, time.monotonic() + 10)
        sender.join()
    return arrived


def receive(raw: bytes):
    """What becomes of these bytes, the other side having hung up after them."""
    one, other = socket.socketpair()
    with one, other:
        one.setblocking(False)
        one.sendall(raw)
        one.shutdown(socket.SHUT_WR)
        return wire.receive(other, time.monotonic() + 10)


def framed(header: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">4sII", b"mk2\n", len(header), len(body)) + header + body


@given(VALUES)
@example(np.array(2.5))  # an array without axes stays one
@example(np.arange(6.0).reshape(2, 3).T)
@example(np.ones((2, 0, 3), "<f4"))
def test_what_is_sent_arrives(value):
    assert equal(over_a_socket({"value": value})["value"], value)


def test_what_no_exercise_asks_for_arrives_as_its_name():
    odd = plain({"s": {1, 2}, "o": np.array(["a"]), "l": np.ones(2, np.longdouble), "c": 1j})
    arrived = over_a_socket(odd)
    assert all(isinstance(value, Foreign) for value in arrived.values())
    assert arrived["s"].name == "set"
    assert len(over_a_socket({"x": Foreign("n" * 10**5)})["x"].name) == 200


@given(st.binary(max_size=200))
def test_random_bytes_are_no_message(raw):
    with pytest.raises((wire.WireError, wire.WireClosed)):
        receive(raw)


@settings(max_examples=300)
@given(JSON, st.binary(max_size=32))
@example({"a": ["<f8", [2**26, 2**26, 2**26, 0]]}, b"")  # no number, and sides beyond NumPy
@example({"a": ["|O", [1]]}, bytes(8))  # a pickle by another name
@example({"a": [["<f8"], [1]]}, bytes(8))
@example({"a": ["<f8", [-1]]}, bytes(8))
@example({"a": ["<f8", [True]]}, bytes(8))
@example({"a": ["<f8", [5]]}, bytes(8))
@example({"a": ["V8", [1]]}, bytes(8))
def test_any_header_gives_plain_values_or_an_error(header, body):
    """Nothing but WireError comes out of a stranger's message, and nothing but plain values."""
    raw = json.dumps({"value": header}).encode()
    try:
        value = receive(framed(raw, body))["value"]
    except wire.WireError:
        return
    assert is_plain(value)


def is_plain(value) -> bool:
    if isinstance(value, dict):
        return all(isinstance(k, str) and is_plain(v) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    if isinstance(value, np.ndarray):
        return value.dtype.str in wire.DTYPES
    return value is None or isinstance(value, (bool, int, float, str, Foreign))


@pytest.mark.parametrize("raw, said", [
    (b"GET / HTTP/1.1\r\n\r\n", "bytes that are no message"),
    (framed(b"[1, 2]"), "no object"),
    (framed(b"{'a': 1}"), "no JSON"),
    (framed(b'{"a": ' + b"[" * 10**5), "no JSON"),
    (framed(b'{"a": ' + b"1" * 5000 + b"}"), "no JSON"),
    (framed(b'{"a": ' + b'{"l": [' * 60 + b"]}" * 60 + b"}"), "nested too deeply"),
    (framed(b'{"a": {"a": ["<f8", [4]]}}', bytes(16)), "without its numbers"),
    (framed(b'{"a": {"a": ["<f8", ' + b"[" + b"1," * 16 + b"1]]}}", bytes(8)), "unknown kind"),
    (struct.pack(">4sII", b"mk2\n", 2**31, 2**31), "no message"),
    (struct.pack(">4sII", b"mk2\n", wire.HEADER_LIMIT + 1, 0), "no message"),
])
def test_a_broken_message_is_named(raw, said):
    with pytest.raises(wire.WireError, match=said):
        receive(raw)


@pytest.mark.parametrize("cut", [0, 5, 12, 20])
def test_a_message_cut_short_is_the_end(cut):
    with pytest.raises(wire.WireClosed):
        receive(framed(b'{"a": {"a": ["<f8", [1]]}}', bytes(8))[:cut])


def test_a_silent_or_slow_sender_runs_out_of_time():
    one, other = socket.socketpair()
    with one, other:
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            wire.receive(other, start + 0.2)
        one.sendall(b"mk")
        with pytest.raises(TimeoutError):
            wire.receive(other, time.monotonic() + 0.2)
        one.setblocking(True)
        one.settimeout(0.2)
        with pytest.raises(TimeoutError):
            wire.send(one, {"a": np.zeros(10**6)})  # nobody reads
        assert time.monotonic() - start < 5


@pytest.mark.parametrize("value, said", [
    (np.zeros(wire.LIMIT // 8 + 1), "more than 64 MB of arrays"),
    (["x" * 1000] * 5000, "4 MB of anything else"),
    pytest.param(10**5000, "too many digits", id="digits"),
])
def test_what_is_too_large_is_not_sent(value, said):
    one, other = socket.socketpair()
    with one, other, pytest.raises(wire.WireError, match=said):
        wire.send(one, {"value": value})


def test_a_side_that_is_gone():
    one, other = socket.socketpair()
    other.close()
    with one, pytest.raises(wire.WireClosed):
        wire.send(one, {"value": np.zeros(10**6)})
