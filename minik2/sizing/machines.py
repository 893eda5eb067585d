"""Machines as their limits: memory, bandwidth, operations a second, links.

Unusual here: the figures are data-sheet peaks, which nothing reaches, and dense ones (makers print
twice as much for matrices that are half zeros), read on third-party pages that repeat the makers'
sheets (unverified at the source). The laptop is assumed: `minik2 doctor` measures yours.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from minik2.sizing import units

# What numbers of a format are widened to where a machine cannot multiply them as they are.
WIDER = {"int4": "bfloat16", "int8": "bfloat16", "float8": "bfloat16", "float16": "bfloat16",
         "bfloat16": "float32"}  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """`devices` equal devices; every other figure is of one of them.

    memory: bytes. bandwidth: bytes a second from memory. peaks: operations a second by number
    format. link, network: bytes a second each way to neighbours in the same node, and to other
    nodes; 0 where there are none. source: where the figures are from.
    """

    name: str
    memory: int
    bandwidth: float
    peaks: dict[str, float]
    link: float
    network: float
    source: str
    devices: int = 1

    def peak(self, dtype: str) -> float:
        """Operations a second of one device on numbers stored so, widened if they have to be.

        Raises ValueError for a format that the machine cannot multiply, widened or not.
        """
        units.bits(dtype)
        at: str | None = dtype
        while at is not None and at not in self.peaks:
            at = WIDER.get(at)
        if at is None:
            raise ValueError(f"No speed in {dtype} is known of {self.name}; "
                             f"it has {', '.join(self.peaks)}.")
        return self.peaks[at]


_SHEET = "data-sheet peaks, dense, as third-party pages repeat them"
_NETWORK = 50e9  # one 400 Gbit/s adapter a GPU: arXiv 2507.20534 §2.4
MACHINES = {
    "laptop": Machine("laptop", 16 * 10**9, 50e9, {"float32": 5e11}, 0, 0, "assumed"),
    "h800": Machine("H800", 80 * 10**9, 3.35e12, {"bfloat16": 989e12, "float8": 1979e12}, 200e9,
                    _NETWORK, f"{_SHEET}; 8 a node, 8 x 400 Gbit/s: arXiv 2507.20534 §2.4"),
    "h100": Machine("H100 SXM", 80 * 10**9, 3.35e12, {"bfloat16": 989e12, "float8": 1979e12},
                    450e9, _NETWORK, _SHEET),
    "h200": Machine("H200 SXM", 141 * 10**9, 4.8e12, {"bfloat16": 989e12, "float8": 1979e12},
                    450e9, _NETWORK, _SHEET),
}  # fmt: skip


def machine(name: str) -> Machine:
    """One of MACHINES, or several: machine("8xh200"). Raises ValueError for other names.

    >>> machine("8xh200").devices
    8
    """
    count, kind = re.fullmatch(r"(?:(\d{1,6})\s*x\s*)?(.*)", str(name).lower(), re.S).groups()  # type: ignore[union-attr]
    if kind not in MACHINES or count == "0":
        raise ValueError(f"There is no machine {name!r}{units.choose(kind, MACHINES)} "
                         "Several are written 8xh200.")
    return dataclasses.replace(MACHINES[kind], devices=int(count or 1))
