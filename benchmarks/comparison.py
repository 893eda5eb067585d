"""Two sides compared on one configuration, and what many such comparisons come to.

Unusual here: a comparison is left out, and counted as such, where the derived bound says nothing:
where rounding alone may decide which expert a token goes to, or moves the answer by a quarter.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.parts import Part
from benchmarks.question import Case, Question, Side, relative_error
from benchmarks.rounding import TOO_COARSE

# What is promised besides: no bound is wider than this, however sensitive a configuration is.
PROMISED = {"float64": 1e-9}


@dataclass(frozen=True)
class Comparison:
    """Two sides, the right one taken as exact; precision: that of the numbers they are given."""

    name: str
    precision: str
    left: Side
    right: Side

    @property
    def on_gpu(self) -> bool:
        return "cuda" in (self.left.device, self.right.device)

    def has(self, part: Part) -> bool:
        """Whether both sides have the part."""
        return self.left.engine in part.runs and self.right.engine in part.runs


@dataclass
class Row:
    """One part under one comparison.

    error and bound belong to the configuration that came closest to its bound, or broke it.
    left_out: configurations in which rounding may decide a token's experts, or moves the answer so
    far that an estimate of first order says nothing; configurations: those that were compared.
    """

    part: str
    compared: str
    precision: str
    configurations: int = 0
    left_out: int = 0
    worst_error: float = 0.0
    error: float = 0.0
    bound: float = 0.0
    state: str = "open: no GPU at hand"
    broken_by: str = ""

    def add(self, error: float, bound: float, case: Case) -> None:
        if error / bound > (self.error / self.bound if self.bound else -1.0):
            self.error, self.bound = error, bound
            self.broken_by = repr(case) if error > bound else ""
        self.configurations += 1
        self.worst_error = max(self.worst_error, error)
        self.state = "broken" if self.broken_by else "holds"


def compare(question: Question, part: Part, comparison: Comparison, row: Row, case: Case) -> None:
    """Add one configuration to a row."""
    left, right, chain = comparison.left, comparison.right, part.chain(question.cfg, question.shape)
    noise = chain.noise(left.precision, left.angles) + chain.noise(right.precision, right.angles)
    bound = noise * question.sensitivity(part)
    if noise >= question.leeway(part) or bound > TOO_COARSE:
        row.left_out += 1
        return
    bound = min(bound, PROMISED.get(comparison.precision, bound))
    error = relative_error(question.answer(part, left), question.answer(part, right))
    row.add(error, bound, case)


def cell(row: Row) -> str:
    """A row as a cell of the README's table."""
    if not row.configurations:
        return "open"
    sign, mark = ("<", "") if row.state == "holds" else (">", "**broken:** ")
    error = f"{row.error:.1e}" if row.error else "0"
    return f"{mark}{error} {sign} {row.bound:.1e} ({row.configurations})"
