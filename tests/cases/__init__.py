"""Situations that strangers bring: what is fed, what is right, and what must never happen.

Each module of this package lists cases of one kind in `CASES`. `pytest -m slow
tests/cases` runs every one of them as a user would, by a command in a process of its own, and
`python scripts/cases.py` prints the same runs as the tables of docs/robustness.md.
"""
