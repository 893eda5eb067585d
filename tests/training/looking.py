"""`minik2 train` that looks, before each of its file operations in a save, at what is there.

python -m tests.training.looking LOG OPTIONS: into LOG.RANK go the steps of the checkpoints, a line
a look. One that is not whole ends it.
"""

import json
import os
import sys
from pathlib import Path

from minik2.cli import main
from minik2.training import store

FILES = ("open", "os", "shutil", "pathlib")


def watched(log):
    """`store.save` from the second one on: the first has nothing to lose yet."""
    save, saved, looking = store.save, 0, False

    def saving(run, *given):
        nonlocal saved, looking
        folder = run / "checkpoints"

        def look(event, arguments):
            nonlocal looking
            if not looking or event.partition(".")[0] not in FILES:
                return
            looking = False
            steps = []
            for path in store._steps(folder):
                try:
                    steps.append(store._read(path, True).step)
                except (OSError, ValueError):
                    # The first rank has dropped it meanwhile.
                    assert not path.exists()
            print(json.dumps(steps), file=log, flush=True)
            looking = True

        if saved == 0:
            sys.addaudithook(lambda *given: look(*given))
        looking = saved > 0
        try:
            return save(run, *given)
        finally:
            saved, looking = saved + 1, False

    store.save = saving


if __name__ == "__main__":
    where = Path(f"{sys.argv.pop(1)}.{os.environ['RANK']}")
    with where.open("w") as log:
        watched(log)
        sys.argv[1:1] = ["train"]
        main()
