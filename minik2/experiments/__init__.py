"""What K2's reports claim, tried again with a model that a laptop trains in a minute.

Unusual here: an experiment is its stored result. A module says in its first lines what is claimed
and what is done, `run` trains or finds what is already trained, the figure is drawn from the
results file alone, and a page of LAB_NOTES.md says what came of it, whichever way it fell.

    python -m minik2.experiments --list
"""
