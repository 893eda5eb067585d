import numpy as np

from minik2.config import ModelConfig
from minik2.plots import lesson02 as plots

SMALL = ModelConfig.preset("small")
rng = np.random.default_rng(0)

SIZES = np.arange(13)
STEEP, FLAT = (np.sqrt(np.maximum(1 - SIZES / 8, 0)) ** power for power in (8, 0.5))
WITHOUT = np.sqrt(np.maximum(1 - SIZES / 20, 0))
LOSSES = {1: 2.1, 4: 1.9, 8: 1.8}

DISTANCES = [0, 1, 2, 4, 8]
ROUNDING, GROWING = np.full(5, 2e-16), np.array([0, 0.1, 0.2, 0.4, 0.8])

NOISE = rng.normal(size=(24, 24))
BY_DISTANCE = 3 * np.cos(0.3 * np.subtract.outer(np.arange(24), np.arange(24)))

MLA = {"q_a_proj": 10_000_000, "q_b_proj": 20_000_000, "kv_a_proj_with_mqa": 4_000_000,
       "kv_b_proj": 6_000_000, "o_proj": 60_000_000}  # fmt: skip
PLAIN = {"q_proj": 80_000_000, "k_proj": 60_000_000, "v_proj": 60_000_000, "o_proj": 50_000_000}

CASES = [
    (plots.widths, (SMALL,), "64 numbers of a token carry all 288"),
    (plots.widths, (ModelConfig.preset("kimi-k2"),), "576 numbers of a token carry all 20,480"),
    (plots.widths, (SMALL.replace(kv_lora_rank=400),), "No bottleneck here: 416 numbers for 288"),
    (plots.rank, (STEEP, WITHOUT, LOSSES, 8), "4 of 8 numbers hold all but 10%"),
    (plots.rank, (FLAT, WITHOUT, LOSSES, 8), "All 8 numbers are needed to lose less than 10%"),
    (plots.one_matrix, (DISTANCES, ROUNDING, GROWING, GROWING / 2),
     "no one matrix serves, and the mean of all is up to 40% off"),
    (plots.one_matrix, (DISTANCES, ROUNDING, ROUNDING, ROUNDING), "One matrix serves"),
    (plots.two_parts, (NOISE, NOISE + BY_DISTANCE, 3, 2), "Distance alone explains "),
    (plots.two_parts, (NOISE + BY_DISTANCE, NOISE, 3, 2), "explains no more of the rotary part"),
    (plots.projections, (MLA, PLAIN, "K2"),
     "K2: latents leave 40% of the weights, and o_proj is 60% of these"),
    (plots.projections, (PLAIN, MLA, "K2"), "with latents the block has 2.50 times the weights"),
]  # fmt: skip
