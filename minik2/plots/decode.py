"""Decoding: tokens a second over the context beside the machine's limit, and time as a line.

Unusual here: drawn from the benchmark's record alone, the title too.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

import numpy as np

from minik2.plots.common import (
    FAINT,
    INK,
    LATENT,
    SECOND,
    SOFT,
    TODAY,
    Picture,
    picture,
    styled,
)  # fmt: skip

LOOKS = {"reference": ("o-", LATENT), "reference bfloat16": ("s--", LATENT),
         "pytorch": ("^-", TODAY), "transformers": ("v-", SECOND)}  # fmt: skip


@styled
def decode(record: Mapping[str, Any]) -> Picture:
    """The record of `benchmarks.decode`: engines over the contexts that were measured."""
    engines = record["engines"]
    ours = engines["reference"]
    contexts = [int(name) for name in ours["share_of_limit"]]
    speed = {name: [e["tokens_per_second"][str(c)] for c in contexts]
             for name, e in engines.items()}  # fmt: skip
    limit = [ours["tokens_per_second"][str(c)] / ours["share_of_limit"][str(c)] for c in contexts]
    times = [ours["times_transformers"][str(c)] for c in (contexts[0], contexts[-1])]
    shares = [ours["share_of_limit"][str(c)] for c in (contexts[0], contexts[-1])]
    figure, (left, right) = picture(
        f"The reference: {shares[0]:.0%} of the limit at {contexts[0]:,} tokens, {shares[1]:.0%} "
        f"at {contexts[-1]:,}; {times[0]:.1f} and {times[1]:.1f} times transformers",
        10.5, 3.8, columns=2)  # fmt: skip
    left.plot(contexts, limit, color=INK, linewidth=1.2, dashes=(5, 3), label="limit, float32")
    for name, values in speed.items():
        look, colour = LOOKS[name]
        left.plot(contexts, values, look, color=colour, label=name)
        right.plot(contexts, [1e3 * median(engines[name]["seconds"][str(c)]) for c in contexts],
                   look, color=colour)  # fmt: skip
    for axes in (left, right):
        axes.set(xticks=contexts, xlabel="tokens in the cache")
    left.set(xscale="log", yscale="log", title="tokens a second")
    left.set_xticks(contexts, [f"{c:,}" for c in contexts])
    left.set_yticks([10, 30, 100, 300, 1000], ["10", "30", "100", "300", "1,000"])
    left.minorticks_off()
    low, high = (f(v for each in [*speed.values(), limit] for v in each) for f in (min, max))
    left.set_ylim(low / 1.2, high * 1.2)
    left.legend(fontsize=8.5)
    slope = engines["transformers"]["nanoseconds_a_cached_token"] / ours[
        "nanoseconds_a_cached_token"]  # fmt: skip
    top = 1.3e3 * max(median(engines[n]["seconds"][str(contexts[-1])])
                      for n in engines if n != "transformers")  # fmt: skip
    right.set(title="milliseconds a token", ylim=(0, top))
    right.set_xticks(contexts[1:], [f"{c:,}" for c in contexts[1:]])
    grown = np.interp(top, [1e3 * median(engines["transformers"]["seconds"][str(c)])
                            for c in contexts], contexts)  # fmt: skip
    right.annotate(f"transformers rises {slope:.0f} times as fast", (grown, 0.97 * top),
                   (grown + 0.08 * contexts[-1], 0.9 * top), fontsize=8.5, color=SOFT, va="center",
                   arrowprops={"arrowstyle": "-", "color": FAINT})  # fmt: skip
    return figure
