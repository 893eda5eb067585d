"""Settings for every test: how many threads a worker may use, and no drawing on a screen.

With `-n 2` on two cores, two processes each starting two OpenBLAS, two OpenMP (torch) and two
Numba threads would put up to four busy threads on two cores, and spinning threads then cost more
than they do. So each worker gets its share of the cores. The variables are read when the
libraries load, hence here, before any test module is imported; kernels and other processes that a
test starts inherit them. Without xdist one process has all cores, and nothing is changed.
"""

import os

_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if _WORKERS > 1:
    _share = str(max(1, (os.cpu_count() or 1) // _WORKERS))
    for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS",
                  "VECLIB_MAXIMUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(_name, _share)

os.environ.setdefault("MPLBACKEND", "agg")
