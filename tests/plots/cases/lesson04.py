import numpy as np

from minik2.plots import lesson04 as plots

# Four pairs; within 16 tokens the first two make a turn and more.
SPEEDS = np.array([1.0, 0.5, 0.1, 0.02])
STEP = SPEEDS / np.array([1, 1, 4, 4])
RAMP = SPEEDS / np.array([1, 2, 4, 4])
PEAK = np.array([0.9, 1.0, 0.9, 0.7])
FLAT = np.array([0.9999, 1.0, 0.9999, 0.999])
FAR = np.array([1, 16, 64])
INSIDE, LEFT = np.zeros(3), np.array([0.0, 0.0, 0.6])
FACTORS = np.array([1.0, 8.0, 64.0])
KEYS = np.array([16, 128, 1024])
MODELS = {"one": (8.0, 1.46), "two": (64.0, 2.0)}
POSITIONS = np.arange(256)
NEAR = np.where(POSITIONS < 32, 1 / 32, 0.0)
SPREAD = np.full(256, 1 / 256)

CASES = [
    (plots.angles, ({"unchanged": SPEEDS}, SPEEDS, 16, 64, [0, 2, 3]),
     "angles that 16 tokens never showed: unchanged 2 of 4"),
    (plots.angles, ({"unchanged": SPEEDS, "YaRN": STEP}, SPEEDS, 16, 64, [0, 2, 3]),
     "unchanged 2 of 4, YaRN 0"),
    # Slowed by half of what it takes.
    (plots.angles, ({"too little": SPEEDS / 2}, SPEEDS, 16, 64, [0, 3]), "too little 2 of 4"),
    (plots.prices, ({"a": PEAK, "b": FLAT}, FAR, {"a": LEFT, "b": INSIDE}, 16),
     "Each way has its price"),
    (plots.prices, ({"a": PEAK, "b": FLAT, "c": PEAK}, FAR,
                    {"a": LEFT, "b": INSIDE, "c": INSIDE}, 16), "stays within what was seen: c"),
    (plots.ramps, ({"K": (SPEEDS, STEP), "V": (SPEEDS, RAMP)}, 16),
     "K steps: 2 kept, 2 divided; V ramps: 1 kept, 1 blended, 2 divided"),
    (plots.ramps, ({"nothing": (SPEEDS, SPEEDS)}, 16), "nothing steps: 4 kept, 0 divided"),
    (plots.temperature, ((FACTORS, FACTORS), MODELS, KEYS, np.array([0.05, 0.01, 0.001]),
                         np.array([0.05, 0.05, 0.06])),
     "64 times the keys: the one that fits goes from 5.0% to 0.1%; scores × 1.46 make it 6.0%"),
    (plots.temperature, ((FACTORS, FACTORS), MODELS, KEYS, np.array([0.05, 0.1, 0.2]),
                         np.array([0.05, 0.05, 0.01])), "from 5.0% to 20.0%"),
    (plots.loss_by_position, ({"a": 1.0 + (POSITIONS >= 64), "b": 1.5 + 0 * POSITIONS}, 64),
     "Past 64 tokens: a 2.00 nats, b 1.50"),
    (plots.loss_by_position, ({"a": 1.0 + 0 * POSITIONS, "b": 1.1 + 0 * POSITIONS}, 64),
     "much the same: 1.00 to 1.10 nats"),
    (plots.where_it_looks, ({"inside": NEAR, "a": SPREAD, "b": NEAR}, 64, 2, 3),
     "Head 3 of layer 2: 75% of its weight lies beyond 64 tokens; with b 0%"),
    (plots.where_it_looks, ({"inside": NEAR, "a": NEAR, "c": NEAR, "b": SPREAD}, 64, 0, 1),
     "0% of its weight lies beyond 64 tokens; with b 75%"),
    (plots.sharpness, (np.array([0.8, 1.0, 1.4, 2.0]), np.array([2.5, 2.3, 2.1, 2.2]), 1.4, 64),
     "× 1.40: 0.20 nats better than × 1. Best of these: × 1.40"),
    (plots.sharpness, (np.array([0.8, 1.0, 1.4, 2.0]), np.array([2.5, 2.3, 2.5, 2.6]), 1.4, 64),
     "0.20 nats worse than × 1. Best of these: × 1.00"),
]  # fmt: skip
