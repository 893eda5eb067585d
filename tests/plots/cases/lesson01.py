import numpy as np

from minik2.plots import lesson01 as plots
from tests.plots.cases import TEXT, looking_back

rng = np.random.default_rng(0)


def scores(shift):
    """Scores (T, T) that depend on the distance, and by `shift` on the position as well."""
    m, n = np.mgrid[:12, :12]
    return np.cos(m - n) + shift * m


SIX = np.arange(6)
SPOTS = np.arange(22)[:, None]
MASKED = np.where(np.tri(5, dtype=bool), rng.normal(size=(5, 5)), -np.inf)

CASES = [
    (plots.order, (["a", "b"], looking_back(2, 1, 0.5), looking_back(2, 1, 0.5)[::-1, ::-1],
                      [1, 0]), "nothing knows the order"),
    (plots.order, (["a", "b"], looking_back(2, 1, 0.5), looking_back(2, 1, 0.5), [1, 0]),
     "now the order counts"),
    (plots.causal_mask, (np.ones((5, 5)), MASKED, np.tri(5) / 5), "removes the future"),
    (plots.causal_mask, (np.ones((5, 5)), MASKED, np.full((5, 5), 0.2)), "up to 80%"),
    (plots.clock_hands, (np.cos(np.outer(SIX, [0, 1, 1, 2])), np.array([1.0, 0.1])),
     "each is slower"),
    (plots.clock_hands, (np.cos(np.outer(SIX, [0, 1, 1, 2])), np.array([1.0, 1.0])),
     "not every one is slower"),
    (plots.relative, (scores(0),), "on nothing else"),
    (plots.relative, (scores(1),), "more than the difference: at one it varies by 11"),
    (plots.layouts, (np.array([0, 2, 1, 3]),), "one permutation apart"),
    (plots.layouts, (np.array([0, 2, 2, 3]),), "no permutation"),
    (plots.one_head, (TEXT, looking_back(22, 1, 0.9)), "at least 90% of the weight is one"),
    (plots.one_head, (TEXT, looking_back(22, 3, 0.9)), "In one row only "),
    # One row that does not look back is not made up for by the others.
    (plots.one_head, (TEXT, np.where(SPOTS == 9, looking_back(22, 3, 0.85),
                                        looking_back(22, 1, 0.9))), "In one row only 1% "),
    (plots.wavelengths, (2 * np.pi / np.array([4.0, 100.0, 5000.0]), 4096, 131072),
     "2 of K2's 3 pairs make a full turn within 4,096 tokens"),
]  # fmt: skip
