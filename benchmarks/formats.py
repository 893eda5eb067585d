"""What the formats of released checkpoints do to a trained model: its weights, logits and loss.

    python -m benchmarks.formats              print it
    python -m benchmarks.formats --record     and write results/formats.json and the figure

The lessons' small model (float32, 300 steps on the standard library) is saved in each format, read
again by the reference, and asked about text that it never trained on. Nothing here is a timing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from benchmarks import records
from minik2 import checkpoint, reference
from minik2.checkpoint import quantization
from minik2.doctor import machine
from minik2.plots import formats as picture
from minik2.training.corpus import Corpus
from minik2.training.lesson_model import lesson_model

FORMATS = ("bfloat16", *quantization.FORMATS)
PARTS = {"attention": ".self_attn.", "dense_ffn": "layers.0.mlp.", "shared_experts": "shared_exp",
         "routed_experts": ".experts."}  # fmt: skip
# Edges of |w| over the matrices' root mean square, eight to a factor of ten.
EDGES = 10 ** np.arange(-3, 0.76, 1 / 8)
WINDOWS, TOKENS = 64, 256


def saved(model: reference.Model, format: str, directory: str) -> reference.Model:
    """The model as it is after it was saved in this format and read again."""
    weights = model.weights
    if format == "bfloat16":
        checkpoint.save(directory, model.cfg, {
            name: array.astype(ml_dtypes.bfloat16) for name, array in weights.items()})
    else:
        checkpoint.save(directory, model.cfg, weights, format=format)
    return reference.Model.from_pretrained(directory)


def weight_errors(model: reference.Model, narrowed: reference.Model) -> dict[str, Any]:
    """By part the error's root mean square over the weights'; and by a routed weight's size."""
    parts, sizes, errors = {}, [], []
    for part, words in PARTS.items():
        pairs = [(w, narrowed.weights[n]) for n, w in model.weights.items()
                 if words in n and "_proj" in n]  # fmt: skip
        error = sum(float(np.square(b - w).sum()) for w, b in pairs)
        parts[part] = (error / sum(float(np.square(w).sum()) for w, _ in pairs)) ** 0.5
        if part == "routed_experts":
            for w, b in pairs:
                scale = np.sqrt(np.mean(np.square(w)))
                sizes.append(np.abs(w / scale).ravel())
                errors.append(np.square((b - w) / scale).ravel())
    size, error = np.concatenate(sizes), np.concatenate(errors)
    bins = np.digitize(size, EDGES)
    curve = [float(np.sqrt(error[bins == n].mean())) if (bins == n).sum() >= 100 else None
             for n in range(1, len(EDGES))]  # fmt: skip
    return {"parts": parts, "by_size": curve}


def losses(logits: Any, targets: Any) -> Any:
    """Each window's mean cross-entropy in nats, (B,), from (B, T, vocab) and (B, T)."""
    exact = logits.astype(np.float64)
    right = np.take_along_axis(exact, targets[..., None], axis=2)[..., 0]
    return (np.log(np.exp(exact).sum(axis=2)) - right).mean(axis=1)


def measure() -> dict[str, Any]:
    """Of every format what it does to weights, logits and loss."""
    model = lesson_model("float32")
    tokens, targets = Corpus.standard_library().spread("validation", WINDOWS, TOKENS)
    logits = model(tokens)
    loss, found = losses(logits, targets), {}
    for format in FORMATS:
        with tempfile.TemporaryDirectory() as directory:
            narrowed = saved(model, format, directory)
        new = narrowed(tokens)
        moved, change = np.square(new - logits).mean() / logits.var(), losses(new, targets) - loss
        found[format] = {**weight_errors(model, narrowed), "logits": float(np.sqrt(moved)),
                         "loss": float(change.mean()),
                         "loss_error": float(change.std(ddof=1) / WINDOWS**0.5)}  # fmt: skip
    sizes = np.sqrt(EDGES[1:] * EDGES[:-1]).tolist()
    return {"loss": float(loss.mean()), "windows": WINDOWS, "tokens": WINDOWS * TOKENS,
            "sizes": sizes, "formats": found}  # fmt: skip


def table(record: dict[str, Any]) -> str:
    """One line a format: relative errors of the parts and the logits, and the loss' change."""
    lines = [f"{'relative error':<14}" + "".join(f"{p:>16}" for p in (*PARTS, "logits", "loss"))]
    for format, found in record["formats"].items():
        cells = [f"{value:>16.2%}" for value in (*found["parts"].values(), found["logits"])]
        lines.append(f"{format:<14}" + "".join(cells)
                     + f"{found['loss']:>+16.5f} ± {found['loss_error']:.5f}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write the results and the figure")
    chosen = parser.parse_args(arguments)
    found = measure()
    print(f"{table(found)}\nThe loss in float32 is {found['loss']:.4f} nats.")
    if chosen.record:
        record = {**machine.stamp(), **found}
        records.write_json(records.RESULTS / "formats.json", record)
        picture.formats(record).write(records.ROOT / "figures" / "formats.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
