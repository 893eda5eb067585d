import numpy as np

from minik2.plots import lesson06 as plots

CHOSEN = np.array([[2, 0], [0, 3], [2, 3], [0, 2]])
OFFSETS = np.array([0, 3, 3, 6, 8])
ORDER = np.argsort(CHOSEN.reshape(-1), kind="stable")
EIGHT = np.arange(8)

EVEN = np.full((80, 8), 10)
FEW = np.where(EIGHT < 2, 40, 0) + 0 * EVEN
MIXED = np.concatenate([FEW[:40], EVEN[40:]])
FALLING = np.linspace(5, 2, 80)
BIAS = np.linspace(0, 0.5, 40)[:, None] * np.where(EIGHT < 2, -1, 1)


def arms(without, later, always):
    return {"without": without, "switched on": later, "always": always}


def times(**ways):
    return {name.replace("_", " "): [ms, 1.2 * ms, 0.9 * ms] for name, ms in ways.items()}


CASES = [
    (plots.sorting, (CHOSEN, ORDER, OFFSETS), "8 rows make 3 products"),
    (plots.sorting, (CHOSEN, EIGHT, OFFSETS), "leaves 3 experts in 7 pieces"),
    (plots.staircase, (CHOSEN, ORDER, 4), "7 pieces before the sort, 3 after it: one for every"),
    (plots.staircase, (CHOSEN, EIGHT, 4), "7 after it: though only 3 experts are busy"),
    (plots.timings, ({"wide": times(definition=40, sorted=2), "narrow": times(definition=9,
                                                                              sorted=6)},
                     "definition"),
     "Against the definition: 20 times and 1.5 times faster"),
    (plots.timings, ({"wide": times(definition=2, sorted=40), "narrow": times(definition=9,
                                                                              sorted=6)},
                     "definition"),
     "The definition is not beaten everywhere"),
    (plots.loads_over_steps, (arms(FEW, MIXED, EVEN), 40, 2),
     "Collapsed and cured: the busiest expert ends at 4.0 times its share without the bias, 1.0"),
    (plots.loads_over_steps, (arms(FEW, FEW, EVEN), 40, 2), "Not cured: the busiest"),
    (plots.cost, (arms(FEW, MIXED, EVEN), arms(FALLING, FALLING, FALLING - 0.25), 40),
     "violation 3.0 → 0.0, loss −0.25"),
    (plots.cost, (arms(EVEN, MIXED, FEW), arms(FALLING, FALLING, FALLING + 0.5), 40),
     "violation 0.0 → 3.0, loss +0.50"),
    (plots.cure, (BIAS, MIXED, 40), "lifts an idle expert by 0.50, lowers a busy one by 0.50: "
                                    "violation 3.0 → 0.0"),
    (plots.cure, (-BIAS, FEW, 40), "the loads did not even out"),
]  # fmt: skip
