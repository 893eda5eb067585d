"""The figures of the course: every one is a function here, one module a lesson.

A function takes the tensors that the lesson has in hand and returns a `common.Picture`, a
matplotlib figure that shows itself in a notebook. Nothing here computes what it claims.
"""
