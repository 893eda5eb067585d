import copy
import json
from pathlib import Path

import numpy as np

from minik2.plots import lesson10 as plots

RESULTS = Path(plots.__file__).parents[1] / "experiments" / "results"
RECORD, WIDE = (json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
                for name in ("muon_vs_adamw", "sparsity"))

RATE = np.minimum(np.minimum(np.arange(1, 1001) / 10, 1), np.linspace(4, 0.1, 1000))
KINDS = {"embed_tokens": (1000, "AdamW"), "mlp.gate": (50, "Muon"),
         "mlp.experts.up_proj": (3000, "Muon"), "mlp.gate.e_score_correction_bias": (8, "neither")}
DENSE = {"embed_tokens": (3000, "AdamW"), "mlp.up_proj": (1000, "Muon")}
GRID = RECORD["found"]["grid"]
RATES = RECORD["found"]["rates"]
BETTER = {"muonclip": [x - 1 for x in GRID["muonclip"]], "adamw": GRID["adamw"]}
LOST = {"muonclip": GRID["muonclip"], "adamw": [x - 1 for x in GRID["adamw"]]}


def live(gap, steps=250):
    """Two runs that end `gap` apart."""
    fall = np.linspace(5.8, 2, 11)
    return {"tokens": np.linspace(0, steps * 1024, 11).astype(int),
            "held_out": {"muonclip": list(fall), "adamw": list(fall + gap)},
            "ratio": {"muonclip": 1.3, "adamw": 1.0}}


FLAT = np.full(60, 2.0)
MARKED = np.arange(60) == 40


def dense_wins():
    """A record in which no number of experts helps."""
    changed = copy.deepcopy(WIDE)
    final = changed["found"]["final"]
    final["1"] = [1.7] * 3
    final["heads"] = [1.02 * x for x in final["4"]]
    return changed


CASES = [
    (plots.schedule, (RATE, 2**26, RATE[::4]), "K2: 0.9% of the steps rise, 23% fall"),
    (plots.owners, (KINDS,), "Muon updates 75.2% of all numbers; the routed experts are 73.9%"),
    (plots.owners, (DENSE,), "Muon updates 25.0% of all numbers; the routed experts are 0.0%"),
    (plots.tuning, (RATES, GRID), "Muon is 0.61 nats better or 0.12 worse"),
    (plots.tuning, (RATES, BETTER), "Muon's advantage is 0.88 to 1.61 nats, whoever chose"),
    (plots.tuning, (RATES, LOST), "Muon's advantage is −1.12 to −0.39 nats"),
    (plots.compared, (RECORD, live(0.12)),
     "ends 0.12 nats below AdamW, within the stored seeds' 0.09 to 0.17"),
    (plots.compared, (RECORD, live(-0.3)),
     "ends 0.30 nats above AdamW, outside the stored seeds' 0.09 to 0.17"),
    (plots.compared, (RECORD, live(0.1, 60)), "0.10 nats below AdamW, a shorter run"),
    (plots.spikes, ({"live": (FLAT, MARKED), "made": (FLAT, ~MARKED)},), "live: 1; made: 59"),
    (plots.sparsity, (WIDE, (-0.012, -0.005)),
     "64 experts beat 4 in every seed; twice the heads: −1.9% to +1.3%"),
    (plots.sparsity, (dense_wins(), (-0.012, -0.005)),
     "No number of experts beats 4 in every seed; twice the heads: +2.0% to +2.0%"),
]  # fmt: skip
