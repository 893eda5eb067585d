"""What the makers published, beside what the formulas of this package give.

Unusual here: nothing is adjusted until it agrees. Where the makers do not say what they counted,
the line says "unverified", and where they give no figure, ours stands alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from minik2.config import ModelConfig
from minik2.sizing import units
from minik2.sizing.cluster import Layout, cluster
from minik2.sizing.compute import calibration, training_compute
from minik2.sizing.formats import stored
from minik2.sizing.heads import heads_cost
from minik2.sizing.parameters import layer, parameters

# arXiv 2507.20534 §2.4-2.5: PP 16, EP 16; the number of virtual stages and of copies is not given.
K2_LAYOUT, K2_TOKENS = Layout(pp=16, ep=16), 15_500_000_000_000
K2_TOTAL = 1_040_000_000_000  # Table 2, rounded there


@dataclass(frozen=True)
class Claim:
    """A published figure: what it is of, itself ("" if it is not published), where it stands or
    would stand, ours, and what is unverified."""

    what: str
    published: str
    source: str
    ours: str
    unverified: str = ""

    def __str__(self) -> str:
        published = f"published {self.published}" if self.published else "not published"
        note = " (unverified)" if self.unverified else ""
        return f"{self.what}: {published}; here {self.ours}{note}"


def with_mtp(cfg: ModelConfig) -> int:
    """Weights with a prediction layer of DeepSeek-V3's kind: a layer, a 2 D x D product, norms."""
    hidden, own = cfg.hidden_size, layer(cfg, cfg.num_hidden_layers - 1)
    return parameters(cfg).total + sum(own.values()) + 2 * hidden * hidden + 3 * hidden


def _billions(*counts: int) -> str:
    return " / ".join(f"{count / 1e9:,.2f}" for count in counts) + " B"


def _active(cfg: ModelConfig) -> str:
    counted = parameters(cfg)
    return _billions(counted.active, counted.active_without_embedding,
                     counted.active_without_embedding_and_head)  # fmt: skip


def _k2_body(cfg: ModelConfig) -> list[Claim]:
    ours = (f"{_billions(parameters(cfg).total)}, with an MTP layer of V3's kind "
            f"{_billions(with_mtp(cfg))}")  # fmt: skip
    return [
        Claim("weights", "1,043 B", "arXiv 2507.20534 Table 4", ours,
              "that they count such a layer, which is in no file"),
        Claim("active", "32.6 B", "arXiv 2507.20534 Table 2",
              f"{_active(cfg)} with both tables / head / neither", "what they count"),
    ]  # fmt: skip


def _k2(cfg: ModelConfig) -> list[Claim]:
    lay, more = cluster(cfg, K2_LAYOUT), float(heads_cost(cfg).ratios[
        "decode, expanded, weights fixed"][0]) - 1  # fmt: skip
    low, high = lay.by_dp[64][0], lay.by_dp[4][0]
    run = training_compute(cfg, K2_TOKENS)
    return _k2_body(cfg) + [
        Claim("FP8 files", "958.5 GiB", "a list of the checkpoint's tensors",
              f"{stored(cfg, 'float8').bytes / 2**30:,.1f} GiB"),
        Claim("128 heads at 128k", "+83%", "arXiv 2507.20534 §2.3",
              f"{more:+.1%}, expanded, weights fixed", "the paper does not say what it counted"),
        Claim("weights + gradients", f"~6 TB over 256 GPUs, or 6 B x 1.04 T / 256 = "
              f"{6 * K2_TOTAL / K2_LAYOUT.group / 1e9:.1f} GB", "arXiv 2507.20534 §2.4",
              units.amount(lay.even_bytes, "B")),
        Claim("all states a GPU", "~30 GB", "arXiv 2507.20534 §2.4",
              f"{low / 1e9:.0f} to {high / 1e9:.0f} GB in the mean with 64 to 4 copies",
              "how many copies, which layer where, and what is counted"),
        Claim("GPU-hours for 15.5 T tokens", "", "arXiv 2507.20534 §2.4",
              f"{run.hours / 1e6:.2f} M on H800s at V3's {run.utilisation:.0%} of peak"),
    ]  # fmt: skip


def _v3(cfg: ModelConfig) -> list[Claim]:
    run = calibration()
    return [
        Claim("weights", "671 B", "arXiv 2412.19437", _billions(parameters(cfg).total)),
        Claim("active", "36.7 B", "DeepSeek-V3 README_WEIGHTS, with embedding and head",
              f"{_active(cfg)} with both tables / head / neither"),
        Claim("pre-training", "2.664 M H800-hours on 14.8 T tokens", "DeepSeek-V3 README",
              f"{units.amount(run.flops)} FLOP, so {run.utilisation:.1%} of the bfloat16 peak"),
    ]  # fmt: skip


def _moonlight(cfg: ModelConfig) -> list[Claim]:
    counted = parameters(cfg)
    tables = counted.by_part["embedding"] + counted.by_part["head"]
    return [Claim("weights without tables", "15.29 B", "arXiv 2502.16982 Table 4",
                  _billions(counted.total - tables)),
            Claim("active without tables", "2.24 B", "arXiv 2502.16982 Table 4",
                  _billions(counted.active_without_embedding_and_head))]  # fmt: skip


def _v2_lite(cfg: ModelConfig) -> list[Claim]:
    return [Claim("weights", "15.706 B", "a list of the checkpoint's tensors",
                  f"{parameters(cfg).total / 1e9:,.3f} B")]  # fmt: skip


CLAIMS: dict[str, Callable[[ModelConfig], list[Claim]]] = {
    "kimi-k2": _k2, "kimi-k2-thinking": _k2_body, "deepseek-v3": _v3,
    "moonlight-16b-a3b": _moonlight, "deepseek-v2-lite": _v2_lite,
}  # fmt: skip


def claims(name: str) -> list[Claim]:
    """The published figures of one of `ModelConfig.presets()`; none for names without any."""
    return CLAIMS[name](ModelConfig.preset(name)) if name in CLAIMS else []
