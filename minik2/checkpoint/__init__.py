"""Hugging Face checkpoints in and out: config.json, safetensors, and the index of many files.

Weights are plain numbers, or narrowed as in the released files: FP8 in blocks, INT4 in groups.
Nothing is ever unpickled. Reading maps files and checks every name, shape and dtype against the
config before anything is allocated; writing replaces a whole directory or leaves the old one.
"""

from minik2.checkpoint.errors import CheckpointError
from minik2.checkpoint.read import Checkpoint, open_checkpoint
from minik2.checkpoint.write import save

__all__ = ["Checkpoint", "CheckpointError", "open_checkpoint", "save"]
