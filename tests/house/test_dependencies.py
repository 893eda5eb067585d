"""pyproject.toml, requirements.lock and environment.yml agree; the wheel is whole."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = [line for line in (ROOT / "requirements.lock").read_text().splitlines()
        if line and not line.startswith("#")]
NAMED = [Requirement(text) for texts in
         (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()) for text in texts]


def pins() -> dict[str, str]:
    return {canonicalize_name(name): version
            for name, version in (line.split("==") for line in LOCK)}


def test_a_pin_is_a_name_and_a_version():
    """No address, no path, no local build such as +cpu: the lock fits every machine."""
    assert [x for x in LOCK if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9A-Za-z.]+", x)] == []


@pytest.mark.parametrize("requirement", NAMED, ids=str)
def test_what_pyproject_names_is_pinned_within_its_bounds(requirement):
    pin = pins().get(canonicalize_name(requirement.name))
    assert pin, f"requirements.lock has no pin for {requirement.name}: see CONTRIBUTING.md"
    assert requirement.specifier.contains(pin)
    assert str(requirement.specifier).startswith(">="), "pyproject.toml keeps honest lower bounds"


def test_the_lock_pins_each_name_once():
    assert len(pins()) == len(LOCK)


def test_environment_yml_installs_the_same():
    """Conda's file names the extras, the lock and the oldest Python of pyproject.toml."""
    text = (ROOT / "environment.yml").read_text()
    items = re.findall(r"^\s*- (.+)$", text, flags=re.MULTILINE)
    extras = ",".join(sorted(PROJECT["optional-dependencies"]))
    assert items == [f"python{PROJECT['requires-python']}", "pip", "pip:", "-c requirements.lock",
                     f"-e .[{extras}]"]


def test_the_makefile_asks_for_extras_that_exist():
    text = (ROOT / "Makefile").read_text()
    asked = set(" ".join(re.findall(r"\$\(SET_UP\) (.+)", text)).split())
    assert asked == set(PROJECT["optional-dependencies"])


def test_the_wheel_holds_every_module_and_data_file(tmp_path):
    pytest.importorskip("setuptools", "77")
    clone = tmp_path / "clone"  # a build leaves files beside its sources, and reads old ones
    for name in ("pyproject.toml", "LICENSE", "README.md", "minik2"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        clone.mkdir(exist_ok=True)
        copy(ROOT / name, clone / name)
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-index",
                    "--no-build-isolation", "-w", tmp_path, clone], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("minik2/")}
    wanted = {str(path.relative_to(ROOT)) for pattern in ("*.py", "*.json")
              for path in (ROOT / "minik2").rglob(pattern)}
    assert packed == wanted
