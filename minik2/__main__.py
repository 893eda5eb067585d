"""`python -m minik2` is the command `minik2`."""

from minik2.cli import main

if __name__ == "__main__":
    main()
