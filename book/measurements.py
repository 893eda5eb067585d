"""Tables of everything in benchmarks/results, each with its machine, versions and date.

Unusual here: a result file that nobody described gets its tables all the same: every list of
records and every group of named records in it is one. `TABLES` only says which columns of a known
file matter, and in which words.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from book.text import BookError, table

RESULTS = "benchmarks/results"
FOLD = 24  # a table of more rows than this is folded
# What a record says before it is measured.
MEANT = {"part", "compared", "section", "name", "precision", "state", "note"}
SENTENCE = 60  # a text of more letters than this stands above its table
NUMBERS = 40  # a list of more numbers than this is a curve, which a figure shows better


@dataclass(frozen=True)
class Columns:
    """A table of a known file: what it shows, where the records lie, and (path, words) a column.

    where: keys to the list, or to the group of named records (`first` then heads the names).
    """

    title: str
    where: str
    columns: tuple[tuple[str, str], ...]
    first: str = ""


TITLES = {
    "absorption": "Attention absorbed and expanded",
    "decode": "Decoding, token by token",
    "forward": "A forward pass",
    "training": "A training step",
    "formats": "FP8 and INT4",
    "fullsize": "Tokens through models of full size",
    "grading": "Grading a class of thirty",
    "gpu_check": "The engine on a GPU against the reference",
    "gpu_kernels": "Kernels on a GPU",
    "imports": "Imports and checks",
    "newton_schulz": "Newton–Schulz",
    "proof": "Every part against other implementations",
    "ranks": "Several processes on one machine",
    "sizing": "Memory and bytes, estimated and measured",
    "small": "A small model learns",
}
TABLES = {
    "forward": (Columns("Forward", "engines", (
        ("seconds", "seconds"), ("tokens_per_second", "tokens a second"),
        ("times_transformers median", "times transformers"),
        ("share_of_limit", "share of the limit")), "engine"),),
    "training": (Columns("Forward and backward", "engines", (
        ("seconds", "seconds"), ("memory_bytes", "bytes above the model"),
        ("times_transformers median", "times transformers"),
        ("share_of_peak", "share of the peak")), "engine"),),
    "decode": (Columns("Tokens a second", "engines", (
        ("tokens_per_second prompt", "reading the prompt"),
        ("tokens_per_second 256", "after 256"), ("tokens_per_second 2048", "after 2,048"),
        ("tokens_per_second 8192", "after 8,192"),
        ("share_of_limit 256", "share of the limit at 256"),
        ("nanoseconds_a_cached_token", "ns a cached token")), "engine"),),
    "small": (Columns("Learning Python, preset `small`", "engines", (
        ("settings steps", "steps"), ("seconds", "seconds"), ("held_out", "held-out nats a byte"),
        ("tokens_per_second", "tokens a second")), "engine"),),
    "fullsize": (Columns("Passes", "passes", (
        ("preset", "model"), ("tokens", "tokens"), ("measured parameters", "weights touched"),
        ("measured experts", "experts"), ("measured flops", "operations"),
        ("predicted seconds", "seconds predicted"), ("measured seconds", "seconds"))),),
    "newton_schulz": (Columns("Beside `torch.optim.Muon`", "cases", (
        ("case", "case"), ("seconds", "seconds"), ("other_seconds", "the other's"),
        ("times median", "times as fast"), ("times least", "least"), ("times most", "most"))),),
    "formats": (Columns("What the formats do to a model's weights and loss", "formats", (
        ("parts attention", "error of attention"), ("parts routed_experts", "of routed experts"),
        ("logits", "of logits"), ("loss", "change of the loss, nats"),
        ("loss_error", "its standard error")), "format"),),
    "proof": (Columns("Closest to its bound", "rows", (
        ("part", "part"), ("compared", "compared"), ("precision", "precision"),
        ("configurations", "configurations"), ("error", "relative error"), ("bound", "bound"),
        ("state", "state"))),),
    "gpu_check": (Columns("Closest to its bound", "checks", (
        ("section", "section"), ("name", "check"), ("precision", "precision"),
        ("count", "compared"), ("error", "error"), ("bound", "bound"), ("state", "state"),
        ("note", "note"))),),
    "ranks": (Columns("Seconds of a training step", "layouts", (
        ("one process seconds", "one process on all cores"),
        ("data seconds", "a process a core, by data"), ("data times median", "times one process"),
        ("experts seconds", "and by experts"), ("experts times median", "times one process")),
        "preset"),),
    "grading": (Columns("Wall seconds of a submission with all lessons", "kinds", (
        ("submissions", "submissions"), ("median", "median"), ("most", "most"),
        ("processor", "processor seconds")), "kind"),),
    "gpu_kernels": (Columns("Each task, and the share of what copying or products allow", "lines", (
        ("what", "task"), ("way", "way"), ("milliseconds", "milliseconds"),
        ("of_the_limit", "share of the limit"), ("error", "error against float64"))),),
    "absorption": (Columns("Seconds of the two forms", "points", (
        ("new", "new tokens"), ("cached", "cached"), ("absorbed", "absorbed"),
        ("expanded", "expanded"), ("chosen", "chosen by the rule"))),),
    "sizing": (Columns("Estimated over measured, by configuration", "configs", (
        ("parameters ratio", "weights"), ("gradients ratio", "gradients"),
        ("optimizer ratio", "optimizer"), ("activations ratio", "kept for backward"),
        ("weights read ratio", "weights read"), ("cache read ratio", "cache read"))),),
}


def records(root: Path) -> dict[str, dict[str, Any]]:
    """Every result by its file's name; BookError for a file that holds none."""
    out = {}
    for path in sorted((root / RESULTS).glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise BookError(f"{path} is no JSON ({error}); record it again.") from None
        if not isinstance(record, dict):
            raise BookError(f"{path} holds no record but a {type(record).__name__}.")
        out[path.stem] = record
    return out


def value(number: Any) -> str:
    """A value in few signs: four figures of a float, thousands apart, a median with its range."""
    if isinstance(number, bool):
        return "yes" if number else "no"
    if number is None:
        return ""
    if isinstance(number, int):
        return f"{number:,}"
    if isinstance(number, float):
        if number == 0 or 1e-3 <= abs(number) < 1e4:
            return f"{number:.4g}"
        if abs(number) >= 1e9:
            return f"{number:.3e}"
        return f"{number:,.0f}" if abs(number) >= 1e4 else f"{number:.1e}"
    if is_numbers(number):
        low, high = min(number), max(number)
        middle = value(statistics.median(number))
        return middle if low == high else f"{middle} ({value(low)} to {value(high)})"
    if isinstance(number, list):
        return ", ".join(value(x) for x in number)
    return str(number)


def is_numbers(found: Any) -> bool:
    return (isinstance(found, list) and 0 < len(found) <= NUMBERS
            and all(isinstance(x, int | float) and not isinstance(x, bool) for x in found))


def is_cell(found: Any) -> bool:
    """Whether a value fits in a cell of a table."""
    return not isinstance(found, dict | list) or is_numbers(found) or (
        isinstance(found, list) and 0 < len(found) <= 8 and all(isinstance(x, str) for x in found))


def flat(record: dict[str, Any], depth: int = 2) -> dict[str, Any]:
    """Nested groups laid side by side, {"times": {"least": 1}} -> {"times least": 1}."""
    out: dict[str, Any] = {}
    for key, found in record.items():
        if isinstance(found, dict) and depth:
            out |= {f"{key} {inner}": x for inner, x in flat(found, depth - 1).items()}
        elif is_cell(found):
            out[key] = found
    return out


def is_open(record: dict[str, Any]) -> bool:
    """Whether nobody has measured this yet: its zeros are no results."""
    return str(record.get("state", "")).startswith("open")


def words(key: str) -> str:
    return key.replace("_", " ")


def drawn(title: str, header: list[str], rows: list[list[str]]) -> list[str]:
    """A table under its title, folded where it is long."""
    if not rows or not header:
        return []
    text = table(header, rows)
    if len(rows) > FOLD:
        return [f"<details><summary>{title}: {len(rows)} rows</summary>\n", text, "\n</details>\n"]
    return [f"**{title}**\n", text, ""]


def at(record: dict[str, Any], path: str) -> Any:
    """The value at "times median"; keys may hold spaces themselves ("weights read ratio")."""
    if path in record:
        return record[path]
    for key, found in record.items():
        if path.startswith(key + " ") and isinstance(found, dict):
            return at(found, path[len(key) + 1:])
    return None


def known(columns: Columns, record: dict[str, Any]) -> list[str]:
    """A described table, or nothing where the record has another form by now."""
    found = record.get(columns.where)
    named = isinstance(found, dict)
    pairs = list(found.items()) if named else list(enumerate(found or []))
    header = [columns.first] * named + [name for _, name in columns.columns]
    rows = [[str(key)] * named + [value(at(r, path)) if path in MEANT or not is_open(r) else ""
                                  for path, _ in columns.columns] for key, r in pairs]
    return drawn(columns.title, header, rows)


def found_tables(record: dict[str, Any], name: str = "") -> Iterator[list[str]]:
    """Tables of a record that nobody described: lists of records, groups, and single values."""
    single = {k: v for k, v in record.items() if is_cell(v) and k not in ("date", "machine")}
    for key in [k for k, v in single.items() if len(value(v)) > SENTENCE]:
        yield [f"{words(key).capitalize()}: {value(single.pop(key))}.", ""]
    if single:
        yield drawn(words(name) or "Settings", ["", "value"],
                    [[words(k), value(v)] for k, v in single.items()])
    for key, found in record.items():
        if key == "machine" or is_cell(found) or not found:
            continue
        title = words(f"{name} {key}".strip())
        group = found if isinstance(found, list) else list(found.values())
        if all(isinstance(x, dict) for x in group):
            rows = [flat(x) for x in group]
            names = list(dict.fromkeys(column for row in rows for column in row))
            first = [] if isinstance(found, list) else [[str(k)] for k in found]
            cells = [[value(row.get(c)) for c in names] for row in rows]
            if first:
                cells = [a + b for a, b in zip(first, cells, strict=True)]
            yield drawn(title, [words(key)] * bool(first) + [words(c) for c in names], cells)
        elif isinstance(found, dict):
            yield from found_tables(found, title)


def machine(record: dict[str, Any]) -> str:
    """One line: when, on which machine, with which versions; what the record does not say is left
    out."""
    info = record.get("machine") or {}
    parts = [str(record.get("date") or "no date"), str(info.get("processor") or "")]
    if info.get("cores"):
        parts.append(f"{info['cores']} cores")
    if info.get("memory"):
        parts.append(f"{info['memory'] / 2**30:.0f} GiB")
    for gpu in info.get("gpus") or []:
        size = f", {gpu['memory'] / 2**30:.0f} GiB" if gpu.get("memory") else ""
        parts.append(f"{gpu.get('name', 'a GPU')}{size}, driver {gpu.get('driver', 'unknown')}")
    if info.get("python"):
        parts.append(f"Python {info['python']}")
    versions = info.get("packages") or record.get("versions") or {}
    parts += [f"{name} {version}" for name, version in versions.items()
              if version and name in ("numpy", "numba", "torch", "transformers")]
    if (info.get("cuda") or {}).get("version") and info.get("gpus"):
        parts.append(f"CUDA {info['cuda']['version']}")
    return "; ".join(part for part in parts if part) + "."


def page(root: Path) -> str:
    """A section a result: its file, its machine, its tables. Sorted, those of a GPU first."""
    found = records(root)
    out = []
    for name in sorted(found, key=lambda n: ("gpu" not in n, n)):
        record = found[name]
        title = TITLES.get(name) or words(name).replace("gpu", "GPU")
        out += [f"## {title[0].upper()}{title[1:]}", "",
                f"`{RESULTS}/{name}.json`: {machine(record)}", ""]
        tables = [known(columns, record) for columns in TABLES.get(name, ())]
        for lines in tables if any(tables) else found_tables(record):
            out += lines
    return "\n".join(out)
