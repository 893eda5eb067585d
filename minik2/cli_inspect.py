"""The command `minik2 inspect`: what a checkpoint holds, whether it fits its config, what it takes.

Unusual here: headers are all that is read, so it answers at once for files of any size; and what it
would take to run them is counted from the tensors that are there, not from a model's name.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minik2.terminal import plain

if TYPE_CHECKING:
    from minik2.checkpoint.tensor import Tensor
    from minik2.config import ModelConfig


def inspect(
    directory: Annotated[Path, typer.Argument(
        help="A checkpoint in the Hugging Face layout: config.json and *.safetensors.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Show a checkpoint's tensors, check names and shapes, and say what running it takes.

    Only headers are read. Exit status 0 if all is there and fits config.json.
    """
    from minik2.checkpoint.tensor_map import tensor_map
    from minik2.config import ModelConfig

    if not directory.is_dir():
        raise FileNotFoundError(f"There is no directory {directory}; give a checkpoint's.")
    cfg = ModelConfig.from_json(directory)
    found = tensor_map(directory, cfg)
    needs = _needs(cfg, found.tensors) if found.tensors else {}
    if as_json:
        said = found.quantization
        print(json.dumps({
            "directory": str(directory), "files": found.files, "tensors": found.count,
            "bytes": found.bytes, "bytes_by_dtype": found.bytes_by_dtype,
            "quantization": said and {"format": said.format, "block": list(said.block)},
            "kinds": [vars(kind) for kind in found.kinds], "problem": found.problem, **needs,
        }, indent=2))  # fmt: skip
    else:
        print(plain(_page(directory, cfg, found, needs)))
    if found.problem:
        raise typer.Exit(1)


def _needs(cfg: ModelConfig, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Bytes that running the model takes, by engine, and what one token reads and leaves.

    mapped_bytes: held by reference.MappedModel: vectors, and the most that a step has of a layer at
    a time (one piece of a file; the router's table as floats; kv_b_proj as floats, three times over
    while it is widened). Activations and the cache come on top of every engine.
    """
    from minik2 import sizing
    from minik2.checkpoint.tensor import PIECE

    def floats(part: str) -> int:
        return 4 * max((math.prod(t.shape) for n, t in tensors.items() if part in n), default=0)

    total = sizing.parameters(cfg).total
    piece = min(PIECE, max(t.values.nbytes for t in tensors.values()))
    vectors = sum(4 * t.shape[0] for t in tensors.values() if len(t.shape) == 1)
    read = 0
    for name, tensor in tensors.items():
        if ".mlp.experts." in name:
            read += tensor.nbytes * cfg.num_experts_per_tok
        elif "embed_tokens" not in name or cfg.tie_word_embeddings:
            read += tensor.nbytes * cfg.n_routed_experts
    return {
        "parameters": total, "float32_bytes": 4 * total, "bfloat16_bytes": 2 * total,
        "mapped_bytes": vectors + piece + floats(".mlp.gate.") + 3 * floats("kv_b_proj"),
        "read_bytes_per_token": read // cfg.n_routed_experts,
        "cache_bytes_per_token": sizing.kv_cache_bytes(cfg, 1, 1, 4),
        "context": cfg.max_position_embeddings,
    }  # fmt: skip


def _page(directory: Path, cfg: ModelConfig, found: Any, needs: dict[str, Any]) -> str:
    from minik2.sizing import units

    said = found.quantization
    form = f"{said.format}, a scale for {said.block[0]} x {said.block[1]}" if said else "plain"
    rows = [[kind.name, "x".join(map(str, kind.shape)), kind.dtype, f"{kind.count:,}",
             units.amount(kind.bytes, "B")] for kind in found.kinds]  # fmt: skip
    held = ", ".join(f"{name} {units.amount(n, 'B')}" for name, n in found.bytes_by_dtype.items())
    lines = [
        f"{directory}: {cfg.num_hidden_layers} layers, hidden {cfg.hidden_size:,}, weights {form}",
        units.table(["tensor", "shape", "dtype", "count", "bytes"], rows),
        f"{found.count:,} tensors in {found.files} file{'s' * (found.files > 1)}, "
        f"{units.gib(found.bytes)}: {held}",
        found.problem or "Names, shapes and dtypes are what config.json asks for.",
    ]
    if needs:
        def size(name: str) -> str:
            return units.amount(needs[name], "B")

        cache = needs["cache_bytes_per_token"] * needs["context"]
        lines += [
            f"To run it, {needs['parameters']:,} parameters take",
            f"  {size('float32_bytes')} of memory in float32 (either engine),",
            f"  {size('bfloat16_bytes')} in bfloat16 (pytorch),",
            f"  {size('mapped_bytes')} where they stay in their files (reference), and each token "
            f"reads {size('read_bytes_per_token')} of those,",
            f"and the cache in float32 {size('cache_bytes_per_token')} a token, "
            f"{units.amount(cache, 'B')} for all of {needs['context']:,}.",
        ]  # fmt: skip
    return "\n".join(lines)
