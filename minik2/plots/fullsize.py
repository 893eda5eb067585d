"""The figure of a pass through a model of real size: the experts that its tokens went to.

Unusual here: one dot is one expert, 44 million weights in K2, so that the white between the dots is
what a token leaves alone.
"""

from __future__ import annotations

import numpy as np
from matplotlib.ticker import MaxNLocator

from minik2.config import ModelConfig
from minik2.fullsize import Report
from minik2.plots.common import FAINT, SOFT, TODAY, Picture, picture, styled


@styled
def route(made: Report, cfg: ModelConfig) -> Picture:
    """Each layer's chosen experts, and on the right the seconds that the layer took.

    made: what `fullsize.run` found for `cfg`, finished or not, with at least one layer of experts.
    Raises ValueError where there is none.
    """
    if not made.chosen:
        raise ValueError("No layer with experts was gone through, so there is no route to draw; "
                         "ask for more layers.")  # fmt: skip
    first, experts = cfg.first_k_dense_replace, cfg.n_routed_experts
    hits = [np.bincount(np.ravel(chosen), minlength=experts) for chosen in made.chosen]
    most = max(int(row.max()) for row in hits)
    of, met = experts * len(hits), sum(np.count_nonzero(row) for row in hits)
    who = "1 token meets" if made.tokens == 1 else f"{made.tokens:,} tokens meet"
    figure, (left, right) = picture(
        f"{who} {met:,} of {of:,} experts, {met / of:.1%}, in {made.measured.seconds:.3g} s",
        9.6, 4.4, columns=2, width_ratios=(4, 1))  # fmt: skip
    for layer in range(made.done):
        left.axhline(layer, color=FAINT, linewidth=0.6, zorder=0)
    for layer, row in enumerate(hits, first):
        place = np.nonzero(row)[0]
        left.scatter(place, np.full(len(place), layer), 6 + 24 * (row[place] - 1) / most,
                     color=TODAY, linewidths=0)  # fmt: skip
    size = " (the larger the dot, the more tokens)" if made.tokens > 1 else ""
    left.set(title=f"experts chosen in each layer{size}", xlabel="expert", ylabel="layer",
             xlim=(-0.01 * experts, 1.01 * experts), ylim=(made.done - 0.5, -0.5))
    right.barh(range(made.done), made.layer_seconds, color=SOFT, height=0.7)
    right.set(title="seconds a layer", ylim=(made.done - 0.5, -0.5), xlabel="seconds")
    for axes in (left, right):
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return figure
