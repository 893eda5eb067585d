"""Worksheets as the builder makes them, with the marks that minik2/checks/notebooks.py describes.

Made here in a few lines, so that a test says what each cell holds; test_built.py holds the built
notebooks against the same contract.
"""

import json
from pathlib import Path
from typing import Any

from minik2.checks.exercise import exercises, find
from minik2.checks.notebooks import check_call, stub_hash

SETUP = "import numpy as np\n\nfrom minik2.checks import check"

# Lesson 00's exercises, solved as a learner might.
RIGHT = {
    "config.read": '''\
def read(config):
    rope = config.get("rope_parameters") or config
    layers, dense = config["num_hidden_layers"], config["first_k_dense_replace"]
    experts, chosen = config["n_routed_experts"], config["num_experts_per_tok"]
    return {"layers": layers, "moe_layers": layers - dense,
            "heads": config["num_attention_heads"], "experts": experts,
            "experts_per_token": chosen, "sparsity": experts / chosen,
            "rope_theta": rope["rope_theta"]}''',
    "config.count_expert": '''\
def count_expert(config):
    return 3 * config["hidden_size"] * config["moe_intermediate_size"]''',
    "config.cache_numbers": '''\
def cache_numbers(config):
    return config["num_hidden_layers"] * (config["kv_lora_rank"] + config["qk_rope_head_dim"])''',
}
READ, COUNT, CACHE = RIGHT


def code(source: str, role: str = "", **marks: str) -> dict[str, Any]:
    """A code cell; without a role it is one that the learner added."""
    metadata = {"minik2": {"role": role, **marks}} if role else {}
    return {"cell_type": "code", "source": source, "metadata": metadata, "outputs": [],
            "execution_count": None}


def stub(exercise: str) -> str:
    return f"def {find(exercise).function}(*arguments):\n    ..."


def answer(exercise: str, source: str | None = None) -> dict[str, Any]:
    empty = stub(exercise)
    return code(empty if source is None else source, "answer", exercise=exercise,
                stub_sha256=stub_hash(empty))


def check(exercise: str, source: str | None = None) -> dict[str, Any]:
    call = check_call(exercise, find(exercise).function)
    return code(call if source is None else source, "check", exercise=exercise)


def worksheet(answers: dict[str, str], lesson: str = "00") -> list[dict[str, Any]]:
    """The cells of a lesson's worksheet; exercises without an answer hold their stub."""
    cells = [code(SETUP, "setup")]
    for exercise in (e.id for e in exercises() if e.lesson == lesson):
        cells += [answer(exercise, answers.get(exercise)), check(exercise)]
    return cells


def save(path: Path, cells: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    head = {"cell_type": "markdown", "source": ["# A worksheet\n", "in two lines"], "metadata": {}}
    path.write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {},
                                "cells": [head, *cells]}), encoding="utf-8")
    return path
