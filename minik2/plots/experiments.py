"""The figures of the experiments, each drawn from its results file alone.

Unusual here: titles are put together from the record's numbers, so that a claim which did not come
true cannot stand above a curve that shows it. Bands reach from the least seed to the most; there
are too few of them for anything finer. Blue and orange mean the latent and the rotary part in this
course, so nothing here has either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, NullLocator

from minik2.plots.common import (
    AMOUNT,
    INK,
    PLAIN,
    SECOND,
    SOFT,
    TODAY,
    Picture,
    heat,
    minus,
    picture,
    styled,
)

Array = np.ndarray[Any, np.dtype[Any]]
Record = Mapping[str, Any]

NAMES = {"muonclip": "MuonClip", "muon": "Muon", "adamw": "AdamW"}
LOOKS = {"muonclip": (TODAY, "-"), "muon": (SECOND, "-"), "adamw": (SECOND, "--")}
ARM_LOOKS = [(INK, "-"), (TODAY, "--"), (PLAIN[3], "-"), (PLAIN[3], ":"), (SECOND, "-")]
LOSS = "held-out loss, nats a byte"


@styled
def muon_vs_adamw(record: Record) -> Picture:
    """Last losses by rate, then the best runs' losses by tokens and by seconds."""
    found, settings = record["found"], record["settings"]
    tokens = settings["batch"] * settings["accumulate"] * settings["window"]
    gap, seconds = found["muon_minus_adamw"]["mean"], found["step_seconds_alone"]
    title = (f"MuonClip ends {abs(gap):.2f} nats {'below' if gap < 0 else 'above'} AdamW"
             + _shares(found))  # fmt: skip
    figure, (rates, by_tokens, by_seconds) = picture(title, 12, 3.8, 1, 3)
    for name, losses in found["grid"].items():
        colour, dash = LOOKS[name]
        values = np.array(losses, float)  # None, a run that diverged, is NaN here
        best = int(np.nanargmin(values))
        rates.plot(found["rates"], values, dash, marker="o", markersize=4, color=colour)
        rates.plot(found["rates"][best], values[best], "o", markersize=10, color=colour,
                   fillstyle="none")  # fmt: skip
        steps, losses = _curves(found["curves"][name])
        for axes, unit in ((by_tokens, tokens), (by_seconds, seconds[name])):
            _band(axes, steps * unit, losses, colour, dash, NAMES[name])
    target = np.mean(found["final"]["adamw"])
    for axes in (by_tokens, by_seconds):
        axes.axhline(target, color=SOFT, linewidth=1, linestyle=":")
    own = _mean(found["share_of_own_length"])
    shorter = {float(share): np.mean(losses) for share, losses in found["shorter"].items()}
    lengths = np.array([share for share in shorter if share < 1])
    by_tokens.plot(lengths * settings["steps"] * tokens, [shorter[s] for s in lengths], "D",
                   color=TODAY, markersize=5, fillstyle="none",
                   label="MuonClip, shorter runs")  # fmt: skip
    rates.set(xscale="log", xlabel="highest learning rate, thousandths", ylabel=LOSS)
    rates.set_xticks(found["rates"], [f"{1000 * rate:g}" for rate in found["rates"]])
    rates.xaxis.set_minor_locator(NullLocator())
    rates.set_title("same rates for both, one seed; best ringed")
    by_tokens.set_title("by token" if own is None else
                        f"by token: {own:.0%} of them, the rate falling in time")
    ratio = seconds["muonclip"] / seconds["adamw"]
    by_seconds.set_title(f"by second: a step takes {ratio:.2f} times AdamW's")
    top = max(_curves(c)[1][:, _settled(c)].max() for c in found["curves"].values())
    for axes, label in ((by_tokens, "tokens"), (by_seconds, "seconds, one thread alone")):
        axes.set(xlabel=label, ylim=(_least(found) - 0.05, top))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.legend()
    return figure


@styled
def logit_explosion(record: Record) -> Picture:
    """Every head's largest logits without and with QK-Clip, what that costs, who is clipped when.

    Hot runs in colour; calm ones, at the base rate, in grey.
    """
    found, plan, tau = record["found"], record["plan"], record["plan"]["tau"]
    model, steps = record["model"], record["settings"]["steps"]
    tops = {name: max(largest) for name, largest in found["largest"].items()}
    gap, calm = found["clipped_minus_plain"]["mean"], found["calm_clipped_minus_plain"]["mean"]
    figure, ((plain, held, loss), (clipped, share, again)) = picture(
        f"Plain Muon's logits reach {tops['muon']:.0f}, MuonClip's {tops['muonclip']:.0f}; the "
        f"loss changes by {minus(f'{gap:+.2f}')} nats, in a calm run by {minus(f'{calm:+.3f}')}",
        14, 7, 2, 3)
    looks = LOOKS | {"calm": (SOFT, "-"), "calm_clipped": (INK, "--")}
    held.sharey(plain)
    for axes, name in ((plain, "muon"), (held, "muonclip")):
        logits = np.array(found["head_logits"][name])
        at = 1 + found["every"] * np.arange(len(logits))
        axes.plot(at, logits.reshape(len(at), -1), color=looks[name][0], linewidth=0.8, alpha=0.7)
        axes.axhline(tau, color=INK, linewidth=1, linestyle=":")
        axes.text(steps, tau * 0.7, f"tau = {tau:g}", ha="right", va="top")
        peaks = np.array(found["peaks"][name])  # seeds, layers, heads
        counts = (peaks > tau).sum(axis=(1, 2))
        axes.set_title(f"{NAMES[name]}, hot: {_range(counts)} of {peaks[0].size} heads pass tau")
        axes.set(yscale="log", xlabel="step")
    plain.set_ylabel("each head's largest logit, one seed")
    for name, label in {"muon": "Muon, hot", "muonclip": f"MuonClip, hot, tau = {tau:g}",
                        "calm": "calm, unclipped",
                        "calm_clipped": f"MuonClip, calm, tau = {plan['calm_tau']:g}"}.items():
        colour, dash = looks[name]
        at, losses = _curves(found["curves"][name])
        _band(loss, at, losses, colour, dash, label)
        if name not in ("muonclip", "calm_clipped"):
            continue
        parts = np.array(found["clipped_by_part"][name])
        middle = (np.arange(parts.shape[1]) + 0.5) * steps / parts.shape[1]
        _band(share, middle, parts, colour, dash, label)
        last = np.array(found["last_clipped"][name])  # seeds, heads
        at = np.arange(steps + 1)
        later = (last[:, :, None] > at).mean(axis=1)
        _band(again, at, later, colour, dash, label)
    top = max(_curves(c)[1][:, 1:].max() for c in found["curves"].values())
    loss.set(xlabel="step", ylabel=LOSS, ylim=(_least(found) - 0.05, top))
    loss.set_title(f"all seeds: mean, least and most; rates {plan['rate']:g} and "
                   f"{record['settings']['rate']:g}")  # fmt: skip
    loss.legend()
    _clips(clipped, found["clipped"], model, steps)
    share.set_title("heads that a step clips, all seeds")
    half = np.median(found["last_clipped"]["muonclip"])
    again.set_title(f"heads that will be clipped again: hot, half after step {half:.0f}")
    for axes in (share, again):
        axes.set(xlabel="step", ylim=(0, 1.03))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    again.legend(loc="lower left")
    return figure


def _clips(
    axes: Axes, clips: Sequence[Sequence[float]], model: Mapping[str, Any], steps: int
) -> None:
    """A row a head, a column a step: how far above tau the logits were that QK-Clip cut."""
    layers, heads = model["num_hidden_layers"], model["num_attention_heads"]
    excess = np.full((layers * heads, steps), np.nan)
    for step, layer, head, gamma in clips:
        excess[int(layer * heads + head), int(step) - 1] = 1 / gamma
    most = max((1 / gamma for *_, gamma in clips), default=1.0)
    axes.imshow(excess, aspect="auto", cmap=AMOUNT, vmin=0.9, vmax=most, interpolation="nearest",
                extent=(0.5, steps + 0.5, len(excess) - 0.5, -0.5))  # fmt: skip
    axes.set_yticks(np.arange(0, len(excess), heads), [f"layer {n}" for n in range(layers)])
    for edge in np.arange(heads, len(excess), heads):
        axes.axhline(edge - 0.5, color=SOFT, linewidth=0.5)
    axes.set_title(f"MuonClip, hot: clips by head, one seed; darkest {most:.2f} tau")
    axes.set_xlabel("step")


@styled
def balance(record: Record) -> Picture:
    """Loads over steps for three ways, everybody's violation, and what it costs."""
    found = record["found"]
    base = next(iter(found["final"]))
    worst = {arm: float(np.mean(found["last_violation"][arm])) for arm in found["final"]}
    gap = found["minus_base"]["neither"]["mean"]
    figure, (maps, (violation, loss, key)) = picture(
        f"At the end the busiest expert has {1 + worst[base]:.1f} times its share with the bias, "
        f"{1 + worst['neither']:.1f} times without, and the loss is "
        f"{abs(gap):.2f} nats {'higher' if gap > 0 else 'lower'}", 12, 6.6, 2, 3)
    shown = ["bias and faint loss", "strong loss alone", "neither"]
    experts = len(found["loads"][base][0])
    largest = max(np.max(found["loads"][arm]) for arm in shown)
    for axes, arm in zip(maps, shown, strict=True):
        loads = np.array(found["loads"][arm]).T
        image = heat(axes, loads, low=0, high=largest)
        axes.set_aspect("auto")
        image.set_extent((0, loads.shape[1] * found["every"], experts - 0.5, -0.5))
        axes.set(title=f"{arm}: {_idle(found, arm)}", xlabel="step", yticks=[])
        axes.set_ylabel("expert")
    figure.colorbar(image, ax=maps[-1], label="load / even load")
    for n, (arm, seeds) in enumerate(found["violation"].items()):
        colour, dash = ARM_LOOKS[n % len(ARM_LOOKS)]
        smooth = np.array([_smooth(np.array(one)) for one in seeds])
        _band(violation, np.arange(smooth.shape[1]) + 1, smooth, colour, dash, arm)
        losses = found["final"][arm]
        loss.plot(losses, np.full(len(losses), n), "o", color=colour, alpha=0.7)
        loss.plot(np.mean(losses), n, "|", color=colour, markersize=18, markeredgewidth=2)
    violation.set(xlabel="step", ylabel="load / mean − 1", ylim=(0, None))
    violation.set_title("violation of the worst layer")
    loss.set(xlabel=LOSS, yticks=[], ylim=(len(found["final"]) - 0.5, -0.5))
    loss.set_title("after the last step: seeds and mean, rows as in the key")
    key.axis("off")
    key.legend(*violation.get_legend_handles_labels(), loc="center left",
               title="all seeds: mean, least and most", alignment="left")  # fmt: skip
    return figure


@styled
def sparsity(record: Record) -> Picture:
    """The last loss by the number of experts, the curves, and twice the heads."""
    found, plan = record["found"], record["plan"]
    levels = [str(level) for level in plan["sparsities"]]
    active = record["model"]["num_experts_per_tok"]
    low, high = (np.mean(found["final"][level]) for level in (levels[0], levels[-1]))
    twice = found["heads_relative"]
    figure, (by_experts, curves, heads) = picture(
        f"From {active} to {int(levels[-1]) * active} experts, {active} of them active: "
        f"{low:.3f} to {high:.3f} nats; twice the heads: {_percent(twice['mean'])} loss",
        12, 3.8, 1, 3)  # fmt: skip
    values = np.array([found["final"][level] for level in levels]).T
    sizes = np.array([int(level) for level in levels])
    _band(by_experts, sizes, values, TODAY, "o-", "")
    by_experts.plot(sizes, values.T, color=TODAY, linewidth=0.7, alpha=0.5)
    by_experts.set_xscale("log", base=2)
    by_experts.set_xticks(sizes, levels)
    by_experts.xaxis.set_minor_locator(NullLocator())
    by_experts.set(xlabel="experts / active experts", ylabel=LOSS,
                   title="after the last step: seeds, their mean, least and most")  # fmt: skip
    settings = record["settings"]
    tokens = settings["batch"] * settings["accumulate"] * settings["window"]
    shades = AMOUNT(np.linspace(0.3, 1, len(levels)))
    for level, shade in zip(levels, shades, strict=True):
        steps, losses = _curves(found["curves"][level])
        curves.plot(steps * tokens, losses.mean(axis=0), color=shade,
                    label=f"{int(level) * active} experts")  # fmt: skip
    top = max(_curves(found["curves"][level])[1][:, 2:].max() for level in levels)
    curves.set(xlabel="tokens", ylim=(_least(found) - 0.05, top), title="means over the seeds")
    curves.xaxis.set_major_formatter(EngFormatter(sep=""))
    curves.legend()
    base = str(record["model"]["n_routed_experts"] // active)
    pairs = list(zip(found["final"][base], found["final"]["heads"], strict=True))
    for pair in pairs:
        heads.plot([0, 1], pair, "o-", color=SECOND, linewidth=1, markersize=5)
    count = record["model"]["num_attention_heads"]
    heads.set_xticks([0, 1], [f"{count} heads", f"{plan['heads'] * count} heads"])
    heads.set(xlim=(-0.4, 1.4), ylabel=LOSS)
    heads.set_title(f"twice the heads, a line a seed: {_percent(twice['least'])} to "
                    f"{_percent(twice['most'])}")  # fmt: skip
    return figure


def _shares(found: Mapping[str, Any]) -> str:
    """Which share of AdamW's tokens and time was enough, as far as it is known."""
    own, seconds = _mean(found["share_of_own_length"]), found["step_seconds_alone"]
    if own is None:
        return ""
    time = own * seconds["muonclip"] / seconds["adamw"]
    return f", and needs {own:.0%} of its tokens, {time:.0%} of its time"


def _mean(values: Sequence[float | None]) -> float | None:
    """None as soon as one seed has none."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _curves(seeds: Sequence[Sequence[Sequence[float]]]) -> tuple[Array, Array]:
    """Steps (n,) and losses (seeds, n) of runs that were looked at after the same steps."""
    array = np.array(seeds, float)
    return array[0, :, 0], array[:, :, 1]


def _settled(seeds: Sequence[Sequence[Sequence[float]]]) -> slice:
    """The part of a curve worth looking at closely: all but the first tenth."""
    return slice(max(1, len(seeds[0]) // 10), None)


def _least(found: Mapping[str, Any]) -> float:
    return min(float(_curves(seeds)[1].min()) for seeds in found["curves"].values())


def _smooth(values: Array) -> Array:
    """Each value averaged with those just before it, a fortieth of all at most."""
    width = max(1, len(values) // 40)
    sums = np.cumsum([0.0, *values])
    end = np.arange(1, len(sums))
    start = np.maximum(end - width, 0)
    smoothed: Array = (sums[end] - sums[start]) / (end - start)
    return smoothed


def _band(axes: Axes, x: Array, values: Array, colour: str, dash: str, label: str) -> None:
    """The mean over seeds (rows) and, behind it, from the least to the most."""
    axes.fill_between(x, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2,
                      linewidth=0)  # fmt: skip
    axes.plot(x, values.mean(axis=0), dash, color=colour, label=label, markersize=4)


def _range(counts: Array) -> str:
    """Counts of several seeds: one number where they agree."""
    low, high = counts.min(), counts.max()
    return f"{low}" if low == high else f"{low} to {high}"


def _idle(found: Mapping[str, Any], arm: str) -> str:
    idle = np.mean(found["idle"][arm])
    return "no expert idle at last" if idle == 0 else f"{idle:.0%} idle at last"


def _percent(change: float) -> str:
    return minus(f"{change:+.1%}")
