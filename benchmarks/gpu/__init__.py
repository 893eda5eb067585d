"""The sections of the GPU check, one module each; `benchmarks.gpu_check` runs them."""
