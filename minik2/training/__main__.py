"""`torchrun --nproc-per-node N -m minik2.training …` is `minik2 train …` on N processes."""

import sys

from minik2.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    main()
