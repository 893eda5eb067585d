import numpy as np

from minik2.plots import lesson05 as plots
from tests.plots.cases import TEXT

rng = np.random.default_rng(5)

SCORES = np.array([0.8, 0.4, 0.7, 0.5, 0.6, 0.2])
BIAS = np.array([-0.1, 0.0, -0.2, 0.4, 0.0, 0.1])


def gates(chosen, weights):
    """Dense gates (E,) that sum to 2."""
    out = np.zeros(len(SCORES))
    out[chosen] = 2 * weights[chosen] / weights[chosen].sum()
    return out


MANY = rng.uniform(0.1, 0.9, (len(TEXT), 6))
TWO_BEST = MANY - np.sort(MANY, 1)[:, [-2]] >= 0
MANY_GATES = np.where(TWO_BEST, MANY, 0)
MOVED = MANY_GATES.copy()
MOVED[3] = 0
MOVED[3, np.argsort(MANY[3])[[0, -1]]] = 1
CHOICE = np.array([[0.9, 0.1, 0.0, -0.2], [0.6, 0.5, 0.4, 0.1], [0.7, 0.6, 0.2, 0.1]])
BEST = CHOICE >= 0.65
NONE_LOST = CHOICE >= 0.6
NONE_LOST[0] = False
STEPS = np.linspace(0, 1, 9)[:, None]
UNEVEN = np.array([[2.0, 1.2, 0.5, 0.3]])

CASES = [
    (plots.two_questions, (SCORES, BIAS, gates([0, 3], SCORES)),
     "brings in expert 3 for expert 2, and no weight contains it"),
    (plots.two_questions, (SCORES, BIAS, gates([0, 3], SCORES + BIAS)), "it is in the weights"),
    (plots.two_questions, (SCORES, 0 * BIAS, gates([0, 2], SCORES)), "changes no choice"),
    (plots.two_questions, (SCORES, 2 * BIAS, gates([3, 4], SCORES)),
     "experts 3 and 4 for experts 0 and 2"),
    (plots.route, (TEXT, 1, 3, MANY, np.zeros(6), MANY_GATES), "the same ones without the bias"),
    (plots.route, (TEXT, 2, 3, MANY, BIAS, MOVED), "without the bias expert "),
    (plots.route, (20 * "=", 1, 17, np.tile(np.linspace(0.1, 0.9, 16), (20, 1)), np.zeros(16),
                   np.tile(np.arange(16) < 4, (20, 1)) / 2),
     "experts 0, 1, 2 and 3; 4 others without the bias"),
    (plots.variants, ({"a": (0.001, 0.0, 0.02), "b": (-0.02, 0.3, 0.1)},),
     "2 other models, only 1 of which move a choice; the loss hardly shows “a”"),
    (plots.variants, ({"a": (0.03, 0.1, 0.02), "b": (0.4, 0.3, 0.1)},),
     "“a” moves the loss least, by 0.030"),
    (plots.variants, ({"a": (0.0, 0.0, 0.0), "b": (0.4, 0.3, 0.1)},), "“a” is the same model"),
    (plots.groups, (CHOICE, BEST, NONE_LOST, 2), "1 of the 2 best experts cannot be chosen"),
    (plots.groups, (CHOICE, NONE_LOST, NONE_LOST, 2), "for this token they change nothing"),
    (plots.rule_at_work, (UNEVEN * (1 - STEPS) + STEPS, -STEPS * (UNEVEN - 1)),
     "from 2.0 to 1.0 times"),
    (plots.rule_at_work, (UNEVEN * (1 + STEPS), STEPS * UNEVEN), "does not help"),
    (plots.shared_part, (np.array([5.0, 4.0]), np.array([1.0, 2.0]),
                         {"all": 1.5, "without a": 1.6, "without b": 1.9}, [1, 2]),
     "loses most without b: 0.400 nats"),
    (plots.shared_part, (np.array([1.0, 2.0]), np.array([5.0, 4.0]),
                         {"all": 1.5, "without a": 1.9, "without b": 1.6}, [1, 2]),
     "loses most without a: 0.400 nats"),
]  # fmt: skip
