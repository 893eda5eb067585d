"""The capstone: the best small K2 that this machine trains in five minutes, and its judge.

A learner edits one script, capstone/my_entry.py; the rules are in capstone/README.md. `judge`
trains and asks, `results` keeps, `board` compares. Nothing is imported here, so that the board of
results comes at once.
"""
