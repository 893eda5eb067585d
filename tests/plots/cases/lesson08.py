import numpy as np

from minik2.plots import lesson08 as plots

rng = np.random.default_rng(0)

START = np.geomspace(1e-4, 1, 200)


def steep(slope):
    return np.minimum(slope * START, 1.0)


VALUES = np.array([np.geomspace(low, 0.8, 20) for low in (1e-3, 4e-3, 1e-2, 5e-2, 0.2, 0.7)])
REAL = np.geomspace(1e-3, 0.8, 20)
SHAPES = ["16 × 128", "64 × 128", "384 × 128"]
EVEN, UNEVEN = np.array([0.18, 0.19, 0.18]), np.array([0.05, 0.09, 0.09])
NORMS = np.linspace(0.1, 1, 6)
FULL, POOR = rng.uniform(0.7, 1.1, (6, 8)), rng.uniform(0, 0.4, (6, 8))
EACH, FLAT = "each by itself", "flattened"
RATIOS = np.geomspace(1, 32, 30)
ERRORS = {"1 + 1 + 1 + 1 + 1": 1e-6, "3 + 2": 2e-6, "5": 1e-3}

CASES = [
    (plots.steps, (VALUES,), "1 of 20 singular values before, 20 after 5 steps"),
    (plots.steps, (VALUES[::-1],), "20 of 20 singular values before, 1 after 5 steps"),
    (plots.slopes, (START, {"Muon": steep(485), "textbook": steep(7.6)}, REAL),
     "Brought past a half: above 0.001 by Muon, 0.065 by textbook"),
    (plots.slopes, (START, {"Muon": steep(3), "textbook": steep(7.6)}, REAL),
     "does not reach smaller"),
    (plots.sizes, (SHAPES, {"nothing": UNEVEN, "0.2 √max": EVEN}), "is 1.06 times the smallest"),
    (plots.sizes, (SHAPES, {"nothing": EVEN, "0.2 √max": UNEVEN}), "does not even out"),
    (plots.experts, (NORMS, {EACH: FULL, FLAT: POOR}, {EACH: EVEN.repeat(2), FLAT: NORMS}),
     "100% stay below a half when flattened, 0% each by itself"),
    (plots.experts, (NORMS, {EACH: FULL, FLAT: FULL}, {EACH: EVEN.repeat(2), FLAT: NORMS}),
     "no harm"),
    (plots.cost, (RATIOS, 0.5 - 1 / RATIOS, ERRORS), "the run of 5 is the least exact"),
    (plots.cost, (RATIOS, -1 / RATIOS, ERRORS), "save nothing"),
]  # fmt: skip
