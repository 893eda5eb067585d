"""K2 at its real size on a small machine: weights are made on the fly, and nothing stores them."""

from minik2.fullsize.model import Model
from minik2.fullsize.report import Amounts, Report
from minik2.fullsize.run import run
from minik2.fullsize.weights import Weights

__all__ = ["Amounts", "Model", "Report", "Weights", "run"]
