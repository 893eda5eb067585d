import numpy as np

from minik2.config import ModelConfig
from minik2.plots import lesson03 as plots
from tests.plots.cases import TEXT, looking_back

TINY = ModelConfig.preset("tiny")
NOISE = np.full(len(TEXT), 3e-16)
SAME = looking_back(len(TEXT), 1, 0.6)
GRID = (1, 8, 64, 512)
RISING, FLAT = (1.0, 4.0, 30.0, 300.0), (10.0, 10.0, 20.0, 100.0)

CASES = [
    (plots.stacked_cache,
     ({"MHA": {"keys": 600, "rotary keys": 100, "values": 800},
       "MLA": {"latents": 400, "rotary keys": 100}}, TINY, 1000),
     "3.0 times smaller than that of MHA"),
    (plots.stacked_cache,
     ({"MQA": {"keys": 100, "values": 100},
       "MLA": {"latents": 400, "rotary keys": 100}}, TINY, 1000),
     "not smaller than that of MQA: 2.5 times its size"),
    (plots.same_weights, (TEXT, SAME, SAME + 2e-16 * (SAME > 0.5)), "the same weights"),
    (plots.same_weights, (TEXT, SAME, looking_back(len(TEXT), 2, 0.6)), "not the same weights"),
    (plots.token_by_token, (TEXT, {"NumPy": NOISE, "torch": 2 * NOISE}, 2.0),
     "22 tokens one by one are 22 tokens at once, to 3e-16"),
    (plots.token_by_token, (TEXT, {"NumPy": NOISE, "torch": NOISE + 0.8}, 2.0),
     "something else than all at once: off by 0.4"),
    (plots.three_ways, ({"keep": (1e12, 9e11, 9e11), "form": (5e13, 2e12, 1e10),
                         "absorb": (4e12, 1e10, 1e10)}, 1000),
     "Absorbing moves the fewest bytes, with 4.0 times the fewest operations"),
    (plots.three_ways, ({"keep": (1e12, 1e9, 9e11), "absorb": (1e11, 1e10, 1e10)}, 1000),
     "does not move the fewest bytes, with the fewest operations"),
    (plots.crossover, (GRID, {"operations": (RISING, FLAT), "seconds": (RISING, FLAT)}, 100),
     "1 new is 10.0 times faster absorbed, 512 new are 3.0 times faster expanded"),
    (plots.crossover, (GRID, {"seconds": (FLAT, RISING)}, 100),
     "1 new is 10.0 times faster expanded, 512 new are 3.0 times faster absorbed"),
    (plots.crossover, (GRID, {"seconds": (RISING, (1.0, 5.0, 31.0, 301.0))}, 100),
     "1 new is as fast either way, 512 new are as fast either way"),
]  # fmt: skip
