"""Which part may import which: the arrows of the README's map run one way."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "minik2"

# A part may import parts of a lower rank, itself, and (rank 0 only) its equals.
RANKS = {
    "config": 0, "config_json": 0, "config_rules": 0, "files": 0, "heap": 0, "host": 0,
    "initial": 0, "terminal": 0, "tokens": 0, "cli_looks": 0,
    "sizing": 1, "checkpoint": 1, "cost": 1, "sampling": 1, "tokenizer": 1,
    "reference": 2, "pytorch": 2,
    "training": 3, "fullsize": 3,
    "plots": 4, "doctor": 4,
    "experiments": 5, "checks": 5, "capstone": 5, "cli_train": 5, "cli_generate": 5,
    "cli_fullsize": 5, "cli_inspect": 5,
    "cli_grade": 6, "cli_capstone": 6,
    "cli": 7, "__main__": 8,
}
ENGINE = {part for part, rank in RANKS.items() if rank <= 2}
FILES = sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    if path.name == "__main__.py":
        return "__main__"  # what is run by name, and nobody imports
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Every module that the file imports, inside functions too, as dotted names."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full here, not with dots"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def roots(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arrows_run_one_way(path):
    here = part_of(path)
    if here == "__init__":
        return
    assert here in RANKS, f"{here} has no place yet: give it one in RANKS, above"
    for name in imports(path):
        top, _, rest = name.partition(".")
        there = rest.split(".")[0]
        if top != "minik2" or there in (here, "__version__", "ModelConfig"):
            continue
        assert there in RANKS, f"{path.name} imports {name}, which has no place in RANKS"
        allowed = RANKS[there] < RANKS[here] or RANKS[there] == RANKS[here] == 0
        assert allowed, f"{here} may not import {there}: the arrow runs the other way"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_each_part_keeps_to_its_libraries(path):
    part, used = part_of(path), roots(path)
    assert "transformers" not in used, "transformers is an oracle of the tests, never a part"
    assert not used & {"pickle", "dill", "joblib", "cloudpickle"}, "nothing is ever unpickled"
    if part in ENGINE - {"pytorch"}:
        assert "torch" not in used
    if part in ENGINE | {"training"}:
        assert not used & {"matplotlib", "ipywidgets", "IPython"}


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_minik2_loads_nothing_heavy():
    heavy = "{'torch', 'numba', 'matplotlib', 'transformers', 'IPython', 'pandas', 'scipy'}"
    for code in ("import minik2", "import minik2; minik2.ModelConfig.presets()"):
        assert python(f"{code}; import sys; print(sorted({heavy} & set(sys.modules)))") == "[]\n"


def test_the_reference_engine_runs_where_torch_cannot_be_imported():
    python(
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np, minik2\n"
        "model = minik2.reference.Model.init(minik2.ModelConfig.preset('tiny'), seed=0)\n"
        "assert np.isfinite(model(np.arange(6)[None])).all()\n"
        "assert 'matplotlib' not in sys.modules\n")
