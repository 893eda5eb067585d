"""One line of the GPU check: what was compared, how far apart it was, and how far it may be.

Unusual here: a check holds many comparisons, and keeps the one that came closest to its bound or
broke it. What the bound is made of stands in the section that makes the check.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Check:
    """error, bound: of the comparison that came closest to its bound, relative unless `note` says
    in what unit; count: comparisons made; left_out: those of which the bound says nothing; series:
    curves, by name."""

    section: str
    name: str
    precision: str
    count: int = 0
    left_out: int = 0
    error: float = 0.0
    bound: float = 0.0
    note: str = ""
    broken_by: str = ""
    series: dict[str, list[float]] = field(default_factory=dict)

    @property
    def state(self) -> str:
        """ "holds", "broken", or "open" where nothing was compared."""
        if self.broken_by:
            return "broken"
        return "holds" if self.count else "open"

    def add(self, error: float, bound: float, what: str, count: int = 1) -> None:
        """Take in `count` comparisons of which the worst erred by `error`."""
        self.count += count
        # Written so that a NaN is broken.
        if not error <= bound:
            self.error, self.bound, self.broken_by = error, bound, what
        elif not self.broken_by and error * self.bound >= self.error * bound:
            self.error, self.bound = error, bound


def relative(check: Check) -> str:
    """Error and bound as a cell of a table."""
    if check.state == "open":
        return "open"
    if check.state == "broken":
        return f"**broken:** {check.error:.1e} > {check.bound:.1e}"
    return f"{check.error:.1e} < {check.bound:.1e}" if check.error else f"0 < {check.bound:.1e}"
