"""What the README promises is there: the map, the links, the example, the commands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LAB_NOTES.md", "GLOSSARY.md",
             "AGENTS.md", "ERRATA.md"]


def block_with(text: str) -> str:
    (block,) = (b for b in re.findall(r"^```\w*\n(.*?)^```", README, re.S | re.M) if text in b)
    return block


def mapped() -> list[str]:
    """Paths of the map. Entries under minik2/ stand two spaces in; four in, files of the engines,
    which both have unless the line says otherwise."""
    paths = []
    for line in block_with("bootstrap.py  ").splitlines():
        indent, name, rest = re.match(r"( *)(\S+) *(.*)", line).groups()
        if len(indent) == 4:
            engines = [e for e in ("reference", "pytorch") if f"({e})" in rest]
            paths += [f"minik2/{e}/{name}" for e in engines[:1] or ("reference", "pytorch")]
        else:
            paths.append(f"minik2/{name}" if indent else name)
    return paths


@pytest.mark.parametrize("path", mapped())
def test_the_map_shows_what_is_there(path):
    assert (ROOT / path).exists()
    assert (ROOT / path).is_dir() == path.endswith("/")


def test_the_map_leaves_no_part_out():
    parts = {f"minik2/{p.name}/" if p.is_dir() else f"minik2/{p.name}"
             for p in (ROOT / "minik2").iterdir() if not p.name.startswith("__")}
    assert parts <= set(mapped())


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    titles = {re.sub(r"[^\w -]", "", t).strip().lower().replace(" ", "-")
              for t in re.findall(r"^#+ (.+)$", text, re.M)}
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in titles, f"{name} has no section {target}"
        elif "://" not in target:
            assert (ROOT / target).exists(), f"{name} points at {target}, which is not there"


def test_the_example_runs(tmp_path):
    done = subprocess.run([sys.executable, "-c", block_with("logits = ")], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1,026,408,232,448" in done.stdout
    assert (tmp_path / "somewhere" / "config.json").exists()
