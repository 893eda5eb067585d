import numpy as np

from minik2.plots import lesson12 as plots

EVEN = np.full((4, 4), 5)
UNEVEN = np.array([[6, 1, 1, 2], [7, 2, 0, 1], [5, 1, 3, 1], [4, 2, 2, 2]])
HOME = np.diag([9, 9, 9])
CALM = np.full((2, 8), 30)
BUSY = np.array([[1, 2, 3, 4, 50, 6, 7, 8], [9, 1, 1, 2, 3, 60, 1, 1]])

rng = np.random.default_rng(12)
ORTHOGONAL = np.linalg.qr(rng.normal(size=(20, 12)))[0].T  # rows of length 1
ALIKE = np.concatenate([ORTHOGONAL[:4]] * 3)

ALONE = np.linspace(5, 3, 6)
LAYOUTS = {"2 × 2": ALONE * (1 + 2e-16 * np.arange(6)), "1 × 4": ALONE}
BYTES = {"2 × 2": {"gather": 3e5, "scatter": 2e5, "exchange": 1e5},
         "1 × 4": {"gather": 2e5, "scatter": 1e5, "exchange": 2e5}}


def but_for(kind, share):
    return {name: own | {kind: own[kind] * share} for name, own in BYTES.items()}


CASES = [
    (plots.traffic, (UNEVEN,), "68% of the rows leave their rank, and rank 0 gets 2.20 times"),
    (plots.traffic, (EVEN,), "75% of the rows leave their rank, and every rank gets its share"),
    (plots.traffic, (HOME,), "0% of the rows leave their rank"),
    (plots.buffers, (UNEVEN,), "all buffers hold 10 rows; after, from 6 to 22"),
    (plots.buffers, (np.array([[1, 2], [3, 1]]),), "sorted by destination is now sorted by sender"),
    (plots.imbalance, (BUSY,), "of 2 ranks gets 1.75 times its share, of 8 ranks 6.15 times"),
    (plots.imbalance, (CALM,), "However many ranks, each gets its share"),
    (plots.pieces, (ORTHOGONAL, ALIKE, 3), "singular values reach 1.73 in place of 1.00"),
    (plots.pieces, (ORTHOGONAL, ORTHOGONAL, 3), "the singular values are no larger here"),
    (plots.same_run, (LAYOUTS, ALONE), "Every layout has the loss of one process, to 1e-15"),
    (plots.same_run, ({"2 × 2": 1.2 * ALONE}, ALONE), "differ from one process's, by up to 20.0%"),
    (plots.wire, (BYTES, BYTES), "Predicted and counted bytes are the same"),
    (plots.wire, (BYTES, but_for("exchange", 1.07)), "gather, scatter; the rest to 7%"),
    (plots.wire, (BYTES, but_for("gather", 0.5)), "scatter, exchange; the rest to 50%"),
]  # fmt: skip
