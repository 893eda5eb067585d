"""The reference of the public surface: one page a part, filled by Sphinx from the docstrings.

Unusual here: no list of names is kept. A part's `__all__` is what is public, so a page follows the
code by itself; modules among the names bring their public functions and classes along.
"""

from __future__ import annotations

import importlib
import inspect
from types import ModuleType

PARTS = ("config", "reference", "pytorch", "sizing", "checkpoint", "training", "fullsize", "checks")


def directive(kind: str, name: str, *options: str) -> list[str]:
    return ["```{eval-rst}", f".. {kind}:: {name}", *(f"   :{o}:" for o in options), "```", ""]


def of_module(part: str, name: str, exported: list[str]) -> list[str]:
    """A module among the public names, with all that it holds; exported: what of it the part has
    under a shorter name too."""
    also = ", ".join(f"`{part}.{other}`" for other in exported)
    return [f"## {name}", "", *([f"Also as {also}.", ""] if also else []),
            *directive("automodule", f"{part}.{name}", "members")]


def page(part: str) -> str:
    """The page of a part, as Markdown: its own words, its classes and functions, its modules."""
    module = importlib.import_module(part)
    public = {name: getattr(module, name) for name in module.__all__}
    modules = {name: value for name, value in public.items() if isinstance(value, ModuleType)}
    homes = {value.__name__: name for name, value in modules.items()}
    exported: dict[str, list[str]] = {name: [] for name in modules}
    lines = [f"# {part}", "", *directive("automodule", part, "no-members")]
    for name, value in public.items():
        if name in modules or not callable(value):
            continue
        if home := homes.get(value.__module__):
            exported[home].append(name)  # shown once, with the module that it comes from
        else:
            kind = "autoclass" if inspect.isclass(value) else "autofunction"
            lines += directive(kind, f"{part}.{name}", *["members"] * inspect.isclass(value))
    for name in modules:
        lines += of_module(part, name, exported[name])
    return "\n".join(lines)


def pages() -> dict[str, str]:
    """Page names, as `3-sizing`, and their text, in the order of PARTS."""
    return {f"{number}-{part}": page(f"minik2.{part}") for number, part in enumerate(PARTS)}
