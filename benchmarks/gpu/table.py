"""The GPU check's record as Markdown: a line a check, a column a precision."""

from __future__ import annotations

from typing import Any

PRECISIONS = ("float64", "float32", "bfloat16")
OPEN = (
    "Open: the check has not been run on a GPU yet. `make gpu-check` on a machine with one fills "
    "this in."
)


def table(record: dict[str, Any] | None) -> str:
    """What stands in the README; record: results/gpu_check.json, None where there is none."""
    if record is None:
        return OPEN
    versions, host = record["machine"]["packages"], record["machine"]
    drivers = ", ".join(dict.fromkeys(gpu["driver"] for gpu in host["gpus"])) or "unknown"
    text = [
        f"{record['device']}, driver {drivers}, {record['date']}, Python {host['python']}, PyTorch "
        f"{versions['torch']}, NumPy {versions['numpy']}, Numba {versions['numba']}; "
        f"{record['configurations']} random configurations (seed {record['seed']}). Each cell: the "
        "error that came closest to its bound, that bound, and how many comparisons were made; "
        "relative errors, or shares of what is allowed where the bound is 1. Comparisons of which "
        "a bound says nothing are left out, as in the proof sheet.",
    ]  # fmt: skip
    for section in dict.fromkeys(check["section"] for check in record["checks"]):
        mine = [check for check in record["checks"] if check["section"] == section]
        text += ["", f"| {section} | {' | '.join(PRECISIONS)} |", "|---|---|---|---|"]
        for name in dict.fromkeys(check["name"] for check in mine):
            cells = {c["precision"]: cell(c) for c in mine if c["name"] == name}
            text.append(f"| {name} | {' | '.join(cells.get(p, '–') for p in PRECISIONS)} |")
    return "\n".join(text)


def cell(check: dict[str, Any]) -> str:
    """A check as a cell of the table; the count of equal choices stands in its note."""
    if check["state"] == "open":
        return "open"
    error, bound = f"{check['error']:.1e}", f"{check['bound']:.1e}"
    if check["bound"] == 1.0:
        error, bound = f"{check['error']:.2g}", "1"
    error = "0" if check["error"] == 0 else error
    sign, mark = (">", "**broken:** ") if check["state"] == "broken" else ("<", "")
    counted = f"{check['count']:,}"
    if " equal" in check["note"]:
        counted += "; " + check["note"].partition(" equal")[0] + " equal"
    return f"{mark}{error} {sign} {bound} ({counted})"
