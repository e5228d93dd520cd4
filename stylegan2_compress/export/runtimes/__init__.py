"""How each runtime opens a file. The text of a module here is a part of `run.py`, and runs in a process of its own."""
