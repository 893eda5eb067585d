"""The one exception of checkpoints."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used as it is; the text names the file, the tensor, the mend."""
