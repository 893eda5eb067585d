"""What an entry is given: the training text, a seed, and a clock that runs out.

Unusual here: a run has no number of steps. It has a share of its time that is gone, by which rates
can rise and fall, so that the same script is a whole run in five minutes and in one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from minik2.training.corpus import Corpus

Array = np.ndarray[Any, np.dtype[Any]]
# tell(what, facts) of judge.py.
Tell = Callable[[str, dict[str, Any]], None]


class NotFinite(ValueError):
    """A loss that is no number to go on with."""


class Run:
    """One training run of an entry; `train(run)` is given one.

    seed: for the first weights, and whatever else the entry draws; what `batch` draws hangs on it
    too. threads: of the CPU, set before the run. text: the training bytes, uint8, one file after
    the other. made: steps so far; tokens: drawn by `batch` so far.
    """

    def __init__(
        self, corpus: Corpus, seed: int, threads: int, seconds: float,
        clock: Callable[[], float], tell: Tell = lambda what, facts: None,
    ) -> None:  # fmt: skip
        """The clock starts now: it is called for the time, in seconds."""
        self.seed, self.threads, self.seconds = seed, threads, seconds
        self.text = corpus.bytes["train"]
        self.made = self.tokens = 0
        self._corpus, self._clock, self._tell = corpus, clock, tell
        self._rng = np.random.default_rng(seed)
        self._loss: float | None = None
        self._began = clock()

    def used(self) -> float:
        """Seconds since the clock started."""
        return self._clock() - self._began

    def steps(self) -> Iterator[float]:
        """Goes on while there is time: the share of it that is gone, from 0 to below 1, each step.

        The step in hand when time runs out is finished.
        """
        while (gone := self.used() / self.seconds) < 1:
            yield gone
            self.made += 1
            self._tell("step", {"seconds": self.used(), "made": self.made, "loss": self._loss})

    def batch(self, windows: int, length: int) -> tuple[Array, Array]:
        """Windows from random places of the training text: tokens and targets, int64 (B, T) each.

        targets[b, t] is the byte that follows tokens[b, t]. Raises ValueError for lengths that do
        not fit the text.
        """
        drawn = self._corpus.sample("train", windows, length, self._rng)
        self.tokens += drawn[0].size
        return drawn

    def note(self, loss: float) -> None:
        """Tell the judge the loss of this step, in nats a byte, for the bar.

        Raises NotFinite, which ends the run, where it is no number: the rest would be wasted.
        """
        self._loss = float(loss)
        if not math.isfinite(self._loss):
            raise NotFinite(
                f"The loss of step {self.made + 1} is {self._loss}: training went astray. A lower "
                "rate, or gradients shortened to a length, help as a rule."
            )
