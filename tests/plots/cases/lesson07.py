import numpy as np

from minik2.plots import lesson07 as plots
from tests.plots.cases import looking_back

rng = np.random.default_rng(0)

STEPS = 10.0 ** np.arange(0, -12.5, -0.5)


def valley(eps):
    """Bending on one side, rounding on the other."""
    return 0.3 * STEPS**2 + eps / STEPS


P = looking_back(9, 1, 0.5)
DP = rng.normal(size=P.shape)
DS = P * (DP - (P * DP).sum(1, keepdims=True))
N, G = np.array([1.2, -0.6]), np.array([1.0, 0.5])
SHIFTS = np.concatenate([np.linspace(-1, -1e-6, 20), np.linspace(1e-6, 1, 20)])
BIAS = np.linspace(-0.3, 0.3, 61)
GATE = "model.layers.1.mlp.experts.3.gate_proj.weight"
GOOD = {"model.embed_tokens.weight": 1e-15, GATE: 0.0, "lm_head.weight": 4e-15}

CASES = [
    (plots.step_sizes, (STEPS, {"float64": valley(2e-16), "float32": valley(1e-7)}, 1.0),
     "best is about 10⁻⁵ in float64, 3·10⁻³ in float32"),
    (plots.step_sizes, (STEPS, {"float64": valley(0), "float32": valley(1e-7)}, 1.0),
     "does not turn"),
    (plots.norm_plane, (N, G, G - N * (G @ N) / (N @ N)), "Only what runs along the circle"),
    (plots.norm_plane, (N, G, G), "still points along x: the cosine is 0.60"),
    (plots.attention, ("def f(x):", P, DP, DS), "it sums to 0"),
    (plots.attention, ("def f(x):", P, DP, P * DP), "Rows of dS do not sum to 0"),
    (plots.tie, (SHIFTS, np.where(SHIFTS < 0, 2.0, 1.6 + 0.1 * SHIFTS),
                 [(-0.5, 2.0, 0.0), (0.5, 1.65, 0.1)], BIAS, np.round(5 * BIAS)),
     "jumps by −0.40, and no slope knows"),
    (plots.tie, (SHIFTS, np.where(SHIFTS < 0, 2.0, 2 + 0.1 * SHIFTS),
                 [(-0.5, 2.0, 0.0), (0.5, 2.05, 0.1)], BIAS, np.zeros(61)),
     "At this tie the loss does not jump"),
    (plots.agreement, ({"autograd": GOOD, "transformers": GOOD},),
     "Against autograd and transformers: no gradient is off by more than 4e-15"),
    (plots.agreement, ({"autograd": GOOD | {GATE: 0.2}},),
     "Against autograd: a gradient is off by 2e-01"),
]  # fmt: skip
