"""Messages between the grader and the process that runs a submission.

Unusual here: the other side may be hostile. A message is a length, a JSON header and the raw bytes
of the arrays; nothing is unpickled, dtypes come from a short list, and sizes are checked before
anything is allocated. A reply that breaks a rule raises WireError.
"""

import json
import math
import socket
import struct
import time
from typing import Any

import numpy as np

from minik2.checks.values import Foreign

LIMIT = 64 * 2**20
# Of JSON, which takes tens of times its size once it is objects; arrays travel beside it.
HEADER_LIMIT = 4 * 2**20
DTYPES = {np.dtype(name).str for name in (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "float32", "float64", "complex64", "complex128")}
_HEAD = struct.Struct(">4sII")
_MAGIC = b"mk2\n"


class WireError(Exception):
    """The other side did not keep to the protocol."""


class WireClosed(Exception):
    """The other side is gone."""


def pack(value: Any, blobs: list[bytes]) -> Any:
    """A plain value (see values.plain) as JSON; the bytes of arrays are added to `blobs`.

    Every container is tagged, so that a dict from a learner cannot pass for an array.
    """
    if isinstance(value, np.ndarray) and value.dtype.newbyteorder("<").str in DTYPES:
        little = value.astype(value.dtype.newbyteorder("<"))
        blobs.append(little.tobytes())
        return {"a": [little.dtype.str, list(value.shape)]}
    if isinstance(value, dict):
        return {"d": [[key, pack(item, blobs)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"t" if isinstance(value, tuple) else "l": [pack(item, blobs) for item in value]}
    if isinstance(value, Foreign):
        return {"f": value.name[:200]}
    if isinstance(value, np.ndarray):
        return {"f": f"array of {value.dtype}"}
    return value


class _Blobs:
    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def take(self, dtype: Any, shape: Any) -> np.ndarray:
        if not isinstance(dtype, str) or dtype not in DTYPES or (
                not isinstance(shape, list) or len(shape) > 16):
            raise WireError("an array of an unknown kind")
        if not all(type(n) is int and 0 <= n <= LIMIT for n in shape):
            raise WireError("an array of impossible shape")
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size > len(self.data) - self.at:
            raise WireError("an array without its numbers")
        part = self.data[self.at:self.at + size]
        self.at += size
        try:
            return np.frombuffer(part, dtype).reshape(shape).copy()
        except ValueError:  # no number at all, and sides too long for NumPy
            raise WireError("an array of impossible shape") from None


def unpack(value: Any, blobs: _Blobs, depth: int = 0) -> Any:
    """The inverse of pack; raises WireError for anything that pack does not write."""
    if depth > 40:
        raise WireError("a structure nested too deeply")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict) and len(value) == 1:
        (tag, inside), = value.items()
        if tag == "a" and isinstance(inside, list) and len(inside) == 2:
            return blobs.take(*inside)
        if tag in ("l", "t") and isinstance(inside, list):
            items = [unpack(item, blobs, depth + 1) for item in inside]
            return tuple(items) if tag == "t" else items
        if tag == "f" and isinstance(inside, str):
            return Foreign(inside[:200])
        if tag == "d" and isinstance(inside, list) and all(
                isinstance(p, list) and len(p) == 2 and isinstance(p[0], str) for p in inside):
            return {key: unpack(item, blobs, depth + 1) for key, item in inside}
    raise WireError("a value of an unknown kind")


def send(sock: socket.socket, message: dict[str, Any]) -> None:
    """Send a dict of plain values. Raises WireError where it is too large, WireClosed where the
    other side is gone, and TimeoutError where it does not read before the socket's timeout.
    """
    blobs: list[bytes] = []
    try:
        header = json.dumps({key: pack(item, blobs) for key, item in message.items()}).encode()
    except ValueError:
        raise WireError("a number with too many digits") from None
    body = b"".join(blobs)
    if len(header) > HEADER_LIMIT or len(header) + len(body) > LIMIT:
        raise WireError(f"more than {LIMIT >> 20} MB of arrays or {HEADER_LIMIT >> 20} MB of "
                        "anything else")
    try:
        sock.sendall(_HEAD.pack(_MAGIC, len(header), len(body)) + header + body)
    except TimeoutError:
        raise
    except OSError as error:
        raise WireClosed from error


def receive(sock: socket.socket, deadline: float | None = None) -> dict[str, Any]:
    """The next message. Raises WireError, WireClosed, or TimeoutError at monotonic() = deadline."""
    magic, header, body = _HEAD.unpack(_exactly(sock, _HEAD.size, deadline))
    if magic != _MAGIC or header > HEADER_LIMIT or header + body > LIMIT:
        raise WireError("bytes that are no message")
    text, data = _exactly(sock, header, deadline), _exactly(sock, body, deadline)
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        raise WireError("a message that is no JSON") from None
    if not isinstance(message, dict):
        raise WireError("a message that is no object")
    blobs = _Blobs(data)
    return {key: unpack(item, blobs) for key, item in message.items()}


def _exactly(sock: socket.socket, count: int, deadline: float | None) -> bytes:
    parts = []
    while count:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError
        sock.settimeout(left)
        try:
            part = sock.recv(min(count, 2**20))
        except TimeoutError:
            raise
        except OSError as error:
            raise WireClosed from error
        if not part:
            raise WireClosed
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
