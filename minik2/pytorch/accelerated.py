"""The Triton kernels where there is Triton, which comes with PyTorch's builds for NVIDIA GPUs."""

from types import ModuleType

kernels: ModuleType | None
try:
    from minik2.pytorch import kernels
except ModuleNotFoundError as error:
    if error.name is None or error.name.split(".")[0] != "triton":
        raise
    kernels = None
