"""Greedy text from the device's cache, every token judged by the reference's full forward pass.

Unusual here: texts are not compared, since one near-tie sends two right texts apart. The device's
own text goes through the reference in float64, without a cache, and each token that was picked must
be the best of its place, or less than two bounds below it: as much as rounding may turn two logits
against each other. How many tokens equal those of the reference's own generation is told beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from benchmarks import rounding
from benchmarks.gpu.check import Check
from benchmarks.parts import PARTS
from benchmarks.question import Case, ask
from benchmarks.rounding import TOO_COARSE
from minik2 import pytorch, reference
from minik2.config import ModelConfig

NEW, SEEDS, SHAPE = 16, 6, (3, 12)
WHOLE = next(part for part in PARTS if part.name == "whole model")


def run(section: str, cases: Sequence[Case], device: str) -> Iterator[Check]:
    """One check for each precision: the preset tiny with several weights, ragged prompts.

    In bfloat16 one layer of it, since through three the bound would allow anything.
    """
    tiny = ModelConfig.preset("tiny")
    one = tiny.replace(num_hidden_layers=1, first_k_dense_replace=0)
    for precision in ("float64", "float32", "bfloat16"):
        check, equal = Check(section, "greedy tokens from the cache", precision), 0
        for seed in range(SEEDS):
            equal += judge(check, Case(one if precision == "bfloat16" else tiny, SHAPE, seed),
                           precision, device)  # fmt: skip
        picked = SEEDS * SHAPE[0] * NEW
        check.note = f"{equal} of {picked} tokens equal the reference's own"
        yield check


def judge(check: Check, case: Case, precision: str, device: str) -> int:
    """One model's texts into the check; returns how many tokens the reference picks as well."""
    with ask(case, precision) as question:
        prompts, batch = question.inputs.tokens, case.shape[0]
        counts = case.shape[1] - np.arange(batch) * (case.shape[1] // (batch + 1))
        held = getattr(torch, precision)
        theirs = pytorch.Model.from_pretrained(question.directory, device, held)
        got = theirs.generate(prompts, NEW, counts=counts).cpu().numpy()[:, -NEW:]
        ours = reference.Model.from_pretrained(question.directory, dtype="float64")
        want = ours.generate(prompts, NEW, counts=counts)[:, -NEW:]
        texts = np.zeros((batch, case.shape[1] + NEW), np.int64)
        for row, n in enumerate(counts):
            texts[row, : n + NEW] = np.concatenate([prompts[row, :n], got[row]])
        # The bound is that of these texts; what is padding comes after them and changes nothing.
        question.inputs = dataclasses.replace(question.inputs, tokens=texts)
        question.shape = texts.shape
        noise = sum(
            rounding.decoding(question.cfg, texts.shape).noise(each, "float64")
            for each in (precision, "float64")
        )
        bound = 2 * noise * question.sensitivity(WHOLE)
        if noise >= question.leeway(WHOLE) or bound > 2 * TOO_COARSE:
            check.left_out += got.size
            return int((got == want).sum())
        logits = ours(texts)
        largest = float(np.abs(logits).max())
        for row, n in enumerate(counts):
            seen = logits[row, n - 1 : n - 1 + NEW]
            picked = seen[np.arange(NEW), got[row]]
            gap = float((seen.max(axis=1) - picked).max()) / largest
            check.add(gap, bound, f"{case!r}, row {row}: {got[row].tolist()}", NEW)
        return int((got == want).sum())

