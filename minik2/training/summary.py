"""What a run came to, from the lines it wrote: the few figures that one run is judged by.

Unusual here: what watching cost is one of them. The largest logits are taken in a pass of their own
where attention is fused, that time is part of every step's, and its share is told.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minik2.training import metrics

RECENT = 20  # steps that `loss_last` is a mean of


def figures(run: str | Path) -> dict[str, Any]:
    """The figures of a run, finished or not; None for what it has not come to.

    steps, tokens, seconds, tokens_per_second: of all training steps, evaluations not counted;
    held_out_first, held_out_last: nats a token, the last after a step at least; loss_last: of the
    last RECENT steps' training, nats a token; heads_clipped, times_clipped: counts;
    largest_logit: over all heads and steps; maxima_share: of the seconds; largest_violation,
    last_violation: max over mean of an experts' layer's loads, minus 1. Raises as `metrics.read`.
    """
    entries = metrics.read(run)
    steps = [entry for entry in entries if entry["kind"] == "step"]
    looks = [entry for entry in entries if entry["kind"] == "evaluation"]
    recent = [entry["loss"] for entry in steps[-RECENT:]]
    clipped = [(layer, head) for entry in steps for layer, head, _ in entry["clipped"]]
    violations = [max(entry["violation"], default=None) for entry in steps]
    seconds = sum(entry["seconds"] for entry in steps)
    tokens = steps[-1]["tokens"] if steps else 0
    return {
        "steps": len(steps),
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds if steps else None,
        "held_out_first": looks[0]["held_out"] if looks else None,
        "held_out_last": looks[-1]["held_out"] if looks and looks[-1]["step"] else None,
        "loss_last": sum(recent) / len(recent) if recent else None,
        "largest_logit": max((max(entry["max_logit"]) for entry in steps), default=None),
        "heads_clipped": len(set(clipped)),
        "times_clipped": len(clipped),
        "maxima_share": sum(e["maxima_seconds"] for e in steps) / seconds if steps else None,
        "largest_violation": max((v for v in violations if v is not None), default=None),
        "last_violation": violations[-1] if steps else None,
    }


def lines(found: dict[str, Any]) -> list[str]:
    """`figures` for a reader, a line each."""
    if not found["steps"]:
        return ["trained     no step yet"]
    said = [
        f"trained     {found['steps']:,} steps, {found['tokens']:,} tokens in "
        f"{found['seconds']:.1f} s: {found['tokens_per_second']:,.0f} tokens a second"
    ]
    if found["held_out_last"] is not None:
        said.append(
            f"held out    {found['held_out_first']:.3f} nats a byte at first, "
            f"{found['held_out_last']:.3f} at last"
        )
    else:
        if found["held_out_first"] is not None:
            said.append(f"held out    {found['held_out_first']:.3f} nats a byte before the first "
                        "step, not looked at since")  # fmt: skip
        said.append(f"loss        {found['loss_last']:.3f} nats a byte of training, mean of the "
                    f"last {min(found['steps'], RECENT)} steps")  # fmt: skip
    heads, times = found["heads_clipped"], found["times_clipped"]
    clipped = f"{heads} head{'' if heads == 1 else 's'} clipped, {times:,} times" if heads else (
        "no head clipped")  # fmt: skip
    said.append(
        f"logits      {found['largest_logit']:.3g} at most; {clipped}; finding their maxima took "
        f"{found['maxima_share']:.1%} of the time"
    )
    if found["last_violation"] is not None:
        said.append(
            f"experts     the busiest had up to {1 + found['largest_violation']:.2f} times its "
            f"share of the tokens, {1 + found['last_violation']:.2f} times in the last step"
        )
    return said
