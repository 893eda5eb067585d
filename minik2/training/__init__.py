"""What a model is trained with: the text it reads."""

from minik2.training.corpus import Corpus

__all__ = ["Corpus"]
