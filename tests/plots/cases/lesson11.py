import numpy as np

from minik2.plots import lesson11 as plots

BATCHES = [1, 4, 16, 64]
SIZES = np.array(BATCHES, float)
SHARE = 1 - 0.75**SIZES
READ = {"always": np.full(4, 12e9), "experts": 900e9 * SHARE, "cache": 2e9 * SIZES}
SHARES = {"formula": SHARE, "drawn": SHARE[:3], "real": 0.9 * SHARE[:3]}
NONE = {name: np.zeros(4) for name in READ} | {"always": np.full(4, 12e9)}

RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(20, 33))
SCALES = np.abs(WEIGHT).max() / 448 * np.ones((3, 5))

CASES = [
    (plots.what_is_read, (BATCHES, READ, SHARES, 16),
     "With 16 sequences at a time a token costs 4 times fewer bytes than alone"),
    (plots.what_is_read, (BATCHES, READ, SHARES, 0), "Not one sequence fits into memory"),
    (plots.what_is_read, (BATCHES, NONE, SHARES, 100),
     "a token costs 64 times fewer bytes than alone"),
    (plots.fp8_blocks, (WEIGHT, 1.02 * WEIGHT, SCALES, 8),
     "660 weights, 15 scales: what comes back is 2.0% off"),
    (plots.fp8_blocks, (WEIGHT, WEIGHT, SCALES, 8), "what comes back is 0.0% off"),
]  # fmt: skip
