"""Measuring generators: against a data set, against their teacher, and earlier runs against each other.

`base` says what a metric is, `metrics` has the table of all; `evaluate`, `compare` and `profile` are commands.
"""
