"""The exercises' checks: a ladder that says what it saw, and names known misconceptions.

>>> from minik2.checks import check
>>> r = check("rope.to_halves", lambda size: list(range(0, size, 2)) + list(range(1, size, 2)))
>>> r.passed
True
"""

from minik2.checks.exercise import Exercise, exercises, find
from minik2.checks.ladder import check
from minik2.checks.result import Result

__all__ = ["Exercise", "Result", "check", "exercises", "find"]
