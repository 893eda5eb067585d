"""What the figures of the lessons are tested with: one module a lesson, each with a list CASES.

A case is a figure's function, its arguments, and words that its title must have: what the numbers
say, also where they say the opposite of what the lesson hopes for.
"""

import importlib
import pkgutil

import numpy as np


def looking_back(size, distance, share):
    """Weights (T, T) that put `share` on the token `distance` back, and spread the rest."""
    even = np.tri(size) / np.arange(1, size + 1)[:, None]
    target = np.eye(size)[np.maximum(np.arange(size) - distance, 0)]
    return share * target + (1 - share) * even


TEXT = "for a in x:\n    y = a\n"

CASES = [case for module in pkgutil.iter_modules(__path__)
         for case in importlib.import_module(f"{__name__}.{module.name}").CASES]
