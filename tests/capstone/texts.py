"""A small text, and entries small enough to be trained in a moment."""

import textwrap

from minik2.training.corpus import Corpus

# Lines that repeat with a number that changes: learnable in a few steps, and never quite.
FILES = [
    (f"{n}.py", "".join(f"def f{n}_{k}(x):\n    return x + {k}\n" for k in range(60)).encode())
    for n in range(12)
]

# A model of the reference engine, AdamW by hand; {rate} is all that differs between two of them.
LEARNS = '''
"""A tiny reference model.

More words.
"""
from minik2 import ModelConfig, reference
from minik2.reference.adamw import AdamW

def train(run):
    model = reference.Model.init(ModelConfig.preset("tiny"), seed=run.seed)
    optimizer = AdamW({rate})
    for gone in run.steps():
        loss, grads = model.loss_and_grads(*run.batch(4, 32))
        optimizer.step(model.weights, grads)
        run.note(loss)
    return model
'''


def corpus() -> Corpus:
    return Corpus(FILES)


def learns(rate: float) -> str:
    return LEARNS.replace("{rate}", str(rate)).lstrip()


def body(lines: str) -> str:
    """An entry whose `train` is these lines."""
    return "def train(run):\n" + textwrap.indent(textwrap.dedent(lines).strip(), "    ") + "\n"


def ticking(step: float):
    """A clock that goes on by `step` seconds each time somebody looks."""
    now = -step

    def clock() -> float:
        nonlocal now
        now += step
        return now

    return clock
