"""Measuring generators: against a data set, against their teacher, and earlier runs against each other."""
