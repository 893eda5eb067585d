"""Training: the text, the recipe, and runs that can be killed at any moment."""

from minik2.training.corpus import Corpus
from minik2.training.lesson_model import lesson_model
from minik2.training.settings import Settings
from minik2.training.trainer import Habits, Outcome, train

__all__ = ["Corpus", "Habits", "Outcome", "Settings", "lesson_model", "train"]
