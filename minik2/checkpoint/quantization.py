"""How config.json says that a checkpoint's matrices are narrowed, and how we say it.

Unusual here: the config gives the blocks' size and the rule of the scales; which tensors are
narrowed is read off the tensors themselves (`tensor.py`), and the two must not contradict each
other. What a setting would change and minik2 does not read is refused, never passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minik2.checkpoint import float8, int4
from minik2.checkpoint.errors import CheckpointError

# What can be written: K2's and V3's, V3.1's (the same with scales that are powers of two), and
# K2-Thinking's.
FORMATS = ("float8", "float8_ue8m0", "int4")
# The scales of an FP8 matrix have its name with this behind it. A packed matrix has, instead of its
# `weight`, words, scales and its sides.
INVERSE = "_scale_inv"
PACKED, SCALES, SIDES = "weight_packed", "weight_scale", "weight_shape"


@dataclass(frozen=True)
class Quantization:
    """One way to narrow matrices.

    format: one of FORMATS; block: how many rows and columns share a scale.
    """

    format: str
    block: tuple[int, int]

    @property
    def float8(self) -> bool:
        """Eight bits a number, not four."""
        return self.format != "int4"


def named(format: str) -> Quantization:
    """The format called so, with the blocks of the released files. Raises ValueError for others."""
    if format not in FORMATS:
        raise ValueError(
            f"There is no checkpoint format {format!r}; choose one of {', '.join(FORMATS)}, or "
            "none to store weights in their own dtype."
        )
    return Quantization(format, (1, int4.GROUP) if format == "int4" else float8.BLOCK)


def narrows(format: str, name: str) -> bool:
    """Whether a released checkpoint of this format narrows the tensor called `name`.

    FP8: every projection; INT4: those of the routed experts alone. All others are bfloat16, but the
    correction bias, which is float32.
    """
    return ".mlp.experts." in name if format == "int4" else "_proj" in name


def to_config(format: str) -> dict[str, Any]:
    """`quantization_config` of a checkpoint that is written in this format."""
    if format != "int4":
        fp8 = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
               "weight_block_size": list(float8.BLOCK)}  # fmt: skip
        return fp8 | ({"scale_fmt": "ue8m0"} if format == "float8_ue8m0" else {})
    weights = {"actorder": None, "dynamic": False, "group_size": int4.GROUP, "num_bits": 4,
               "strategy": "group", "symmetric": True, "type": "int"}  # fmt: skip
    group = {"input_activations": None, "output_activations": None, "targets": ["Linear"],
             "weights": weights}  # fmt: skip
    ignore = ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*",
              r"re:.*mlp\.(gate|up|down)_proj.*"]  # fmt: skip
    return {"config_groups": {"group_0": group}, "format": "pack-quantized", "ignore": ignore,
            "kv_cache_scheme": None, "quant_method": "compressed-tensors",
            "quantization_status": "compressed"}  # fmt: skip


def from_config(raw: Mapping[str, Any], where: str) -> Quantization | None:
    """What config.json says; None where it says nothing. `where` names the file in errors.

    Raises CheckpointError, one sentence, for methods that minik2 does not read, for settings that
    it would have to obey and does not know, and for settings of two methods at once.
    """
    given = raw.get("quantization_config")
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise CheckpointError(f"quantization_config of {where} must be an object, not {given!r}.")
    method = given.get("quant_method")
    if method not in ("fp8", "compressed-tensors"):
        raise CheckpointError(
            f"The weights are narrowed by the method {method!r}, says {where}; minik2 reads 'fp8' "
            "and 'compressed-tensors', so convert the checkpoint to bfloat16 first."
        )
    foreign = ("config_groups", "format", "num_bits", "bits", "group_size")
    if method != "fp8":
        foreign = ("weight_block_size", "fmt", "scale_fmt", "bits", "group_size")
    for key in foreign:
        if given.get(key) is not None:
            raise CheckpointError(
                f"quantization_config of {where} names the method {method!r} and gives {key}, "
                "which belongs to another; restore the file from its source."
            )
    return _fp8(given, where) if method == "fp8" else _packed(given, where)


def _fp8(given: Mapping[str, Any], where: str) -> Quantization:
    _only(given, {"fmt": (None, "e4m3"), "scale_fmt": (None, "ue8m0")}, where)
    block = given.get("weight_block_size")
    if not isinstance(block, list | tuple) or len(block) != 2 or not all(map(_positive, block)):
        raise CheckpointError(
            f"weight_block_size of {where} must be two positive whole numbers, such as [128, 128], "
            f"but it is {block!r}; minik2 reads FP8 with a scale for each block."
        )
    form = "float8_ue8m0" if given.get("scale_fmt") else "float8"
    return Quantization(form, (int(block[0]), int(block[1])))


def _packed(given: Mapping[str, Any], where: str) -> Quantization:
    _only(given, {"format": ("pack-quantized",), "kv_cache_scheme": (None,)}, where)
    groups = given.get("config_groups")
    if not isinstance(groups, Mapping) or len(groups) != 1:
        raise CheckpointError(
            f"config_groups of {where} must hold one group of settings, not {groups!r}."
        )
    (group,) = groups.values()
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping):
        raise CheckpointError(f"config_groups of {where} do not say how weights are packed.")
    _only(group, {"input_activations": (None,), "output_activations": (None,),
                  "format": (None, "pack-quantized")}, where)  # fmt: skip
    _only(weights, {"num_bits": (4,), "type": ("int",), "strategy": ("group",),
                    "symmetric": (True,), "dynamic": (None, False), "actorder": (None,)},
          where)  # fmt: skip
    size: Any = weights.get("group_size")
    if not _positive(size) or size % int4.WORD:
        raise CheckpointError(
            f"group_size of {where} must be a positive multiple of {int4.WORD}, because so many "
            f"numbers share a word; it is {size!r}."
        )
    return Quantization("int4", (1, int(size)))


def _only(given: Mapping[str, Any], known: dict[str, tuple[Any, ...]], where: str) -> None:
    for key, values in known.items():
        # True == 1 in Python, and a config that says one does not mean the other.
        if not any(given.get(key) is v or (type(v) is not bool and given.get(key) == v)
                   for v in values):  # fmt: skip
            raise CheckpointError(
                f"{where} says {key} = {given.get(key)!r} in its quantization_config, and minik2 "
                f"reads {' or '.join(repr(v) for v in values)}; convert the checkpoint first."
            )


def _positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
