"""Figures of lesson 05: what chooses experts, what weighs them, and what wrong routers cost.

Unusual here: a score and its bias are drawn as one bar in two kinds, since the choice looks at
their sum and the weight at the first alone. `explore` draws nothing of its own: it calls `route`,
which is the figure that a notebook stores, each time its slider is moved.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from minik2.plots.common import (
    FAINT,
    INK,
    SECOND,
    SOFT,
    TODAY,
    Picture,
    heat,
    letters,
    minus,
    picture,
    styled,
    ticks,
)  # fmt: skip
from minik2.plots.sliders import sliders, widgets

Array = np.ndarray[Any, np.dtype[Any]]
RESTS = "#C6C9CE"


@styled
def two_questions(scores: Array, bias: Array, gates: Array) -> Picture:
    """One token: what chose its experts, and what weighs them; (E,) each, gates 0 if not chosen."""
    figure, (left, right) = picture(
        _verdict(scores, bias, gates), 9, 3.4, columns=2, width_ratios=(1.5, 1))
    _score_bars(left, scores, bias, gates > 0)
    left.set(xlabel="expert", title="who? score + bias")
    _legend_below(left, -0.2, 3)
    experts = np.arange(len(gates))
    right.bar(experts, gates, color=TODAY, width=0.7)
    for e in np.flatnonzero(gates):
        right.text(e, gates[e], f"{gates[e]:.2f}", ha="center", va="bottom", fontsize=9)
    right.set(xlabel="expert", title="with what weight? the score alone", xticks=experts,
              ylim=(0, 1.15 * gates.max()))  # fmt: skip
    return figure


def _swapped(scores: Array, gates: Array) -> tuple[list[int], list[int]]:
    """Experts that the bias brought in, and those that scores alone would have chosen instead."""
    chosen = set(np.flatnonzero(gates).tolist())
    plain = set(np.argsort(-scores, kind="stable")[: len(chosen)].tolist())
    return sorted(chosen - plain), sorted(plain - chosen)


def _verdict(scores: Array, bias: Array, gates: Array) -> str:
    came, went = _swapped(scores, gates)
    said = f"The bias brings in {_listed(came)} for {_listed(went)}" if came else (
        "Here the bias changes no choice")
    shares = gates / gates.sum()
    own = np.where(gates > 0, scores, 0)
    clean = np.allclose(shares, own / own.sum(), atol=1e-5)
    return f"{said}, and {'no weight contains it' if clean else 'it is in the weights'}"


def _listed(experts: Sequence[int]) -> str:
    names = [str(e) for e in experts]
    return ("expert " if len(names) == 1 else "experts ") + (
        names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}")


def _score_bars(axes: Any, scores: Array, bias: Array, chosen: Array) -> None:
    """A bar an expert: its score, and hatched on top, or cut away, its bias."""
    experts, choice = np.arange(len(scores)), scores + bias
    axes.bar(experts, scores, color=np.where(chosen, TODAY, RESTS), width=0.7)
    axes.bar(experts, np.abs(bias), bottom=np.minimum(scores, choice), width=0.7,
             facecolor="white", edgecolor=SECOND, hatch="////", linewidth=0.8)
    axes.hlines(choice, experts - 0.42, experts + 0.42, color=INK, linewidth=2)
    least = choice[chosen].min()
    axes.axhline(least, color=SOFT, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    axes.axhline(0, color=SOFT, linewidth=0.8)
    axes.set_xticks(experts)
    axes.set_ylim(min(0, choice.min()) - 0.04, max(choice.max(), scores.max()) + 0.06)


def _legend_below(axes: Any, drop: float, columns: int) -> None:
    handles = [
        Patch(facecolor=TODAY, label="score, chosen"), Patch(facecolor=RESTS, label="score, not"),
        Patch(facecolor="white", edgecolor=SECOND, hatch="////", label="bias, up or down"),
        Line2D([], [], color=INK, linewidth=2, label="their sum, which chooses"),
        Line2D([], [], color=SOFT, linewidth=0.8, linestyle=(0, (4, 3)), label="least chosen"),
    ]  # fmt: skip
    axes.legend(handles=handles, fontsize=8.5, loc="upper left", bbox_to_anchor=(0, drop),
                ncols=columns, handlelength=1.4, columnspacing=1.2)


@styled
def route(
    text: str, layer: int, spot: int, scores: Array, bias: Array, gates: Array
) -> Picture:
    """Where the bytes of a text go, and why the one at `spot` does.

    scores, gates: (T, E) of one layer, gates 0 where not chosen; bias: (E,).
    """
    came, went = _swapped(scores[spot], gates[spot])
    name = letters(text[spot])[0]
    if not came:
        change = "the same ones without the bias"
    elif len(came) > 2:
        change = f"{len(came)} others without the bias"
    else:
        instead = _listed(came).split(" ", 1)[1]
        change = f"without the bias {_listed(went)} instead of {instead}"
    figure, (above, below) = picture(
        f"Layer {layer}, byte {spot} “{name}”: {_listed(np.flatnonzero(gates[spot]).tolist())}; "
        f"{change}", 9.6, 5.6, rows=2, height_ratios=(1.25, 1))  # fmt: skip
    image = heat(above, gates.T, low=0)
    figure.colorbar(image, ax=above, shrink=0.9, label="weight of the expert")
    above.set_yticks(np.arange(gates.shape[1]) - 0.5, minor=True)
    above.grid(which="minor", axis="y", color=FAINT, linewidth=0.8)
    above.tick_params(which="minor", length=0)
    ticks(above, x=letters(text))
    above.add_patch(Rectangle((spot - 0.5, -0.5), 1, gates.shape[1], fill=False, edgecolor=TODAY,
                              linewidth=2, clip_on=False))  # fmt: skip
    above.set(ylabel=f"expert of layer {layer}", aspect="auto", yticks=range(0, gates.shape[1], 5))
    _score_bars(below, scores[spot], bias, gates[spot] > 0)
    below.set(xlabel=f"expert; what the framed byte “{name}” sees", ylabel="score + bias")
    _legend_below(below, -0.2, 5)
    return figure


def explore(text: str, routers: Mapping[int, tuple[Array, Array, Array]], spot: int = 0) -> Any:
    """`route` with a menu for the layer and a slider for the byte; an ipywidget.

    routers: {layer: (scores, bias, gates)} as `route` takes them. Raises ImportError where
    ipywidgets is not installed (it comes with minik2[course]).
    """

    def draw(layer: int, byte: int) -> Picture:
        return route(text, layer, byte, *routers[layer])

    return sliders(
        draw, layer=widgets().Dropdown(options=list(routers)),
        byte=widgets().IntSlider(spot, 0, len(text) - 1, continuous_update=False))  # fmt: skip


@styled
def variants(found: Mapping[str, tuple[float, float, float]]) -> Picture:
    """What wrong routers do to a trained model.

    found: {name: (nats of held-out loss more, share of choices moved, share of bytes predicted
    otherwise)}.
    """
    names = list(found)
    values = np.array([found[name] for name in names])
    same = [name for name, row in zip(names, values, strict=True) if row[2] == 0]
    least = int(np.abs(values[:, 0]).argmin())
    moved, price = int((values[:, 1] > 0).sum()), values[least, 0]
    shows = (f"the loss hardly shows “{names[least]}”" if abs(price) < 0.005 else
             f"“{names[least]}” moves the loss least, by {price:.3f}")  # fmt: skip
    title = (f"“{same[0]}” is the same model" if same else
             f"{len(names)} other models, only {moved} of which move a choice; {shows}")
    figure, panels = picture(title, 9.6, 0.9 + 0.42 * len(names), columns=3, sharey=True,
                             width_ratios=(1.15, 1, 1))  # fmt: skip
    heads = ("held-out loss, nats more", "choices moved", "bytes predicted otherwise")
    for axes, column, head in zip(panels, values.T, heads, strict=True):
        loss = axes is panels[0]
        axes.barh(names, column, height=0.62, color=SECOND if loss else TODAY)
        for row, value in enumerate(column):
            written = minus(f"{value:+.4f}") if loss else f"{value:.1%}" if value else "none"
            axes.text(max(value, 0), row, f" {written}", va="center", fontsize=9)
        axes.axvline(0, color=SOFT, linewidth=0.8)
        top = max(column.max(), 1e-9)
        axes.set(title=head, xticks=[], xlim=(min(0, column.min()), 1.4 * top))
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    panels[0].invert_yaxis()
    return figure


@styled
def groups(choice: Array, free: Array, limited: Array, kept: int) -> Picture:
    """One token under V3's groups and without them.

    choice: (G, E/G) biased scores, a row a group; free, limited: the same shape, True for the
    experts chosen from all, and from the `kept` groups whose two best scores sum to most.
    """
    lost = int((free & ~limited).sum())
    title = (f"{choice.shape[0]} groups, {kept} kept: {lost} of the {int(free.sum())} best experts "
             "cannot be chosen" if lost else
             f"{choice.shape[0]} groups, {kept} kept: for this token they change nothing")
    figure, axes = picture(title, 9.6, 3.6)
    image = heat(axes, choice)
    figure.colorbar(image, ax=axes, shrink=0.8, label="score + bias")
    worth = np.sort(choice, 1)[:, -2:].sum(1)
    stay = np.argsort(-worth, kind="stable")[:kept]
    for group in range(len(choice)):
        if group not in stay:
            axes.axhspan(group - 0.5, group + 0.5, facecolor="white", alpha=0.72)
    for group in range(len(choice) + 1):
        axes.axhline(group - 0.5, color="white", linewidth=2)
    for mask, style, label in (
            (limited, {"marker": "o", "color": TODAY, "markersize": 9, "markeredgecolor": "white"},
             "chosen with groups (V3)"),
            (free, {"marker": "s", "color": SECOND, "markersize": 13, "markerfacecolor": "none",
                    "markeredgewidth": 2}, "chosen from all (K2)")):  # fmt: skip
        row, column = np.nonzero(mask)
        axes.plot(column, row, linestyle="none", label=label, **style)
    axes.plot([], [], "s", color=FAINT, markersize=11, label="dropped groups: drawn faded")
    ticks(axes, y=[f"{'kept' if g in stay else 'dropped'}: {worth[g]:.3f}"
                   for g in range(len(choice))])  # fmt: skip
    for group, label in enumerate(axes.get_yticklabels()):
        label.set_fontweight("bold" if group in stay else "normal")
    axes.set(aspect="auto", xlabel="expert within the group",
             ylabel="group, and its two best scores")
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.2), ncols=3)
    return figure


@styled
def rule_at_work(loads: Array, bias: Array) -> Picture:
    """The bias rule on scores that do not change: loads and bias (steps, E).

    loads: in shares of an even load.
    """
    first, last = loads[0].max(), loads[-1].max()
    title = (f"The rule alone: the busiest expert goes from {first:.1f} to {last:.1f} times its "
             "share" if last < first else
             f"The rule does not help: the busiest expert stays at {last:.1f} times its share")
    figure, (left, right) = picture(title, 9, 3.1, columns=2)
    for axes, values, name in ((left, loads, "load, in even shares"), (right, bias, "bias")):
        axes.plot(values, color=SOFT, linewidth=0.8, alpha=0.8)
        axes.plot(values[:, loads[0].argmax()], color=SECOND, linewidth=2.4,
                  label="busiest at first")
        axes.plot(values[:, loads[0].argmin()], color=TODAY, linewidth=1.6, label="idlest at first")
        axes.set(xlabel="step", title=name)
    left.axhline(1, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    left.legend(loc="upper right")
    return figure


@styled
def shared_part(
    routed: Array, shared: Array, losses: Mapping[str, float], layers: Iterable[int]
) -> Picture:
    """What the shared expert carries: lengths (layers,) of both outputs, and losses without one.

    losses: {"all experts": …, "without …": …} in nats, the first the whole model's.
    """
    names, nats = list(losses), np.array(list(losses.values()))
    more = nats[1:] - nats[0]
    worst = int(more.argmax())
    figure, (left, right) = picture(
        f"The model loses most {names[1:][worst]}: {more[worst]:.3f} nats more", 9.6, 3.0,
        columns=2)  # fmt: skip
    place = np.arange(len(routed))
    for shift, values, colour, name in ((-0.2, routed, TODAY, "routed experts"),
                                        (0.2, shared, SECOND, "shared expert")):  # fmt: skip
        left.bar(place + shift, values, width=0.38, color=colour, label=name)
        for x, value in zip(place + shift, values, strict=True):
            left.text(x, value, f"{value:.1f}", ha="center", va="bottom", fontsize=9)
    left.set(xlabel="layer", title="mean length of the output")
    left.set_ylim(0, 1.35 * max(routed.max(), shared.max()))
    left.set_xticks(place, [str(layer) for layer in layers])
    left.legend(loc="upper left", ncols=2, fontsize=9)
    right.barh(names, nats, height=0.6, color=[SOFT, *[SECOND] * len(more)])
    for row, value in enumerate(nats):
        added = "" if row == 0 else f"  ({minus(f'{value - nats[0]:+.3f}')})"
        right.text(value, row, f" {value:.3f}{added}", va="center", fontsize=9)
    right.set(title="held-out loss, nats", xlim=(0, 1.5 * nats.max()), xticks=[])
    right.invert_yaxis()
    for axes in (left, right):
        axes.tick_params(length=0)
    right.spines[:].set_visible(False)
    return figure
