"""The learning rate over a run: warm-up, stable, decay (WSD).

Unusual here: only the decay has to know where the end is; up to there, long runs and short ones are
the same. K2 rose over 500 steps, stayed for 10 T tokens, and fell along a cosine to a tenth over
5.5 T (arXiv 2507.20534 §2.5).
"""

import math


def wsd(step: int, steps: int, warmup: int, decay: float, final: float) -> float:
    """The share of the highest rate at `step`, counted from 1 to `steps`.

    warmup: steps of a straight rise, whose last one is at the top; decay: the share of all steps
    that fall; final: where the last step is. Where warm-up and decay overlap, the lower one holds.

    >>> [round(wsd(step, 10, 2, 0.5, 0.1), 2) for step in range(1, 11)]
    [0.5, 1.0, 1.0, 1.0, 1.0, 0.91, 0.69, 0.41, 0.19, 0.1]
    """
    rise = min(1.0, step / warmup) if warmup else 1.0
    falling = round(decay * steps)
    if not falling:
        return rise
    gone = max(0.0, (step - (steps - falling)) / falling)
    return min(rise, final + (1 - final) * (1 + math.cos(math.pi * gone)) / 2)
