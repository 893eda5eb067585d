import numpy as np

from minik2.config import ModelConfig
from minik2.plots import lesson00 as plots
from minik2.sizing import parameters
from tests.plots.cases import TEXT, looking_back

rng = np.random.default_rng(0)


def letters_by_kind(spread):
    """Rows for 26 small letters, 10 digits, 4 signs; kinds in directions of their own, or noise."""
    signs = "abcdefghijklmnopqrstuvwxyz0123456789.,:;"
    kind = np.array([0] * 26 + [1] * 10 + [2] * 4)
    return signs, 10 * spread * np.eye(16)[kind] + rng.normal(size=(40, 16))


TABLES = {"a blind guess": 5.55, "a table": 2.4}
MODELS = {name: parameters(ModelConfig.preset(name)) for name in ("small", "kimi-k2")}
DENSE = parameters(ModelConfig.preset("tiny").replace(first_k_dense_replace=99, n_shared_experts=1))

CASES = [
    (plots.loss_curve, ([5, 3, 2, 2], {0: 5.8, 2: 2.2, 4: 2.0}, TABLES), "After 2 steps the"),
    (plots.loss_curve, ([5, 3, 2, 2], {0: 5.8, 2: 2.2, 4: 2.0}, TABLES), "than a table can"),
    (plots.loss_curve, ([5, 5, 4, 4], {0: 5.8, 4: 4.0}, TABLES), "than a blind guess can"),
    # Below the table once, and above it at the end, is not better than the table.
    (plots.loss_curve, ([5, 2, 4, 4], {0: 5.8, 2: 2.0, 4: 4.0}, TABLES), "than a blind guess"),
    (plots.loss_curve, ([5, 6, 6, 6], {0: 5.8, 4: 6.0}, TABLES), "beat no yardstick yet"),
    (plots.surprise, (TEXT, np.full(22, 5.5), np.tile([1.0, 3.0], 11)), "From 5.5 to 2.0 nats"),
    (plots.surprise, (TEXT, np.full(22, 5.5), np.full(22, 6.0)), "did not help"),
    (plots.surprise, ("no end", np.full(6, 5.5), np.ones(6)), "From 5.5 to 1.0 nats"),
    (plots.embedding, letters_by_kind(1), "have found their kind: 100%"),
    (plots.embedding, letters_by_kind(0), "do not know their kind"),
    (plots.latents, (TEXT[:9], *np.split(rng.normal(size=(9, 64)), [48], 1), 288, 1),
     "keeps of a token: 64 numbers, where keys and values would be 288"),
    (plots.attention, (TEXT, looking_back(22, 1, 0.9), 1, 2), "head 2 of layer 1 looks one "),
    (plots.attention, (TEXT, looking_back(22, 3, 0.9), 1, 2), "looks 3 bytes back, with 9"),
    (plots.attention, (TEXT, looking_back(22, 0, 0.9), 1, 2), "looks at the byte itself"),
    (plots.attention, (TEXT, looking_back(22, 3, 0.0), 0, 3), "has no favourite distance"),
    (plots.router, (TEXT, np.eye(16)[np.arange(22) % 16], 1, 0.8, 0.4),
     "In layer 1 two copies of a byte share 80% of their experts, two different bytes 40%"),
    (plots.router, (TEXT, np.eye(16)[np.arange(22) % 16], 1, 0.4, 0.4), "hardly more"),
    (plots.where_parameters, (MODELS,),
     "98.9% of kimi-k2's parameters are routed experts; a token meets 3.2% of all"),
    (plots.where_parameters, ({"dense": DENSE},), "layers, router, norms; a token meets 100.0%"),
]  # fmt: skip
