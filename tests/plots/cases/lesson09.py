import numpy as np

from minik2.plots import lesson09 as plots

STEP = np.arange(1, 41)[:, None, None]
HOT = STEP * np.linspace(2, 5, 8).reshape(2, 4)
CALM = np.minimum(HOT, 20.0)
FALLING = 5 - 0.05 * np.arange(40.0)
GAMMA = np.array([1.0, 0.5, 0.25])
BEFORE = {"q_b_proj": np.ones((18, 3)), "kv_b_proj": np.ones((24, 2))}


def clipped(value):
    """Both matrices scaled for N 4, R 2, V 4, and the value rows by what is given."""
    query = [np.repeat([g**0.5, g], [4, 2]) for g in GAMMA]
    key = [np.repeat([g**0.5, value(g)], [4, 4]) for g in GAMMA]
    return {"q_b_proj": np.concatenate(query)[:, None] * BEFORE["q_b_proj"],
            "kv_b_proj": np.concatenate(key)[:, None] * BEFORE["kv_b_proj"]}


TOPS = np.array([9.0, 12.0, 5.0, 7.0])
OWN = np.array([0.0, 0.5, 0.0, 0.0])
ALL = np.array([0.2, 0.5, 0.4, 0.1])

CASES = [
    (plots.explosion, (HOT, 30.0), "8 of 8 heads pass 30, and the largest logit reaches 200"),
    (plots.explosion, (CALM, 30.0), "0 of 8 heads pass 30, and the largest logit reaches 20"),
    (plots.changed_rows, (BEFORE, clipped(lambda g: 1), GAMMA, 4),
     "20 of 42 rows shrink, no value row among them"),
    (plots.changed_rows, (BEFORE, clipped(np.sqrt), GAMMA, 4),
     "28 of 42 rows shrink, value rows among them"),
    (plots.others_disturbed, (TOPS, {"QK-Clip": OWN}, 1),
     "Clipping head 1 leaves every other head alone"),
    (plots.others_disturbed, (TOPS, {"QK-Clip": OWN, "scaling the shared rotary key": ALL}, 1),
     "head 1 by scaling the shared rotary key moves other heads' logits, by up to 40%"),
    (plots.held, ({"plain": HOT, "clipped": CALM}, {"plain": FALLING, "clipped": FALLING}, 20.0),
     "no logit above 20 in place of 200, and the loss ends no worse"),
    (plots.held, ({"plain": HOT, "clipped": CALM},
                  {"plain": FALLING, "clipped": FALLING + 0.3}, 20.0),
     "and the loss ends 0.30 nats higher"),
    (plots.held, ({"plain": CALM, "clipped": HOT}, {"plain": FALLING, "clipped": FALLING}, 20.0),
     "Clipped, a logit reaches 200; without clipping 20"),
]  # fmt: skip
